"""How good a trained model is, on its run's own items or on others."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.config import EvaluateConfig, FusionRule, config_of_settings
from common.data.dataset import MultimodalDataset
from common.data.federation import count_outputs, load_federation
from common.data.formats.registry import read_source
from common.data.item_stream import SHARD
from common.data.manifest import MANIFEST
from common.data.shards import read_shard
from common.data.source import paths_named
from common.errors import UserError
from common.seal import SUFFIX
from common.task import Task
from common.training import choose_device, use_one_thread
from server.evaluate import diagnose, evaluate, evaluate_rules, evaluate_subsets
from server.prediction.input_settings import check_modalities, input_settings
from server.prediction.predictor import Predictor, model_path
from server.prediction.writers import check_place, new_file
from server.run.folder import CONFIG, read_settings


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation."""

    #: ``model``, ``dataset`` and number of ``items``.
    about: dict[str, Any]
    task: Task
    label_names: tuple[str, ...]
    #: As in a run's ``summary.json``: ``test``, ``test_by_fusion``, ``test_by_subset`` and
    #: ``diagnostics``.
    results: dict[str, Any]


def evaluate_model(config: EvaluateConfig) -> Evaluation:
    """Evaluate a model; raise `UserError` if it or the items cannot be used, or do not fit."""
    if config.out is not None:
        check_place(Path(config.out), config.overwrite)
    use_one_thread()  # as in the run, so that sums are in the same order
    device = choose_device(config.device, "device")
    predictor = Predictor.load(str(config.model), device, config.max_seq_len)
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
    """Write all of an evaluation as JSON, or raise `UserError`."""
    content = json.dumps({**evaluation.about, **evaluation.results}, indent=2) + "\n"
    with new_file(path) as aside:
        aside.write_text(content)


def _own(config: EvaluateConfig) -> tuple[str, MultimodalDataset]:
    """Read what the run itself was evaluated on."""
    settings = model_path(str(config.model)).parent / CONFIG
    if not settings.is_file():
        raise UserError(
            f"{settings} does not exist, so the run's own items are unknown; give dataset=…"
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
    """Check that items fit the model, and leave out modalities and items that do not count."""
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
        if not sequences.present.any():
            raise UserError(f"{what}: no item has {name}; leave it out with modalities=[…]")
    outputs = count_outputs(predictor.task, items.labels)
    if outputs > predictor.outputs or (
        predictor.task is Task.multilabel and outputs != predictor.outputs
    ):
        raise UserError(
            f"{what} has {outputs} classes or labels, and the model {predictor.outputs}"
        )
    return items.select(np.flatnonzero(items.present()))
