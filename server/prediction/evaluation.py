"""How good a trained model is, on its run's own items or on others."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic import atomic_file
from common.config import EvaluateConfig, FusionRule, config_of_settings
from common.data.dataset import MultimodalDataset
from common.data.federation import count_outputs, load_federation
from common.data.formats.registry import read_source
from common.data.item_stream import SHARD
from common.data.manifest import MANIFEST
from common.data.shards import read_shard
from common.errors import UserError
from common.seal import SUFFIX
from common.task import Task
from common.training import use_one_thread
from server.evaluate import diagnose, evaluate, evaluate_rules, evaluate_subsets
from server.prediction.input_settings import (
    check_modalities,
    device_named,
    input_settings,
    paths_named,
)
from server.prediction.predictor import Predictor, model_path
from server.prediction.writers import check_place
from server.run.folder import CONFIG, read_settings


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes
    ----------
    about
        Model, dataset and number of items.
    task
        Kind of label.
    label_names
        What classes or labels are called, where that is known.
    results
        As a run's ``summary.json`` has them: ``test``, ``test_by_fusion``, ``test_by_subset`` and
        ``diagnostics``.
    """

    about: dict[str, Any]
    task: Task
    label_names: tuple[str, ...]
    results: dict[str, Any]

    def to_json(self) -> bytes:
        """Return the content of a file."""
        return (json.dumps({**self.about, **self.results}, indent=2) + "\n").encode()


def evaluate_model(config: EvaluateConfig) -> Evaluation:
    """Evaluate a model on labelled items.

    Raises
    ------
    UserError
        If the model or the items cannot be used, or do not fit each other.
    """
    assert config.model is not None
    if config.out is not None:
        check_place(Path(config.out), config.overwrite)
    use_one_thread()  # as in the run, so that sums are in the same order
    predictor = Predictor.load(config.model, device_named(config.device), config.max_seq_len)
    check_modalities("modalities", config.modalities, predictor)
    what, items = _own(config) if config.dataset is None else _given(config, predictor)
    items = _fitting(items, what, config, predictor)
    model, fusion = predictor.model, predictor.fusion
    rules = {str(rule): replace(fusion, rule=rule) for rule in FusionRule if rule != "auto"}
    return Evaluation(
        {"model": config.model, "dataset": what, "items": len(items)},
        predictor.task,
        predictor.label_names,
        {
            "test": evaluate(model, fusion, items),
            "test_by_fusion": evaluate_rules(model, rules, items),
            "test_by_subset": evaluate_subsets(model, fusion, items),
            "diagnostics": diagnose(model, fusion, items),
        },
    )


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write all of an evaluation as JSON.

    Raises
    ------
    UserError
        If it cannot be written.
    """
    try:
        with atomic_file(path) as aside:
            aside.write_bytes(evaluation.to_json())
    except OSError as error:
        raise UserError(f"out={path} cannot be written: {error.strerror or error}") from error


def _own(config: EvaluateConfig) -> tuple[str, MultimodalDataset]:
    """Read what the run itself was evaluated on."""
    assert config.model is not None
    settings = model_path(config.model).parent / CONFIG
    if not settings.is_file():
        raise UserError(
            f"{settings} does not exist, so nobody knows what the model was evaluated on; give "
            "dataset=…"
        )
    data = load_federation(config_of_settings(read_settings(settings)))
    return f"{config.side} items of the run", getattr(data, str(config.side))


def _given(config: EvaluateConfig, predictor: Predictor) -> tuple[str, MultimodalDataset]:
    """Read the dataset that was given."""
    paths = paths_named("dataset", config.dataset)
    if (paths[0] / MANIFEST).is_file():
        paths[0] /= f"{config.side}{SUFFIX}"
    what = ", ".join(map(str, paths))
    if config.format == SHARD or (config.format == "auto" and paths[0].suffix == SUFFIX):
        return what, _of_shard(paths, predictor)
    settings = input_settings(
        config,
        predictor,
        lenient=not config.modalities,
        task=predictor.task,
        emotions=config.emotions,
        labels=tuple(config.labels),
    )
    return what, read_source(paths, config.format, settings)[0].items


def _of_shard(paths: list[Path], predictor: Predictor) -> MultimodalDataset:
    if len(paths) > 1:
        raise UserError(f"dataset names {len(paths)} shards; expected one, or their folder")
    shard = read_shard(paths[0])
    if shard.info.task is not predictor.task:
        raise UserError(
            f"{paths[0]} has labels for {shard.info.task}, and the model is for {predictor.task}"
        )
    return shard.items


def _fitting(
    items: MultimodalDataset, what: str, config: EvaluateConfig, predictor: Predictor
) -> MultimodalDataset:
    """Check that items are what the model takes; leave out what it does not."""
    wanted = config.modalities or list(predictor.features)
    names = [name for name in predictor.features if name in wanted and name in items.sequences]
    lacking = [name for name in config.modalities if name not in names]
    if lacking or not names:
        raise UserError(
            f"{what} has {', '.join(items.sequences)}, and not {', '.join(lacking or wanted)}"
        )
    items = items.in_modalities(names).last_steps(predictor.max_seq_len)
    for name, sequences in items.sequences.items():
        predictor.check(name, sequences)
        if not (sequences.lengths > 0).any():
            raise UserError(f"{what}: no item has {name}; leave it out with modalities=[…]")
    outputs = count_outputs(predictor.task, items.labels)
    if outputs > predictor.outputs or (
        predictor.task is Task.multilabel and outputs != predictor.outputs
    ):
        raise UserError(
            f"{what} has {outputs} classes or labels, and the model {predictor.outputs}"
        )
    present = np.stack([each.lengths > 0 for each in items.sequences.values()]).any(axis=0)
    return items.select(np.flatnonzero(present))
