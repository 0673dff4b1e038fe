"""`utmp-compose`: the clients of a federation on one machine, as a Docker Compose file.

It is used together with ``docker/compose.yml``: it adds a service with a key of its own for each
client, and what the run and the registration must know of them. Paths are relative to ``docker/``.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from common.config import ComposeConfig
from common.errors import UserError
from server.commands.command import hydra_command

if TYPE_CHECKING:
    from common.clients import ClientKey

Service = dict[str, Any]

CREDENTIALS = "${CREDENTIALS:-../credentials}"

#: Where shards lie in a container.
DATA = "/data"

_HEADER = """\
# Written by utmp-compose: the clients of a federation on one machine.
#
#   docker-compose -f docker/compose.yml -f THIS_FILE up -d
#   docker-compose -f docker/compose.yml -f THIS_FILE run --rm train rounds=3
"""


@hydra_command(ComposeConfig)
def main(config: ComposeConfig) -> None:
    """Print the file."""
    print(compose_file(config), end="")


def compose_file(config: ComposeConfig) -> str:
    """Return the clients as a Compose file.

    Raises `UserError` if a modality has no client or no shard, or a name that Compose does not
    take.
    """
    from common.clients import ClientKey

    counts = _counts(config)
    clients = [ClientKey(name, part) for name, count in counts.items() for part in range(count)]
    overrides = [f"clients.{name}={count}" for name, count in counts.items()]
    services: dict[str, Service] = {
        "register": {
            "volumes": [
                _mount(f"{CREDENTIALS}/sites/{client}/{client}.pub", f"/sites/{client}.pub")
                for client in clients
            ]
        },
        "train": {},
    }
    if config.data is not None:
        # What the server reads of a folder of shards: no client's.
        names = ("manifest.json", "validation.safetensors", "test.safetensors")
        volumes = [_mount_data(Path(config.data) / name) for name in names]
        services["superlink"] = {"volumes": volumes}
        overrides += [f"dataset.modalities=[{','.join(counts)}]"]
        overrides += ["dataset=shards", f"dataset.path={DATA}"]
    services["train"] = {"environment": {"OVERRIDES": " ".join(overrides)}}
    services |= {str(client): _client(client, config) for client in clients}
    text: str = yaml.safe_dump({"services": services}, sort_keys=False, allow_unicode=True)
    return _HEADER + text


def _counts(config: ComposeConfig) -> dict[str, int]:
    """Count the clients of each modality."""
    from common.clients import check_modality_name, clients_per_modality
    from common.data.manifest import read_manifest
    from common.data.synthetic import VIEWS

    prepared, known = None, list(VIEWS)
    named = [name for name in config.clients if name != "default"]
    if config.data is not None:
        manifest = read_manifest(Path(config.data))
        keys = Counter(key.modality for key in manifest.clients())
        prepared = {name: keys[name] for name in manifest.modalities}
        known = list(prepared)
    elif not set(named) <= set(known):
        known = named
    modalities = list(dict.fromkeys(config.modalities or known))
    for name in modalities:
        check_modality_name(name)
        if not name.isascii():
            raise UserError(f"modality {name!r}: Docker Compose takes plain letters alone")
    counts = clients_per_modality(config.clients, modalities, prepared)
    for name, count in counts.items():
        if prepared is not None and count > prepared.get(name, 0):
            raise UserError(
                f"clients.{name}={count}: {config.data} was prepared for {prepared.get(name, 0)}"
            )
    return counts


def _client(client: "ClientKey", config: ComposeConfig) -> Service:
    environment = {"SITE": str(client), "MODALITY": client.modality, "PART": str(client.part)}
    volumes = [_mount(f"{CREDENTIALS}/sites/{client}", "/credentials")]
    if config.data is not None:
        shard = f"{client}.safetensors"
        environment["FILE"] = f"{DATA}/{shard}"
        volumes.append(_mount_data(Path(config.data) / shard))
    service: Service = {
        "extends": {"file": "compose.common.yml", "service": "supernode"},
        "environment": environment,
        "volumes": volumes,
        "depends_on": {"register": {"condition": "service_completed_successfully"}},
    }
    if config.gpu:
        device = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _mount_data(path: Path) -> Service:
    # In an absolute path, Compose must see no variable.
    return _mount(str(path.resolve()).replace("$", "$$"), f"{DATA}/{path.name}")


def _mount(source: str, target: str) -> Service:
    # In full: of the short form, Docker would make a folder where there is no such file.
    return {"type": "bind", "source": source, "target": target, "read_only": True}
