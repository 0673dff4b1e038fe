"""The body of a request, within limits: of its size, of its duration, of all bodies in memory.

A body that is too large is refused by its Content-Length, or as soon as more bytes arrive than are
allowed. The server then discards the rest.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import HTTPException, Request

#: A body must be complete after this many seconds.
SECONDS = 60.0

#: How many bodies of the largest size are in memory at a time.
AT_ONCE = 8


class BodyReader:
    """Reads bodies of JSON of at most `largest` bytes."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._free = AT_ONCE * largest

    @asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[bytearray]:
        """Yield the body of a request; its memory counts as taken until the block ends.

        Raises
        ------
        HTTPException
            413 if it is too large, 415 if it is not JSON, 408 if it takes too long, 503 if too
            many bodies are in memory.
        ClientDisconnect
            If the client disconnects.
        """
        _check_type(request)
        declared = request.headers.get("content-length", "")
        self._check_size(int(declared) if declared.isdecimal() else 0)
        body = bytearray()
        try:
            await self._fill(body, request)
            yield body
        finally:
            self._free += len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                async for chunk in request.stream():
                    self._check_size(len(body) + len(chunk))
                    if len(chunk) > self._free:
                        message = "too many large requests; try again later"
                        raise HTTPException(503, message, {"Retry-After": "1"})
                    self._free -= len(chunk)
                    body += chunk
        except TimeoutError as error:
            message = f"the body took longer than {SECONDS:g} s"
            raise HTTPException(408, message, {"Connection": "close"}) from error

    def _check_size(self, size: int) -> None:
        if size > self._largest:
            raise HTTPException(413, f"the body is too large; at most {self._largest} bytes fit")


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, f"Content-Type is {kind!r}; expected application/json")
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise HTTPException(415, f"Content-Encoding is {coding!r}; expected no compression")
