"""Clients, named by their modality and a number."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from common.errors import UserError

#: Attributes of `torch.nn.ModuleDict`, which keeps encoders by modality, and our own words.
RESERVED = frozenset(dir(nn.ModuleDict())) | {"default", "multimodal"}

#: Clients of each modality where nothing else is said.
DEFAULT_CLIENTS = 3


class ClientKey(NamedTuple):
    """One client: its modality and its number among that modality's clients."""

    modality: str
    part: int

    def __str__(self) -> str:
        return f"{self.modality}-{self.part}"


def check_modality_name(name: str) -> None:
    """Raise `UserError` for a modality name that cannot be part of a parameter's name."""
    if not name.isidentifier() or name in RESERVED:
        raise UserError(
            f"modality {name!r}: expected letters, digits and underscores, as in audio_2, and not "
            "a word that PyTorch or the configuration keeps for itself"
        )


def clients_per_modality(
    clients: Mapping[str, int | None],
    modalities: Sequence[str],
    otherwise: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Resolve ``clients.*`` to the number of clients of each modality, in the dataset's order.

    ``default`` stands for every modality without a count of its own; where that is null too, it is
    `otherwise` that counts, or `DEFAULT_CLIENTS` of each.

    Raises `UserError` if a count is for a modality that the dataset lacks, or a modality has none.
    """
    unknown = sorted(set(clients) - set(modalities) - {"default"})
    if unknown:
        raise UserError(
            f"clients.{unknown[0]}: the dataset has no modality {unknown[0]!r}; "
            f"it has {', '.join(modalities)}"
        )
    counts = {}
    for name in modalities:
        given = clients.get(name)
        count = clients.get("default", 0) if given is None else given
        counts[name] = (otherwise or {}).get(name, DEFAULT_CLIENTS) if count is None else count
    without = [name for name, count in counts.items() if count < 1]
    if without:
        raise UserError(
            f"modality {without[0]!r} has no client; set clients.{without[0]} or clients.default, "
            "or leave it out of dataset.modalities"
        )
    return counts
