"""The body of a request, within limits: of its size, of its duration, of all bodies in memory.

A body that is too large is refused by its Content-Length, or as soon as more bytes arrive than are
allowed; it is never kept. The server then discards what still arrives of it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException, Request

#: A body must be complete after this many seconds.
SECONDS = 60.0

#: How many bodies of the largest size are in memory at a time.
AT_ONCE = 8


class BodyReader:
    """Reads bodies of JSON.

    Parameters
    ----------
    largest
        Bytes of one body.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._free = AT_ONCE * largest

    @contextmanager
    def holding(self) -> Iterator[bytearray]:
        """Give an empty body to fill; at the end its memory counts as free again."""
        body = bytearray()
        try:
            yield body
        finally:
            self._free += len(body)

    async def fill(self, body: bytearray, request: Request) -> None:
        """Read the body of a request.

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
        if declared.isdecimal() and int(declared) > self._largest:
            raise self._too_large()
        try:
            async with asyncio.timeout(SECONDS):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > self._largest:
                        raise self._too_large()
                    if len(chunk) > self._free:
                        message = "too many large requests; try again later"
                        raise HTTPException(503, message, {"Retry-After": "1"})
                    self._free -= len(chunk)
                    body += chunk
        except TimeoutError as error:
            message = f"the body took longer than {SECONDS:g} s"
            raise HTTPException(408, message, {"Connection": "close"}) from error

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is too large; at most {self._largest} bytes fit")


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, f"Content-Type is {kind!r}; expected application/json")
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise HTTPException(415, f"Content-Encoding is {coding!r}; expected no compression")
