"""`utmp-compose` and the Compose files that its output goes beside."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from data_checks import refusal
from forked_command import run_alone

from common.config import ComposeConfig, PrepareConfig, compose
from common.errors import UserError
from server.commands.compose import compose_file
from server.preparation.preparation import prepare

PROJECT = Path(__file__).parents[3]
DOCKER = PROJECT / "docker"
SHARED = ("register", "train", "superlink")


def written(*overrides: str) -> dict[str, Any]:
    """The services that are written, as Compose reads them."""
    content = yaml.safe_load(compose_file(compose(ComposeConfig, overrides)))
    assert list(content) == ["services"]
    services: dict[str, Any] = content["services"]
    return services


def clients(services: dict[str, Any]) -> list[str]:
    return [name for name in services if name not in SHARED]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pri$es"
    counts = ["clients.language=2", "clients.audio=1", "clients.vision=1"]
    config = compose(PrepareConfig, ["format=synthetic", f"out='{folder}'", *counts])
    prepare(config, watch=lambda *_: None, draw=lambda _: {})
    return folder


def test_each_client_has_a_service_with_its_own_key_and_part() -> None:
    services = written("clients.language=2", "clients.default=1")
    names = ["language-0", "language-1", "audio-0", "vision-0"]
    assert clients(services) == names
    for name in names:
        service, (modality, part) = services[name], name.split("-")
        assert service["environment"] == {"SITE": name, "MODALITY": modality, "PART": part}
        (credentials,) = service["volumes"]
        assert credentials["source"] == f"${{CREDENTIALS:-../credentials}}/sites/{name}"
        assert (credentials["target"], credentials["read_only"]) == ("/credentials", True)
        assert "deploy" not in service
    # The run and the registration know the same clients.
    overrides = services["train"]["environment"]["OVERRIDES"]
    assert overrides == "clients.language=2 clients.audio=1 clients.vision=1"
    keys = [volume["source"].rpartition("/")[2] for volume in services["register"]["volumes"]]
    assert keys == [f"{name}.pub" for name in names]
    assert all(volume["read_only"] for volume in services["register"]["volumes"])


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        ("", {"language": 3, "audio": 3, "vision": 3}),
        ("clients.language=4", {"language": 4, "audio": 3, "vision": 3}),
        ("clients.fourier=2 clients.audio=1", {"fourier": 2, "audio": 1}),
        ("modalities=[zernike,fourier] clients.default=2", {"zernike": 2, "fourier": 2}),
    ],
)
def test_counts_are_those_of_utmp_train(overrides: str, counts: dict[str, int]) -> None:
    names = clients(written(*overrides.split()))
    assert names == [f"{name}-{part}" for name, count in counts.items() for part in range(count)]


def test_shards_are_shown_to_their_clients_alone(shards: Path) -> None:
    services = written(f"data='{shards}'")
    assert clients(services) == ["language-0", "language-1", "audio-0", "vision-0"]
    for name in clients(services):
        data = services[name]["volumes"][1:]
        target = f"/data/{name}.safetensors"
        # Twice the sign, which Compose reads as one.
        source = f"{shards}/{name}.safetensors".replace("$", "$$")
        assert data == [{"type": "bind", "source": source, "target": target, "read_only": True}]
        assert services[name]["environment"]["FILE"] == target
    seen = [volume["target"] for volume in services["superlink"]["volumes"]]
    assert seen == ["/data/manifest.json", "/data/validation.safetensors", "/data/test.safetensors"]
    assert services["train"]["environment"]["OVERRIDES"] == (
        "clients.language=2 clients.audio=1 clients.vision=1 "
        "dataset.modalities=[language,audio,vision] dataset=shards dataset.path=/data"
    )


def test_every_client_may_use_the_gpus() -> None:
    services = written("clients.default=1", "gpu=true")
    device = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    for name in clients(services):
        assert services[name]["deploy"]["resources"]["reservations"]["devices"] == [device]
    assert "deploy" not in services["train"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("clients.vision=0", "modality 'vision' has no client"),
        ("clients.audio=-1", "clients.audio=-1: expected a number of at least 0"),
        ("modalities=[audio] clients.vision=1", "no modality 'vision'; it has audio"),
        ("modalities=['grösse']", "Docker Compose takes plain letters alone"),
        ("modalities=[a-b]", "modality 'a-b': expected letters"),
        ("data=nowhere", "nowhere is not a folder of shards"),
        ("data=''", "data is empty"),
    ],
)
def test_a_mistake_is_said_in_one_line(overrides: str, says: str) -> None:
    refusal(lambda: written(*overrides.split()), says)


def test_more_clients_than_shards_are_refused(shards: Path) -> None:
    with pytest.raises(UserError, match=r"clients\.audio=2: .* was prepared for 1"):
        written(f"data='{shards}'", "clients.audio=2")


def test_the_committed_clients_are_what_the_command_prints() -> None:
    shown = run_alone(PROJECT, "utmp-compose", "clients.default=1").shown
    assert shown == (DOCKER / "compose.clients.yml").read_text()


# ---- The files beside it -------------------------------------------------------------------

FILES = sorted(DOCKER.glob("compose*.yml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_service_extends_is_there(path: Path) -> None:
    for service in yaml.safe_load(path.read_text())["services"].values():
        if "extends" in service:
            other = DOCKER / service["extends"].get("file", path.name)
            assert service["extends"]["service"] in yaml.safe_load(other.read_text())["services"]


def test_clients_add_to_services_of_the_base_file() -> None:
    base = yaml.safe_load((DOCKER / "compose.yml").read_text())["services"]
    assert set(SHARED) == set(base)


def test_sites_reach_the_gateway_and_nothing_else() -> None:
    publishing = {
        (path.name, name): service["ports"]
        for path in FILES
        for name, service in yaml.safe_load(path.read_text())["services"].items()
        if "ports" in service
    }
    # The other one is published on this machine alone.
    assert publishing == {
        ("compose.yml", "superlink"): ["${PUBLISH:-127.0.0.1:8000}:8000"],
        ("compose.server.yml", "gateway"): ["${PUBLISH:-8000}:8000"],
    }


def test_every_service_is_confined() -> None:
    common = yaml.safe_load((DOCKER / "compose.common.yml").read_text())["services"]
    confined = common["process"]
    assert (confined["read_only"], confined["cap_drop"]) == (True, ["ALL"])
    assert confined["security_opt"] == ["no-new-privileges:true"]
    limits = (confined["mem_limit"], confined["pids_limit"])
    assert limits == ("${MEMORY:-8g}", "${PIDS:-4096}")
    for name in ("superlink", "gateway", "operator", "supernode"):
        assert common[name]["extends"] == {"service": "process"}
    services = [
        pair for path in FILES for pair in yaml.safe_load(path.read_text())["services"].items()
    ]
    for _, service in services:
        assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service)
    # One without `extends` adds to one of the same name, which has it.
    extending = {name for name, service in services if "extends" in service}
    assert {name for name, _ in services} == {*extending, "process"}
