"""`utmp-serve` from the command line: settings, messages, how it stops."""

import io
import re
import signal
import socket
import ssl
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from data_checks import refusal
from forked_command import Run
from made_up_models import write_model
from rich.console import Console
from service_models import serving

from common.config import CredentialsConfig, ServeConfig, compose
from server.commands.serve import read_token, warn_of_others
from server.credentials.issuing import issue
from server.terminal import Terminal

COMMAND = "utmp-serve"
LOADS = """
import torch, uvicorn
import server.service.app, server.service.listening
from server.commands.serve import main
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "run")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder of a certificate, its key and its authority."""
    issue(
        compose(CredentialsConfig, [f"out={tmp_path}/keys", "hosts=[localhost]"]), datetime.now(UTC)
    )
    return tmp_path / "keys" / "server"


def end(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    """Send a signal; return the exit status and the rest of the output."""
    began = time.monotonic()
    process.send_signal(number)
    said, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    return process.returncode, said, errors


@pytest.mark.parametrize(
    ("hosts", "local"),
    [("127.0.0.1 localhost ::1 127.8.0.1", True), ("0.0.0.0 :: 10.0.0.5 example.org", False)],
)
def test_hosts_that_answer_this_machine_only(hosts: str, local: bool) -> None:
    for host in hosts.split():
        assert compose(ServeConfig, ["model=run", f"host='{host}'"]).is_local is local


SIGNS = "token: expected letters, digits and signs of ASCII"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model is required; give it as model=…: a run folder, a model file or a checkpoint"),
        (["max_body_mb=0"], "max_body_mb=0.0: expected a number above 0, up to 1024"),
        (["max_queue=9"], "max_queue=9: expected max_items=1000 at least"),
        (["host=' '"], "host is required; 127.0.0.1 answers this machine only"),
        (["allowed_hosts=[http://x]"], "allowed_hosts=['http://x']: expected names, as in"),
        (["ssl_cert=c"], "ssl_cert and ssl_key belong together; give both, or neither"),
        (["token=x", "token_file=y"], "token and token_file are both given"),
        *((["token='" + token + "'"], SIGNS) for token in ("", "two words", "ümlaut", "tab\there")),
        (["model=nowhere"], "model file nowhere does not exist"),
        (["device=tpu9"], "device=tpu9 cannot be used here: "),
        (["labels=[a,b]"], "labels=['a', 'b']: the model predicts numbers, which have no names"),
        (["examples=gone"], "shard gone does not exist"),
        (["token_file=gone"], "token_file=gone: No such file or directory"),
        (["examples=none", "host=no.such.host.invalid"], "host=no.such.host.invalid "),
        (["examples=none", "host=192.0.2.1"], "host=192.0.2.1 port=8100: "),
        (["ssl_cert=gone", "ssl_key=gone"], "ssl_cert=gone: No such file or directory; check"),
        (["ssl_cert=no.pem", "ssl_key=no.pem"], "ssl_cert=no.pem ssl_key=no.pem: "),
    ],
)
def test_a_mistake_is_one_line(
    loaded: Run, tmp_path: Path, model: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    error = loaded(*(["model=run"] if arguments else []), *arguments).error
    assert error.startswith(message)
    assert not {"words", "ümlaut", "tab"} & set(re.findall(r"\w+", error))  # tokens are secret


@pytest.mark.parametrize("content", [b"", b"\n", b"two words\n", "ü".encode(), b"\xff\xfe"])
def test_a_file_without_a_token(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    message = refusal(lambda: read_token(ServeConfig(token_file=str(path))))
    assert message.startswith(f"token_file={path}: expected ")
    assert "two" not in message


@pytest.mark.parametrize(
    ("settings", "token", "warning"),
    [
        ({}, None, ""),
        ({"host": "0.0.0.0"}, None, "host=0.0.0.0 without a token: whoever reaches this machine"),
        ({"host": "0.0.0.0"}, "s3cret", "host=0.0.0.0 without TLS: the token crosses the network"),
        ({"host": "0.0.0.0", "ssl_cert": "c", "ssl_key": "k"}, "s3cret", ""),
    ],
)
def test_warnings_about_an_open_host(
    settings: dict[str, str], token: str | None, warning: str
) -> None:
    shown = io.StringIO()
    warn_of_others(ServeConfig(**settings), token, Terminal(Console(file=shown)))
    assert shown.getvalue().startswith(f"warning: {warning}" if warning else "")
    assert bool(shown.getvalue()) is bool(warning)
    assert "s3cret" not in shown.getvalue()


def test_a_key_of_another_certificate(loaded: Run, model: Path, keys: Path) -> None:
    given = f"ssl_cert={keys}/ca.crt ssl_key={keys}/server.key"
    error = loaded("model=run", *given.split()).error
    assert error.startswith(f"{given}: ")
    assert error.endswith("expected a certificate and its key without a password, in PEM")


def test_an_address_that_is_taken(loaded: Run, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = loaded("model=run", f"port={port}", "examples=none").error
        assert error == f"host=127.0.0.1 port={port}: Address already in use; choose another"


# What is served ---------------------------------------------------------------------------------


def test_it_serves_until_ctrl_c(tmp_path: Path, model: Path) -> None:
    with serving(tmp_path, "model=run") as (process, said, address):
        assert said == (
            "no examples to pick: run/config.yaml is missing, so the run's data are unknown\n"
            f"run predicts regression at {address}; Ctrl-C ends\n"
        )
        with httpx.Client(base_url=address) as client:  # its connection stays open
            assert client.get("/health").json() == {"status": "ok"}
            body = {"items": [{"audio": [[1, 2, 3]]}]}
            assert client.post("/predict", json=body).status_code == 200
            assert end(process, signal.SIGINT) == (130, "", "")


def test_who_knows_the_token_may_ask_over_tls(tmp_path: Path, model: Path, keys: Path) -> None:
    given = [f"ssl_cert={keys}/server.crt", f"ssl_key={keys}/server.key"]
    (tmp_path / "token.txt").write_text("s3cret\n")
    given += ["model=run", "host=0.0.0.0", "token_file=token.txt", "examples=none"]
    with serving(tmp_path, *given) as (process, said, address):
        assert said == f"run predicts regression at {address}; Ctrl-C ends\n"
        assert address.startswith("https://0.0.0.0:")
        trust = ssl.create_default_context(cafile=keys / "ca.crt")
        with httpx.Client(base_url=address.replace("0.0.0.0", "127.0.0.1"), verify=trust) as client:
            assert client.get("/health").json() == {"status": "ok"}
            assert client.get("/model").status_code == 401
            known = client.get("/model", headers={"Authorization": "Bearer s3cret"})
            assert known.status_code == 200
        assert end(process, signal.SIGTERM) == (-signal.SIGTERM, "", "")
