"""The ONNX graph that predicts from a subset of a model's modalities.

It computes what `common.model.predict.predict` computes. Two things differ: the LSTM is ONNX's own
operator, since torch would unroll it for a fixed number of steps; and fused sequences are as long
as the inputs rather than as their longest item, which adds padding that nothing reads.

Notation: B items, T steps, D feature width, d model width, K classes or labels.
"""

import copy
import logging
import warnings
from collections.abc import Sequence
from functools import reduce

import onnx
import torch
from torch import Tensor, nn

from common.data.batching import Padded
from common.model.ha_fedformer import ModelSpec
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
    inputs: list[Tensor] = []
    sizes: list[dict[int, str]] = []
    for place, name in enumerate(names):
        fixed = steps_of(model.spec, name)
        # Modalities of one number of steps would be taken for ones that always have the same.
        steps = fixed or _EXAMPLE_STEPS + place
        inputs.append(torch.zeros(_EXAMPLE_ITEMS, steps, model.spec.features[name][-1]))
        inputs.append(torch.full((_EXAMPLE_ITEMS,), steps))
        sizes += [{0: "batch"} if fixed else {0: "batch", 1: f"{name}_steps"}, {0: "batch"}]
    # torch's exporter warns about its own code; what it exports is compared with the model.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            _Subset(predictor, names).eval(),
            tuple(inputs),
            input_names=[port for name in names for port in (name, lengths_of(name))],
            output_names=output_names(fusion.task),
            # The module has one argument, the starred one.
            dynamic_shapes=(tuple(sizes),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    exported: onnx.ModelProto = program.model_proto
    graph = exported.graph
    graph.name = "+".join(names)
    # Names of this machine's source files, and shapes of intermediate values.
    for part in (exported, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    return exported


class _Subset(nn.Module):
    """A model and its fusion rule as a function of tensors alone, which torch can export.

    Takes, for each modality, its features (B, T, D), right-padded, and its lengths (B,), 0 where an
    item lacks it; as many of an item's last steps are used as in training. Returns predictions,
    (B,) or (B, K), NaN for an item without any modality; for numbers their deviations (B,) too.
    """

    def __init__(self, predictor: Predictor, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.fusion = copy.deepcopy(predictor.model), predictor.fusion
        lstm = predictor.model.decoder.lstm
        self.model.decoder.lstm = _OnnxLSTM(lstm)  # type: ignore[assignment]
        self.names, self.last_steps = list(names), predictor.max_seq_len

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        values = dict(zip(self.names, inputs[::2], strict=True))
        lengths = dict(zip(self.names, inputs[1::2], strict=True))
        padded = {
            name: last_steps(Padded(values[name], lengths[name]), self._most(name))
            for name in values
        }
        encoded = Encoded(
            {name: self.model.encode(name, own) for name, own in padded.items()},
            {name: own.lengths for name, own in padded.items()},
            {name: self.model.linear_outputs(name, own) for name, own in padded.items()},
        )
        # A symbolic expression while torch traces.
        steps = reduce(torch.sym_max, (own.values.shape[1] for own in padded.values()))
        predicted = predict_present(self.model, self.fusion, encoded, self.names, steps)
        known = encoded.present(self.names).any(dim=0)
        mask = known if predicted.values.ndim == 1 else known[:, None]
        outputs = [torch.where(mask, predicted.values, torch.nan)]
        if predicted.std is not None:
            outputs.append(torch.where(known, predicted.std, torch.nan))
        return outputs

    def _most(self, name: str) -> int | None:
        return None if steps_of(self.model.spec, name) else self.last_steps


def last_steps(padded: Padded, most: int | None) -> Padded:
    """Return the last steps of right-padded items, at most so many; None for all."""
    if most is None:
        return padded
    values, lengths = padded
    # A symbolic expression while torch traces.
    steps = torch.sym_min(values.shape[1], most)  # type: ignore[no-untyped-call]
    rows = (lengths - most).clamp(min=0)[:, None] + torch.arange(steps)
    index = rows.clamp(max=values.shape[1] - 1)[:, :, None].expand(-1, -1, values.shape[2])
    return Padded(values.gather(1, index), lengths.clamp(max=most))


class _OnnxLSTM(nn.Module):
    """ONNX's operator for an LSTM in one direction, batch first, with biases.

    Only torch's exporter can run it.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.layers = nn.ParameterList(map(_onnx_weights, lstm.all_weights))

    def forward(self, sequences: Tensor) -> tuple[Tensor, None]:
        """Map (B, T, d) to the states of the last layer, (B, T, d)."""
        steps = sequences.transpose(0, 1)
        for layer in self.layers:
            # (T, directions, B, d)
            states = torch.onnx.ops.symbolic(
                "LSTM",
                [steps, *layer],
                {"hidden_size": steps.shape[-1]},
                dtype=torch.float32,
                shape=[steps.shape[0], 1, *steps.shape[1:]],
            )
            steps = states.squeeze(1)
        return steps.transpose(0, 1), None


def _onnx_weights(layer: Sequence[Tensor]) -> nn.ParameterList:
    """Return a layer's weights in ONNX's form: of inputs, of states, both biases."""
    # torch: input, forget, cell, output. ONNX: input, output, forget, cell.
    gates = (part.detach().chunk(4) for part in layer)
    inputs, states, *biases = (torch.cat([part[gate] for gate in (0, 3, 1, 2)]) for part in gates)
    return nn.ParameterList(part[None] for part in (inputs, states, torch.cat(biases)))
