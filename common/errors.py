"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in what the user gave: a setting, a path, a file, a node.

    The message is one line. It names the thing, what was expected and what to do. Commands
    print it without a traceback and exit with status 2.
    """
