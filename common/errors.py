"""The one exception for mistakes that the user must fix, and text that is safe to show."""


def printable(text: str, instead: str = " ") -> str:
    """Return one line of text that is safe to show, whatever a file or a caller put in it."""
    return "".join(character if character.isprintable() else instead for character in text)


class UserError(Exception):
    """A mistake in what the user gave: a setting, a path, a file, a node.

    The message is one line. It names the thing, what was expected and what to do. Commands
    print it without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
