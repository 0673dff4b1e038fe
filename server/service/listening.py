"""Where the service listens, and how it stops.

Ctrl-C and SIGTERM stop it after open requests are answered; a second Ctrl-C stops it at once.
"""

import asyncio
import gc
import signal
import socket
import ssl
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from common.config import ServeConfig
from common.errors import UserError, reason
from server.service.connections import CONNECTIONS, HEAD, Connections, raise_file_limit

#: Connections that the system queues until they are accepted.
BACKLOG = 16384

#: Seconds that open requests have to be answered once the service stops.
GRACE = 20


def listen(config: ServeConfig) -> socket.socket:
    """Listen on the configured host and port.

    Raises
    ------
    UserError
        If the address is in use, not of this machine, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        where = f"host={config.host} port={config.port}"
        raise UserError(f"{where}: {error.strerror}; choose another") from error
    return listener


def address_of(config: ServeConfig, listener: socket.socket) -> str:
    """Return the URL of the page."""
    scheme = "http" if config.ssl_cert is None else "https"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{scheme}://{host}:{listener.getsockname()[1]}/"


def check_certificate(config: ServeConfig) -> None:
    """Raise `UserError` if the certificate or its key is missing or damaged, or do not match."""
    if config.ssl_cert is None:
        return
    for name in ("ssl_cert", "ssl_key"):
        path = str(getattr(config, name))
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise UserError(f"{name}={path}: {reason(error)}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            config.ssl_cert, config.ssl_key, password=_no_password
        )
    except (OSError, ValueError) as error:  # an SSLError is the former
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"ssl_cert={config.ssl_cert} ssl_key={config.ssl_key}: {said}; expected a "
            "certificate and its key without a password, in PEM"
        ) from error


def _no_password() -> str:
    raise ValueError("the key has a password")


class _Server(uvicorn.Server):
    """Keeps its connections in order, and stops gracefully at the first signal.

    The second signal has its default effect.
    """

    def __init__(self, settings: uvicorn.Config, most: int) -> None:
        super().__init__(settings)
        self._connections = Connections(most)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.is_ssl:
            # Until a handshake is done there is no connection; uvicorn has no setting for its time.
            loop: Any = asyncio.get_running_loop()
            loop.create_server = partial(loop.create_server, ssl_handshake_timeout=HEAD)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        # All are of h11, see below.
        connections: Any = self.server_state.connections
        self._connections.close_idle(connections, time.monotonic())
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def make_server(app: FastAPI, config: ServeConfig, most: int = CONNECTIONS) -> uvicorn.Server:
    """Return a server of an application, which keeps at most so many connections open."""
    return _Server(
        uvicorn.Config(
            app,
            # It limits the head of a request; the faster httptools does not.
            http="h11",
            ws="none",
            lifespan="on",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE,
            ssl_certfile=config.ssl_cert,
            ssl_keyfile=config.ssl_key,
        ),
        most,
    )


def run(app: FastAPI, config: ServeConfig, listener: socket.socket) -> None:
    """Serve until a signal arrives, then let the signal take its default effect."""
    # What is loaded by now stays in memory; collecting it again would only delay requests.
    gc.collect()
    gc.freeze()
    # A process that a script starts in the background ignores SIGINT otherwise.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Half of the files are for those that come between two ticks, and for everything else.
    most = min(CONNECTIONS, raise_file_limit() // 2)
    make_server(app, config, most).run(sockets=[listener])
