"""The page of `utmp-serve` in a browser."""

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import SCREENS, Visit, visit
from forked_command import ENVIRONMENT
from processes import TINY, run_command
from service_models import serving

pytestmark = pytest.mark.e2e

MODALITIES = ("language", "audio", "vision")
TOKEN = "open-sesame"

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    run_command(folder, ENVIRONMENT, "utmp-train", *TINY, "runtime=sequential", "run_dir=run")
    return folder / "run"


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with serving(run.parent, f"model={run}") as (_, _, address):
        yield address


def predicted(address: str, example: int, *modalities: str) -> dict[str, Any]:
    """Ask the service about one of its examples."""
    item = httpx.get(f"{address}examples/{example}").json()["item"]
    body = {"items": [item], "modalities": list(modalities)}
    (record,) = httpx.post(f"{address}predict", json=body).json()["predictions"]
    assert isinstance(record, dict)
    return record


def number(value: float) -> str:
    """Format a number as the page does, on the scale of sentiment."""
    value = 0.0 if abs(value) < 6e-4 else value
    if not 0 < abs(value) < 0.01:
        shown = f"{value:.2f}"
    elif abs(value) >= 1e-6:
        shown = f"{Decimal(f'{value:.1e}'):f}"
    else:
        shown = re.sub(r"e-0(\d)$", r"e-\1", f"{value:.1e}")
    return shown.replace("-", MINUS)


def shows(page: Any, record: dict[str, Any]) -> None:
    """Wait until every part of the page shows a record."""
    from playwright.sync_api import expect

    def row(box: str, key: str) -> Any:
        return page.locator(f"#{box} [data-key='{key}']")

    said = page.get_by_role("status")
    expect(said).to_contain_text(f"from {', '.join(record['modalities'])}")
    expect(said).to_contain_text(f"± {number(record['std'])}")
    for place in (said.locator("strong"), row("chart", "together").locator(".value")):
        expect(place).to_have_text(number(record["prediction"]))
    for name in MODALITIES:
        own = record["modalities"].get(name)
        value, added = (number(own["prediction"]), own["contribution"]) if own else (DASH, None)
        expect(row("chart", name).locator(".value")).to_have_text(value)
        signed = DASH if added is None else f"{'' if added < 0 else '+'}{number(added)}"
        expect(row("sum", name).locator(".value")).to_have_text(signed)
    expect(row("sum", "base").locator(".value")).to_have_text(number(record["base"]))
    expect(row("sum", "sum").locator(".value")).to_have_text(number(record["prediction"]))


def typical(address: str) -> int:
    """Return the example that the page opens on."""
    listed = httpx.get(f"{address}examples").json()
    (number,) = [number for number, each in enumerate(listed) if each["typical"]]
    return int(number)


@pytest.fixture
def seen(browser: Any, address: str) -> Iterator[Visit]:
    with visit(browser, address) as seen:
        yield seen


def assert_quiet(seen: Visit, address: str) -> None:
    assert seen.complaints == []
    assert seen.hosts == {httpx.URL(address).netloc.decode()}
    assert seen.overflow == 0


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_predictions_follow_the_switches(
    browser: Any, address: str, width: int, scheme: str
) -> None:
    whole = predicted(address, typical(address), *MODALITIES)
    part = predicted(address, typical(address), "audio", "vision")
    assert number(whole["prediction"]) != number(part["prediction"])
    assert whole["std"] <= part["std"]
    with visit(browser, address, width, scheme) as seen:
        shows(seen.page, whole)
        assert_quiet(seen, address)
        for name, record in [
            ("language", part),
            ("audio", predicted(address, typical(address), "vision")),
            ("language", predicted(address, typical(address), "language", "vision")),
            ("audio", whole),
        ]:
            seen.page.get_by_role("switch", name=name).click()
            shows(seen.page, record)
        assert_quiet(seen, address)
        dark = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(20, 23, 28)") is (scheme == "dark")


def test_the_documentation_of_the_api(browser: Any, address: str) -> None:
    with visit(browser, f"{address}docs", 390) as seen:
        headings = seen.page.get_by_role("heading", level=2)
        headings.first.wait_for()
        assert headings.all_inner_texts() == [
            "GET /health", "POST /predict", "GET /model", "GET /examples",
            "GET /examples/{number}", "GET /metrics",
        ]  # fmt: skip
        assert '"language"?: [[number | null, …], …] | null' in seen.page.inner_text("main")
        assert_quiet(seen, address)
        seen.page.get_by_role("link", name="Page").click()
        seen.page.get_by_role("switch", name="audio").wait_for()


def changed(page: Any, address: str, change: Callable[[Any], None]) -> None:
    """Load the page anew; what the service answers is changed on its way."""

    def answer(route: Any) -> None:
        response = route.fetch()
        content = response.json()
        change(content)
        route.fulfill(response=response, json=content)

    page.route(re.compile(f"{address}(model|predict)$"), answer)
    page.reload()


def test_noise_is_nothing_and_extractors_are_named(seen: Visit, address: str) -> None:
    from playwright.sync_api import expect

    def change(content: Any) -> None:
        if features := content.get("features"):
            assert seen.page.locator("#extractors").is_hidden()
            features["audio"]["extractor"] = "log-mel 1 (0a)"
        else:
            content["predictions"][0]["modalities"]["audio"] |= {"contribution": 1.9e-11}

    changed(seen.page, address, change)
    expect(seen.page.locator("#sum [data-key='audio'] .value")).to_have_text("+0.00")
    expect(seen.page.get_by_text("audio: log-mel 1 (0a)")).to_be_visible()
    assert_quiet(seen, address)


def test_a_share_that_is_next_to_nothing(seen: Visit, address: str) -> None:
    from playwright.sync_api import expect

    added = {"calm": -5e-5, "cross": 0.2}

    def change(content: Any) -> None:
        if "features" in content:
            content |= {"scale": None, "task": "classification"}
            return
        (record,) = content["predictions"]
        shares = {"calm": 0.6, "cross": 0.4}
        record |= {"prediction": "calm", "probabilities": shares, "base": shares}
        for own in record["modalities"].values():
            own |= {"probabilities": shares, "contribution": added}

    changed(seen.page, address, change)
    expect(seen.page.locator("#sum [data-key='audio'] .value")).to_have_text("0 %")
    assert_quiet(seen, address)


def test_nothing_to_predict_from(seen: Visit, address: str) -> None:
    alert = seen.page.get_by_role("alert")
    for name in MODALITIES:
        seen.page.get_by_role("switch", name=name).click()
    assert "language, audio, vision are off" in alert.inner_text()
    seen.page.get_by_role("switch", name="audio").click()
    shows(seen.page, predicted(address, typical(address), "audio"))
    assert alert.count() == 0
    assert_quiet(seen, address)


ASK = """async (fault) => {
  const { ask } = await import("/ask.js");
  const json = () => Promise.reject(new DOMException("withdrawn", fault));
  window.fetch = async () => ({ ok: true, status: 200, json });
  return ask("model").then(() => "answered", (error) => `${error.name}: ${error.message}`);
}"""


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        ("AbortError", "AbortError: withdrawn"),
        ("SyntaxError", "Error: The answer of the service cannot be read."),
    ],
)
def test_an_answer_that_breaks_off(seen: Visit, fault: str, raised: str) -> None:
    assert seen.page.evaluate(ASK, fault) == raised


def test_the_keyboard_is_enough(seen: Visit, address: str) -> None:
    page, active = seen.page, "document.activeElement"
    shows(page, predicted(address, typical(address), *MODALITIES))
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(f"{active}.id || 'other'"))
    switches = [f"switch-{name}" for name in MODALITIES]
    assert reached == ["other", "example", *switches, "other"]
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(f"getComputedStyle({active}).outlineStyle") == "solid"
    page.keyboard.press("Space")
    shows(page, predicted(address, typical(address), "language", "audio"))
    page.locator("#example").focus()
    page.keyboard.press("ArrowDown")
    # Another item; what was off stays off.
    shows(page, predicted(address, 1, "language", "audio"))


def test_controls_have_labels_and_headings_have_levels(seen: Visit) -> None:
    seen.page.get_by_role("switch").first.wait_for()
    seen.page.locator("summary").click()
    every = "[...document.querySelectorAll('{}')].filter({}).map((each) => each.tagName)"
    controls = every.format("input, select, textarea", "(input) => !input.labels?.length")
    assert seen.page.evaluate(controls) == []
    assert seen.page.evaluate("document.documentElement.lang") == "en"
    assert seen.page.title() == "run: prediction"
    assert seen.page.get_by_role("group", name="Modalities").count() == 1
    headings = seen.page.evaluate(every.format("h1, h2, h3", "() => true"))
    assert headings == ["H1", "H2", "H2", "H3"]
    assert seen.overflow == 0


def test_an_item_that_is_pasted(browser: Any, address: str) -> None:
    from playwright.sync_api import expect

    item = httpx.get(f"{address}examples/2").json()["item"]
    with visit(browser, address, 390) as seen:
        page = seen.page
        shows(page, predicted(address, typical(address), *MODALITIES))
        assert page.locator(".truth").count() == 1
        page.locator("summary").click()
        text = page.get_by_label("JSON, as /predict takes it")
        expect(text).not_to_have_value("")  # it is written once the details are open
        shown = json.loads(text.input_value())
        assert shown == httpx.get(f"{address}examples/{typical(address)}").json()["item"]
        text.fill(json.dumps({"items": [{"vision": item["vision"], "audio": item["audio"]}]}))
        shows(page, predicted(address, 2, "audio", "vision"))
        assert page.locator(".truth").count() == 0
        assert page.get_by_role("switch", name="language").is_disabled()
        alert = page.get_by_role("alert")
        for wrong, line in [
            ('{"audio": [[NaN]]}', "This is not an item: "),
            ("[1]", "This is not an item: expected an object"),
            ('{"smell": [[1]]}', 'This is not an item: it has "smell"; expected only id, language'),
            ('{"id": "a"}', "This is not an item: it has none of language, audio, vision"),
            ('{"audio": [[1]]}', "items[0].audio[0]: list should have at least 5 items"),
        ]:
            text.fill(wrong)
            page.wait_for_function(
                "line => document.getElementById('problem').textContent.startsWith(line)", arg=line
            )
            assert alert.is_visible()
        assert seen.overflow == 0
        # The browser reports the answer with status 422, and nothing else.
        assert len(seen.complaints) == 1 and "422" in seen.complaints[0]


def test_without_examples_an_item_is_pasted(browser: Any, run: Path) -> None:
    with (
        serving(run.parent, f"model={run}", f"token={TOKEN}", "examples=none") as (_, _, address),
        visit(browser, address) as seen,
    ):
        page = seen.page
        token = page.get_by_label("Token of this service")
        assert page.locator("main").is_hidden()
        token.fill("guess")
        token.press("Enter")
        page.get_by_text("That is not it.").wait_for()
        token.fill(TOKEN)
        page.get_by_role("button", name="Go on").click()
        text = page.get_by_label("JSON, as /predict takes it")
        text.wait_for()
        assert page.locator("#example").is_hidden() and page.locator("#result").is_hidden()
        text.fill(json.dumps({"audio": [[0.5] * 5] * 3}))
        page.get_by_role("status").get_by_text("from audio").wait_for()
        assert page.get_by_role("switch").count() == 3
        page.reload()
        text.wait_for()  # it is not asked for again
        page.goto(f"{address}docs")
        page.get_by_role("heading", name="POST /predict").wait_for()
        assert TOKEN not in page.content()
        assert all("401" in line for line in seen.complaints) and seen.complaints
        assert not any(TOKEN in address for address in seen.addresses)
