"""The report in a browser: at phone and desktop width, light and dark, without a network."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import write_full_run

from common.config import ReportConfig, compose
from server.commands.report import make_report, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.e2e

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESKTOP = 390, 1280
SCRIPT = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"

#: Ground and text of each theme, as the browser says them.
COLOURS = {
    "light": ("rgb(246, 247, 249)", "rgb(26, 30, 36)"),
    "dark": ("rgb(20, 23, 28)", "rgb(232, 234, 237)"),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a report whose runs are hostile where they can be."""
    folder = tmp_path_factory.mktemp("report")
    for name in ("fedavg", "hierarchical"):
        for seed in (1, 2):
            rejected = [f"audio-0 (node 1): {SCRIPT} {'long' * 100}"]
            write_full_run(
                folder / "runs" / f"{name}{seed}", f"strategy={name}", seed=seed, rejected=rejected
            )
    config = compose(ReportConfig, [f"runs={folder / 'runs'}", f"out={folder / 'out'}"])
    write_report(make_report(config, [f"runs={SCRIPT}"]), config)
    return (folder / "out" / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        own = running.chromium.executable_path
        found = next(filter(None, map(shutil.which, BROWSERS)), own if Path(own).exists() else None)
        if found is None:
            pytest.skip(f"no browser: neither {', '.join(BROWSERS)} nor Playwright's own")
        # Chromium's sandbox does not start as root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = running.chromium.launch(executable_path=found, args=arguments)
        yield started
        started.close()


@dataclass
class Seen:
    """A page that is open, and what it complained of or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def width_beyond_the_screen(self) -> int:
        script = "[document.documentElement, document.body].map(e => e.scrollWidth - innerWidth)"
        return max(self.page.evaluate(script))

    def style(self, selector: str, name: str) -> str:
        script = "([s, n]) => getComputedStyle(document.querySelector(s))[n]"
        return self.page.evaluate(script, [selector, name])


def opened(browser: Any, address: str, width: int = DESKTOP, theme: str = "light") -> Seen:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    seen = Seen(page)
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(address)
    return seen


@pytest.mark.parametrize("theme", COLOURS)
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_it_looks_right(browser: Any, report: str, width: int, theme: str) -> None:
    seen = opened(browser, report, width, theme)
    assert (seen.style("body", "backgroundColor"), seen.style("body", "color")) == COLOURS[theme]
    assert (seen.style("img.chart", "filter") == "none") == (theme == "light")
    assert seen.width_beyond_the_screen() <= 0
    # Wherever something is folded away, it does not push the page aside when it is opened.
    seen.page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert seen.width_beyond_the_screen() <= 0
    charts = seen.page.locator("figure").all()
    boxes = [chart.bounding_box() for chart in charts]
    assert len(boxes) > 20 and all(box["height"] > 100 for box in boxes)
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert len({box["x"] for box in boxes}) == (1 if width == PHONE else 3)
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [report]
    assert seen.page.title() == "HA-Fedformer: report"


@pytest.mark.parametrize("theme", COLOURS)
def test_the_button_changes_the_theme_and_back(browser: Any, report: str, theme: str) -> None:
    other = {"light": "dark", "dark": "light"}[theme]
    seen = opened(browser, report, theme=theme)
    button = seen.page.get_by_role("button", name=f"Show on a {other} ground")
    for now, after in ((other, theme), (theme, other)):
        button.click()
        assert seen.style("body", "backgroundColor") == COLOURS[now][0]
        button = seen.page.get_by_role("button", name=f"Show on a {after} ground")
    # Charts go with it.
    before = seen.style("img.chart", "filter")
    button.click()
    assert seen.style("img.chart", "filter") != before
    assert seen.complaints == []


def test_it_can_be_read_without_scripts(browser: Any, report: str) -> None:
    page = browser.new_context(java_script_enabled=False, color_scheme="dark").new_page()
    page.goto(report)
    assert page.get_by_role("heading", name="Learning curves").is_visible()
    assert not page.locator("#theme").is_visible()


def test_a_link_opens_what_is_folded(browser: Any, report: str) -> None:
    seen = opened(browser, report)
    folded = seen.page.locator("#run-4")
    assert folded.get_attribute("open") is None
    seen.page.get_by_role("link", name="hierarchical, seed 2").click()
    seen.page.wait_for_function("document.querySelector('#run-4').open")
    assert folded.get_by_role("img", name="Train loss of each client").is_visible()


def test_nothing_can_be_slipped_in(browser: Any, report: str) -> None:
    seen = opened(browser, report)
    refused: list[str] = []
    seen.page.on("requestfailed", lambda request: refused.append(request.failure))
    seen.page.evaluate(
        "text => document.body.insertAdjacentHTML('beforeend', text)",
        "<img src='https://example.org/a.png'><p id=odd style='color: red'>"
        "<a onclick=\"document.title = 'run'\" id=link>a</a></p>",
    )
    seen.page.locator("#link").dispatch_event("click")
    assert seen.style("#odd", "color") == COLOURS["light"][1]
    assert seen.page.title() == "HA-Fedformer: report"
    # The browser says what it did not do.
    assert len(seen.complaints) >= 3
    assert all("Content Security Policy" in each for each in seen.complaints)
    assert refused == ["csp"]
