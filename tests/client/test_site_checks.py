"""What a site is told before it joins, in one line, instead of at the coordinator or never."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import refusal
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from client.supernode import checks
from common.data.dataset import MultimodalDataset, Sequences
from common.data.shards import ShardInfo, write_shard
from common.task import Task

NOBODY = "127.0.0.1:9"
AUDIO = ("--node-config", 'modality="audio"')


def check(*arguments: str, at: str = NOBODY) -> str:
    options = _parse_args_run_supernode().parse_args(["--superlink", at, *arguments])
    return checks.check_site(options)


@contextmanager
def answering(content: bytes) -> Iterator[str]:
    """A server that answers anything with the same bytes, once."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            line, _ = server.accept()
            with line:
                line.recv(65536)
                line.sendall(content)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    names, path = np.array(["a", "b", "c"]), tmp_path / "vision-0.safetensors"
    sequences = {"vision": Sequences.ragged(np.ones((3, 2), np.float32), np.ones(3, np.int64))}
    items = MultimodalDataset(names, names, np.arange(3.0), sequences)
    write_shard(path, items, ShardInfo("vision-0", ("vision",), Task.regression, 1))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--insecure", "--node-config", "modality=audio part=1"),
            "--node-config modality=audio part=1: text needs quotes inside of quotes: "
            "--node-config 'modality=\"audio\" part=1'",
        ),
        (("--insecure",), "--node-config lacks modality, as in 'modality=\"audio\"'"),
        (
            ("--root-certificates", "none.crt", *AUDIO),
            "--root-certificates none.crt: there is no such file; utmp-credentials makes it",
        ),
        (
            ("--auth-supernode-private-key", "none.key", *AUDIO),
            "--auth-supernode-private-key none.key: there is no such file; utmp-credentials",
        ),
        (
            ("--insecure", "--auth-supernode-private-key", __file__, *AUDIO),
            "--auth-supernode-private-key needs TLS: give --root-certificates ca.crt in place",
        ),
        (
            ("--insecure", "--node-config", 'modality="audio" data="/none/a.safetensors"'),
            "/none/a.safetensors does not exist",
        ),
    ],
)
def test_a_mistake_is_named_with_what_to_do(arguments: tuple[str, ...], message: str) -> None:
    assert refusal(lambda: check(*arguments)).startswith(message)


def test_a_shard_is_read_and_counted(shard: Path) -> None:
    given = ("--insecure", "--node-config")
    assert check(*given, f'modality="vision" data="{shard}"') == (
        f"data: {shard}, 3 items with vision"
    )
    wrong = refusal(lambda: check(*given, f'modality="audio" data="{shard}"'))
    assert wrong.startswith(f"shard {shard} holds vision, and this node is audio: give it a shard")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    damaged = refusal(lambda: check(*given, f'modality="vision" data="{shard}"'))
    assert "its bytes do not match its seal" in damaged


def node(path: Path, modality: str = "audio") -> tuple[str, ...]:
    return ("--insecure", "--node-config", f'modality="{modality}" data="{path}"')


def test_a_file_that_is_no_shard_is_read_as_the_defaults_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "calls.csv"
    table.write_text("id,mood\na,calm\nb,cross\n")
    without = check(*node(table))
    assert without.startswith(f"warning: {tmp_path} has no audio.npy, .npz, ")
    assert without.endswith("; a run leaves this site out, unless its dataset.* say how to read it")
    # Labels are for the run to name.
    np.save(tmp_path / "audio.npy", np.ones((2, 3, 4), np.float32))
    assert check(*node(table)) == f"data: {table}, 2 items with audio"
    monkeypatch.setattr(checks, "_AT_ONCE", 90)
    assert check(*node(table)) == f"data: {table}, to be read as the run says"
    assert check("--insecure", *AUDIO) == "data: a part of the run's own dataset"


@pytest.mark.parametrize("name", ["audio.pkl", "audio.npz", "folder"])
@pytest.mark.parametrize("at_once", [0, 2**20])
def test_a_file_that_no_run_can_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at_once: int
) -> None:
    monkeypatch.setattr(checks, "_AT_ONCE", at_once)
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_bytes(b"\x80\x04junk" * 9)
    assert str(path) in refusal(lambda: check(*node(path)))


@pytest.mark.parametrize("address", ["localhost", ":8000", "http://localhost", "localhost:flower"])
def test_an_address_has_a_port(address: str) -> None:
    error = refusal(lambda: check("--insecure", *AUDIO, at=address))
    assert error == f"--superlink {address}: expected HOST:PORT, as in superlink.example.org:8000"


@pytest.mark.parametrize(
    ("content", "option", "message"),
    [
        (b"\x15\x03\x03\x00\x02\x02\x32", "--insecure", " speaks TLS: give --root-certificates"),
        (b"", "--insecure", " speaks TLS"),
        (b"HTTP/1.1 400 Bad\r\n\r\nplain HTTP to HTTPS port", "--insecure", " speaks TLS"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "", " does not speak TLS: it was started with"),
    ],
)
def test_tls_on_one_side_only_is_noticed(content: bytes, option: str, message: str) -> None:
    with answering(content) as address:
        error = refusal(lambda: check(*filter(None, [option]), *AUDIO, at=address))
    assert error.startswith(f"the SuperLink at {address}{message}")


def test_a_superlink_that_answers_or_is_not_there_yet_is_no_mistake() -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\n") as address:
        assert check("--insecure", *AUDIO, at=address)
    assert check("--insecure", *AUDIO, at="nowhere.invalid:8000")


@pytest.mark.parametrize(("code", "words"), [(2004, "does not know this key"), (2001, "--auth-su")])
def test_a_refused_site_is_told_what_to_do_before_flower_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, words: str
) -> None:
    ended: list[Any] = []
    monkeypatch.setattr(fleet_http_connection, "flwr_exit", lambda *given: ended.append(given))
    checks.explain_refusals()
    fleet_http_connection.flwr_exit(305, f"Failed.\n[code: {code}] No.")  # type: ignore[attr-defined]
    line, *others = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the SuperLink ") and words in line and others == []
    assert ended == [(305, f"Failed.\n[code: {code}] No.")]
