"""What sites reach of the coordinator: the SuperLink's Fleet API and nothing else of it.

On the same port a SuperLink serves whoever operates it, without asking who that is: to register a
key there or to start a run, which is a program for every site, one need only reach it. So it is
not published; this is.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

SUPERLINK = "https://superlink:8000"
CREDENTIALS = "/credentials"

#: Seconds without a byte until the SuperLink is given up on; a site then tries again.
PATIENCE = 60

#: Of a message from one hop to the next; each side sets its own.
HOP_BY_HOP = {"connection", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}


class Name(Convertor[str]):
    """The last part of a path, of which none leads elsewhere."""

    regex = "[a-z][a-z-]*"

    def convert(self, value: str) -> str:
        """Take it as it is."""
        return value

    def to_string(self, value: str) -> str:
        """Take it as it is."""
        return value


@asynccontextmanager
async def connected(app: Starlette) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """Keep connections to the SuperLink."""
    trusted = ssl.create_default_context(cafile=f"{CREDENTIALS}/ca.crt")
    async with httpx.AsyncClient(
        base_url=SUPERLINK, verify=trusted, timeout=PATIENCE, trust_env=False
    ) as client:
        yield {"client": client}


async def forward(request: Request) -> Response:
    """Hand a request on, and its answer back, without looking into either."""
    client: httpx.AsyncClient = request.state.client
    headers = [pair for pair in request.headers.items() if pair[0] not in HOP_BY_HOP]
    content = request.stream() if request.method == "POST" else None
    onward = client.build_request(
        request.method, request.url.path, headers=headers, content=content
    )
    try:
        answer = await client.send(onward, stream=True)
    except httpx.TransportError:
        return Response(status_code=503)
    return StreamingResponse(
        answer.aiter_raw(),
        status_code=answer.status_code,
        headers={k: v for k, v in answer.headers.items() if k not in HOP_BY_HOP},
        background=BackgroundTask(answer.aclose),
    )


def main() -> None:
    """Serve."""
    register_url_convertor("name", Name())
    routes = [
        Route("/health", forward, methods=["GET"]),
        Route("/v1/fleet/{name:name}", forward, methods=["POST"]),
    ]
    uvicorn.run(
        Starlette(routes=routes, lifespan=connected),
        host="0.0.0.0",
        port=8000,
        access_log=False,
        ssl_certfile=f"{CREDENTIALS}/server.crt",
        ssl_keyfile=f"{CREDENTIALS}/server.key",
    )


if __name__ == "__main__":
    main()
