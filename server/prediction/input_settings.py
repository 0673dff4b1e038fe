"""How an input is read for a trained model: by default as the run read its data."""

from collections.abc import Iterable
from typing import Any

from common.config import EvaluateConfig, PredictConfig
from common.data.source import ReadSettings
from common.errors import UserError
from server.prediction.predictor import Predictor, dataset_settings, model_path


def input_settings(
    config: PredictConfig | EvaluateConfig, predictor: Predictor, **others: Any
) -> ReadSettings:
    """Return how an input is read for a predictor, with further settings of `ReadSettings`.

    Raises `UserError` if a modality is not one of the model's.
    """
    names = tuple(dict.fromkeys(config.modalities or predictor.features))
    check_modalities("modalities", names, predictor)
    check_modalities("arrays", config.arrays, predictor)
    trained = dataset_settings(model_path(str(config.model)).parent)
    context = trained.get("context") or 0 if config.context is None else config.context
    return ReadSettings(
        modalities=names,
        # Groups matter only where an item takes context from its neighbours.
        group=(config.group or trained.get("group")) if context else None,
        context=context,
        tabular=tuple(name for name in names if len(predictor.features[name]) == 2),
        max_seq_len=predictor.max_seq_len,
        arrays=config.arrays,
        **others,
    )


def check_modalities(setting: str, names: Iterable[str], predictor: Predictor) -> None:
    """Raise `UserError` where a setting names a modality that is not one of the model's."""
    for name in names:
        if name not in predictor.features:
            raise UserError(
                f"{setting}: there is no {name!r}; the model takes {', '.join(predictor.features)}"
            )
