"""The names by which a service may be called: the defence against DNS rebinding.

A hostile page can point its own name at this machine; its visitor's browser then lets it read what
the service answers. The browser sends that name as Host, so unknown names are refused. An address
is no such name: one outside loopback is fine where the service listens outside loopback.
"""

import ipaddress
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from common.config import ServeConfig
from server.service.answers import error_answer

#: A Host header: an address or a name, and perhaps a port, which may be that of a tunnel.
_HOST = re.compile(r"(?:\[(?P<address>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(?::\d*)?")


class KnownHosts:
    """An application that answers requests whose Host is known, and refuses others with 400.

    Starlette's own middleware takes no IPv6 address, and minds the case of letters.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app = app
        self._local = config.is_local
        self._names = {name.lower() for name in ("localhost", config.host, *config.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass on what is none."""
        if scope["type"] != "http" or self._knows(host := Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        message = f"the Host header is {host!r}; expected an address of this service, or a name of"
        await error_answer(f"{message} allowed_hosts=[…]", 400)(scope, receive, send)

    def _knows(self, header: str) -> bool:
        found = _HOST.fullmatch(header.lower())
        if found is None:
            return False
        host = found["name"] if found["address"] is None else found["address"]
        if host in self._names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not self._local
