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
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

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
    """A page of Playwright that is looked at, and what happened on it."""

    page: "Page"
    #: Errors and warnings of its console, exceptions, and requests that failed; not those that it
    #: withdrew itself.
    complaints: list[str] = field(default_factory=list)
    #: Whatever it asked for.
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
    """Open a page on a "light" or "dark" screen, with other settings of Playwright's context."""
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, **settings
    )
    page = context.new_page()
    found = Visit(page)

    def complain(message: "ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            found.complaints.append(message.text)

    def failed(request: "Request") -> None:
        if request.failure != "net::ERR_ABORTED":
            found.complaints.append(f"{request.url}: {request.failure}")

    page.on("console", complain)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("requestfailed", failed)
    page.on("request", lambda request: found.addresses.append(request.url))
    try:
        page.goto(address)
        yield found
    finally:
        context.close()
