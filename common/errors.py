"""The one exception for mistakes that the user must fix."""


class UserError(Exception):
    """A mistake in what the user gave: a setting, a path, a file, a node.

    The message is one line. It names the thing, what was expected and what to do. Commands
    print it without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        # A name read from a file may hold any character; the message stays one line of text.
        printable = (character if character.isprintable() else " " for character in message)
        super().__init__("".join(printable))
