"""Messages: one line that is safe to show, and whose paths can be copied."""

import errno

import pytest

from common.errors import UserError, file_error


@pytest.mark.parametrize(
    "path",
    [
        *("a  b", "日\u3000本", "a\u00a0b\u2009c", "👨\u200d👩\u200d👧", "ü", "e\u0301", "مرحبا"),
        *("a\u200bb", "a\\b", "\ue000", "\ufeffa"),
    ],
)
def test_a_path_is_shown_as_it_is(path: str) -> None:
    assert str(UserError(f"{path} does not exist")) == f"{path} does not exist"
    assert file_error(OSError(errno.EIO, "broken", path)) == f"{path}: broken"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\tb\x00", r"a\tb\x00"),
        ("\x1b[2J\x9b", r"\x1b[2J\x9b"),
        ("a\u2028b\u202ec", r"a\u2028b\u202ec"),
        ("a\udcff", r"a\udcff"),
    ],
)
def test_what_is_not_safe_to_show_is_escaped(path: str, shown: str) -> None:
    for message in (str(UserError(path)), file_error(OSError(errno.EIO, "broken", path))):
        assert message.startswith(shown)
        message.encode()
