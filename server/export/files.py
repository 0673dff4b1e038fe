"""A folder of checked ONNX files, and `export.json`, which describes their inputs and outputs."""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from common.atomic import atomic_folder
from common.config import ExportConfig
from common.errors import UserError
from common.task import Task
from server.export.comparison import TOLERANCE, largest_difference
from server.export.graph import lengths_of, output_names, subset_graph
from server.prediction.predictor import Predictor, model_path

EXPORT = "export.json"
FORMAT = "ha-fedformer-onnx-1"

#: The most modalities for which every subset is exported by default.
EVERY_SUBSET = 4

#: The meaning of a prediction.
_MEANINGS = {
    Task.regression: "a number, in units of the label",
    Task.classification: "the probability of each class",
    Task.multilabel: "the probability of each label",
}

Tell = Callable[[str], None]


def export_model(config: ExportConfig, tell: Tell) -> None:
    """Write ONNX files for subsets of a model's modalities; `tell` takes a line for each.

    Raises `UserError`, and writes nothing, if there is no model, it has no such subset, a file
    predicts something else than the model, or the folder exists already or cannot be written.
    """
    assert config.model is not None
    path = model_path(config.model)
    predictor = Predictor.load(path)
    spec = predictor.model.spec
    subsets = chosen_subsets(list(spec.features), config.subsets)
    taken = {*output_names(predictor.task), *map(lengths_of, spec.features)}
    if clashes := [name for name in spec.features if name in taken]:
        raise UserError(
            f"the modality {clashes[0]} cannot be exported: its name is taken by another input or "
            "output of the ONNX files; train with another name"
        )
    out = Path(config.out).absolute()
    if path.absolute().is_relative_to(out):
        raise UserError(f"out={config.out} holds the model {path}; choose another")
    with atomic_folder(out, config.overwrite, EXPORT) as folder:
        tell(f"{path}: exporting {len(subsets)} subsets, which may take a minute")
        files = [_write(folder, predictor, names, tell) for names in subsets]
        about = _about(path, predictor, folder / files[0]["file"]) | {"files": files}
        (folder / EXPORT).write_text(json.dumps(about, indent=2) + "\n")
    tell(f"{len(files)} files and {EXPORT}: {config.out}")


def chosen_subsets(modalities: Sequence[str], asked: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the distinct subsets, with modalities in the model's order.

    Subsets are asked for by names joined by ``+``; by default there is every one, smaller ones
    first. Raises `UserError` if one is not a subset, or the model has too many modalities to export
    every subset.
    """
    if asked:
        return list(dict.fromkeys(_subset(modalities, names) for names in asked))
    count = len(modalities)
    if count > EVERY_SUBSET:
        raise UserError(
            f"the model takes {count} modalities, which have {2**count - 1} subsets; say which, as "
            f"in subsets=[{'+'.join(modalities)}]"
        )
    sizes = range(1, count + 1)
    return [names for size in sizes for names in itertools.combinations(modalities, size)]


def _subset(modalities: Sequence[str], asked: str) -> tuple[str, ...]:
    names = [name.strip() for name in asked.split("+")]
    for name in names:
        if name not in modalities:
            raise UserError(
                f"subsets has {asked!r}, and the model takes {', '.join(modalities)}; expected "
                f"some of these, joined by +"
            )
    if len(set(names)) < len(names):
        raise UserError(f"subsets has {asked!r}, which names a modality twice")
    return tuple(name for name in modalities if name in names)


def _write(folder: Path, predictor: Predictor, names: Sequence[str], tell: Tell) -> dict[str, Any]:
    """Write the file of a subset if it predicts what the model does; return its description."""
    graph = subset_graph(predictor, names)
    content = graph.SerializeToString(deterministic=True)
    difference = largest_difference(content, predictor, names)
    path = folder / f"{'+'.join(names)}.onnx"
    path.write_bytes(content)
    tell(f"{path.name}: {len(content) / 1e6:.2f} MB, differs from torch by {difference:.1g}")
    return {
        "file": path.name,
        "modalities": list(names),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "inputs": [_port(value) for value in graph.graph.input],
        "outputs": [_port(value) for value in graph.graph.output],
        "max_difference": difference,
    }


def _port(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Describe an input or output; sizes that vary have a name."""
    kind = value.type.tensor_type
    return {
        "name": value.name,
        "dtype": onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        "shape": [size.dim_param or size.dim_value for size in kind.shape.dim],
    }


def _about(path: Path, predictor: Predictor, file: Path) -> dict[str, Any]:
    spec, fusion = predictor.model.spec, predictor.fusion
    return {
        "format": FORMAT,
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "task": str(predictor.task),
        "prediction": _MEANINGS[predictor.task],
        "label_names": list(spec.label_names),
        "fusion": str(fusion.rule),
        "fusion_weights": fusion.weights,
        "lengths": "steps of each item, from the first; 0 where it lacks the modality",
        "last_steps": predictor.max_seq_len,
        "context": predictor.reading.context,
        "opset": onnx.load(file).opset_import[0].version,
        "torch": torch.__version__,
        "tolerance": TOLERANCE,
    }
