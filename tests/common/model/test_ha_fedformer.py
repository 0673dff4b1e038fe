"""The model: built, taken apart and put together whatever its modalities; decoder and losses."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from wire import assert_same

from common.config import ModelConfig
from common.data.batching import Padded
from common.data.dataset import Sequences
from common.data.moments import FeatureMoments
from common.model.encoder import Encoder
from common.model.ha_fedformer import (
    Decoder,
    HAFedformer,
    ModelArrays,
    ModelSpec,
    build_model,
    join_arrays,
    set_standardisation,
    split_arrays,
    task_loss,
    trained_names,
)
from common.task import Task

WIDTHS = {"language": 4, "audio": 3, "vision": 4}


def spec(widths: dict[str, int] = WIDTHS, outputs: int = 2, **changes: object) -> ModelSpec:
    config = ModelConfig(width=8, heads=2, layers=2, decoder_layers=2, **changes)
    shapes = {name: (width,) for name, width in widths.items()}
    return ModelSpec(shapes, outputs, Task.regression, config)


def model(widths: dict[str, int] = WIDTHS, seed: int = 3) -> HAFedformer:
    return build_model(spec(widths), seed).eval()


def padded(width: int, seed: int = 1) -> Padded:
    source = torch.Generator().manual_seed(seed)
    return Padded(torch.randn(3, 5, width, generator=source), torch.tensor([5, 2, 3]))


def moments(values: np.ndarray) -> FeatureMoments:
    rows = values.astype(np.float32)
    return FeatureMoments.of(Sequences(rows, np.array([0]), np.array([len(rows)])))


def test_building_neither_reads_nor_disturbs_the_global_generator() -> None:
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    first = model().state_dict()
    assert torch.equal(torch.rand(4), expected)
    assert_same(model().state_dict(), first)


@pytest.mark.parametrize("names", ["a", "ab", "abcde"])
def test_any_number_of_modalities_is_their_encoders_and_one_decoder(names: str) -> None:
    widths = {name: 2 + index for index, name in enumerate(names)}
    built, config = model(widths), spec().model
    expected = {f"decoder.{name}" for name in Decoder(2, config).state_dict()}
    for name, width in widths.items():
        own = Encoder((width,), config, 0.0).state_dict()
        expected |= {f"encoders.{name}.{array}" for array in own}
        batch = padded(width)
        assert built.encode(name, batch).shape == (3, 5, 8)
        assert built(name, batch).shape == (3, 2)
        decoded = built.decoder(built.encode(name, batch), batch.lengths)
        assert torch.equal(built(name, batch), decoded)
    assert set(built.state_dict()) == expected


def test_a_client_that_takes_its_parts_computes_what_the_whole_model_does() -> None:
    whole, client = model(), model({"audio": 3}, seed=9)
    parts = split_arrays(whole.state_dict())
    client.load_state_dict(
        join_arrays(ModelArrays({"audio": parts.encoders["audio"]}, parts.decoder))
    )
    assert torch.equal(client("audio", padded(3)), whole("audio", padded(3)))


def test_attention_dropout_is_the_modalitys_own_or_the_default() -> None:
    rates = {"language": 0.1, "default": 0.3}
    built = HAFedformer(spec(attention_dropout=rates))
    found = {name: built.encoders[name].layers[0].attention.dropout for name in WIDTHS}
    assert found == {"language": 0.1, "audio": 0.3, "vision": 0.3}
    without = HAFedformer(spec(attention_dropout={"language": 0.1}))
    assert without.encoders["audio"].layers[0].attention.dropout == 0.0


words = st.text("abcxyz_0", min_size=1, max_size=4)
dotted = st.lists(words, min_size=1, max_size=4).map(".".join)
arrays_by_name = st.dictionaries(dotted, st.just(torch.zeros(1)), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(st.builds(ModelArrays, st.dictionaries(words, arrays_by_name, max_size=3), arrays_by_name))
def test_split_undoes_join_for_any_names(parts: ModelArrays) -> None:
    assert split_arrays(join_arrays(parts)) == parts


@pytest.mark.parametrize(
    "name", ["", "head.weight", "encoder.audio.embed", "encoders.audio", "decoders.head", "decoder"]
)
def test_a_name_that_belongs_nowhere_raises(name: str) -> None:
    with pytest.raises(KeyError, match=f"{name} belongs neither"):
        split_arrays({"decoder.head.weight": torch.zeros(1), name: torch.zeros(1)})


def test_only_the_statistics_are_not_trained() -> None:
    built = model()
    buffers = set(built.state_dict()) - set(trained_names(built))
    assert buffers == {
        f"encoders.{name}.standardise.{statistic}"
        for name in WIDTHS
        for statistic in ("mean", "scale")
    }


@pytest.mark.parametrize("tabular", [False, True])
def test_the_statistics_standardise_the_data_they_came_from(tabular: bool) -> None:
    """Each step of a table by its own; what is not finite counts for nothing."""
    items = np.random.default_rng(0).normal(size=(60, 3, 4)) * [3.0, 0.1, 1.0, 0.0]
    items += np.arange(12).reshape(3, 4) if tabular else [2.0, -50.0, 0.0, 7.0]
    items[5, 0, 0], items[6, 1, 2] = np.nan, np.inf
    rows = items.reshape(180, 4).astype(np.float32)
    sequences = Sequences(rows, np.arange(0, 180, 3), np.full(60, 3), tabular)
    built = build_model(replace(spec(), features={"x": sequences.statistics_shape}), seed=0)
    set_standardisation(built, "x", FeatureMoments.of(sequences))
    found = built.encoders["x"].standardise(torch.from_numpy(items).float()).numpy()
    finite, axes = np.where(np.isfinite(items), items, np.nan), (0,) if tabular else (0, 1)
    deviation = np.where(np.arange(4) < 3, np.nanstd(finite, axis=axes), 1.0)
    expected = (finite - np.nanmean(finite, axis=axes)) / deviation
    np.testing.assert_allclose(found, np.nan_to_num(expected), atol=1e-3)
    assert (found[..., 3] == 0).all()


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6, np.nan])
def test_a_constant_column_becomes_zero_whatever_comes_later(constant: float) -> None:
    rows, built = np.random.default_rng(0).normal(size=(50, 4)), model()
    rows[:, 1] = constant
    later = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 1e3
    set_standardisation(built, "language", moments(rows))
    found = built.encoders["language"].standardise(later)
    assert (found[:, 1] == 0).all() and (found[:, [0, 2, 3]] != 0).all()
    set_standardisation(built, "language", FeatureMoments.empty(4))
    assert (built.encoders["language"].standardise(later) == 0).all()


@pytest.mark.parametrize(("shape", "width"), [((4,), 1), ((4,), 3), ((3, 2), 2)])
def test_statistics_of_another_shape_raise(shape: tuple[int, ...], width: int) -> None:
    built = build_model(replace(spec(), features={"table": shape}), seed=0)
    with pytest.raises(ValueError, match="expected"):
        set_standardisation(built, "table", moments(np.ones((2, width))))


# The decoder against an LSTM that is run on each item by itself ----------------------------------

LENGTHS = torch.tensor([3, 1, 6, 4])


def decoder() -> Decoder:
    built = Decoder(3, ModelConfig(width=8, heads=2, decoder_layers=3))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.5, generator=source)
    return built.eval()


def encodings(steps: int) -> Tensor:
    return torch.randn(4, steps, 8, generator=torch.Generator().manual_seed(1))


def test_the_last_step_is_decoded_from_the_state_of_a_packed_sequence() -> None:
    built, padded = decoder(), encodings(6)
    packed = nn.utils.rnn.pack_padded_sequence(
        padded, LENGTHS, batch_first=True, enforce_sorted=False
    )
    last = built.lstm(packed)[1][0][-1]
    hidden = (last @ built.expand.weight.T + built.expand.bias).clamp(min=0)
    residual = last + hidden @ built.contract.weight.T + built.contract.bias
    expected = residual @ built.head.weight.T + built.head.bias
    torch.testing.assert_close(built(padded, LENGTHS), expected, atol=1e-5, rtol=1e-5)
    zero = torch.zeros(4, dtype=torch.int64)  # reads the first step
    assert torch.equal(built(padded, zero), built(padded, zero + 1))


@pytest.mark.parametrize("garbage", [1e6, math.nan, math.inf])
def test_padding_reaches_neither_decoded_outputs_nor_gradients(garbage: float) -> None:
    built, padded = decoder(), encodings(9).requires_grad_()
    clean, real = built(padded, LENGTHS), torch.arange(9) < LENGTHS[:, None]
    clean.sum().backward()
    assert (padded.grad[~real] == 0).all()
    assert (padded.grad[real].abs().sum(dim=1) > 0).all()
    soiled = padded.detach().masked_fill(~real[:, :, None], garbage)
    torch.testing.assert_close(built(soiled, LENGTHS), clean, atol=1e-6, rtol=0)


# Losses and their gradients by hand --------------------------------------------------------------

LOGITS = np.array([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]])
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
SIGMOID = 1 / (1 + np.exp(-LOGITS))
ONE_HOT = np.eye(3)[[1, 0]]


@pytest.mark.parametrize(
    ("task", "outputs", "labels", "loss", "gradient"),
    [
        (Task.regression, LOGITS[:, :1], [2.0, -2.5], (1.0 + 2.5) / 2, [[-0.5], [0.5]]),
        (
            Task.classification,
            LOGITS,
            [1, 0],
            -np.log(SOFTMAX[[0, 1], [1, 0]]).mean(),
            (SOFTMAX - ONE_HOT) / 2,
        ),
        (
            Task.multilabel,
            LOGITS,
            ONE_HOT,
            -(ONE_HOT * np.log(SIGMOID) + (1 - ONE_HOT) * np.log(1 - SIGMOID)).mean(),
            (SIGMOID - ONE_HOT) / 6,
        ),
    ],
)
def test_a_loss_is_the_mean_of_its_task(
    task: Task, outputs: np.ndarray, labels: list, loss: float, gradient: np.ndarray
) -> None:
    given = torch.tensor(outputs, requires_grad=True)
    found = task_loss(given, torch.as_tensor(labels), task)
    found.backward()
    assert found.item() == pytest.approx(loss)
    np.testing.assert_allclose(given.grad, gradient, rtol=1e-6)
