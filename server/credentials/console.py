"""What `utmp-credentials` shows: what it wrote and kept, and the commands that come next."""

import shlex
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from common.clients import ClientKey
from server.credentials.issuing import CA, SERVER, SERVER_KEY, Issued, site_folder
from server.terminal import Terminal


def show_issued(issued: Issued, out: str, terminal: Terminal) -> None:
    """Print what a run left, and what is to be done with it.

    Parameters
    ----------
    issued
        What it left.
    out
        The folder of all credentials.
    terminal
        Where to print.
    """
    for verb, names in (("wrote", issued.wrote), ("kept", issued.kept)):
        for line in _by_folder(out, names):
            terminal.tell(f"{verb} {line}")
    if issued.former:
        terminal.tell(f"kept the former certificate as {out}/{issued.former}")
    hosts = ", ".join(issued.hosts)
    terminal.tell(f"authority: until {issued.authority.not_valid_after_utc:%Y-%m-%d}")
    terminal.tell(f"server: {hosts}, until {issued.server.not_valid_after_utc:%Y-%m-%d}")
    for line in issued.warnings:
        terminal.warn(line)
    if SERVER in issued.wrote:
        _next_at_the_server(out, terminal)
    if issued.new_clients:
        _next_for_sites(issued, out, terminal)


def _by_folder(out: str, names: Iterable[str]) -> list[str]:
    folders: dict[PurePosixPath, list[str]] = {}
    for name in map(PurePosixPath, names):
        folders.setdefault(name.parent, []).append(name.name)
    return [f"{Path(out) / folder}: {', '.join(files)}" for folder, files in folders.items()]


def _next_at_the_server(out: str, terminal: Terminal) -> None:
    terminal.tell("next, at the coordinator, started anew if it runs:")
    certificate, key, authority = (
        shlex.quote(f"{out}/{name}") for name in (SERVER, SERVER_KEY, f"server/{CA}")
    )
    terminal.tell(
        f"  flower-superlink --host 0.0.0.0 --ssl-ca-certfile {authority} "
        f"--ssl-certfile {certificate} --ssl-keyfile {key} --enable-supernode-auth "
        "--disable-runtime-dependency-installation --database superlink.db"
    )


def _next_for_sites(issued: Issued, out: str, terminal: Terminal) -> None:
    terminal.tell(
        "next, at the coordinator, with CONNECTION as in [superlink.CONNECTION] of "
        "~/.flwr/config.toml:"
    )
    for client in issued.new_clients:
        key = shlex.quote(f"{out}/{site_folder(client)}/{client}.pub")
        terminal.tell(f"  flwr supernode register {key} CONNECTION --name {client}")
    terminal.tell(f"next, at each site, in its own folder of {out}/sites:")
    for client in issued.new_clients:
        terminal.tell(f"  {_supernode(client, issued.hosts[0])}")


def _supernode(client: ClientKey, host: str) -> str:
    address = f"[{host}]" if ":" in host else host
    node = f'modality="{client.modality}" part={client.part}'
    return (
        f"utmp-client --superlink {address}:8000 --root-certificates {CA} "
        f"--auth-supernode-private-key {client}.key --node-config {shlex.quote(node)}"
    )
