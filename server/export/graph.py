"""The ONNX graph that predicts from a subset of a model's modalities.

It computes what `common.model.predict.predict` computes. Two things differ: the LSTM is ONNX's own
operator, since torch would unroll it for a fixed number of steps; and fused sequences are as long
as the inputs rather than as their longest item, which adds padding that nothing reads.

Notation: B items, T steps, D feature width, d model width, K classes or labels.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from common.data.batching import Padded
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec
from common.model.predict import Encoded, predict_present
from common.task import Task
from server.prediction.predictor import Predictor

#: Items and steps of the example that torch traces; the graph takes any other number as well.
_EXAMPLE_ITEMS, _EXAMPLE_STEPS = 3, 5


def output_names(task: Task) -> list[str]:
    """Return the names of the outputs."""
    return ["prediction", "std"] if task is Task.regression else ["prediction"]


def lengths_of(name: str) -> str:
    """Return the name of the input that holds a modality's lengths."""
    return f"{name}_lengths"


def steps_of(spec: ModelSpec, name: str) -> int | None:
    """Return how many steps a modality always has; None if it takes any number."""
    shape = spec.features[name]
    return shape[0] if len(shape) > 1 else None


def subset_graph(predictor: Predictor, names: Sequence[str]) -> onnx.ModelProto:
    """Export what predicts from a subset of the modalities, in the model's order, on the CPU."""
    model, fusion = predictor.model, predictor.fusion
    inputs, shapes = _example(model.spec, names)
    with _quiet():
        program = torch.onnx.export(
            _Subset(model, fusion, names).eval(),
            tuple(inputs),
            input_names=[port for name in names for port in (name, lengths_of(name))],
            output_names=output_names(fusion.task),
            # The module has one argument, the starred one.
            dynamic_shapes=(tuple(shapes),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    graph.graph.name = "+".join(names)
    _remove_traces(graph)
    _name_sizes(graph, model.spec)
    return graph


class _Subset(nn.Module):
    """A model and its fusion rule as a function of tensors alone, which torch can export.

    Takes, for each modality, its features (B, T, D), right-padded, and its lengths (B,), 0 where an
    item lacks it. Returns predictions, (B,) or (B, K), NaN for an item without any modality; for
    numbers their deviations (B,) too.
    """

    def __init__(self, model: HAFedformer, fusion: Fusion, names: Sequence[str]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.decoder.lstm = _OnnxLSTM(model.decoder.lstm)  # type: ignore[assignment]
        self.fusion = fusion
        self.names = list(names)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        values = dict(zip(self.names, inputs[::2], strict=True))
        lengths = dict(zip(self.names, inputs[1::2], strict=True))
        encoded = Encoded(
            {name: self.model.encode(name, Padded(values[name], lengths[name])) for name in values},
            lengths,
        )
        # A symbolic expression while torch traces.
        steps = reduce(torch.sym_max, (part.shape[1] for part in values.values()))
        predicted = predict_present(self.model, self.fusion, encoded, self.names, steps)
        known = encoded.present(self.names).any(dim=0)
        mask = known if predicted.values.ndim == 1 else known[:, None]
        outputs = [torch.where(mask, predicted.values, torch.nan)]
        if predicted.std is not None:
            outputs.append(torch.where(known, predicted.std, torch.nan))
        return outputs


class _OnnxLSTM(nn.Module):
    """ONNX's operator for an LSTM in one direction, batch first, with biases.

    Only torch's exporter can run it.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.width = lstm.hidden_size
        self.layers = nn.ParameterList(
            nn.ParameterList(_layer(lstm, number)) for number in range(lstm.num_layers)
        )

    def forward(self, sequences: Tensor) -> tuple[Tensor, None]:
        """Map (B, T, d) to the states of the last layer, (B, T, d)."""
        steps = sequences.transpose(0, 1)
        for layer in self.layers:
            # (T, directions, B, d)
            states = torch.onnx.ops.symbolic(
                "LSTM",
                [steps, *layer],
                {"hidden_size": self.width},
                dtype=torch.float32,
                shape=[steps.shape[0], 1, steps.shape[1], self.width],
            )
            steps = states.squeeze(1)
        return steps.transpose(0, 1), None


def _layer(lstm: nn.LSTM, number: int) -> list[Tensor]:
    """Return a layer's weights in ONNX's form: of inputs, of states, both biases."""

    def reordered(kind: str) -> Tensor:
        # torch: input, forget, cell, output. ONNX: input, output, forget, cell.
        gates = getattr(lstm, f"{kind}_l{number}").detach().chunk(4)
        return torch.cat([gates[index] for index in (0, 3, 1, 2)])

    biases = torch.cat([reordered("bias_ih"), reordered("bias_hh")])
    return [part[None] for part in (reordered("weight_ih"), reordered("weight_hh"), biases)]


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


def _remove_traces(model: onnx.ModelProto) -> None:
    """Remove the names of this machine's source files, and shapes of intermediate values."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.ClearField("metadata_props")
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def _name_sizes(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Give sizes that vary a name that says what they are."""
    for value in [*model.graph.input, *model.graph.output]:
        sizes = value.type.tensor_type.shape.dim
        sizes[0].dim_param = "batch"
        if value.name in spec.features and steps_of(spec, value.name) is None:
            sizes[1].dim_param = f"{value.name}_steps"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporter logs and warns about itself."""
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
