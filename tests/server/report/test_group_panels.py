"""A comparison group: scores and differences, curves over the seeds, and what differs."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import MODALITIES, full_record, result, write_full_run, write_rounds, write_run

from server.report.figures import modality_pens
from server.report.group_panels import (
    MOST_COLUMNS,
    MOST_TOGETHER,
    group_section,
    settings_section,
)
from server.report.groups import Report, make_groups
from server.report.panels import Panel, Section
from server.report.records import MOST_POINTS, Result, find_results

PENS = modality_pens(MODALITIES)


def scores(name: str, *corrs: float, **more: Any) -> list[Result]:
    return [result(name, seed, corr, **more) for seed, corr in enumerate(corrs, 1)]


NAN = float("nan")
BASE = scores("fedavg", 0.5, 0.6, 0.7)


def section_of(folder: Path) -> Section:
    results, _ = find_results([str(folder)])
    return group_section(make_groups(results, "fedavg")[0], PENS)


def table_of(results: list[Result], metrics: Sequence[str] = (), place: int = 0) -> Panel:
    """One of the tables of the only group."""
    (group,) = make_groups(results, "fedavg", metrics)
    return group_section(group, PENS).of_kind("table")[place]


def rows_of(results: list[Result], metrics: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of the scores, cells by column."""
    table = table_of(results, metrics)
    return [dict(zip(table.header, map(str, row), strict=True)) for row in table.rows]


def charts(section: Section) -> dict[str, Panel]:
    return {panel.title: panel for panel in section.panels if panel.kind == "chart"}


# Scores and differences -------------------------------------------------------------------------


INTERVALS = {
    "better": (scores("hier", 0.60, 0.71, 0.79), "+0.100 [+0.075, +0.125]|0.003|better"),
    "worse": (
        [*scores("hier", 0.3, 0.39), result("hier", 9, 0.5)],
        "-0.205 [-0.269, -0.141]|0.016|worse, 2 pairs",
    ),
    "none": (scores("hier", 0.5, 0.6, 0.7), "+0.000 [+0.000, +0.000]|1.000|no difference"),
    "one seed": (scores("hier", 0.6), "+0.100|n/a|one seed"),
    "no pair": ([result("hier", 9)], "n/a|n/a|no pair"),
    "nan": (scores("hier", 0.6, NAN, 0.8), "n/a|n/a|not a number"),
}


@pytest.mark.parametrize(("runs", "cells"), INTERVALS.values(), ids=INTERVALS)
def test_a_difference_is_shown_with_its_interval(runs: list[Result], cells: str) -> None:
    fedavg, hier = rows_of([*BASE, *runs])
    assert (fedavg["corr"], fedavg["seeds"]) == ("0.600 ± 0.100", "3")
    names = ("difference of corr", "p", "verdict")
    assert [fedavg[name] for name in names] == ["", "", "baseline"]
    assert "|".join(hier[name] for name in names) == cells


def test_the_first_chosen_metric_is_compared_and_may_be_an_error() -> None:
    maes = {"fedavg": (1.01, 1.02, 1.03), "hier": (0.51, 0.52, 0.53001)}
    runs = [
        result(name, seed, test={"multimodal": {"corr": 0.5, "mae": mae}, "audio": {"mae": 2.0}})
        for name, values in maes.items()
        for seed, mae in enumerate(values, 1)
    ]
    _, hier = rows_of(runs, ["mae", "corr"])
    assert list(hier)[2:4] == ["mae", "corr"]
    assert hier["best alone"] == "audio 2.000"
    assert hier["difference of mae"].startswith("-0.500 [")
    assert (hier["p"], hier["verdict"]) == ("<0.001", "better")


def test_what_is_not_known_is_said() -> None:
    test = {"multimodal": {"corr": NAN}}
    (row,) = rows_of([result("fedavg", test=test, seconds=NAN, megabytes=NAN)])
    assert "|".join(row.values()) == "fedavg|1|nan|n/a|||baseline|n/a|n/a"


def test_of_several_baselines_the_nearest_is_compared() -> None:
    runs = [
        result(name, settings={"client.lr": lr, "fusion.name": fusion})
        for name, lr, fusion in product(("fedavg", "hier"), "12", ("mean", "auto"))
    ]
    for row in rows_of(runs):
        method, nearest = row["method"], row["method"].replace("hier", "fedavg")
        assert row["against"] == ("" if method == nearest else nearest)


def test_fusion_rules_have_signs_and_modalities_have_none() -> None:
    subsets = {"audio+vision": {"corr": 0.5}}
    runs = [
        result(
            name,
            seed,
            test_by_fusion={"mean": {"corr": mean}, "reliability": {"corr": other}},
            test_by_subset=subsets if name == "hier" else {},
        )
        for name, seed, mean, other in (
            ("fedavg", 1, 0.5, 0.5),
            ("fedavg", 2, 0.6, 0.5),
            ("hier", 1, 0.75, 0.4),
            ("hier", 2, 0.85, 0.4),
        )
    ]
    fusion, subset = table_of(runs, place=1), table_of(runs, place=2)
    assert fusion.header == ("method", "mean", "reliability")
    assert [list(row) for row in fusion.rows] == [
        ["fedavg", "0.550 ± 0.071", "0.500 ± 0.000"],
        ["hier", "0.800 ± 0.071 +", "0.400 ± 0.000 -"],
    ]
    assert "+ better, - worse, = no difference" in fusion.note and not subset.note
    assert [list(row) for row in subset.rows] == [["fedavg", "n/a"], ["hier", "0.500 ± 0.000"]]


# Curves -----------------------------------------------------------------------------------------


def test_curves_are_means_over_the_seeds(tmp_path: Path) -> None:
    for name in ("fedavg", "hierarchical"):
        for seed in (1, 3, 8):
            write_full_run(tmp_path / f"{name}{seed}", f"strategy={name}", seed=seed)
    # A seed that broke its record off does not take the others' curves away.
    write_rounds(tmp_path / "fedavg8", full_record(1, 8))
    section = section_of(tmp_path)
    shared = charts(section)
    titles = ["Test corr", "Test corr minus that of fedavg", "Validation corr of the methods"]
    assert list(shared) == titles
    mean, sd = np.mean([1, 3, 8]) / 100, np.std([1, 3, 8], ddof=1) / 100
    assert shared["Test corr"].rows[0] == ("fedavg", f"{0.5 + mean:.4g}", f"{sd:.4g}")
    assert list(shared["Test corr minus that of fedavg"].rows[0]) == ["fedavg", "0", "n/a"]
    (curves,) = section.sections
    assert [method.title for method in curves.sections] == ["fedavg", "hierarchical"]
    fedavg, hierarchical = map(charts, curves.sections)
    assert list(fedavg) == ["Validation corr", "Train loss", "Modality weights"]
    data = hierarchical["Validation corr"]
    assert data.header == ("round", "multimodal", *MODALITIES)
    assert data.rows[1][1] == f"{0.2 + mean:.4g} ± {sd:.2g}"
    assert fedavg["Validation corr"].rows[1][1] == "0.22 ± 0.014"
    assert fedavg["Train loss"].rows[0] == ["1", "2 ± 0", "3 ± 0", "4 ± 0"]
    together = shared["Validation corr of the methods"]
    assert together.header == ("round", "fedavg", "hierarchical")
    assert together.rows[1][2] == data.rows[1][1]


def test_curves_of_a_long_run_are_thinned(tmp_path: Path) -> None:
    for name in ("fedavg", "hierarchical"):
        write_full_run(tmp_path / name, f"strategy={name}", rounds=3 * MOST_POINTS)
    section = section_of(tmp_path)
    (curves,) = section.sections
    together = charts(section)["Validation corr of the methods"]
    alone = charts(curves.sections[0])["Validation corr"]
    assert len(together.rows) == len(alone.rows) == MOST_POINTS


def test_one_run_has_curves_without_a_spread_or_none_at_all(tmp_path: Path) -> None:
    section = section_of(write_full_run(tmp_path / "a"))
    assert list(charts(section)) == ["Test corr"]
    (curves,) = section.sections
    assert curves.panels[0].lines[0].endswith("One seed each, so there is no spread.")
    assert charts(curves.sections[0])["Validation corr"].rows[0][1] == "0.11"
    (curves,) = section_of(write_run(tmp_path / "b")).sections
    assert curves.panels[0].lines[0].startswith("No run here recorded validation scores")


def test_of_many_methods_the_baseline_and_the_best_share_a_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.report.group_panels.MOST_METHODS", MOST_TOGETHER + 2)
    for place in range(MOST_TOGETHER + 3):
        given = ("strategy=fedprox", f"client.lr=0.{place + 1}")
        folder = write_full_run(tmp_path / str(place), *given, seed=100 * place)
        write_rounds(folder, full_record(1))
    write_full_run(tmp_path / "base", "strategy=fedavg", seed=-900)
    section = section_of(tmp_path)
    chart = charts(section)["Validation corr of the methods"]
    best = (f"fedprox, client.lr=0.{place + 1}" for place in range(4, MOST_TOGETHER + 3))
    assert tuple(chart.header) == ("round", "fedavg", *best)
    assert f"Of {MOST_TOGETHER + 4} methods the baseline and the best" in chart.note
    (curves,) = section.sections
    assert [each.folded for each in curves.sections] == [False] * MOST_TOGETHER + [True] * 2
    assert curves.panels[0].lines[1] == "Of 10 methods the first 8 are shown."


# Settings ---------------------------------------------------------------------------------------


def settings_of(*results: Result) -> Panel:
    report = Report("", results, (), make_groups(results), None)
    (panel,) = settings_section(report).panels
    return panel


def test_settings_that_differ_are_a_table() -> None:
    same = {"client.lr": "1", "rounds": "9"}
    panel = settings_of(
        result("fedavg", 1, settings={**same, "run_dir": "a", "runtime.name": "x"}),
        result("fedavg", 2, settings={**same, "run_dir": "b", "runtime.name": "y"}),
        result("hier", 1, settings={"client.lr": "2", "rounds": "9", "run_dir": "c"}),
    )
    assert ["|".join(row) for row in (panel.header, *panel.rows)] == [
        "setting|fedavg|hier",
        "strategy.name|fedavg|hier",
        "client.lr|1|2",
        "runtime.name|x / y|(absent)",
    ]


def test_groups_are_numbered_and_nothing_to_compare_is_said() -> None:
    runs = [result("fedavg", settings={"rounds": rounds}) for rounds in ("3", "9")]
    assert settings_of(*runs).header == ("setting", "1. fedavg", "2. fedavg")
    assert settings_of(BASE[0]).lines == ("One run: there is nothing to compare it with.",)
    assert settings_of(*BASE).lines == ("All runs differ in nothing but seeds and folders.",)


def test_very_many_methods_are_not_all_columns() -> None:
    runs = [result("a", settings={"client.lr": str(n)}) for n in range(MOST_COLUMNS + 2)]
    panel = settings_of(*runs)
    assert len(panel.header) == MOST_COLUMNS + 1
    assert panel.note.endswith(f"2 methods beyond the first {MOST_COLUMNS} are not shown.")
