"""How large a reply may be, checked before any of it is made into a tensor.

A client of modality m sends, for each trained tensor of its encoder and of the decoder, the mean,
and a precision where the configuration asks for one (`common.structures`). So the bytes of its
tensors are known:

    sum over tensors of  H + b |mean|  +  (H + b |precision| where there is one)

with b bytes a number, H what a name, a type and a shape take at most, and of a symmetric matrix the
upper triangle only.
"""

import math
from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from common.config import StrategyConfig
from common.model.ha_fedformer import Parts
from common.posterior import Form, precision_shape
from common.protocol import payload_bytes
from common.structures import Structure, decoder_structure, encoder_structure, posterior_form
from server.acceptance.validation import RejectedUpdateError

#: Bytes of the header's entry for a tensor besides its name: part, form, type, up to four
#: dimensions, and where its bytes are.
HEADER_BYTES = 160

#: Up to so many times the limit is still read, so that the refusal can name the faulty tensor.
SLACK = 2

#: Records of an update: about, tensors, metrics.
MAX_RECORDS = 3

#: Of everything that is no tensor, written out.
MAX_LETTERS = 65_536


def payload_limits(trained: Parts, config: StrategyConfig) -> dict[str, int]:
    """Return modality to the most bytes that the tensors of a client's update may have."""
    decoder = _posterior_limit(trained.decoder, decoder_structure(config.decoder))
    structure = encoder_structure(config.encoder)
    return {
        name: _posterior_limit(tensors, structure) + decoder
        for name, tensors in trained.encoders.items()
    }


def _posterior_limit(tensors: Mapping[str, Tensor], structure: Structure | None) -> int:
    nbytes = 0
    for name, mean in tensors.items():
        numbers, form = [mean.numel()], posterior_form(mean, structure)
        if (shape := precision_shape(mean, form)) is not None:
            triangle = shape[0] * (shape[0] + 1) // 2 if form is Form.row else math.prod(shape)
            numbers.append(triangle)
        nbytes += sum(HEADER_BYTES + len(name) + mean.element_size() * count for count in numbers)
    return nbytes


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
            letters += len(str(dict(record)))
    for count, limit, what in (
        (len(content), MAX_RECORDS, "records"),
        (arrays, 1, "arrays"),
        (letters, MAX_LETTERS, "letters besides tensors"),
    ):
        if count > limit:
            raise RejectedUpdateError(f"sends {count:,} {what}, expected at most {limit:,}")
