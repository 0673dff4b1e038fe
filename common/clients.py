"""Clients, named by their modality and a number."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from common.errors import UserError

#: Attributes of `torch.nn.ModuleDict`, which keeps encoders by modality, but for those with two
#: underscores in front. Written out, so that preparing data does not take the second of torch.
_ATTRIBUTES = """
T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda
double dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter
get_submodule half ipu items keys load_state_dict modules mtia named_buffers named_children
named_modules named_parameters parameters pop register_backward_hook register_buffer
register_forward_hook register_forward_pre_hook register_full_backward_hook
register_full_backward_pre_hook register_load_state_dict_post_hook
register_load_state_dict_pre_hook register_module register_parameter
register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state
set_submodule share_memory state_dict to to_empty train training type update values xpu
zero_grad _apply _backward_hooks _backward_pre_hooks _buffers _call_impl _compiled_call_impl
_forward_hooks _forward_hooks_always_called _forward_hooks_with_kwargs _forward_pre_hooks
_forward_pre_hooks_with_kwargs _get_backward_hooks _get_backward_pre_hooks _get_name
_is_full_backward_hook _load_from_state_dict _load_state_dict_post_hooks
_load_state_dict_pre_hooks _maybe_warn_non_full_backward_hook _modules _named_members
_non_persistent_buffers_set _parameters _register_load_state_dict_pre_hook
_register_state_dict_hook _replicate_for_data_parallel _save_to_state_dict _slow_forward
_state_dict_hooks _state_dict_pre_hooks _version _wrapped_call_impl
"""

#: Words that no modality may have, with our own.
RESERVED = frozenset(_ATTRIBUTES.split()) | {"default", "multimodal"}

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
    if not name.isidentifier() or name in RESERVED or name.startswith("__"):
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
