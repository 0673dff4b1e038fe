"""ONNX files predict what the model does, for any subset, rule, task and batch."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from made_up_models import EXPERTS, STEPS, WIDTHS, fusion_for, model_for

from common.config import FusionRule, ModelConfig
from common.data.batching import Padded
from common.data.moments import FeatureMoments
from common.data.source import Reading
from common.errors import UserError
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer, set_standardisation
from common.task import Task
from server.export.comparison import batches, largest_difference, run_onnx, run_torch
from server.export.graph import subset_graph
from server.prediction.predictor import Predictor

EVERY = tuple(WIDTHS)
#: Encoders without layers are exported in a third of the time; one test has layers.
TINY = ModelConfig(width=4, heads=2, layers=0, decoder_layers=1)


def fusion_of(rule: FusionRule, task: Task) -> Fusion:
    """A rule for which there were no items of the last modality."""
    unseen = {"vision": replace(EXPERTS["vision"], count=0)}
    return replace(fusion_for(task, rule), experts=EXPERTS | unseen)


def model_of(task: Task, config: ModelConfig = TINY, tabular: Sequence[str] = ()) -> HAFedformer:
    """A model that standardises, and of which a feature is constant."""
    model = model_for(task, tabular, sizes=config)
    random = np.random.default_rng(0)
    for name, shape in model.spec.features.items():
        rows = random.normal(0.5, 1.5, size=(20, *shape)).astype(np.float32)
        rows[..., 1] = 0.25
        set_standardisation(model, name, FeatureMoments.of_rows(rows))
    return model


@cache
def predictor(rule: FusionRule, task: Task) -> Predictor:
    return Predictor(model_of(task), fusion_of(rule, task))


@cache
def graph_of(rule: FusionRule, task: Task, names: tuple[str, ...]) -> onnx.ModelProto:
    """A subset's graph, exported once for all tests, since that takes seconds."""
    return subset_graph(predictor(rule, task), names)


def audio() -> onnx.ModelProto:
    return graph_of(FusionRule.reliability, Task.regression, ("audio",))


def session_of(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    content = graph.SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("rule", "task", "names"),
    [
        (FusionRule.reliability, Task.regression, ("audio",)),
        (FusionRule.reliability, Task.regression, ("audio", "vision")),
        (FusionRule.reliability, Task.regression, EVERY),
        (FusionRule.product_of_experts, Task.regression, ("language", "audio")),
        (FusionRule.mean, Task.multilabel, ("audio", "vision")),
        (FusionRule.product_of_experts, Task.classification, ("language", "vision")),
    ],
)
def test_subsets_predict_what_torch_predicts(
    rule: FusionRule, task: Task, names: tuple[str, ...]
) -> None:
    model, graph = predictor(rule, task), graph_of(rule, task, names)
    random, lengths = torch.Generator().manual_seed(0), torch.tensor([2, 3, 0, 1])
    inputs = {
        # More padding than any item needs.
        name: Padded(torch.randn(4, steps, WIDTHS[name], generator=random), lengths)
        for name, steps in zip(names, (8, 20, 3), strict=False)
    }
    outputs, expected = run_onnx(session_of(graph), inputs), run_torch(model, inputs)
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, atol=1e-5)
        assert np.isnan(values[2]).all() and np.isfinite(values[[0, 1, 3]]).all()
    assert 0 < largest_difference(graph.SerializeToString(), model, names) < 1e-5


def test_other_architectures_and_tables() -> None:
    config = replace(TINY, kernel_size=3, causal=True, layers=1, decoder_layers=2)
    model = model_of(Task.regression, config, tabular=["vision"])
    uneven = Predictor(model, fusion_of(FusionRule.mean, Task.regression), Reading(4))
    names = ("audio", "vision")
    graph = subset_graph(uneven, names)
    assert largest_difference(graph.SerializeToString(), uneven, names) < 1e-5
    steps = {port.name: port.type.tensor_type.shape.dim[1:] for port in graph.graph.input}
    assert steps["vision"][0].dim_value == STEPS and steps["audio"][0].dim_param == "audio_steps"


def test_values_that_are_not_finite_count_as_the_mean() -> None:
    model = predictor(FusionRule.reliability, Task.regression).model
    session = session_of(audio())
    values = torch.arange(9.0).reshape(1, 3, WIDTHS["audio"])
    inputs = {"audio": Padded(values, torch.tensor([3]))}
    values[0, 1, 2], values[0, 2, 0] = torch.nan, torch.inf
    prediction = run_onnx(session, inputs)["prediction"]
    means = model.encoders["audio"].standardise.mean
    values[0, 1, 2], values[0, 2, 0] = means[2], means[0]
    np.testing.assert_allclose(prediction, run_onnx(session, inputs)["prediction"], rtol=1e-6)


def test_a_file_holds_its_subset_and_nothing_of_this_machine() -> None:
    graph = graph_of(FusionRule.reliability, Task.regression, ("audio", "vision"))
    assert graph.graph.name == "audio+vision"
    onnx.checker.check_model(graph, full_check=True)
    weights = {tensor.name for tensor in graph.graph.initializer}
    embeddings = {name: f"model.encoders.{name}.embed.weight" for name in WIDTHS}
    assert weights & {*embeddings.values()} == {embeddings["audio"], embeddings["vision"]}
    for trace in (b".py", b"/tmp", b"common.model", b"File "):
        assert trace not in graph.SerializeToString()


# The check --------------------------------------------------------------------------------------


def test_batches_cover_all_cases() -> None:
    model = model_of(Task.regression, tabular=["vision"])
    drawn = list(batches(model, list(WIDTHS)))
    sizes = {tuple(batch["language"].values.shape[:2]) for batch in drawn}
    assert {(1, 1), (1, 7), (2, 1), (3, 70)} <= sizes
    assert any(batch["audio"].values.isnan().any() for batch in drawn)
    present = [torch.stack([part.lengths > 0 for part in batch.values()]) for batch in drawn]
    assert any((some.any(dim=0) & ~some.all(dim=0)).any() for some in present)
    assert any((~some.any(dim=0)).any() for some in present)
    assert all(some[:, 0].all() for some in present)
    for batch in drawn:
        assert batch["vision"].values.shape[1] == STEPS
        assert set(batch["vision"].lengths.tolist()) <= {0, STEPS}


def test_a_file_of_another_model_is_detected() -> None:
    right = predictor(FusionRule.reliability, Task.regression)
    content = audio().SerializeToString()
    other = model_of(Task.regression)
    with torch.no_grad():
        other.decoder.head.bias.add_(2e-4)
    difference = r"^audio: ONNX predicts another prediction .*by 0\.000[2-9]"
    with pytest.raises(UserError, match=difference):
        largest_difference(content, replace(right, model=other), ["audio"])
    surer = replace(EXPERTS["audio"], unexplained=EXPERTS["audio"].unexplained / 2)
    far = replace(right.fusion, experts={**right.fusion.experts, "audio": surer})
    with pytest.raises(UserError, match=r"another std than torch"):
        largest_difference(content, replace(right, fusion=far), ["audio"])
