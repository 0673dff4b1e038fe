"""How much memory a compressed file may ask for."""

from pathlib import Path

from common.errors import UserError

#: Bytes that any file may unpack to, and how many times its own size a larger one may.
FREE = 1 << 30
RATIO = 100


def check_unpacked(path: Path, unpacked: int) -> None:
    """Refuse a small file that declares huge contents.

    Parameters
    ----------
    path
        The file; its size is what it is measured by.
    unpacked
        Bytes that its contents take in memory, as it declares them.

    Raises
    ------
    UserError
        If that is more than 1 GiB and more than 100 times the file's size.
    """
    if unpacked > FREE and unpacked > RATIO * path.stat().st_size:
        raise UserError(
            f"{path} declares {unpacked / 2**30:.1f} GiB of contents, more than {RATIO} times its "
            "size; expected a file of measured features"
        )
