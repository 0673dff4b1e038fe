"""Where the figures of a run are shown beside its own folder."""

from dataclasses import dataclass
from enum import StrEnum


class TrackingTool(StrEnum):
    """What shows them."""

    tensorboard = "tensorboard"
    mlflow = "mlflow"
    none = "none"


@dataclass
class TrackingConfig:
    """See `server.tracking`."""

    name: TrackingTool = TrackingTool.tensorboard
    uri: str | None = None  # of MLflow; None: as MLflow itself finds it
    experiment: str = "ha-fedformer"  # of MLflow
