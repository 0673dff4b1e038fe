"""The size of an update is known before one is made; nothing larger is read."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.clients import ClientKey
from common.config import Config, StrategyConfig, Structure, compose_config
from common.messages import Uplink, no_numbers
from common.model.ha_fedformer import ModelSpec, Parts, build_model, split_arrays, trained_names
from common.posterior import (
    Form,
    Gaussian,
    Posterior,
    decoder_structure,
    encoder_structure,
    posterior_form,
)
from common.protocol import encode_uplink, payload_bytes
from common.task import Task
from server.acceptance.payload import SLACK, Limits, check_payload, payload_limits
from server.acceptance.validation import RejectedUpdateError

SIZES = ("model.width=4", "model.heads=2", "model.layers=2")


def trained(config: Config) -> Parts:
    spec = ModelSpec({"audio": (3,), "vision": (7,)}, 2, Task.multilabel, config.model)
    model = build_model(spec, seed=0)
    return split_arrays({name: model.state_dict()[name] for name in trained_names(model)})


def full(tensors: dict[str, torch.Tensor], structure: Structure | None) -> Posterior:
    """Make a posterior with every precision that is asked for."""
    posterior = {}
    for name, mean in tensors.items():
        form = posterior_form(mean, structure)
        precision = {Form.identity: None, Form.diagonal: torch.ones_like(mean)}.get(
            form, torch.eye(mean[0].numel()) if mean.ndim else None
        )
        posterior[name] = Gaussian(mean, precision, form)
    return posterior


def largest(parts: Parts, modality: str, strategy: StrategyConfig) -> RecordDict:
    encoder = full(dict(parts.encoders[modality]), encoder_structure(strategy.encoder))
    decoder = full(dict(parts.decoder), decoder_structure(strategy.decoder))
    evidence = torch.zeros(10, dtype=torch.float64)
    key = ClientKey(modality, 0)
    return encode_uplink(Uplink(key, 1, encoder, decoder, 1, 0.0, evidence, no_numbers(), 1))


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=hierarchical"],
        ["strategy=few_rounds"],
        ["strategy=paper"],
        ["strategy=fedavg"],
        ["strategy=median"],
        ["strategy=pbea", "strategy.encoder.structure=diagonal"],
        ["strategy=pbea", "strategy.encoder.structure=low_rank"],
    ],
)
def test_limit_is_the_size_of_the_largest_update_to_the_byte(overrides: list[str]) -> None:
    config = compose_config("config", [*SIZES, *overrides])
    parts = trained(config)
    limits = payload_limits(parts, config.strategy)
    for modality in ("audio", "vision"):
        content = largest(parts, modality, config.strategy)
        arrays = sum(len(record) for record in content.array_records.values())
        assert limits[modality] == Limits(arrays, payload_bytes(content))
        check_payload(content, [limits[modality]])
    assert limits["vision"].nbytes > limits["audio"].nbytes


def content_of(*arrays: np.ndarray) -> RecordDict:
    named = {str(index): Array(array) for index, array in enumerate(arrays)}
    return RecordDict({"encoder": ArrayRecord(named)})


def test_more_bytes_or_arrays_than_that_are_refused_with_both_numbers() -> None:
    limits = [Limits(2, 10_000), Limits(3, 1_000)]
    check_payload(content_of(np.zeros(SLACK * 10_000 - 128, np.uint8)), limits)
    with pytest.raises(RejectedUpdateError, match=r"sends 20\.0 kB of arrays, .* at most 10\.0 kB"):
        check_payload(content_of(np.zeros(SLACK * 10_000 - 127, np.uint8)), limits)
    with pytest.raises(RejectedUpdateError, match=r"sends 12\.3 MB of arrays, .* at most 10\.0 kB"):
        check_payload(content_of(np.zeros(12_300_000 - 128, np.uint8)), limits)
    check_payload(content_of(*[np.zeros(1)] * 6), limits)
    with pytest.raises(RejectedUpdateError, match="sends 7 arrays, expected at most 3"):
        check_payload(content_of(*[np.zeros(1)] * 7), limits)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (RecordDict({str(n): ConfigRecord() for n in range(7)}), "7 records, expected at most 6"),
        (RecordDict({"m": MetricRecord({"a": [1.0] * 65})}), "65 values, expected at most 64"),
        (RecordDict({"c": ConfigRecord({str(n): n for n in range(65)})}), "65 values"),
        (RecordDict({"c": ConfigRecord({"a": "x" * 65_536})}), "65538 letters"),
        (RecordDict({"c": ConfigRecord({"a": ["x" * 40_000] * 2})}), "80002 letters"),
        (RecordDict({"c": ConfigRecord({"a": b"x" * 65_536})}), "letters and bytes"),
        (RecordDict({"c" * 65_537: ConfigRecord()}), "65537 letters"),
        (RecordDict({"m": MetricRecord({"a" * 65_537: 1})}), "letters"),
    ],
)
def test_what_is_no_array_has_its_bounds_too(content: RecordDict, words: str) -> None:
    with pytest.raises(RejectedUpdateError, match=words):
        check_payload(content, [Limits(5, 1000)])


def test_only_the_format_that_clients_write_is_read() -> None:
    data = b"\x93NUMPY\x02\x00" + bytes(200)
    content = RecordDict({"e": ArrayRecord({"a": Array("float32", (1,), "numpy.ndarray", data)})})
    with pytest.raises(RejectedUpdateError, match=r"format \(2, 0\)"):
        check_payload(content, [Limits(5, 1000)])
