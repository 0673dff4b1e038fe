"""Who may take part: real processes over TLS, with sites that are registered by their keys.

One SuperLink stays up for the whole file. Those who are refused must not come online there.
"""

import asyncio
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from processes import SecureFederation, flower_environment
from tiny_runs import untimed

from common.config import CredentialsConfig, compose
from server.credentials.issuing import issue

pytestmark = pytest.mark.e2e

HOSTS = "hosts=[localhost,127.0.0.1]"
SITES = ("language-0", "audio-0", "vision-0")
#: Registered under this name, its site says that it is another.
IMPOSTOR = "audio-1"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFederation]:
    """A SuperLink that asks for registered keys, over TLS."""
    folder = tmp_path_factory.mktemp("secure")
    with SecureFederation(folder, flower_environment(folder)) as running:
        clients = ("clients.language=1", "clients.audio=2", "clients.vision=1")
        running.run("utmp-credentials", "out=credentials", HOSTS, *clients)
        running.start()
        yield running


@pytest.fixture(scope="module")
def registered(secure) -> dict[str, str]:
    """Name of each registered client to the id of its node."""
    return {name: secure.register(name) for name in (*SITES, IMPOSTOR)}


# Who is refused ---------------------------------------------------------------------------------

#: The reason for each refusal: ours, or Flower's.
REASONS = {
    "key that was not registered": ["error: the SuperLink does not know this key"],
    "no key": ["error: the SuperLink takes registered sites only"],
    "another authority": ["certificate verify failed: unable to get local issuer certificate"],
    "no TLS": ["speaks TLS: give --root-certificates ca.crt in place of --insecure"],
    "no TLS for a key": ["--auth-supernode-private-key needs TLS"],
    "expired server": ["certificate verify failed: certificate has expired"],
}


@pytest.fixture(scope="module")
def refused(secure, registered) -> dict[str, tuple[int, str]]:
    """Sites that each have one thing wrong, all at once, to how their processes ended."""
    secure.run("utmp-credentials", "out=elsewhere", HOSTS, "clients.audio=1")
    elsewhere = secure.folder / "elsewhere"
    expired = secure.folder / "expired"
    shutil.copytree(secure.credentials, expired)
    renewal = compose(CredentialsConfig, [f"out={expired}", "renew=server", "days=30"])
    issue(renewal, datetime.now(UTC) - timedelta(days=31))

    right = secure.security_of("audio-0")
    trust, key = right[:2], right[2:]
    unregistered = ("--auth-supernode-private-key", f"{elsewhere}/sites/audio-0/audio-0.key")
    security = {
        "key that was not registered": (*trust, *unregistered),
        "no key": trust,
        "another authority": ("--root-certificates", f"{elsewhere}/ca.crt", *key),
        "no TLS": ("--insecure", "--max-retries=1"),
        "no TLS for a key": ("--insecure", *key),
        "expired server": right,
    }
    with relay(expired / "server", secure.port) as port:
        nodes = {
            name: secure.add_node(
                'modality="audio"', *options, port=port if name == "expired server" else None
            )
            for name, options in security.items()
        }
        return {name: node.end() for name, node in nodes.items()}


@pytest.mark.parametrize("name", REASONS)
def test_a_site_is_refused_with_the_reason(refused, name: str) -> None:
    status, printed = refused[name]
    assert status == (2 if name.startswith("no TLS") else 1)
    assert ("Exit Code: 305\n" in printed) is (status == 1)
    assert any(reason in printed for reason in REASONS[name]), printed


def test_nobody_who_was_refused_was_ever_online(secure, registered, refused) -> None:
    # With the right credentials, `sites` below come online, one of them through a relay as above.
    assert set(refused) == set(REASONS)
    assert secure.nodes() == dict.fromkeys(registered.values(), ("registered", "N/A"))


@contextmanager
def relay(server: Path, port: int) -> Iterator[int]:
    """Another address of the SuperLink, with a certificate and key of its own."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server / "server.crt", server / "server.key")
    asking = ssl.create_default_context(cafile=server / "ca.crt")

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while content := await source.read(65536):
                sink.write(content)
                await sink.drain()
        sink.close()

    writers: list[asyncio.StreamWriter] = []

    async def carry(outer: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        inner, on = await asyncio.open_connection("127.0.0.1", port, ssl=asking)
        writers.extend((back, on))
        await asyncio.gather(copy(outer, on), copy(inner, back))

    async def serve(opened: Future[tuple[int, Callable[[], object]]]) -> None:
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        async with await asyncio.start_server(carry, "127.0.0.1", 0, ssl=serving) as listening:
            number = int(listening.sockets[0].getsockname()[1])
            opened.set_result((number, lambda: loop.call_soon_threadsafe(ended.set)))
            await ended.wait()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.5)

    # In one thread: two of them must not use a TLS socket at a time.
    opened: Future[tuple[int, Callable[[], object]]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(serve(opened)))
    thread.start()
    number, end = opened.result()
    yield number
    end()
    thread.join()


# Who takes part ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sites(secure, registered, refused) -> Iterator[dict[str, str]]:
    """The honest sites, online; to the ids of their nodes."""
    with relay(secure.credentials / "server", secure.port) as port:
        for name, via in zip(SITES, (None, None, port), strict=True):
            modality, _, part = name.partition("-")
            config = f'modality="{modality}" part={part}'
            secure.add_node(config, *secure.security_of(name), port=via)
        ids = {name: registered[name] for name in SITES}
        secure.wait_online(*ids.values())
        yield ids


ALL = {"language": 1, "audio": 1, "vision": 1}


def test_registered_sites_train_over_tls(secure, sites, tiny, tmp_path) -> None:
    printed = secure.train([*tiny, f"run_dir={tmp_path}/run"])
    assert "round 2" in printed
    assert "left out" not in printed
    rounds, summary = untimed(tmp_path / "run")
    assert list(summary["test"]) == ["multimodal", "language", "audio", "vision"]
    assert [record["clients"] for record in rounds] == [ALL, ALL]


def test_a_registered_site_that_says_it_is_another_is_left_out_and_named(
    secure, registered, sites, tiny, tmp_path
) -> None:
    secure.add_node('modality="language" part=0', *secure.security_of(IMPOSTOR))
    secure.wait_online(registered[IMPOSTOR])
    printed = secure.train([*tiny, "rounds=1", f"run_dir={tmp_path}/run"])
    said = f"node {registered[IMPOSTOR]} is registered as audio-1 and says that it is language-0"
    assert said in printed
    assert "error: " not in printed
    (record,), _ = untimed(tmp_path / "run")
    assert record["clients"] == ALL
    assert [line for line in record["rejected"] if said in line] == record["rejected"]
    assert len(record["rejected"]) == 1
