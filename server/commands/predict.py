"""`utmp-predict`: from items of any modalities to a file of predictions."""

from common.config import PredictConfig
from server.commands.command import hydra_command


@hydra_command(PredictConfig)
def main(config: PredictConfig) -> None:
    """Predict."""
    from server.prediction.files import predict_file
    from server.terminal import Terminal

    predict_file(config, Terminal())
