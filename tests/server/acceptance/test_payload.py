"""The size of an update is known before one is made; nothing larger is read."""

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.clients import ClientKey
from common.config import Config, StrategyConfig, compose_config
from common.messages import Uplink, no_numbers
from common.model.ha_fedformer import (
    ModelArrays,
    ModelSpec,
    build_model,
    split_arrays,
    trained_names,
)
from common.posterior import Form, Gaussian
from common.protocol import encode_uplink, payload_bytes
from common.structures import Structure, decoder_structure, encoder_structure, posterior_form
from common.task import Task
from server.acceptance.payload import SLACK, check_payload, payload_limits
from server.acceptance.validation import RejectedUpdateError

SIZES = ("model.width=4", "model.heads=2", "model.layers=2")


def trained(config: Config) -> ModelArrays:
    spec = ModelSpec({"audio": (3,), "vision": (7,)}, 2, Task.multilabel, config.model)
    model = build_model(spec, seed=0)
    return split_arrays({name: model.state_dict()[name] for name in trained_names(model)})


def full(tensors: dict[str, torch.Tensor], structure: Structure | None) -> dict[str, Gaussian]:
    """Make a posterior with every precision that is asked for."""
    posterior = {}
    for name, mean in tensors.items():
        form = posterior_form(mean, structure)
        precision = {Form.identity: None, Form.diagonal: torch.ones_like(mean)}.get(
            form, torch.eye(mean[0].numel()) if mean.ndim else None
        )
        posterior[name] = Gaussian(mean, precision, form)
    return posterior


def largest(parts: ModelArrays, modality: str, strategy: StrategyConfig) -> RecordDict:
    encoder = full(dict(parts.encoders[modality]), encoder_structure(strategy.encoder))
    decoder = full(dict(parts.decoder), decoder_structure(strategy.decoder))
    calibration_sums = torch.zeros(10, dtype=torch.float64)
    key = ClientKey(modality, 0)
    return encode_uplink(
        Uplink(key, 1, encoder, decoder, 1, 0.0, calibration_sums, no_numbers(), 1)
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=hierarchical"],
        ["strategy=few_rounds"],
        ["strategy=paper"],
        ["strategy=fedavg"],
        ["strategy=pbea", "strategy.encoder.structure=diagonal"],
        ["strategy=pbea", "strategy.encoder.structure=low_rank"],
    ],
)
def test_limit_is_the_size_of_the_largest_update(overrides: list[str]) -> None:
    config = compose_config("config", [*SIZES, *overrides])
    parts = trained(config)
    limits = payload_limits(parts, config.strategy)
    for modality in ("audio", "vision"):
        content = largest(parts, modality, config.strategy)
        assert payload_bytes(content) == limits[modality]
        check_payload(content, [limits[modality]])
    assert limits["vision"] > limits["audio"]


def content_of(*sizes: int) -> RecordDict:
    arrays = {
        str(n): Array("uint8", (size,), "safetensors", bytes(size)) for n, size in enumerate(sizes)
    }
    return RecordDict({"tensors": ArrayRecord(arrays)})


def test_more_bytes_than_that_are_refused_with_both_numbers() -> None:
    limits = [10_000, 1_000]
    check_payload(content_of(SLACK * 10_000), limits)
    with pytest.raises(RejectedUpdateError, match=r"20,001 bytes of tensors, .* at most 10,000"):
        check_payload(content_of(SLACK * 10_000 + 1), limits)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (content_of(1, 1), "2 arrays, expected at most 1"),
        (RecordDict({str(n): ConfigRecord() for n in range(4)}), "4 records, expected at most 3"),
        (RecordDict({"m": MetricRecord({"a": [1.0] * 20_000})}), r"\d letters"),
        (RecordDict({"c": ConfigRecord({str(n): n for n in range(10_000)})}), r"\d letters"),
        (RecordDict({"c": ConfigRecord({"a": "x" * 65_536})}), "65,5.. letters"),
        (RecordDict({"c": ConfigRecord({"a": ["x" * 40_000] * 2})}), "80,0.. letters"),
        (RecordDict({"c": ConfigRecord({"a": [""] * 40_000})}), r"\d letters"),
        (RecordDict({"c": ConfigRecord({"a": b"x" * 65_536})}), "65,5.. letters"),
        (RecordDict({"c" * 65_537: ConfigRecord()}), "65,539 letters"),
        (RecordDict({"m": MetricRecord({"a" * 65_537: 1})}), "65,5.. letters"),
        (
            RecordDict({"t": ArrayRecord({"a": Array("x" * 65_536, (), "numpy.ndarray", b"")})}),
            "letters",
        ),
    ],
)
def test_what_is_no_tensor_has_its_bounds_too(content: RecordDict, words: str) -> None:
    with pytest.raises(RejectedUpdateError, match=words):
        check_payload(content, [1000])
