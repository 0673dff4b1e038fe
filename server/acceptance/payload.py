"""How large a reply may be, checked before any of it is made into a tensor.

A client of modality m sends, for each trained tensor of its encoder and of the decoder, the mean,
and a precision where the configuration asks for one (`common.structures`). So the bytes of its
tensors are known:

    sum over tensors of  H + b |mean|  +  (H + b |precision| where there is one)

with b bytes a number, H what a name, a type and a shape take at most, and of a symmetric matrix the
upper triangle only. The format itself holds no more than its bytes (`common.protocol`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from common.config import StrategyConfig
from common.model.ha_fedformer import ModelArrays
from common.posterior import Form, precision_shape
from common.protocol import payload_bytes
from common.structures import Structure, decoder_structure, encoder_structure, posterior_form
from server.acceptance.validation import RejectedUpdateError

#: Bytes of the entry of a tensor in the header, its name not counted: its part, form, type, shape
#: of up to four dimensions, and where its bytes are.
HEADER_BYTES = 160

#: A reply of up to so many times the limit is still read, so that the refusal can name the tensor
#: that is surplus or too large.
SLACK = 2

#: Records of an update: about, tensors, metrics.
MAX_RECORDS = 3

#: Values that are no arrays: the key, the round, the figures and two short lists of sums.
MAX_VALUES = 64

#: Letters of keys and texts; a site's reason for a failure is shorter.
MAX_LETTERS = 65_536


def payload_limits(trained: ModelArrays, config: StrategyConfig) -> dict[str, int]:
    """Return modality to how many bytes the tensors of its client's update have at most."""
    decoder = _of_posterior(trained.decoder, decoder_structure(config.decoder))
    structure = encoder_structure(config.encoder)
    return {
        name: _of_posterior(tensors, structure) + decoder
        for name, tensors in trained.encoders.items()
    }


def _of_posterior(tensors: Mapping[str, Tensor], structure: Structure | None) -> int:
    nbytes = 0
    for name, mean in tensors.items():
        numbers = [mean.numel()]
        form = posterior_form(mean, structure)
        if (shape := precision_shape(mean, form)) is not None:
            size = shape[0]
            numbers.append(size * (size + 1) // 2 if form is Form.row else math.prod(shape))
        nbytes += sum(HEADER_BYTES + len(name) + mean.element_size() * count for count in numbers)
    return nbytes


def check_payload(content: RecordDict, limits: Iterable[int]) -> None:
    """Refuse a reply that is larger than any of the clients of its node can need.

    Parameters
    ----------
    content
        Of the reply, as it came.
    limits
        In bytes, of the modalities that the node was asked for.

    Raises
    ------
    RejectedUpdateError
        With the size and what was expected.
    """
    _at_most(len(content), MAX_RECORDS, "records")
    sent, most = payload_bytes(content), max(limits, default=0)
    if sent > SLACK * most:
        raise RejectedUpdateError(f"sends {_size(sent)} of tensors, expected at most {_size(most)}")
    records = [record for record in content.values() if isinstance(record, ArrayRecord)]
    _at_most(sum(map(len, records)), 1, "arrays")
    texts, values = _words(content)
    _at_most(values, MAX_VALUES, "values")
    _at_most(sum(map(len, texts)), MAX_LETTERS, "letters and bytes of text")


def _at_most(count: int, most: int, what: str) -> None:
    if count > most:
        raise RejectedUpdateError(f"sends {count} {what}, expected at most {most}")


def _words(content: RecordDict) -> tuple[list[str | bytes], int]:
    """Return all keys and texts of a message, and how many values it holds that are no arrays."""
    texts: list[str | bytes] = list(content)
    values = 0
    for record in content.values():
        texts += list(record)
        if isinstance(record, ArrayRecord):
            texts += [text for array in record.values() for text in (array.dtype, array.stype)]
            continue
        for single in _singles(record.values()):
            values += 1
            if isinstance(single, (str, bytes)):
                texts.append(single)
    return texts, values


def _singles(values: Iterable[object]) -> Iterator[object]:
    for value in values:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _size(nbytes: int) -> str:
    if nbytes < 100_000:
        return f"{nbytes / 1e3:.1f} kB"
    return f"{nbytes / 1e6:.1f} MB"
