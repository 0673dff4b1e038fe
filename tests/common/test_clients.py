"""Who takes part."""

import pytest

from common.clients import ClientKey, check_modality_name, clients_per_modality
from common.errors import UserError

MODALITIES = ["language", "audio", "vision"]


def test_default_stands_for_every_modality() -> None:
    assert clients_per_modality({"default": 3}, MODALITIES) == dict.fromkeys(MODALITIES, 3)


def test_a_modality_of_its_own_overrides_the_default() -> None:
    counts = clients_per_modality({"audio": 2, "default": 3}, MODALITIES)
    assert counts == {"language": 3, "audio": 2, "vision": 3}


def test_without_default_every_modality_is_given() -> None:
    given = {"vision": 1, "audio": 2, "language": 4}
    counts = clients_per_modality(given, MODALITIES)
    assert counts == given
    assert list(counts) == MODALITIES  # the dataset's order, not that of the settings


def test_an_unknown_modality_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError) as error:
        clients_per_modality({"default": 1, "smell": 2}, MODALITIES)
    assert str(error.value).startswith("clients.smell: ")
    assert "language, audio, vision" in str(error.value)


@pytest.mark.parametrize("clients", [{"audio": 1}, {"audio": 1, "default": 0}, {"language": 0}])
def test_a_modality_without_clients_is_named_with_the_setting(clients: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"'language' has no client; set clients\.language"):
        clients_per_modality(clients, MODALITIES)


def test_keys_read_well_and_sort_by_modality_and_number() -> None:
    keys = [ClientKey("audio", 10), ClientKey("vision", 0), ClientKey("audio", 2)]
    assert [str(key) for key in sorted(keys)] == ["audio-2", "audio-10", "vision-0"]


@pytest.mark.parametrize("name", ["language", "audio_2", "_x", "größe"])
def test_identifiers_are_modality_names(name: str) -> None:
    check_modality_name(name)


@pytest.mark.parametrize("name", ["", "a.b", "a-b", "2d", "a b", "default"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="expected letters, digits and underscores") as error:
        check_modality_name(name)
    assert repr(name) in str(error.value)
