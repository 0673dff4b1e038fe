"""What we change in Flower 1.42 itself, which has no option for it; what we refuse of replies."""

from flwr.supercore.inflatable import inflatable_utils

#: Seconds until Flower asks again for a part of a message that has not arrived, growing. Flower's
#: own is 1, which is longer than a message of this project takes.
FIRST_BACKOFF = 0.02

#: Parts of a reply, at most. Those of this project have about ten, and one more for each 5 MiB;
#: what a node says of itself has one for each client.
MAX_PARTS = 1000

#: Bytes of a node's answer to who it is, at most: sums of 1,024 features take 4 MB, and those of
#: 60,000 without a linear expert 1.4 MB.
MAX_DESCRIPTION = 1 << 25

#: The code of an error that stands for a reply which cannot be had, by a fault of its node.
BROKEN_REPLY = 1000


def too_many_parts(parts: int) -> str:
    """Say why a reply of so many parts is refused."""
    return f"its reply has {parts} parts; {MAX_PARTS} are allowed"


def description_too_large() -> str:
    """Say why what a node says of itself is refused."""
    return f"its answer to who it is has more than {MAX_DESCRIPTION >> 20} MiB"


def shorten_backoff() -> None:
    """Shorten the first pause of every later pull of a message in this process."""
    for function in (
        inflatable_utils.pull_objects,
        inflatable_utils.pull_and_inflate_object_from_tree,
    ):
        assert function.__kwdefaults__ is not None
        function.__kwdefaults__["initial_backoff"] = FIRST_BACKOFF
