"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in what the user gave: a setting, a path, a file, a node.

    The message is one line. It names the thing, what was expected and what to do. Commands
    print it without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        # A name out of a file may hold anything; the message stays one line of text.
        printable = (each if each.isprintable() else " " for each in message)
        super().__init__("".join(printable))
