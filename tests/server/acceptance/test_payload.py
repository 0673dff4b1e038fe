"""The size of an update is known before one is made; nothing larger is read."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor
from updates import uplink

from common.config import Config, compose
from common.model.ha_fedformer import ModelSpec, build_model, split_arrays, trained_names
from common.posterior import Gaussian, precision_shape
from common.protocol import encode_uplink, payload_bytes
from common.structures import Structure, decoder_structure, encoder_structure, posterior_form
from common.task import Task
from server.acceptance.payload import SLACK, check_payload, payload_limits
from server.acceptance.validation import RejectedUpdateError


def full(tensors: Mapping[str, Tensor], structure: Structure | None) -> dict[str, Gaussian]:
    """Make a posterior with every precision that is asked for."""
    posterior = {}
    for name, mean in tensors.items():
        form = posterior_form(mean, structure)
        shape = precision_shape(mean, form)
        posterior[name] = Gaussian(mean, None if shape is None else torch.ones(shape), form)
    return posterior


@pytest.mark.parametrize(
    "strategy",
    [
        *("hierarchical", "few_rounds", "paper", "fedavg"),
        *("pbea strategy.encoder.structure=diagonal", "pbea strategy.encoder.structure=low_rank"),
    ],
)
def test_limit_is_the_size_of_the_largest_update(strategy: str) -> None:
    sizes = ("model.width=4", "model.heads=2", "model.layers=2")
    config = compose(Config, [*sizes, *f"strategy={strategy}".split()])
    spec = ModelSpec({"audio": (3,), "vision": (7,)}, 2, Task.multilabel, config.model)
    model = build_model(spec, seed=0)
    parts = split_arrays({name: model.state_dict()[name] for name in trained_names(model)})
    limits = payload_limits(parts, config.strategy)
    decoder = full(parts.decoder, decoder_structure(config.strategy.decoder))
    for modality in ("audio", "vision"):
        encoder = full(parts.encoders[modality], encoder_structure(config.strategy.encoder))
        content = encode_uplink(uplink(f"{modality}-0", encoder=encoder, decoder=decoder))
        assert payload_bytes(content) == limits[modality]
        check_payload(content, [limits[modality]])
    assert limits["vision"] > limits["audio"]


def arrays(*sizes: int, dtype: str = "uint8", stype: str = "safetensors") -> RecordDict:
    made = {str(n): Array(dtype, (size,), stype, bytes(size)) for n, size in enumerate(sizes)}
    return RecordDict({"tensors": ArrayRecord(made)})


def settings(**values: Any) -> RecordDict:
    return RecordDict({"c": ConfigRecord(values)})


def test_more_bytes_than_that_are_refused_with_both_numbers() -> None:
    limits = [10_000, 1_000]
    check_payload(arrays(SLACK * 10_000), limits)
    with pytest.raises(RejectedUpdateError, match=r"20,001 bytes of tensors, .* at most 10,000"):
        check_payload(arrays(SLACK * 10_000 + 1), limits)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (arrays(1, 1), "2 arrays, expected at most 1"),
        (RecordDict({str(n): ConfigRecord() for n in range(4)}), "4 records, expected at most 3"),
        (RecordDict({"m": MetricRecord({"a": [1.0] * 20_000})}), r"\d letters"),
        (settings(**{str(n): n for n in range(10_000)}), r"\d letters"),
        (settings(a="x" * 65_536), "65,5.. letters"),
        (settings(a=["x" * 40_000] * 2), "80,0.. letters"),
        (settings(a=[""] * 40_000), r"\d letters"),
        (settings(a=b"x" * 65_536), "65,5.. letters"),
        (RecordDict({"c" * 65_537: ConfigRecord()}), "65,537 letters"),
        (RecordDict({"m": MetricRecord({"a" * 65_537: 1})}), "65,5.. letters"),
        (arrays(0, dtype="x" * 65_536, stype="numpy.ndarray"), "letters"),
    ],
)
def test_what_is_no_tensor_has_its_bounds_too(content: RecordDict, words: str) -> None:
    with pytest.raises(RejectedUpdateError, match=words):
        check_payload(content, [1000])
