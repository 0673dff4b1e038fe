"""`utmp-evaluate`: how good a trained model is, on its run's own items or on others."""

from pathlib import Path

from common.config import EvaluateConfig
from server.commands.command import hydra_command


@hydra_command(EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Evaluate."""
    # Imported here, so that --help and a mistyped setting answer at once.
    from server.prediction.evaluation import evaluate_model, write_evaluation
    from server.prediction.evaluation_console import EvaluationConsole

    evaluation = evaluate_model(config)
    console = EvaluationConsole()
    console.show(evaluation)
    if config.out is not None:
        write_evaluation(evaluation, Path(config.out))
        console.tell(f"evaluation: {config.out}")


if __name__ == "__main__":
    main()
