"""What a site checks before it joins a federation, so that mistakes are named there, in a line."""

import glob
import re
import socket
import ssl
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click
from flwr.common.config import parse_config_args
from flwr.supernode import fleet_http_connection

from client.node import DeployedNode, Node, parse_node
from common.config import FileConfig
from common.data.federation import file_settings
from common.data.formats.registry import read_source, recognise
from common.data.site import shard_of_site
from common.data.source import check_there
from common.errors import UserError, file_error
from common.seal import SUFFIX

#: Bytes of a file that is no shard, up to which it is read when a site starts.
_AT_ONCE = 2**28

#: Seconds that the SuperLink has to say whether it speaks TLS.
_PATIENCE = 5.0

#: Flower's codes for a site that is refused, and what to do.
_REFUSED = {
    "2001": "the SuperLink takes registered sites only: give --auth-supernode-private-key",
    "2004": (
        "the SuperLink does not know this key, or a process that has just died used it: at the "
        "coordinator, flwr supernode register KEY.pub CONNECTION --name SITE; or start again in a "
        "minute"
    ),
}


def check_site(options: Namespace) -> str:
    """Check the options of a SuperNode, and the file of a site; return a line about its data.

    Raises `UserError` for what would end or stall the SuperNode, or end a run at the coordinator.
    """
    for name in ("root_certificates", "auth_supernode_private_key"):
        path = getattr(options, name)
        if path is not None and not Path(path).expanduser().is_file():
            raise UserError(
                f"--{name.replace('_', '-')} {path}: there is no such file; utmp-credentials makes "
                "it at the coordinator"
            )
    if options.insecure and options.auth_supernode_private_key:
        raise UserError(
            "--auth-supernode-private-key needs TLS: give --root-certificates ca.crt in place of "
            "--insecure"
        )
    line = _check_data(_node_of(options.node_config or ""))
    _check_connection(options)
    return line


def _node_of(text: str) -> Node:
    try:
        return parse_node(parse_config_args([text]))
    except click.ClickException as error:
        quoted = re.sub(r"""=([^"'\s=]+)""", _in_quotes, text)
        raise UserError(
            f"--node-config {text}: text needs quotes inside of quotes: --node-config '{quoted}'"
        ) from error


def _in_quotes(match: re.Match[str]) -> str:
    value = match[1]
    return match[0] if re.fullmatch(r"-?\d+(\.\d+)?|true|false", value) else f'="{value}"'


def _check_data(node: Node) -> str:
    """Read a shard, and look at any other file, which the settings of a run say how to read."""
    if not isinstance(node, DeployedNode) or node.data is None:
        return "data: a part of the run's own dataset"
    try:
        path = Path(node.data)
        check_there(path)
        if path.suffix != SUFFIX:
            return _look_into(path, node.key.modality)
        items = shard_of_site(path, node.key.modality).items
    except OSError as error:
        raise UserError(file_error(error)) from error
    return f"data: {path}, {len(items)} items with {node.key.modality}"


def _look_into(path: Path, modality: str) -> str:
    """Read a file that is no shard as the defaults say; return a line, of a fault a warning.

    A run may have it read otherwise, so only what no run can read raises `UserError`.
    """
    settings = replace(file_settings(FileConfig(), [modality]), predicting=True)
    beside = path.iterdir() if path.is_dir() else path.parent.glob(f"{glob.escape(modality)}.*")
    if sum(file.stat().st_size for file in {path, *beside}) > _AT_ONCE:
        recognise([path], "auto", settings)
        return f"data: {path}, to be read as the run says"
    try:
        items = read_source([path], "auto", settings)[0].items
    except UserError as error:
        recognise([path], "auto", settings)
        return (
            f"warning: {error}; a run leaves this site out, unless its dataset.* say how to read it"
        )
    return f"data: {path}, {int(items.present().sum())} items with {modality}"


def _check_connection(options: Namespace) -> None:
    """Raise `UserError` where one side speaks TLS and the other does not.

    A SuperLink that is not there yet is waited for later, and other faults are Flower's to report.
    """
    host, _, port = options.superlink.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(
            f"--superlink {options.superlink}: expected HOST:PORT, as in superlink.example.org:8000"
        )
    try:
        address = (host.strip("[]"), int(port))
        with socket.create_connection(address, timeout=_PATIENCE) as line:
            if options.insecure and _wants_tls(line, options.superlink):
                raise UserError(
                    f"the SuperLink at {options.superlink} speaks TLS: give --root-certificates "
                    "ca.crt in place of --insecure"
                )
            if not options.insecure:
                ssl.create_default_context().wrap_socket(line, server_hostname=host.strip("[]"))
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
            raise UserError(
                f"the SuperLink at {options.superlink} does not speak TLS: it was started with "
                "--insecure, which is for loopback only"
            ) from error
    except (OSError, ValueError):
        return


def _wants_tls(line: socket.socket, host: str) -> bool:
    """Whether a server does not answer HTTP, or says that it is for HTTPS."""
    line.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    try:
        answer = line.recv(4096)
    except ConnectionResetError:
        return True
    return not answer.startswith(b"HTTP/") or b"HTTPS port" in answer


def explain_refusals() -> None:
    """Make a SuperNode that is refused say what to do, before Flower's own words."""
    original: Callable[..., NoReturn] = fleet_http_connection.flwr_exit  # type: ignore[attr-defined]

    def exit_with_a_line(code: int, message: str | None = None, **others: Any) -> NoReturn:
        for known, line in _REFUSED.items():
            if f"[code: {known}]" in (message or ""):
                print(f"error: {line}", file=sys.stderr, flush=True)
        original(code, message, **others)

    fleet_http_connection.flwr_exit = exit_with_a_line  # type: ignore[assignment, attr-defined]
