"""Tensors of a message as bytes: a safetensors file with names like ``encoder/embed.weight``.

A posterior is two parts of it: the means, and the precisions where there are any.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from common.posterior import Form, Gaussian, Layout, Means, Posterior

# Parts: what comes before the slash in a tensor's name.
ENCODER = "encoder"
DECODER = "decoder"
_PRECISION = "-precision"  # after the part's


class ProtocolError(Exception):
    """A message that does not follow the protocol; says what was expected."""


def read_posteriors(data: bytes) -> tuple[Posterior, Posterior]:
    """Read the posteriors of encoder and decoder from what `tensor_bytes` returned.

    Raises
    ------
    ProtocolError
        If a tensor is missing or of the wrong shape.
    """
    means = (ENCODER, DECODER)
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    if (plain := _PLAIN.get(header)) and plain.size == len(data):
        _PLAIN[header] = _PLAIN.pop(header)
        return plain.read(data)
    parts = read_tensors(data, (*means, *(part + _PRECISION for part in means)))
    if len(header) <= _LONGEST_PLAIN and (plain := _Plain.of(header, parts)):
        # Now it is known that this header describes so many bytes.
        _PLAIN[header] = plain
        while len(_PLAIN) > _MOST_PLAIN:
            _PLAIN.pop(next(iter(_PLAIN)))
    return _posterior(parts, ENCODER), _posterior(parts, DECODER)


@dataclass(frozen=True)
class _Plain:
    """Where means lie in the bytes of uplinks that have nothing else, float32 all of them.

    Attributes
    ----------
    size
        Bytes of such an uplink.
    parts
        Of encoder and decoder: the layout, and the first byte and the one after the last.
    """

    size: int
    parts: tuple[tuple[Layout, int, int], ...]

    @classmethod
    def of(cls, header: bytes, parts: Mapping[str, Mapping[str, Tensor]]) -> "_Plain | None":
        """Return that of a safetensors header whose file was read, or None for other uplinks."""
        places = {
            name: each["data_offsets"]
            for name, each in json.loads(header[8:]).items()
            if name != "__metadata__"
        }
        found, start = [], len(header)
        for part in (ENCODER, DECODER):
            names = sorted(parts[part])
            ends = [places[f"{part}/{name}"] for name in names]
            together = all(one[1] == other[0] for one, other in itertools.pairwise(ends))
            dtypes = {parts[part][name].dtype for name in names}
            if not together or parts[part + _PRECISION] or dtypes != {torch.float32}:
                return None
            if ends[0][0] == ends[-1][1]:
                return None  # nothing but empty arrays
            layout = Layout.of(parts[part])
            found.append((layout, start + ends[0][0], start + ends[-1][1]))
        return cls(start + max(end for _, end in places.values()), tuple(found))

    def read(self, data: bytes) -> tuple[Posterior, Posterior]:
        """Return encoder and decoder of such an uplink."""
        whole = memoryview(data)
        encoder, decoder = (
            Means(layout, torch.frombuffer(bytearray(whole[start:end]), dtype=torch.float32))
            for layout, start, end in self.parts
        )
        return encoder, decoder


#: Headers of uplinks that were read in this process, the last ones last; there is one for each
#: modality. A client may send others, of some length, which must not fill the memory.
_PLAIN: dict[bytes, _Plain] = {}
_MOST_PLAIN = 64
_LONGEST_PLAIN = 1 << 16


def write_tensors(parts: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    """Return the tensors of each part as bytes; of types that numpy has, so no bfloat16."""
    # The same bytes as of safetensors.torch, which looks for shared memory: thrice as long.
    content: bytes = safetensors.numpy.save(
        {
            f"{part}/{name}": tensor.detach().cpu().contiguous().numpy()
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }
    )
    return content


def read_tensors(data: bytes, parts: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each part by name.

    Raises
    ------
    ProtocolError
        If they cannot be read, or there is one that is in none of these parts.
    """
    try:
        tensors = {
            name: torch.from_numpy(array) for name, array in safetensors.numpy.load(data).items()
        }
    except KeyError as error:
        raise ProtocolError(
            f"the tensors cannot be read: there is one of type {error}, which is never sent"
        ) from error
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ProtocolError(f"the tensors cannot be read: {error}") from error
    found: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    # In an order of their own: the library's differs from one call to the next, and sums with it.
    for full_name, tensor in sorted(tensors.items()):
        part, slash, name = full_name.partition("/")
        if part not in found or not slash:
            raise ProtocolError(f"tensor {full_name!r} is in no part: expected {', '.join(parts)}")
        found[part][name] = tensor
    return found


def _pack(gaussian: Gaussian) -> Tensor:
    """Return what of a precision is sent: a symmetric matrix goes as its upper triangle."""
    assert gaussian.precision is not None
    if gaussian.form is not Form.row:
        return gaussian.precision
    rows, columns = torch.triu_indices(*gaussian.precision.shape)
    return gaussian.precision[rows, columns]


def _unpack(packed: Tensor, columns: int) -> Tensor:
    count = columns * (columns + 1) // 2
    # Before the indices, which take far more memory than the message did.
    if packed.shape != (count,):
        raise ValueError(f"{packed.numel()} packed values, expected {count}")
    # Those of wide matrices are made anew: a client may choose any width, and must not fill memory.
    places = _kept_places if columns <= _WIDEST_KEPT else _places
    return packed[places(columns)]


def _places(columns: int) -> Tensor:
    """Return where in its upper triangle each number of a symmetric matrix is."""
    rows, cols = torch.triu_indices(columns, columns)
    places = torch.empty(columns, columns, dtype=torch.int64)
    places[rows, cols] = places[cols, rows] = torch.arange(len(rows))
    return places


_WIDEST_KEPT = 256
_kept_places = lru_cache(maxsize=16)(_places)


def posterior_parts(part: str, posterior: Posterior) -> dict[str, dict[str, Tensor]]:
    """Return the parts that a posterior is sent as."""
    precisions = {
        f"{gaussian.form}:{name}": _pack(gaussian)
        for name, gaussian in posterior.items()
        if gaussian.precision is not None
    }
    means = {name: gaussian.mean for name, gaussian in posterior.items()}
    return {part: means, part + _PRECISION: precisions}


def _posterior(parts: Mapping[str, Mapping[str, Tensor]], part: str) -> dict[str, Gaussian]:
    means, precisions = parts[part], parts[part + _PRECISION]
    posterior = {name: Gaussian(mean) for name, mean in means.items()}
    for key, packed in precisions.items():
        form, _, name = key.partition(":")
        if name not in means or form not in (Form.diagonal, Form.row):
            raise ProtocolError(f"precision {key!r} belongs to no array")
        if posterior[name].precision is not None:
            raise ProtocolError(f"{name} has two precisions")
        mean = means[name]
        try:
            precision = _unpack(packed, mean[0].numel()) if form == Form.row else packed
            posterior[name] = Gaussian(mean, precision, Form(form))
        except (ValueError, IndexError) as error:
            raise ProtocolError(f"precision of {name}: {error}") from error
    return posterior
