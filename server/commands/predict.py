"""`utmp-predict`: from items of any modalities to a file of predictions."""

from common.config import PredictConfig
from server.commands.command import hydra_command


@hydra_command(PredictConfig)
def main(config: PredictConfig) -> None:
    """Predict."""
    # Imported here, so that --help and a mistyped setting answer at once.
    from server.prediction.console import PredictConsole
    from server.prediction.files import predict_file

    predict_file(config, PredictConsole())


if __name__ == "__main__":
    main()
