"""How large a reply may be, checked before any of it is made into a tensor.

A client of modality m sends, for each trained tensor of its encoder and of the decoder, the mean,
and a precision where the configuration asks for one (`common.structures`). So how many bytes its
tensors have at most is known before it answers.
"""

from collections.abc import Iterable, Mapping

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from common.config import StrategyConfig
from common.model.ha_fedformer import ModelArrays
from common.posterior import Gaussian, precision_shape
from common.protocol import payload_bytes
from common.structures import Structure, decoder_structure, encoder_structure, posterior_form
from common.wire import DECODER, ENCODER, posterior_groups, write_tensors
from server.acceptance.validation import RejectedUpdateError

#: Up to so many times the limit is still read, so that the refusal can name the faulty tensor.
SLACK = 2

#: Records of an update: about, tensors, metrics.
MAX_RECORDS = 3

#: Of everything that is no tensor, written out.
MAX_LETTERS = 65_536


def payload_limits(trained: ModelArrays, config: StrategyConfig) -> dict[str, int]:
    """Return modality to the most bytes that the tensors of a client's update may have."""
    structure = encoder_structure(config.encoder)
    decoder = posterior_groups(
        DECODER, _largest(trained.decoder, decoder_structure(config.decoder))
    )
    encoders = {
        name: posterior_groups(ENCODER, _largest(tensors, structure))
        for name, tensors in trained.encoders.items()
    }
    return {name: len(write_tensors({**parts, **decoder})) for name, parts in encoders.items()}


def _largest(tensors: Mapping[str, Tensor], structure: Structure | None) -> dict[str, Gaussian]:
    """Return a posterior with every precision that is asked for."""
    posterior = {}
    for name, mean in tensors.items():
        form = posterior_form(mean, structure)
        shape = precision_shape(mean, form)
        posterior[name] = Gaussian(mean, None if shape is None else torch.ones(shape), form)
    return posterior


def _letters(value: object) -> int:
    """Return about how many letters a value of a record has; writes nothing out."""
    if isinstance(value, str | bytes):
        return len(value) + 4
    return sum(map(_letters, value)) if isinstance(value, list) else 20


def check_payload(content: RecordDict, limits: Iterable[int]) -> None:
    """Raise RejectedUpdateError for a reply larger than any client of its node needs.

    `limits` are those of the modalities that the node was asked for, in bytes.
    """
    sent, most = payload_bytes(content), max(limits, default=0)
    if sent > SLACK * most:
        raise RejectedUpdateError(f"sends {sent:,} bytes of tensors, expected at most {most:,}")
    letters, arrays = sum(map(len, content)), 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            arrays += len(record)
            letters += sum(len(n) + len(a.dtype) + len(a.stype) for n, a in record.items())
        else:
            letters += sum(len(name) + _letters(value) for name, value in record.items())
    for count, limit, what in (
        (len(content), MAX_RECORDS, "records"),
        (arrays, 1, "arrays"),
        (letters, MAX_LETTERS, "letters besides tensors"),
    ):
        if count > limit:
            raise RejectedUpdateError(f"sends {count:,} {what}, expected at most {limit:,}")
