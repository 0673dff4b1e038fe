"""`utmp-predict`: from items of any modalities to a file of predictions."""

from omegaconf import DictConfig

from common.config.composition import TRAINED
from common.config.predict import PredictConfig, parse_predict
from server.commands.command import hydra_command


@hydra_command("predict", PredictConfig, TRAINED)
def main(composed: DictConfig) -> None:
    """Predict."""
    config = parse_predict(composed)
    # Imported here, so that --help and a mistyped setting answer at once.
    from server.prediction.console import PredictConsole
    from server.prediction.files import predict_file

    predict_file(config, PredictConsole())


if __name__ == "__main__":
    main()
