"""The description of a model: `GET /model`."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config import ServeConfig
from common.errors import UserError
from common.task import Task
from server.prediction.predictor import Predictor, model_path
from server.run.folder import CONFIG, SUMMARY, read_settings

#: The largest sentiment label, of seven classes around 0.
SENTIMENT = 3.0


def describe(config: ServeConfig, predictor: Predictor, labels: Sequence[str]) -> dict[str, Any]:
    """Return what `ModelAnswer` describes, with these names of classes or labels."""
    file = model_path(str(config.model)).absolute()
    return {
        "name": file.parent.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "task": str(predictor.task),
        "labels": list(labels),
        "features": {
            name: {"width": width, "steps": steps[0] if steps else None}
            for name, (*steps, width) in predictor.features.items()
        },
        "max_seq_len": predictor.max_seq_len,
        "scale": scale(predictor),
        "fusion": {"rule": str(predictor.fusion.rule), "weights": predictor.fusion.weights},
        "training": _training(file.parent),
        "limits": {
            "max_body_bytes": round(config.max_body_mb * 2**20),
            "max_items": config.max_items,
            "max_steps": config.max_steps,
        },
    }


def scale(predictor: Predictor) -> list[float] | None:
    """Return the ends of a scale for predicted numbers, None for classes and labels.

    The scale is -3 to 3 if the labels fit it, otherwise three deviations around their mean.
    """
    if predictor.task is not Task.regression:
        return None
    mean, variance = predictor.fusion.prior
    deviation = math.sqrt(variance)
    if abs(mean) + deviation <= SENTIMENT <= 6 * deviation:
        return [-SENTIMENT, SENTIMENT]
    return [mean - 3 * deviation, mean + 3 * deviation]


def _training(folder: Path) -> dict[str, Any]:
    """Return facts of the run, if the model is in a run folder."""
    if not (folder / CONFIG).is_file() or not (folder / SUMMARY).is_file():
        return {}
    settings = read_settings(folder / CONFIG)
    try:
        summary = json.loads((folder / SUMMARY).read_text())
        facts = {name: summary.get(name) for name in ("rounds", "seed")}
        test = summary["test"]["multimodal"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / SUMMARY} is damaged: {error}") from error
    return {"strategy": (settings.get("strategy") or {}).get("name"), **facts, "test": test}
