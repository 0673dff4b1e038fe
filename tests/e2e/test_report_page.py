"""The report in a browser: at phone and desktop width, light and dark, without a network."""

import itertools
from typing import Any

import pytest
from browser import SCREENS, visit
from made_up_runs import write_full_run

from common.config import ReportConfig, compose
from server.commands.report import write_report

pytestmark = pytest.mark.e2e

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
    rejected = [f"audio-0 (node 1): {SCRIPT} {'long' * 100}"]
    for name, seed in itertools.product(("fedavg", "hierarchical"), (1, 2)):
        run = folder / "runs" / f"{name}{seed}"
        write_full_run(run, f"strategy={name}", seed=seed, rejected=rejected)
    config = compose(ReportConfig, [f"runs={folder / 'runs'}", f"out={folder / 'out'}"])
    write_report(config, [f"runs={SCRIPT}"])
    return (folder / "out" / "report.html").as_uri()


def style(page: Any, selector: str, name: str) -> str:
    script = "([s, n]) => getComputedStyle(document.querySelector(s))[n]"
    return page.evaluate(script, [selector, name])


@pytest.mark.parametrize(("width", "theme"), SCREENS)
def test_it_looks_right(browser: Any, report: str, width: int, theme: str) -> None:
    with visit(browser, report, width, theme) as seen:
        page = seen.page
        colours = style(page, "body", "backgroundColor"), style(page, "body", "color")
        assert colours == COLOURS[theme]
        assert (style(page, "img.chart", "filter") == "none") == (theme == "light")
        assert seen.overflow <= 0
        # Wherever something is folded away, it does not push the page aside when it is opened.
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert seen.overflow <= 0
        boxes = [chart.bounding_box() for chart in page.locator("figure").all()]
        assert len(boxes) > 20 and all(box["height"] > 100 for box in boxes)
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        assert len({box["x"] for box in boxes}) == (1 if width == SCREENS[0][0] else 3)
        fetched = [address for address in seen.addresses if not address.startswith("data:")]
        assert (seen.complaints, fetched) == ([], [report])
        assert page.title() == "HA-Fedformer: report"


@pytest.mark.parametrize("theme", COLOURS)
def test_the_button_changes_the_theme_and_back(browser: Any, report: str, theme: str) -> None:
    other = {"light": "dark", "dark": "light"}[theme]
    with visit(browser, report, scheme=theme) as seen:
        button = seen.page.get_by_role("button", name=f"Show on a {other} ground")
        for now, after in ((other, theme), (theme, other)):
            button.click()
            assert style(seen.page, "body", "backgroundColor") == COLOURS[now][0]
            button = seen.page.get_by_role("button", name=f"Show on a {after} ground")
        # Charts go with it.
        before = style(seen.page, "img.chart", "filter")
        button.click()
        assert style(seen.page, "img.chart", "filter") != before
        assert seen.complaints == []


def test_it_can_be_read_without_scripts(browser: Any, report: str) -> None:
    with visit(browser, report, scheme="dark", java_script_enabled=False) as seen:
        assert seen.page.get_by_role("heading", name="Learning curves").is_visible()
        assert not seen.page.locator("#theme").is_visible()


def test_a_link_opens_what_is_folded(browser: Any, report: str) -> None:
    with visit(browser, report) as seen:
        folded = seen.page.locator("#run-4")
        assert folded.get_attribute("open") is None
        seen.page.get_by_role("link", name="hierarchical, seed 2").click()
        seen.page.wait_for_function("document.querySelector('#run-4').open")
        assert folded.get_by_role("img", name="Calibration").is_visible()


def test_values_are_shown_where_the_pointer_is(browser: Any, report: str) -> None:
    with visit(browser, report, 390) as seen:
        image, tip = (
            seen.page.get_by_role("img", name="Test corr.").first,
            seen.page.locator(".tip"),
        )
        assert not tip.is_visible()
        image.scroll_into_view_if_needed()
        image.hover()
        words = tip.inner_text().splitlines()
        assert [word.partition(": ")[0] for word in words] == ["method", "mean", "sd"]
        seen.page.locator("h1").hover()
        assert not tip.is_visible()
        link = seen.page.locator("a[download='Test corr.csv']").first
        assert (link.get_attribute("href") or "").startswith("data:text/csv;charset=utf-8;base64,")
        assert seen.overflow == 0


def test_nothing_can_be_slipped_in(browser: Any, report: str) -> None:
    with visit(browser, report) as seen:
        refused: list[str] = []
        seen.page.on("requestfailed", lambda request: refused.append(request.failure))
        seen.page.evaluate(
            "text => document.body.insertAdjacentHTML('beforeend', text)",
            "<img src='https://example.org/a.png'><p id=odd style='color: red'>"
            "<a onclick=\"document.title = 'run'\" id=link>a</a></p>",
        )
        seen.page.locator("#link").dispatch_event("click")
        assert style(seen.page, "#odd", "color") == COLOURS["light"][1]
        assert seen.page.title() == "HA-Fedformer: report"
        assert refused == ["csp"]
        # The browser says what it did not do: it loaded no picture, and ran no style and script.
        rest = [each for each in seen.complaints if "Content Security Policy" not in each]
        assert rest in ([], ["https://example.org/a.png: csp"])
        assert len(seen.complaints) - len(rest) >= 3
