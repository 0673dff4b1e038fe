"""What is told of a block: differences in words, and curves over the seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import MODALITIES, full_record, result, write_full_run, write_run

from server.report.block_section import MOST_METHODS, MOST_TOGETHER, block_section, sentences
from server.report.blocks import blocks_of
from server.report.palette import modality_pens
from server.report.results import Found, Result, find_results
from server.report.settings_section import MOST_COLUMNS, settings_section
from server.report.tables import Report
from server.report.view import Chart, Grid, Notes, Part, Section
from server.run.folder import ROUNDS

PENS = modality_pens(MODALITIES)


def report_of(*results: Result, baseline: str | None = "fedavg") -> Report:
    return Report("utmp-report", Found(results, ()), blocks_of(results), baseline, ())


def told(*results: Result) -> list[str]:
    report = report_of(*results)
    return sentences(report, report.blocks[0])


def scores(name: str, *corrs: float, metric: str = "corr") -> list[Result]:
    return [
        result(name, seed, test={"multimodal": {"corr": 0.0, metric: corr}, "audio": {"corr": 0.0}})
        for seed, corr in enumerate(corrs, 1)
    ]


def section_of(folder: Path, baseline: str | None = "fedavg") -> Section:
    report = report_of(*find_results([str(folder)]).results, baseline=baseline)
    return block_section(report, report.blocks[0], PENS)


def charts(parts: list[Part]) -> dict[str, Chart]:
    return {part.title: part for part in parts if isinstance(part, Chart)}


BASE = scores("fedavg", 0.5, 0.6, 0.7)


# Differences in words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        (
            scores("hier", 0.60, 0.71, 0.79),
            "hier against fedavg: better; corr +0.100, 95% interval +0.075 to +0.125, "
            "3 shared seeds.",
        ),
        (
            scores("hier", 0.40, 0.51, 0.59),
            "hier against fedavg: worse; corr -0.100, 95% interval -0.125 to -0.075, "
            "3 shared seeds.",
        ),
        (
            scores("hier", 0.6, 0.5, 0.7),
            "hier against fedavg: no difference that the seeds can show; corr +0.000, "
            "95% interval -0.248 to +0.248, 3 shared seeds.",
        ),
        (
            scores("hier", 0.6),
            "hier against fedavg: corr +0.100, of one seed; that says nothing of chance.",
        ),
        (
            [result("hier", 9)],
            "hier against fedavg: no seed in common, so no difference can be told.",
        ),
        (
            scores("hier", float("nan"), 0.6),
            "hier against fedavg: a score is not a number, so no difference can be told.",
        ),
    ],
)
def test_a_difference_in_words(runs: list[Result], sentence: str) -> None:
    assert told(*BASE, *runs) == [sentence]


def test_where_less_is_better_the_words_say_so() -> None:
    runs = [*scores("fedavg", 1.0, 1.1, metric="mae"), *scores("hier", 0.5, 0.61, metric="mae")]
    report = Report("", Found(tuple(runs), ()), blocks_of(runs), "fedavg", ("mae",))
    (sentence,) = sentences(report, report.blocks[0])
    assert sentence.startswith("hier against fedavg: better, and less is better; mae -0.495, ")


def test_without_a_baseline_there_are_no_words() -> None:
    report = report_of(*BASE, *scores("hier", 0.6), baseline=None)
    assert sentences(report, report.blocks[0]) == []


def test_many_differences_are_left_to_the_table() -> None:
    runs = [each for letter in "abcdefghij" for each in scores(letter, 0.5, 0.6)]
    lines = told(*BASE, *runs)
    assert len(lines) == 9 and lines[-1] == "2 more differences are in the table."


# Curves -----------------------------------------------------------------------------------------


def test_curves_are_means_over_the_seeds(tmp_path: Path) -> None:
    for name in ("fedavg", "hierarchical"):
        for seed in (1, 3, 8):
            write_full_run(tmp_path / f"{name}{seed}", f"strategy={name}", seed=seed)
    section = section_of(tmp_path)
    found = charts(list(section.parts))
    assert list(found) == [
        "Test corr",
        "Test corr less that of fedavg",
        "Validation corr of the methods",
    ]
    table = next(part for part in section.parts if isinstance(part, Grid))
    assert table.header[0] == "method" and "verdict" in table.header
    mean, sd = np.mean([1, 3, 8]) / 100, np.std([1, 3, 8], ddof=1) / 100
    assert found["Test corr"].data.rows[0] == ("fedavg", f"{0.5 + mean:.4g}", f"{sd:.4g}")
    (curves,) = section.sections
    assert [each.title for each in curves.sections] == ["fedavg", "hierarchical"]
    methods = charts(list(curves.sections[0].parts))
    assert list(methods) == ["Validation corr", "Train loss", "Modality weights"]
    data = methods["Validation corr"].data
    assert data.header == ("round", "multimodal", *MODALITIES)
    assert data.rows[1][1] == f"{0.2 + mean:.4g} ± {sd:.2g}"
    assert methods["Train loss"].data.rows[0] == ("1", "2 ± 0", "3 ± 0", "4 ± 0")
    assert "fill-opacity" in methods["Validation corr"].svg
    together = found["Validation corr of the methods"].data
    assert together.header == ("round", "fedavg", "hierarchical")
    assert together.rows[1][1] == data.rows[1][1]


def test_one_run_has_curves_without_a_spread(tmp_path: Path) -> None:
    section = section_of(write_full_run(tmp_path / "a"))
    assert charts(list(section.parts)) == {}
    (curves,) = section.sections
    assert isinstance(curves.parts[0], Notes)
    assert curves.parts[0].lines[0].endswith("One seed each, so there is no spread.")
    chart = charts(list(curves.sections[0].parts))["Validation corr"]
    assert chart.data.rows[0][1] == "0.11" and "fill-opacity" not in chart.svg


def test_runs_without_curves_say_so(tmp_path: Path) -> None:
    section = section_of(write_run(tmp_path / "a"))
    (curves,) = section.sections
    assert curves.parts == [Notes(("No run here recorded validation scores over its rounds.",))]


def test_a_seed_without_rounds_does_not_take_the_others_curves(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_full_run(tmp_path / str(seed), seed=seed)
    (tmp_path / "2" / ROUNDS).write_text(json.dumps(full_record(1, 2)) + "\n")
    (curves,) = section_of(tmp_path).sections
    rows = charts(list(curves.sections[0].parts))["Validation corr"].data.rows
    assert rows[0][1] == "0.115 ± 0.0071"
    assert rows[1][1] == "0.21"


def test_of_many_methods_the_baseline_and_the_best_share_a_chart(tmp_path: Path) -> None:
    for place in range(MOST_TOGETHER + 3):
        setting = f"client.lr=0.{place + 1}"
        folder = write_full_run(
            tmp_path / str(place), "strategy=fedprox", setting, seed=100 * place
        )
        (folder / ROUNDS).write_text(json.dumps(full_record(1)) + "\n")
    write_full_run(tmp_path / "base", "strategy=fedavg", seed=-900)
    section = section_of(tmp_path)
    chart = charts(list(section.parts))["Validation corr of the methods"]
    assert chart.data.header[1:] == (
        "fedavg",
        *(f"fedprox, client.lr=0.{place + 1}" for place in range(4, MOST_TOGETHER + 3)),
    )
    assert f"Of {MOST_TOGETHER + 4} methods the baseline and the best" in chart.note
    (curves,) = section.sections
    folded = [each.folded for each in curves.sections]
    assert folded == [False] * MOST_TOGETHER + [True] * 4


def test_curves_of_very_many_methods_are_not_all_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.report.block_section.MOST_METHODS", 2)
    assert MOST_METHODS > 2
    for place in range(3):
        write_full_run(tmp_path / str(place), f"client.lr=0.{place + 1}")
    (curves,) = section_of(tmp_path).sections
    assert len(curves.sections) == 2
    assert isinstance(curves.parts[0], Notes)
    assert curves.parts[0].lines[1] == "Of 3 methods the first 2 are shown."


# Settings ---------------------------------------------------------------------------------------


def settings_of(*results: Result) -> Part:
    (part,) = settings_section(report_of(*results)).parts
    return part


def test_settings_that_differ_are_a_table() -> None:
    runs = [
        result("fedavg", seed, settings={"client.lr": "1", "rounds": "9", "run_dir": f"r/{seed}"})
        for seed in (1, 2)
    ]
    runs.append(result("hier", 1, settings={"client.lr": "2", "rounds": "9", "run_dir": "r/3"}))
    part = settings_of(*runs)
    assert isinstance(part, Grid)
    assert part.header == ("setting", "fedavg", "hier")
    assert part.rows == (("strategy.name", "fedavg", "hier"), ("client.lr", "1", "2"))


def test_blocks_are_told_apart_and_what_is_absent_is_named() -> None:
    part = settings_of(
        result("fedavg", settings={"rounds": "3"}),
        result("fedavg", settings={"rounds": "9", "x": "1"}),
    )
    assert isinstance(part, Grid)
    assert part.header == ("setting", "1. fedavg", "2. fedavg")
    assert part.rows == (("rounds", "3", "9"), ("x", "(absent)", "1"))


def test_runs_of_one_method_may_differ_in_how_they_ran() -> None:
    runs = [
        result("fedavg", seed, settings={"runtime.name": name})
        for seed, name in ((1, "a"), (2, "b"))
    ]
    part = settings_of(*runs)
    assert isinstance(part, Grid)
    assert part.rows == (("runtime.name", "a / b"),)


def test_nothing_to_compare_is_said() -> None:
    assert settings_of(BASE[0]) == Notes(("One run: there is nothing to compare it with.",))
    assert settings_of(*BASE) == Notes(("All runs differ in nothing but seeds and folders.",))


def test_very_many_methods_are_not_all_columns() -> None:
    runs = [result("a", settings={"client.lr": str(n)}) for n in range(MOST_COLUMNS + 2)]
    part = settings_of(*runs)
    assert isinstance(part, Grid)
    assert len(part.header) == MOST_COLUMNS + 1
    assert part.note.endswith(f"2 methods beyond the first {MOST_COLUMNS} are not shown.")
