"""The ONNX graph of a model, and those of its subsets.

torch follows the model once, with all modalities that are asked for, which takes most of the time.
The graph of a subset is cut out of that one: a modality that it lacks has length 0 for every item,
and its encoder goes.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx.helper import make_node, make_tensor
from onnx.utils import Extractor
from torch import Tensor

from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec
from common.task import Task
from server.export.fused_model import FusedModel

#: Items and steps that torch sees; any other number works as well.
_EXAMPLE_ITEMS, _EXAMPLE_STEPS = 3, 5


def output_names(task: Task) -> list[str]:
    """Return what comes out."""
    return ["prediction", "std"] if task is Task.regression else ["prediction"]


def lengths_of(name: str) -> str:
    """Return what the lengths of a modality are called."""
    return f"{name}_lengths"


def steps_of(spec: ModelSpec, name: str) -> int | None:
    """Return how many steps a modality always has; None where it is any number."""
    shape = spec.features[name]
    return shape[0] if len(shape) > 1 else None


def whole_graph(model: HAFedformer, fusion: Fusion, names: Sequence[str]) -> onnx.ModelProto:
    """Follow a model with some of its modalities.

    Parameters
    ----------
    model
        In evaluation mode, on the CPU.
    fusion
        Its fitted rule.
    names
        The modalities that any of the subsets has.
    """
    inputs, shapes = _example(model.spec, names)
    with _quiet():
        program = torch.onnx.export(
            FusedModel(model, fusion, names).eval(),
            tuple(inputs),
            input_names=[each for name in names for each in (name, lengths_of(name))],
            output_names=[*output_names(fusion.task), *map(_encoding_of, names)],
            # Of one argument, the starred one.
            dynamic_shapes=(tuple(shapes),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    _anonymise(graph)
    _name_sizes(graph, model.spec)
    return graph


def subset_graph(
    whole: onnx.ModelProto, spec: ModelSpec, task: Task, names: Sequence[str]
) -> onnx.ModelProto:
    """Cut out what predicts from a subset.

    Parameters
    ----------
    whole
        From `whole_graph`; stays as it is.
    spec, task
        Of its model.
    names
        The subset, one modality at least.
    """
    model = onnx.ModelProto()
    model.CopyFrom(whole)
    absent = [name for name in spec.features if name not in names]
    for node in model.graph.node:
        for place, output in enumerate(node.output):
            if output in map(_encoding_of, absent):
                node.output[place] = f"{output}_unused"
    nodes = [_batch_size(lengths_of(names[0]))]
    for name in absent:
        nodes += _nothing(spec, name)
    kept = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    inputs = [each for name in names for each in (name, lengths_of(name))]
    cut: onnx.ModelProto = Extractor(model).extract_model(inputs, output_names(task))
    cut.graph.name = "+".join(names)
    cut.producer_name = whole.producer_name
    return cut


def _example(spec: ModelSpec, names: Sequence[str]) -> tuple[list[Tensor], list[dict[int, Any]]]:
    """Return inputs, and which of their sizes may vary; numbers of steps differ in the example."""
    any_size = torch.export.Dim.DYNAMIC
    inputs: list[Tensor] = []
    shapes: list[dict[int, Any]] = []
    for place, name in enumerate(names):
        fixed = steps_of(spec, name)
        steps = fixed or _EXAMPLE_STEPS + place
        inputs.append(torch.zeros(_EXAMPLE_ITEMS, steps, spec.features[name][-1]))
        inputs.append(torch.full((_EXAMPLE_ITEMS,), steps))
        shapes += [{0: any_size} if fixed else {0: any_size, 1: any_size}, {0: any_size}]
    return inputs, shapes


def _anonymise(model: onnx.ModelProto) -> None:
    """Drop what torch tells of this machine's source files, and shapes inside, under its names."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.ClearField("metadata_props")
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def _name_sizes(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Call sizes that vary by what they are."""
    for value in [*model.graph.input, *model.graph.output]:
        sizes = value.type.tensor_type.shape.dim
        sizes[0].dim_param = "batch"
        if value.name in spec.features and steps_of(spec, value.name) is None:
            sizes[1].dim_param = f"{value.name}_steps"


def _encoding_of(name: str) -> str:
    return f"{name}_encoding"


_BATCH_SIZE = "batch_size"


def _batch_size(lengths: str) -> onnx.NodeProto:
    return make_node("Shape", [lengths], [_BATCH_SIZE])


def _nothing(spec: ModelSpec, name: str) -> list[onnx.NodeProto]:
    """Return what stands for a modality that no item has: features, encodings, lengths of 0."""
    steps = steps_of(spec, name) or 1
    float_zero, no_steps = (
        make_tensor("value", kind, [1], [0])
        for kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
    )
    nodes = [make_node("ConstantOfShape", [_BATCH_SIZE], [lengths_of(name)], value=no_steps)]
    widths = {name: spec.features[name][-1], _encoding_of(name): spec.model.width}
    for value, width in widths.items():
        size, shape = f"{value}_size", f"{value}_shape"
        nodes += [
            make_node("Constant", [], [size], value_ints=[steps, width]),
            make_node("Concat", [_BATCH_SIZE, size], [shape], axis=0),
            make_node("ConstantOfShape", [shape], [value], value=float_zero),
        ]
    return nodes


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what torch's exporter says of itself: of a package it does without, of its own code."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    former = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
            )
            yield
    finally:
        logger.setLevel(former)
