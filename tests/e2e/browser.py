"""A headless Chromium for tests of pages; without one they are skipped, and say why."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

#: Widths of a telephone and of a desk, each by day and by night.
SCREENS = [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")]

#: How systems call the browser.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Start the browser of the system, or else the one that Playwright brought."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        path = next(filter(None, map(shutil.which, NAMES)), started.chromium.executable_path)
        if not Path(path).is_file():
            pytest.skip(f"no browser: none of {', '.join(NAMES)}, nor Playwright's own")
        browser = started.chromium.launch(executable_path=path)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page that is looked at, and what happened on it.

    Attributes
    ----------
    page
        Playwright's.
    complaints
        Errors and warnings of its console, exceptions, and requests that failed; not those that
        it withdrew itself.
    addresses
        Whatever it asked for.
    """

    page: "Page"
    complaints: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    @property
    def hosts(self) -> set[str]:
        """From where it had something."""
        return {urlsplit(address).netloc for address in self.addresses}

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than the screen."""
        return int(
            self.page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        )


@contextmanager
def visit(
    browser: "Browser", address: str, width: int = 1280, scheme: Any = "light", **settings: Any
) -> Iterator[Visit]:
    """Open a page.

    Parameters
    ----------
    browser
        From `chromium`.
    address
        Of the page.
    width, scheme
        Of the screen, in pixels, and "light" or "dark".
    settings
        Others of a context of Playwright.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, **settings
    )
    page = context.new_page()
    found = Visit(page)
    page.on("console", lambda each: _complain(found, each.type, each.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("requestfailed", lambda request: _failed(found, request))
    page.on("request", lambda request: found.addresses.append(request.url))
    try:
        page.goto(address)
        yield found
    finally:
        context.close()


def _failed(found: Visit, request: "Request") -> None:
    if request.failure != "net::ERR_ABORTED":
        found.complaints.append(f"{request.url}: {request.failure}")


def _complain(found: Visit, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        found.complaints.append(text)
