"""How large a reply may be; looked at before any of it is made into an array.

A client of modality m sends, for each trained tensor of its encoder and of the decoder, the mean,
and a precision where the configuration asks for one (`common.posterior.posterior_form`). So the
bytes of its arrays are known exactly:

    sum over tensors of  H + b |mean|  +  (H + b |precision| where there is one)

with b bytes a number, H those of NumPy's header, and of a symmetric matrix the upper triangle only.
"""

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, RecordDict
from torch import Tensor

from common.config import StrategyConfig, Structure
from common.model.ha_fedformer import Parts
from common.posterior import (
    Form,
    decoder_structure,
    encoder_structure,
    posterior_form,
    precision_shape,
)
from common.protocol import payload_bytes
from server.acceptance.validation import RejectedUpdateError

#: Bytes of the header of a `.npy` file of few dimensions.
HEADER_BYTES = 128

#: What is more than that, but not more than so many times, is read, and the array that is too many
#: or too large is named.
SLACK = 2

#: Records of an update: about, encoder, decoder, the precisions of both, metrics.
MAX_RECORDS = 6

#: Values that are no arrays: the key, the round, the figures and two short lists of sums.
MAX_VALUES = 64

#: Letters of keys and texts, of array names too; a site's reason for a failure is shorter.
MAX_LETTERS = 65_536


@dataclass(frozen=True)
class Limits:
    """What the arrays of an update may amount to.

    Attributes
    ----------
    arrays
        Their number.
    nbytes
        Their bytes, headers included.
    """

    arrays: int
    nbytes: int


def payload_limits(trained: Parts, config: StrategyConfig) -> dict[str, Limits]:
    """Return modality to what a client of it sends at most."""
    decoder = _of_posterior(trained.decoder, decoder_structure(config.decoder))
    limits = {}
    for name, tensors in trained.encoders.items():
        encoder = _of_posterior(tensors, encoder_structure(config.encoder))
        limits[name] = Limits(encoder.arrays + decoder.arrays, encoder.nbytes + decoder.nbytes)
    return limits


def _of_posterior(tensors: Mapping[str, Tensor], structure: Structure | None) -> Limits:
    arrays = nbytes = 0
    for mean in tensors.values():
        numbers = [mean.numel()]
        form = posterior_form(mean, structure)
        if (shape := precision_shape(mean, form)) is not None:
            size = shape[0]
            numbers.append(size * (size + 1) // 2 if form is Form.row else math.prod(shape))
        arrays += len(numbers)
        nbytes += sum(HEADER_BYTES + mean.element_size() * count for count in numbers)
    return Limits(arrays, nbytes)


def check_payload(content: RecordDict, limits: Iterable[Limits]) -> None:
    """Refuse a reply that is larger than any of the clients of its node can need.

    Parameters
    ----------
    content
        Of the reply, as it came.
    limits
        Of the modalities that the node was asked for.

    Raises
    ------
    RejectedUpdateError
        With the size and what was expected.
    """
    allowed = list(limits)
    _at_most(len(content), MAX_RECORDS, "records")
    sent = payload_bytes(content)
    most = max((each.nbytes for each in allowed), default=0)
    if sent > SLACK * most:
        raise RejectedUpdateError(f"sends {_size(sent)} of arrays, expected at most {_size(most)}")
    arrays = [array for record in content.array_records.values() for array in record.values()]
    most_arrays = max((each.arrays for each in allowed), default=0)
    if len(arrays) > SLACK * most_arrays:
        raise RejectedUpdateError(f"sends {len(arrays)} arrays, expected at most {most_arrays}")
    texts, values = _words(content)
    _at_most(values, MAX_VALUES, "values")
    _at_most(sum(map(len, texts)), MAX_LETTERS, "letters and bytes of text")
    for array in arrays:
        _check_claim(array)


def _at_most(found: int, most: int, what: str) -> None:
    if found > most:
        raise RejectedUpdateError(f"sends {found} {what}, expected at most {most}")


def _words(content: RecordDict) -> tuple[list[str | bytes], int]:
    """Return all keys and texts of a message, and how many values it holds that are no arrays."""
    texts: list[str | bytes] = list(content)
    values = 0
    records: list[Mapping[str, object]] = [
        *content.config_records.values(),
        *content.metric_records.values(),
    ]
    for words in records:
        texts += list(words)
        for single in _singles(words.values()):
            values += 1
            if isinstance(single, (str, bytes)):
                texts.append(single)
    for arrays in content.array_records.values():
        texts += list(arrays)
        texts += [text for array in arrays.values() for text in (array.dtype, array.stype)]
    return texts, values


def _singles(values: Iterable[object]) -> Iterator[object]:
    for value in values:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _check_claim(array: Array) -> None:
    """Refuse an array whose header says that it is larger than its bytes.

    NumPy takes the memory that the header names before it looks for the bytes. What is no array at
    all is left to whoever decodes it.
    """
    stream = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(stream)
    except ValueError:
        return
    if version != (1, 0):
        raise RejectedUpdateError(f"sends an array in NumPy's format {version}, expected (1, 0)")
    try:
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:
        # The header is a Python literal, whose reader fails in many ways.
        raise RejectedUpdateError("sends an array whose header cannot be read") from error
    claimed = math.prod(shape) * dtype.itemsize
    there = len(array.data) - stream.tell()
    if claimed != there:
        raise RejectedUpdateError(
            f"sends an array of {_size(there)} whose header says {_size(claimed)}"
        )


def _size(nbytes: int) -> str:
    if nbytes < 100_000:
        return f"{nbytes / 1e3:.1f} kB"
    return f"{nbytes / 1e6:.1f} MB"
