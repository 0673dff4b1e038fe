"""ONNX files predict what the model does: every subset, rule and task, whatever the batch."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from common.config import FusionRule, ModelConfig
from common.data.batching import Padded
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.model.fusion import Expert, Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model, set_standardisation
from common.model.predict import predict
from common.task import Task
from server.export.comparison import (
    batches,
    largest_difference,
    run_onnx,
    run_torch,
)
from server.export.graph import subset_graph, whole_graph

WIDTHS = {"language": 4, "audio": 3, "vision": 2}
EVERY = tuple(WIDTHS)
SUBSETS = [each for size in (1, 2, 3) for each in combinations(WIDTHS, size)]
#: Without layers in the encoders torch follows it in a third of the time; one test has some.
TINY = ModelConfig(width=4, heads=2, layers=0, decoder_layers=1)
PRIORS = {
    Task.regression: (0.3, 2.0),
    Task.classification: (-1.2, -0.9, -1.3),
    Task.multilabel: (-0.5, 0.8),
}


def fusion_of(rule: FusionRule, task: Task, names: Sequence[str]) -> Fusion:
    """A rule for which modalities differ; of the last one nothing has been seen."""
    experts = {
        name: Expert(0.5 + place / 2, 0.1 * place, 0.5 + 0.2 * place, 1.0 - 0.3 * place, 30)
        for place, name in enumerate(names)
    }
    last = names[-1]
    return Fusion(rule, task, PRIORS[task], experts | {last: replace(experts[last], count=0)})


def model_of(
    task: Task, config: ModelConfig = TINY, tabular: dict[str, int] | None = None
) -> HAFedformer:
    """A model that standardises; its weights are large enough that predictions differ."""
    shapes = {name: (width,) for name, width in WIDTHS.items()}
    shapes |= {name: (steps, WIDTHS[name]) for name, steps in (tabular or {}).items()}
    outputs = 1 if task is Task.regression else len(PRIORS[task])
    model = build_model(ModelSpec(shapes, outputs, task, config), seed=1).eval()
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        rows = random.normal(0.5, 1.5, size=(20, *shape)).astype(np.float32)
        rows[..., 1] = 0.25  # a feature that is constant
        set_standardisation(model, name, FeatureMoments.of_rows(rows))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    return model


@cache
def whole(
    rule: FusionRule, task: Task, names: tuple[str, ...]
) -> tuple[HAFedformer, Fusion, onnx.ModelProto]:
    """A model, its rule, and its graph, which takes seconds: followed once for all tests."""
    model, fusion = model_of(task), fusion_of(rule, task, list(WIDTHS))
    return model, fusion, whole_graph(model, fusion, names)


def session_of(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def inputs_of(
    lengths: dict[str, list[int]], steps: dict[str, int], seed: int = 0
) -> dict[str, Padded]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: Padded(
            torch.randn(len(each), steps[name], WIDTHS[name], generator=random),
            torch.tensor(each),
        )
        for name, each in lengths.items()
    }


#: Lengths by modality, and the steps that they are padded to.
ASKED: list[tuple[dict[str, list[int]], dict[str, int]]] = [
    (
        {"language": [3, 6, 0, 1], "audio": [9, 2, 5, 0], "vision": [0, 1, 4, 2]},
        {"language": 6, "audio": 9, "vision": 4},
    ),
    ({name: [1] for name in WIDTHS}, dict.fromkeys(WIDTHS, 1)),
    # More padding than any item needs.
    ({name: [2, 3] for name in WIDTHS}, {"language": 8, "audio": 20, "vision": 3}),
]


def assert_predicts(
    model: HAFedformer, fusion: Fusion, graph: onnx.ModelProto, names: Sequence[str]
) -> None:
    session = session_of(graph)
    for lengths, steps in ASKED:
        inputs = inputs_of({name: lengths[name] for name in names}, steps)
        having = torch.stack([each.lengths > 0 for each in inputs.values()]).any(dim=0)
        chosen = {
            name: Padded(each.values[having], each.lengths[having]) for name, each in inputs.items()
        }
        wanted, found = predict(model, fusion, chosen), run_onnx(session, inputs)
        np.testing.assert_allclose(found["prediction"][having.numpy()], wanted.values, atol=1e-5)
        assert np.isnan(found["prediction"][~having.numpy()]).all()
        assert ("std" in found) == (wanted.std is not None)
        if wanted.std is not None:
            np.testing.assert_allclose(found["std"][having.numpy()], wanted.std, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "task", "modalities"),
    [
        (FusionRule.reliability, Task.regression, EVERY),
        (FusionRule.product_of_experts, Task.regression, ("language", "audio")),
        (FusionRule.mean, Task.multilabel, ("audio", "vision")),
        (FusionRule.product_of_experts, Task.classification, ("language", "vision")),
    ],
)
def test_every_subset_predicts(rule: FusionRule, task: Task, modalities: tuple[str, ...]) -> None:
    model, fusion, graph = whole(rule, task, modalities)
    for names in (each for each in SUBSETS if set(each) <= set(modalities)):
        cut = subset_graph(graph, model.spec, task, names)
        assert_predicts(model, fusion, cut, names)
        difference = largest_difference(cut.SerializeToString(), model, fusion, names)
        assert 0 < difference < 1e-5, names


def test_other_architectures_and_tables_are_followed_too() -> None:
    config = replace(TINY, kernel_size=3, causal=True, layers=1, decoder_layers=2)
    model = model_of(Task.regression, config, tabular={"vision": 4})
    names = ("audio", "vision")
    fusion = fusion_of(FusionRule.mean, Task.regression, list(WIDTHS))
    graph = whole_graph(model, fusion, names)
    for subset in (names, ("audio",), ("vision",)):
        cut = subset_graph(graph, model.spec, Task.regression, subset)
        assert largest_difference(cut.SerializeToString(), model, fusion, subset) < 1e-5
        steps = {
            each.name: each.type.tensor_type.shape.dim[1].dim_value
            for each in cut.graph.input
            if each.name in WIDTHS
        }
        assert steps == {name: 4 if name == "vision" else 0 for name in subset}


def test_what_is_not_a_number_counts_as_the_mean() -> None:
    model, _, graph = whole(FusionRule.reliability, Task.regression, EVERY)
    session = session_of(subset_graph(graph, model.spec, Task.regression, ["audio"]))
    inputs = inputs_of({"audio": [3]}, {"audio": 3})
    values = inputs["audio"].values
    values[0, 1, 2], values[0, 2, 0] = torch.nan, torch.inf
    found = run_onnx(session, inputs)["prediction"]
    means = model.encoders["audio"].standardise.mean
    values[0, 1, 2], values[0, 2, 0] = means[2], means[0]
    np.testing.assert_allclose(found, run_onnx(session, inputs)["prediction"], rtol=1e-6)


def test_a_file_has_what_its_subset_needs_and_nothing_of_this_machine() -> None:
    model, _, graph = whole(FusionRule.reliability, Task.regression, EVERY)
    cut = subset_graph(graph, model.spec, Task.regression, ["audio", "vision"])
    assert [each.name for each in cut.graph.input] == [
        *("audio", "audio_lengths", "vision", "vision_lengths"),
    ]
    shapes = {
        each.name: [size.dim_param or size.dim_value for size in each.type.tensor_type.shape.dim]
        for each in [*cut.graph.input, *cut.graph.output]
    }
    assert shapes == {
        "audio": ["batch", "audio_steps", 3],
        "audio_lengths": ["batch"],
        "vision": ["batch", "vision_steps", 2],
        "vision_lengths": ["batch"],
        "prediction": ["batch"],
        "std": ["batch"],
    }
    onnx.checker.check_model(cut, full_check=True)
    # The encoder of language stays out; equal weights stand once, under the name of any.
    kept = {each.name for each in cut.graph.initializer}
    embeddings = {f"model.encoders.{name}.embed.weight" for name in WIDTHS}
    assert {name for name in kept if name in embeddings} == {
        "model.encoders.audio.embed.weight",
        "model.encoders.vision.embed.weight",
    }
    assert embeddings <= {each.name for each in graph.graph.initializer}
    content = graph.SerializeToString() + cut.SerializeToString()
    for trace in (b".py", b"/tmp", b"common.model", b"File "):
        assert trace not in content


# The check --------------------------------------------------------------------------------------


def test_batches_have_what_there_may_be() -> None:
    model = model_of(Task.regression, tabular={"vision": 4})
    drawn = list(batches(model, list(WIDTHS)))
    assert {len(each["audio"].lengths) for each in drawn} >= {1, 2, 5}
    assert {each["language"].values.shape[1] for each in drawn} >= {1, 7, 40}
    assert any(each["audio"].values.isnan().any() for each in drawn)
    present = [torch.stack([part.lengths > 0 for part in each.values()]) for each in drawn]
    assert any((each.any(dim=0) & ~each.all(dim=0)).any() for each in present)
    assert any((~each.any(dim=0)).any() for each in present)
    assert all(each[:, 0].all() for each in present)
    for each in drawn:
        assert each["vision"].values.shape[1] == 4
        assert set(each["vision"].lengths.tolist()) <= {0, 4}
        assert (each["audio"].lengths <= each["audio"].values.shape[1]).all()


def test_a_file_of_another_model_is_found_out() -> None:
    model, fusion, graph = whole(FusionRule.reliability, Task.regression, EVERY)
    content = subset_graph(graph, model.spec, Task.regression, ["audio"]).SerializeToString()
    other = model_of(Task.regression)
    with torch.no_grad():
        other.decoder.head.bias.add_(2e-4)
    with pytest.raises(
        UserError, match=r"^audio: ONNX predicts another prediction than torch, by 0\.0002"
    ):
        largest_difference(content, other, fusion, ["audio"])
    far = replace(fusion, prior=(0.3, 2.1))
    with pytest.raises(UserError, match=r"another std than torch"):
        largest_difference(content, model, far, ["audio"])


def test_an_item_that_only_one_side_can_predict_is_found_out() -> None:
    model, fusion, graph = whole(FusionRule.reliability, Task.regression, EVERY)
    session = session_of(subset_graph(graph, model.spec, Task.regression, ["audio"]))
    inputs = inputs_of({"audio": [2, 0]}, {"audio": 2})
    found, wanted = run_onnx(session, inputs), run_torch(model, fusion, inputs)
    assert np.isnan(found["prediction"]).tolist() == [False, True]
    assert np.isnan(wanted["prediction"]).tolist() == [False, True]
