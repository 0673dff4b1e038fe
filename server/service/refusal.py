"""Why a request is not answered: a status of HTTP and one line."""

from collections.abc import Mapping


class RefusedError(Exception):
    """A request that is not answered.

    Parameters
    ----------
    status
        Of HTTP, 4xx or 5xx.
    message
        One line that names the thing and what was expected.
    headers
        Of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        # What a caller sent may hold anything; the message stays one line of text.
        super().__init__("".join(each if each.isprintable() else " " for each in message))
        self.status = status
        self.headers = dict(headers or {})
