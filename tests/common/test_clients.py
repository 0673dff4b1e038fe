"""Who takes part."""

import pytest
import torch

from common.clients import ClientKey, check_modality_name, clients_per_modality
from common.errors import UserError

MODALITIES = ["language", "audio", "vision"]


@pytest.mark.parametrize(
    ("clients", "counts"),
    [
        ({"default": 3}, [3, 3, 3]),
        ({"audio": 2, "default": 3}, [3, 2, 3]),
        ({"vision": 1, "audio": 2, "language": 4}, [4, 2, 1]),
    ],
)
def test_clients_are_those_of_the_modality_or_the_default(
    clients: dict[str, int], counts: list[int]
) -> None:
    # In the dataset's order, not that of the settings.
    found = clients_per_modality(clients, MODALITIES)
    assert list(found.items()) == list(zip(MODALITIES, counts, strict=True))


def test_an_unknown_modality_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"^clients\.smell: .*language, audio, vision"):
        clients_per_modality({"default": 1, "smell": 2}, MODALITIES)


@pytest.mark.parametrize("clients", [{"audio": 1}, {"audio": 1, "default": 0}, {"language": 0}])
def test_a_modality_without_clients_is_named_with_the_setting(clients: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"'language' has no client; set clients\.language"):
        clients_per_modality(clients, MODALITIES)


def test_keys_read_well_and_sort_by_modality_and_number() -> None:
    keys = [ClientKey("audio", 10), ClientKey("vision", 0), ClientKey("audio", 2)]
    assert [str(key) for key in sorted(keys)] == ["audio-2", "audio-10", "vision-0"]


@pytest.mark.parametrize("name", ["", "a.b", "a-b", "2d", "a b", "default", "keys", "__x"])
def test_only_identifiers_are_modality_names(name: str) -> None:
    with pytest.raises(UserError, match="expected letters, digits and underscores") as error:
        check_modality_name(name)
    assert repr(name) in str(error.value)
    for good in ("language", "audio_2", "_x", "größe"):
        check_modality_name(good)


def test_no_attribute_of_a_module_dict_is_a_modality_name() -> None:
    for name in dir(torch.nn.ModuleDict()):
        with pytest.raises(UserError, match="not a word that PyTorch"):
            check_modality_name(name)
