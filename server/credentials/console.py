"""The output of `utmp-credentials`: what it wrote and kept, and the commands that come next."""

import shlex
from pathlib import PurePath

from common.clients import ClientKey
from common.config import argument
from server.credentials.issuing import CA, SERVER, SERVER_KEY, Credentials
from server.terminal import Terminal


def show_issued(issued: Credentials, terminal: Terminal) -> None:
    """Print what a run left in its folder, and what to do with it."""
    out = issued.folder.path
    for verb, names in (("wrote", issued.new), ("kept", sorted(issued.folder.kept))):
        folders: dict[PurePath, list[str]] = {}
        for path in map(PurePath, names):
            folders.setdefault(out / path.parent, []).append(path.name)
        for folder, files in folders.items():
            terminal.tell(f"{verb} {folder}: {', '.join(files)}")
    if issued.former:
        terminal.tell(f"kept the former certificate as {out}/{issued.former}")
    terminal.tell(f"authority: until {issued.authority.not_valid_after_utc:%Y-%m-%d}")
    until = f"{issued.server.not_valid_after_utc:%Y-%m-%d}"
    terminal.tell(f"server: {', '.join(issued.hosts)}, until {until}")
    for line in issued.warnings:
        terminal.warn(line)
    if SERVER in issued.new:
        terminal.tell("next, at the coordinator (restart the SuperLink if it runs):")
        terminal.tell(f"  {_superlink(out)}")
    if issued.new_clients:
        terminal.tell(
            "next, at the coordinator, with CONNECTION as in [superlink.CONNECTION] of "
            "~/.flwr/config.toml:"
        )
        for client in issued.new_clients:
            key = argument(f"{out}/sites/{client}/{client}.pub")
            terminal.tell(f"  flwr supernode register {key} CONNECTION --name {client}")
        terminal.tell(f"next, at each site, in its own folder of {out}/sites:")
        for client in issued.new_clients:
            terminal.tell(f"  {_supernode(client, issued.hosts[0])}")


def _superlink(out: PurePath) -> str:
    certificate, key, authority = (
        argument(f"{out}/{name}") for name in (SERVER, SERVER_KEY, f"server/{CA}")
    )
    return (
        f"utmp-superlink --host 0.0.0.0 --ssl-ca-certfile {authority} "
        f"--ssl-certfile {certificate} --ssl-keyfile {key} --enable-supernode-auth "
        "--database superlink.db"
    )


def _supernode(client: ClientKey, host: str) -> str:
    address = f"[{host}]" if ":" in host else host
    node = f'modality="{client.modality}" part={client.part}'
    return (
        f"utmp-client --superlink {address}:8000 --root-certificates {CA} "
        f"--auth-supernode-private-key {client}.key --node-config {shlex.quote(node)}"
    )
