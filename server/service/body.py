"""The body of a request, within limits: of its size, of the time it takes, of all that are held.

What is too large is refused at its Content-Length, or as soon as more has come than may, and never
held. The server then throws away what still comes of it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from server.service.refusal import RefusedError

#: A body must be there after so many seconds.
SECONDS = 60.0

#: Bodies of the largest size that are held at a time.
AT_ONCE = 8


class GoneError(Exception):
    """Who asked is not there any more."""


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
        """Give an empty body to fill; what it takes of all that may be held is free at the end."""
        body = bytearray()
        try:
            yield body
        finally:
            self._free += len(body)

    async def fill(self, body: bytearray, request: Request) -> None:
        """Read the body of a request.

        Raises
        ------
        RefusedError
            413 if it is too large, 415 if it is not JSON, 408 if it takes too long, 503 if too
            much is held.
        GoneError
            If the caller broke off.
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
                        raise RefusedError(
                            503, "too many large requests; come back later", {"Retry-After": "1"}
                        )
                    self._free -= len(chunk)
                    body += chunk
        except TimeoutError as error:
            raise RefusedError(
                408, f"the body took longer than {SECONDS:g} s", {"Connection": "close"}
            ) from error
        except ClientDisconnect as error:
            raise GoneError from error

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body is too large; expected {self._largest} bytes at most")


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, f"Content-Type is {kind!r}; expected application/json")
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise RefusedError(415, f"Content-Encoding is {coding!r}; expected no compression")
