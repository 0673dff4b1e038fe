"""The page by itself: whole, safe whatever the folders say, and the same from the same runs."""

import base64
import hashlib
import io
import os
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pytest
from made_up_runs import MODALITIES, full_record, result, write_full_run, write_rounds, write_run
from omegaconf import OmegaConf
from rich.console import Console

from server.report.groups import Report, make_groups
from server.report.page import group_sections, markdown, page, show
from server.report.panels import Section
from server.report.records import find_results
from server.run.folder import CONFIG, ROUNDS
from server.terminal import Terminal

SCRIPT = "<script>alert(1)</script>"

#: Elements without an end.
_VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}


class Page(HTMLParser):
    """Elements, text and names of a page; fails where an element is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: dict[str, list[str]] = {}
        self._open = [""]
        self.feed(text)
        self.close()
        assert self._open == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open += [tag] if tag not in _VOID else []

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self._open[-1], []).append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, each, value in self.attributes if each == name]


def report_of(*places: Path, baseline: str | None = "fedavg") -> Report:
    results, unfinished = find_results(map(str, places))
    groups = make_groups(results, baseline)
    return Report("utmp-report runs=runs", results, unfinished, groups, baseline)


def text_of(*places: Path, details: int = 8) -> str:
    report = report_of(*places)
    return page(report, group_sections(report), details).decode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("fedavg", "hierarchical"):
        for seed in (1, 2):
            parts = {"rejected": [f"audio-0 (node 1): {SCRIPT} & more"]} if seed == 1 else {}
            write_full_run(folder / f"{name}{seed}", f"strategy={name}", seed=seed, **parts)
    return text_of(folder)


def test_it_is_whole(whole: str) -> None:
    read = Page(whole)
    assert whole.startswith("<!doctype html>\n")
    assert (read.tags["title"], read.tags["style"], read.tags["script"]) == (1, 1, 1)
    headings = "|".join(text.strip() for tag in ("h1", "h2", "h3") for text in read.text[tag])
    assert headings == (
        "HA-Fedformer: report|All 4 runs|1. All runs|Runs in detail|What differs in the settings|"
        "How to read this|Learning curves"
    )
    assert "4 runs, 2 methods, 2 seeds (1, 2), 1 comparison group." in whole
    assert "<pre>utmp-report runs=runs</pre>" in whole
    charts = read.tags["img"]
    assert charts == 1 + 3 + 2 * 3 + 4 * 7
    assert read.tags["figcaption"] == charts == whole.count("<summary>Data<")
    assert len(read.values("download")) == charts
    assert sum("Train loss of each client. " in label for label in read.values("alt")) == 4
    used = set(re.findall(r"var\(--([\w-]+)\)", whole))
    assert used == set(re.findall(r"--([\w-]+): light-dark\(#\w{6}, #\w{6}\)", whole))


def test_links_go_inside_and_nothing_is_loaded_from_anywhere(whole: str) -> None:
    read = Page(whole)
    names = Counter(read.values("id"))
    assert max(names.values()) == 1
    links = [href for href in read.values("href") if not href.startswith("data:text/csv;")]
    assert all(href.startswith("#") for href in links)
    targets = {href[1:] for href in links}
    assert {"block-1", "block-1-curves", "runs", "run-1", "run-4", "settings", "reading"} <= targets
    assert targets <= set(names)
    assert all(src.startswith("data:image/svg+xml;base64,") for src in read.values("src"))
    assert not re.search("@import|https?:", whole) and not read.values("style")
    assert not any(name.startswith("on") for _, name, _ in read.attributes)


def test_the_policy_lets_through_what_is_there_and_nothing_else(whole: str) -> None:
    read = Page(whole)
    (policy,) = [value for value in read.values("content") if "default-src" in value]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag in ("style", "script"):
        digest = hashlib.sha256("".join(read.text[tag]).encode()).digest()
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert rules["img-src"] == "data:"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"


def test_markup_in_a_run_is_text(whole: str, tmp_path: Path) -> None:
    assert SCRIPT not in whole
    assert "audio-0 (node 1): &lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in whole
    odd = tmp_path / "<script>alert(2)<" / "script><b x='\"&"
    odd.parent.mkdir()
    names = {f"{SCRIPT}{place}": 0.5 for place in range(3)}
    flat = ("fusion_weights", "client_losses", "phases", "train_loss")
    nested = ("posterior_widths", "decoder_weights")
    parts = {"validation": {SCRIPT: {"corr": 1}}, **dict.fromkeys(flat, names)}
    parts |= {key: {SCRIPT: names} for key in nested}
    text = text_of(write_full_run(odd, **parts))
    assert Page(text).tags["script"] == 1 and Page(text).tags["b"] == 0
    assert text.count("alert(1)") > 10 and text.count("alert(2)") == 1


def test_markup_in_a_run_is_text_in_markdown_too(tmp_path: Path) -> None:
    hostile = f"a`{SCRIPT}[x](javascript:alert(2))|&lt;\n\n{SCRIPT}"
    for seed in (1, 2):
        for name in ("fedavg", hostile):
            test = {"multimodal": {"corr": 0.5, hostile: 1.0}, hostile: {"corr": 0.25}}
            folder = tmp_path / f"{len(name)}-{seed}"
            write_run(folder, seed=seed, test=test)
            settings = OmegaConf.load(folder / CONFIG)
            settings.strategy.name, settings.dataset.path = name, hostile
            OmegaConf.save(settings, folder / CONFIG)
    write_run(tmp_path / hostile.replace("/", ""), seed=3).joinpath("summary.json").unlink()
    report = report_of(tmp_path, baseline="fedavg")
    text = markdown(report, group_sections(report)).decode()
    assert text.count("alert(1)") > 4
    outside = re.sub(r"`[^`\n]*`", "", text.replace("```", ""))
    assert "<" not in outside and "](j" not in outside
    assert re.findall("&(?!amp;|lt;)", outside) == []


def test_runs_of_older_versions_have_a_page(tmp_path: Path) -> None:
    old, new = write_run(tmp_path / "old"), write_full_run(tmp_path / "new", seed=2)
    (write_run(tmp_path / "late", seed=3) / "summary.json").unlink()
    text = text_of(tmp_path)
    Page(text)
    assert "<strong>Warning:</strong> 1 unfinished run left out: " in text
    assert "Posterior widths: the version that made this run did not record them." in text
    for folder in (old, new):
        (folder / ROUNDS).unlink()
    Page(text_of(tmp_path))


def test_scores_that_are_no_numbers_in_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    nothing = full_record(1, train_loss=dict.fromkeys(MODALITIES))
    nothing["validation"]["multimodal"]["corr"] = float("nan")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    text = text_of(write_rounds(write_run(odd, corr=None), nothing))
    assert "<td>nan</td>" in text
    assert "<dd>…/" in text.replace(str(tmp_path), "…")


@pytest.mark.parametrize(
    ("details", "words"),
    [(0, "0 of 4 runs. "), (1, "1 of 4 runs. "), (3, "give details=4, or"), (8, "")],
)
def test_the_first_seeds_are_shown_first(tmp_path: Path, details: int, words: str) -> None:
    for name, seed in product(("fedavg", "median"), (1, 2)):
        write_run(tmp_path / f"{name}{seed}", f"strategy={name}", seed=seed)
    text = text_of(tmp_path, details=details)
    read = Page(text)
    shown = [text for text in read.text.get("summary", []) if "seed" in text]
    runs = ["fedavg, seed 1", "median, seed 1", "fedavg, seed 2", "median, seed 2"]
    assert shown == runs[:details]
    assert words in text and ("For the rest" in text) == (details < 4)
    opened = [tag for tag, name, _ in read.attributes if (tag, name) == ("details", "open")]
    assert len(opened) == min(details, 1)


def test_a_long_run_of_many_clients_stays_small(tmp_path: Path) -> None:
    clients = [f"{name}-{part}" for name in MODALITIES for part in range(100)]
    layers = {f"encoder.layers.{number}.expand": 0.1 + number for number in range(30)}
    record = full_record(
        1,
        client_losses=dict.fromkeys(clients, 0.5),
        posterior_widths=dict.fromkeys(clients[:32], layers),
        rejected=["late"] * 3,
    )
    rounds = ({**record, "round": number} for number in range(1, 601))
    folder = write_rounds(write_full_run(tmp_path / "a"), *rounds)
    assert (folder / ROUNDS).stat().st_size > 10_000_000
    assert len(text_of(folder)) < 700_000


# Markdown and terminal --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd() -> tuple[Report, list[Section]]:
    """Two seeds of two methods, one of which has a setting that looks like markup."""
    plain = {"rounds": "20", "client.lr": "1"}
    marked = {"rounds": "20", "strategy.list": "[red]|b\nc", "client.lr": "1"}
    runs = [
        result(name, seed, score, settings=settings, test_by_fusion={"mean": {"corr": 0.5}})
        for name, settings, scores in (
            ("fedavg", plain, (0.5, 0.6)),
            ("hier", marked, (0.6, 0.71)),
            ("hier", plain, (0.71,)),
        )
        for seed, score in enumerate(scores, 1)
    ]
    report = Report("utmp-report a", runs, ("late",), make_groups(runs, "fedavg"), "fedavg")
    return report, group_sections(report)


def test_the_markdown_has_the_tables_and_the_pictures(odd: tuple[Report, list[Section]]) -> None:
    text = markdown(*odd).decode()
    assert text.startswith("# Report\n\n```sh\nutmp-report a\n```\n\n5 runs, 3 methods, 2 seeds")
    assert "The same in all runs: `dataset.task=regression`, `rounds=20`, `client.lr=1`." in text
    assert "**Warning:** 1 unfinished run left out: late\n\nScores are of the test items" in text
    assert (
        "The difference to the baseline, fedavg, is paired by seed, with the 95% interval" in text
    )
    parts = text[text.index("## 1. ") :].split("\n\n")
    header, rule, fedavg, _, odd = parts[1].splitlines()
    assert header.startswith("| method | seeds | corr | best alone | difference of corr | p |")
    assert rule == f"| --- |{' ---: |' * 8}"
    assert fedavg == "| fedavg | 2 | 0.550 ± 0.071 | audio 0.275 |  |  | baseline | 1.00 | 10.0 |"
    cells = r"| hier, list=[red]\|b c | 2 | 0.655 ± 0.078 | audio 0.328 | +0.105 [+0.041, +0.169] |"
    assert odd.startswith(cells)
    assert parts[2] == "### Fusion rules: corr"
    assert parts[5::2] == [
        "![Test corr](block-1.png)",
        "![Test corr minus that of fedavg](block-1-differences.png)",
    ]


def test_a_group_says_what_is_its_own_and_nothing_is_compared_without_a_baseline() -> None:
    runs = [
        result("a", settings={"dataset.name": name, "dataset.path": path})
        for name, path in (("npz", "a|b.npz"), ("synthetic", "(none)"))
    ]
    report = Report("utmp-report a", runs, (), make_groups(runs), None)
    text = markdown(report, group_sections(report)).decode()
    assert "## 1. dataset.name=npz\n\nHere also: `dataset.path=a|b.npz`.\n\n| method" in text
    assert "](block-1.png)" in text and "](block-2.png)" in text
    assert "difference" not in text and "verdict" not in text


def test_the_terminal_shows_the_same_cells(odd: tuple[Report, list[Section]]) -> None:
    wide, narrow = (Console(file=io.StringIO(), width=width) for width in (200, 80))
    for console in (wide, narrow):
        show(*odd, "out", Terminal(console))
    text, short = (console.file.getvalue() for console in (wide, narrow))  # type: ignore[attr-defined]
    # Nothing is broken inside of a word, but a table into several.
    assert "difference of corr" in short and "no difference" in text
    tables = [line for line in short.splitlines() if line[:1] in ("┏", "│")]
    assert max(map(len, tables)) <= 80
    for row in (row for table in odd[1][1].of_kind("table") for row in table.rows):
        cells = (re.escape(" ".join(str(cell).split())) for cell in row if "red" not in str(cell))
        assert re.search(" +│ +".join(cells), text)
    assert "list=[red]" in text and "best alone" in text
    assert text.endswith(
        "warning: 1 unfinished run left out: late\nout/report.html\nout/report.md\n"
        "out/runs.csv\nout/runs.png\n"
        "out/block-1.png\nout/block-1-differences.png\n"
    )
