"""How good a trained model is, on its run's own items or on others; what `utmp-evaluate` shows."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from common.config import EvaluateConfig, FusionRule
from common.data.dataset import MultimodalDataset
from common.data.formats.registry import read_source
from common.data.item_stream import SHARD
from common.data.manifest import MANIFEST
from common.data.shards import read_shard
from common.data.source import paths_named
from common.diagnostics import class_table
from common.errors import UserError
from common.metrics import HEADLINE
from common.seal import SUFFIX
from common.task import Task
from common.training import choose_device, use_one_thread
from server.evaluate import answers, diagnose, evaluate, evaluate_rules, evaluate_subsets
from server.prediction.files import input_settings, load_predictor
from server.prediction.predictor import Predictor, run_data
from server.prediction.writers import check_place, new_file
from server.terminal import Terminal, counted, rounded

#: Columns of what is printed into a file.
_FILE_WIDTH = 200


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation."""

    #: ``model``, ``dataset``, number of ``items``, and ``cleaning``: what of them was not used.
    about: dict[str, Any]
    task: Task
    label_names: tuple[str, ...]
    #: As in a run's ``summary.json``: ``test``, ``test_by_fusion``, ``test_by_subset`` and
    #: ``diagnostics``; of classes and labels ``by_class`` too, of all modalities together.
    results: dict[str, Any]


def evaluate_model(config: EvaluateConfig) -> Evaluation:
    """Evaluate a model; raise `UserError` if it or the items cannot be used, or do not fit."""
    if config.out is not None:
        check_place(Path(config.out), config.overwrite)
    use_one_thread()  # as in the run, so that sums are in the same order
    device = choose_device(config.device, "device")
    predictor = load_predictor(config, device)
    predictor.check_names(config.modalities, "modalities: ")
    what, task, items = _read(config, predictor)
    items = _fitting(items, task, what, config, predictor)
    model, fusion = predictor.model, predictor.fusion
    rules = {str(rule): replace(fusion, rule=rule) for rule in FusionRule if rule != "auto"}
    truth, predicted, _ = answers(model, fusion, items)["multimodal"]
    by_class = {} if task is Task.regression else class_table(task, truth, predicted)
    return Evaluation(
        {
            "model": config.model,
            "dataset": what,
            "items": len(items),
            "cleaning": {**items.cleaning, **items.not_finite()},
        },
        predictor.task,
        predictor.names(),
        {
            "test": evaluate(model, fusion, items),
            "test_by_fusion": evaluate_rules(model, rules, items),
            "test_by_subset": evaluate_subsets(model, fusion, items),
            "diagnostics": diagnose(model, fusion, items),
            **({"by_class": by_class} if by_class else {}),
        },
    )


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write all of an evaluation as JSON, or raise `UserError`."""
    content = json.dumps({**evaluation.about, **evaluation.results}, indent=2) + "\n"
    with new_file(path) as aside:
        aside.write_text(content)


def _read(config: EvaluateConfig, predictor: Predictor) -> tuple[str, Task, MultimodalDataset]:
    """Read the dataset that was given, or else what the run itself was evaluated on."""
    if config.dataset is None:
        data = run_data(str(config.model), "; give dataset=…")
        return f"{config.side} items of the run", data.task, getattr(data, str(config.side))
    paths = paths_named("dataset", config.dataset)
    if (paths[0] / MANIFEST).is_file():
        paths[0] /= f"{config.side}{SUFFIX}"
    what = ", ".join(map(str, paths))
    if config.format == SHARD or (config.format == "auto" and paths[0].suffix == SUFFIX):
        if len(paths) > 1:
            raise UserError(f"dataset names {len(paths)} shards; expected one, or their folder")
        shard = read_shard(paths[0])
        predictor.reading.check_prepared(what, shard.info.reading, shard.items.longest)
        return what, shard.info.task, shard.items
    settings = input_settings(
        config,
        predictor,
        lenient=not config.modalities,
        task=predictor.task,
        classes=predictor.classes,
    )
    if config.labels or config.emotions:
        labels, emotions = tuple(config.labels), config.emotions
        settings = replace(settings, labels=labels, emotions=emotions)
    return what, predictor.task, read_source(paths, config.format, settings)[0].items


def _fitting(
    items: MultimodalDataset, task: Task, what: str, config: EvaluateConfig, predictor: Predictor
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
    predictor.check_items(what, task, items)
    for name, sequences in items.sequences.items():
        if not sequences.present.any():
            raise UserError(f"{what}: no item has {name}; leave it out with modalities=[…]")
    return items.select(np.flatnonzero(items.present()))


def show_evaluation(terminal: Terminal, evaluation: Evaluation) -> None:
    """Print scores, subsets, confusions and calibration; into a file whole, however wide."""
    if not terminal.console.is_terminal:
        terminal.console.width = _FILE_WIDTH
    about, results = evaluation.about, evaluation.results
    items = counted(about["items"], "item")
    terminal.tell(f"model {about['model']} on {about['dataset']}, {items}")
    terminal.data(about.get("cleaning", {}))
    test, headline = results["test"], HEADLINE[evaluation.task]
    rows = [
        [metric, *(_cell(scores[metric]) for scores in test.values())]
        for metric in test["multimodal"]
    ]
    _show_table(terminal, "Scores", ["", *test], rows)
    _show_scores(terminal, "Every subset of modalities", results["test_by_subset"], headline)
    _show_scores(terminal, "Fusion rules", results["test_by_fusion"], headline)
    if by_class := results.get("by_class"):
        names = evaluation.label_names or [str(k) for k in range(len(by_class["items"]))]
        rows = [
            [name, *map(_cell, values)]
            for name, *values in zip(names, *by_class.values(), strict=True)
        ]
        _show_table(terminal, "Each class", ["", *by_class], rows)
    diagnosis = results["diagnostics"]["multimodal"]
    if confusion := diagnosis.get("confusion"):
        _show_confusion(terminal, confusion, evaluation)
    if calibration := diagnosis.get("calibration"):
        rows = [list(map(_cell, values)) for values in zip(*calibration.values(), strict=True)]
        _show_table(terminal, "Calibration", list(calibration), rows)
    terminal.tell(f"all modalities together: {headline} {_cell(test['multimodal'][headline])}")


def _show_scores(
    terminal: Terminal, title: str, scores: Mapping[str, Mapping[str, float]], headline: str
) -> None:
    """Print a row for each name: the headline metric, and as many others as fit."""
    metrics = sorted(next(iter(scores.values())), key=lambda metric: metric != headline)
    room = terminal.console.width - max(map(len, scores)) - 4
    ends = itertools.accumulate(max(len(metric), 6) + 3 for metric in metrics)
    fitting = metrics[: max(sum(end <= room for end in ends), 1)]
    rows = [[name, *(_cell(row[metric]) for metric in fitting)] for name, row in scores.items()]
    _show_table(terminal, title, ["", *fitting], rows)
    if len(fitting) < len(metrics):
        terminal.tell("more metrics on a wider terminal, and all of them with out=….json", "dim")


def _show_confusion(
    terminal: Terminal, confusion: Mapping[str, Any], evaluation: Evaluation
) -> None:
    names, classes = evaluation.label_names, list(map(str, confusion["classes"]))
    matrices = {"": confusion["counts"]}
    if evaluation.task is Task.multilabel:
        labels = names or [f"label {number}" for number in range(len(confusion["counts"]))]
        matrices = dict(zip((f" of {label}" for label in labels), confusion["counts"], strict=True))
    elif names:
        classes = list(names)
    for of, counts in matrices.items():
        rows = [[f"true {name}", *map(str, row)] for name, row in zip(classes, counts, strict=True)]
        title = f"Confusion{of}: rows are true, columns predicted"
        _show_table(terminal, title, ["", *classes], rows)


def _show_table(
    terminal: Terminal, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    terminal.tell(title, "bold")
    table = Table()
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    terminal.console.print(table)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else rounded(value)
