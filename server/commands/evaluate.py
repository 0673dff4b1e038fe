"""`utmp-evaluate`: how good a trained model is, on its run's own items or on others."""

from pathlib import Path

from common.config import EvaluateConfig
from server.commands.command import hydra_command


@hydra_command(EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Evaluate."""
    from server.prediction.evaluation import evaluate_model, show_evaluation, write_evaluation
    from server.terminal import Terminal

    evaluation, terminal = evaluate_model(config), Terminal()
    show_evaluation(terminal, evaluation)
    if config.out is not None:
        write_evaluation(evaluation, Path(config.out))
        terminal.tell(f"evaluation: {config.out}")
