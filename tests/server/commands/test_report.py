"""`utmp-report` as its users meet it, and what its report says to the letter."""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forked_command import ENVIRONMENT, Answer, ForkedCommand, forked_command
from made_up_runs import result, write_run
from rich.console import Console

from common.config import ReportConfig, compose
from common.errors import UserError
from common.task import Task
from server.report.console import markdown, show
from server.report.groups import group_results
from server.report.results import Found, Result
from server.report.tables import Report, check_metrics, tables_of, without_places
from server.terminal import Terminal

NAN = float("nan")


def report_of(
    results: Sequence[Result],
    baseline: str | None = "fedavg",
    metrics: tuple[str, ...] = (),
    unfinished: tuple[str, ...] = (),
) -> Report:
    found = Found(tuple(results), unfinished)
    return Report("utmp-report runs=runs", found, group_results(results), baseline, metrics)


def first_rows(report: Report) -> list[dict[str, str]]:
    """The rows of the first table, cells by column."""
    table = tables_of(report, report.groups[0])[0]
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def scores(*corrs: float, name: str = "hier", **more: Any) -> list[Result]:
    return [result(name, seed, corr, **more) for seed, corr in enumerate(corrs, 1)]


FEDAVG = scores(0.5, 0.6, 0.7, name="fedavg")


# The text ---------------------------------------------------------------------------------------


def test_the_whole_text() -> None:
    def test(corr: float, mae: float) -> dict[str, Any]:
        return {
            "multimodal": {"mae": mae, "corr": corr, "acc2": 0.75},
            "audio": {"mae": 1.0, "corr": 0.25, "acc2": 0.5},
        }

    def run(name: str, seed: int, corr: float, mae: float, **more: Any) -> Result:
        settings = {"rounds": "20", "client.lr": "0.001", "dataset.name": "synthetic"}
        return result(name, seed, settings=settings, test=test(corr, mae), **more)

    def fusion(mean: float, other: float) -> dict[str, Any]:
        return {"by_fusion": {"mean": {"corr": mean}, "reliability": {"corr": other}}}

    subsets = {"by_subset": {"audio+vision": {"corr": 0.5}}}
    report = report_of(
        [
            run("fedavg", 1, 0.50, 1.0, **fusion(0.5, 0.5)),
            run("fedavg", 2, 0.60, 0.9, **fusion(0.6, 0.5)),
            run("hierarchical", 1, 0.60, 0.8, **fusion(0.75, 0.4), **subsets),
            run("hierarchical", 2, 0.71, 0.6, **fusion(0.85, 0.4), **subsets),
        ],
        unfinished=("runs/late",),
    )
    assert markdown(report) == (
        """\
# Report

```sh
utmp-report runs=runs
```

4 runs, 2 methods, 2 seeds (1, 2), 1 comparison group.

The same in all runs: `dataset.name=synthetic`, `dataset.task=regression`, `rounds=20`, \
`client.lr=0.001`.

**Warning:** 1 unfinished run left out: runs/late

Scores are of the test items, all modalities together unless a column says otherwise: \
mean ± sd over the seeds. Runs that differ in nothing but the seed are one method. MB up: \
10^6 bytes that a client sends in a round. The difference to the baseline, fedavg, is paired by \
seed, with the 95% interval and the p of the paired t-test; "no difference" where the interval \
contains 0. Better means better, also where less is better. Intervals and p are not corrected for \
the number of comparisons.

## 1. All runs

| method | seeds | corr | mae | acc2 | best alone | difference of corr \
| p | verdict | MB up | seconds |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| fedavg | 2 | 0.550 ± 0.071 | 0.950 ± 0.071 | 0.750 ± 0.000 | audio 0.250 |  |  | baseline \
| 1.00 | 10.0 |
| hierarchical | 2 | 0.655 ± 0.078 | 0.700 ± 0.141 | 0.750 ± 0.000 | audio 0.250 \
| +0.105 [+0.041, +0.169] | 0.030 | better | 1.00 | 10.0 |

### Fusion rules: corr

Against the baseline in the same column: + better, - worse, = no difference.

| method | mean | reliability |
| --- | ---: | ---: |
| fedavg | 0.550 ± 0.071 | 0.500 ± 0.000 |
| hierarchical | 0.800 ± 0.071 + | 0.400 ± 0.000 - |

### Modalities at test: corr

| method | audio+vision |
| --- | ---: |
| fedavg | n/a |
| hierarchical | 0.500 ± 0.000 |

![Test corr](block-1.png)

Test corr. Mean and sd over the seeds; more is better.

![Test corr minus that of fedavg](block-1-differences.png)

Test corr minus that of fedavg. 95% interval. Blue: better; orange: worse; grey: no difference.
"""
    )


def test_a_group_says_what_is_its_own() -> None:
    sets = [
        {"dataset.name": "npz", "dataset.path": "a|b.npz", "rounds": "9"},
        {"dataset.name": "synthetic", "dataset.path": "(none)", "rounds": "20"},
    ]
    text = markdown(report_of([result("fedavg", settings=each) for each in sets]))
    assert "## 1. dataset.name=npz\n\nHere also: `dataset.path=a|b.npz`, `rounds=9`.\n" in text
    assert "## 2. dataset.name=synthetic\n\nHere also: " in text
    assert "](block-1.png)" in text and "](block-2.png)" in text
    assert "The same in all runs: `dataset.task=regression`." in text


def test_a_cell_stays_a_cell() -> None:
    settings = {"strategy.weights": "a|b\nc"}
    text = markdown(report_of([*FEDAVG, result("fedavg", 9, settings=settings)]))
    assert r"| fedavg, weights=a\|b c | 1 |" in text


def test_groups_of_other_tasks_have_their_own_metrics() -> None:
    tests: dict[Task, dict[str, float]] = {
        Task.regression: {"mse": 1.0, "mae": 1.0, "corr": 0.5, "acc2": 0.5},
        Task.classification: {"f1": 0.5, "accuracy": 0.5, "log_loss": 1.0},
        Task.multilabel: {"weighted_accuracy": 0.5, "f1": 0.5, "f1_0": 0.5},
    }
    runs = [result("a", task=task, test={"multimodal": each}) for task, each in tests.items()]
    report = report_of(runs, None)
    assert {group.task: report.metrics_of(group) for group in report.groups} == {
        Task.regression: ["corr", "mae", "acc2"],
        Task.classification: ["accuracy", "log_loss"],
        Task.multilabel: ["f1", "weighted_accuracy"],
    }
    # Each keeps, of the chosen ones, those that it has; the headline where it has none.
    chosen = report_of(runs, None, ("log_loss", "mae"))
    assert {group.task: chosen.metrics_of(group) for group in chosen.groups} == {
        Task.regression: ["mae"],
        Task.classification: ["log_loss"],
        Task.multilabel: ["f1"],
    }


def test_the_first_chosen_metric_is_compared() -> None:
    def run(name: str, seed: int, mae: float) -> Result:
        test = {"multimodal": {"corr": 0.5, "mae": mae}, "audio": {"corr": 0.1, "mae": 2.0}}
        return result(name, seed, test=test)

    runs = [run("fedavg", seed, 1 + seed / 100) for seed in (1, 2, 3)]
    runs += [run("hier", seed, 0.5 + seed / 101) for seed in (1, 2, 3)]
    _, hier = first_rows(report_of(runs, metrics=("mae", "corr")))
    assert list(hier)[2:4] == ["mae", "corr"]
    assert hier["best alone"] == "audio 2.000"
    assert hier["difference of mae"].startswith("-0.500 [")
    assert (hier["p"], hier["verdict"]) == ("<0.001", "better")


@pytest.mark.parametrize(
    ("runs", "difference", "p", "verdict"),
    [
        (scores(0.6), "+0.100", "n/a", "one seed"),
        ([result("hier", 9)], "n/a", "n/a", "no pair"),
        (scores(0.6, NAN, 0.8), "n/a", "n/a", "not a number"),
        (scores(0.5, 0.6, 0.7), "+0.000 [+0.000, +0.000]", "1.000", "no difference"),
        (
            [*scores(0.7, 0.81), result("hier", 9, 0.5)],
            "+0.205 [+0.141, +0.269]",
            "0.016",
            "better, 2 pairs",
        ),
    ],
)
def test_what_a_difference_may_be(
    runs: list[Result], difference: str, p: str, verdict: str
) -> None:
    _, row = first_rows(report_of([*FEDAVG, *runs]))
    shown = (row["difference of corr"], row["p"], row["verdict"])
    assert shown == (difference, p, verdict)


def test_what_is_not_known_is_said() -> None:
    nan = [result("fedavg", test={"multimodal": {"corr": NAN}}, seconds=NAN, megabytes=NAN)]
    (row,) = first_rows(report_of(nan))
    assert list(row.values()) == ["fedavg", "1", "nan", "n/a", "", "", "baseline", "n/a", "n/a"]


def test_several_baselines_are_distinguished() -> None:
    runs = [
        result(name, seed, 0.5 + seed / 10, settings={"client.lr": lr})
        for name in ("fedavg", "hier")
        for lr in ("1", "2")
        for seed in (1, 2)
    ]
    against = [row["against"] for row in first_rows(report_of(runs))]
    assert against == ["", "", "fedavg, client.lr=1", "fedavg, client.lr=2"]


@pytest.mark.parametrize("baseline", ["fedavgg", None])
def test_without_a_baseline_there_are_no_differences(baseline: str | None) -> None:
    by_fusion = {"by_fusion": {"mean": {"corr": 0.5}}}
    report = report_of([*FEDAVG, *scores(0.9, 0.9, name="hier", **by_fusion)], baseline)
    text = markdown(report)
    assert list(report.warnings()) == (
        ["runs: no baseline fedavgg, so no differences; there are fedavg, hier"] if baseline else []
    )
    assert ("**Warning:** runs: no baseline" in text) == (baseline is not None)
    assert "verdict" not in text and "difference" not in text.replace("no differences;", "")
    assert "| hier | 0.500 ± 0.000 |" in text


def test_a_group_without_the_baseline_is_named() -> None:
    settings = {"rounds": "9"}
    runs = [*scores(0.5, name="fedavg", settings={"rounds": "3"}), *scores(0.5, settings=settings)]
    report = report_of(runs, unfinished=tuple(f"r/{number}" for number in range(9)))
    assert list(report.warnings()) == [
        "9 unfinished runs left out: r/0, r/1, r/2, …",
        "2. rounds=9: no baseline fedavg, so no differences; there are hier",
    ]
    assert "difference of corr" in tables_of(report, report.groups[0])[0].header
    assert "difference of corr" not in tables_of(report, report.groups[1])[0].header


def test_what_a_dataset_does_not_have_is_not_named() -> None:
    runs = [
        result("fedavg", settings={"dataset.name": "npz", "dataset.path": "a"}),
        result("fedavg", settings={"dataset.name": "synthetic", "dataset.noise": "1"}),
        result("fedavg", settings={"dataset.name": "synthetic", "dataset.noise": "2"}),
    ]
    report = report_of(runs)
    assert [report.title_of(group) for group in report.groups] == [
        "1. dataset.name=npz",
        "2. dataset.name=synthetic, dataset.noise=1",
        "3. dataset.name=synthetic, dataset.noise=2",
    ]
    assert "(absent)" not in markdown(report)


def test_a_metric_that_does_not_exist() -> None:
    groups = report_of(FEDAVG).groups
    check_metrics(groups, ["corr"])
    with pytest.raises(UserError, match=r"^metrics: there is no metric 'cor'; there are corr$"):
        check_metrics(groups, ["corr", "cor"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dataset.path=/data/site/mosi/train.npz", "dataset.path=…/mosi/train.npz"),
        ("runs=[/data/site/a,{cwd}/b/c]", "runs=[…/site/a,b/c]"),
        ('runs="/home/me/my runs/a"', 'runs="…/my runs/a"'),
        ("path=/top, rounds=3", "path=…/top, rounds=3"),
        ("runs=runs/*/seed-[12]", "runs=runs/*/seed-[12]"),
        ("{cwd}/x", "x"),
    ],
)
def test_places_of_the_machine_stay_private(text: str, shown: str) -> None:
    assert without_places(text.replace("{cwd}", str(Path.cwd()))) == shown


def test_the_terminal_shows_the_same_cells() -> None:
    settings = {"strategy.list": "[red]"}
    runs = [*FEDAVG, *scores(0.6, 0.7, settings=settings, by_fusion={"mean": {"corr": 0.5}})]
    report = report_of([*runs, result("hier", 7)], unfinished=("late",))
    console = Console(file=io.StringIO(), width=200)
    show(report, "out", Terminal(console))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for table in tables_of(report, report.groups[0]):
        for row in table.rows:
            assert re.search(" +│ +".join(map(re.escape, map(str, row))), shown)
    assert "list=[red]" in shown
    assert shown.endswith(
        "warning: 1 unfinished run left out: late\nout/report.html\nout/report.md\n"
        "out/block-1.png\nout/block-1-differences.png\n"
    )


# The settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "places"),
    [
        ("runs=a/b", ["a/b"]),
        ("runs=[a,b/**]", ["a", "b/**"]),
        ("runs=[2026-11-24,1]", ["2026-11-24", "1"]),
    ],
)
def test_places(given: str, places: list[str]) -> None:
    assert compose(ReportConfig, [given]).places == places


# The command ------------------------------------------------------------------------------------

LOADS = """
import server.report.tables, server.report.console
import matplotlib.backends.backend_agg, matplotlib.backends.backend_svg, matplotlib.figure
import server.report.page
from server.commands.report import main
"""

Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def forked() -> Iterator[ForkedCommand]:
    with forked_command("utmp-report", LOADS) as command:
        yield command


@pytest.fixture
def command(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, forked: ForkedCommand) -> Run:
    return partial(forked.run, tmp_path, tmp_path_factory.mktemp("streams"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    for clients in (2, 3):
        for name, gain in (("fedavg", 0.0), ("hierarchical", 0.1)):
            for seed in (1, 2, 3):
                write_run(
                    folder / f"{name}-{clients}-{seed}",
                    f"strategy={name}",
                    f"clients.default={clients}",
                    seed=seed,
                    corr=0.5 + seed / 50 + gain * (1 + seed / 20),
                )
    return folder


@pytest.fixture
def runs(tmp_path: Path, finished: Path) -> Path:
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path


def test_the_report_and_its_pictures(command: Run, runs: Path) -> None:
    shown = command("runs=runs", "out=there/report").shown
    out = runs / "there" / "report"
    assert sorted(path.name for path in out.iterdir()) == [
        "block-1-differences.png",
        "block-1.png",
        "block-2-differences.png",
        "block-2.png",
        "report.html",
        "report.md",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["report"]
    text = (out / "report.md").read_text()
    assert "```sh\nutmp-report runs=runs out=there/report\n```" in text
    assert "12 runs, 4 methods, 3 seeds (1, 2, 3), 2 comparison groups." in text
    assert "## 1. clients.default=2" in text and "## 2. clients.default=3" in text
    row = re.search(r"\| hierarchical .*", text)
    assert row is not None
    cells = [cell.strip() for cell in row[0].split("|")[1:-1]]
    assert cells[0:5] == ["hierarchical", "3", "0.650 ± 0.025", "1.000 ± 0.000", "audio 0.250"]
    assert cells[5].startswith("+0.110 [") and cells[7:] == ["better", "1.50", "20.0"]
    assert "1. clients.default=2" in shown
    assert shown.endswith("\nthere/report/block-2.png\nthere/report/block-2-differences.png\n")


def test_another_process_writes_the_same_bytes(command: Run, runs: Path) -> None:
    """Also: a report is replaced only when asked."""

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (runs / "report").iterdir()}

    done = subprocess.run(
        [sys.executable, "-m", "server.commands.report", "runs=runs"],
        cwd=runs,
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    before = files()
    assert command("runs=runs", "metrics=[mae]").error == (
        f"out={runs / 'report'} exists already; choose another, or give overwrite=true"
    )
    assert files() == before
    assert command("runs=runs", "overwrite=true").status == 0
    after = files()
    for name in ("report.html", "report.md"):
        assert after[name] != before[name]
        after[name] = after[name].replace(b"runs=runs overwrite=true", b"runs=runs")
    assert after == before


def test_absolute_places_stay_out_of_the_report(command: Run, runs: Path) -> None:
    given = [f"runs={runs}/runs/*-2-*", f"out={runs}/report", "metrics=[mae,corr]"]
    assert command(*given).status == 0
    text = (runs / "report" / "report.md").read_text()
    assert str(runs) not in text + (runs / "report" / "report.html").read_text()
    assert "utmp-report 'runs=runs/*-2-*' out=report 'metrics=[mae,corr]'" in text
    assert "6 runs, " in text


def test_help(command: Run, tmp_path: Path) -> None:
    assert "baseline: fedavg" in command("--help").shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs is required; give it as runs=…: a folder, a glob, or a list of them"),
        (["runs=[]"], "runs is required"),
        (["runs={a:1}"], "runs={'a': 1}: expected a folder, a glob, or a list of them"),
        (["runs=['']"], "runs=['']: expected a folder"),
        (["runs=."], "runs=.: no run there, which is a folder with summary.json and config.yaml"),
        (["runs=nope"], "runs=nope: there is no such folder"),
        (["runs=.", "out=''"], "out is required"),
        (["rums=x"], "there is no setting 'rums'; did you mean runs?"),
        (["+seed=1"], "there is no setting 'seed'"),
        (["runs=.", "overwrite=perhaps"], "overwrite=perhaps: "),
        (["runs=.", "details=-1"], "details=-1: expected a number of runs, 0 or more"),
    ],
)
def test_a_mistake_is_one_line(
    command: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert command(*arguments).error.startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_runs_that_cannot_be_reported(command: Run, runs: Path) -> None:
    write_run(runs / "twin", "strategy=fedavg", "clients.default=2", seed=2)
    assert command("runs=.").error == (
        "runs/fedavg-2-2 and twin are the same run, seed 2: settings are equal; leave one out"
    )
    assert command("runs=runs", "metrics=[bleu]").error == (
        "metrics: there is no metric 'bleu'; there are corr, mae"
    )
    (runs / "twin" / "summary.json").write_text("{")
    assert command("runs=twin").error.startswith("twin/summary.json is damaged: ")
    assert not (runs / "report").exists()


@pytest.mark.parametrize("out", [".", "runs", "runs/fedavg-2-1"])
def test_runs_are_never_replaced(command: Run, runs: Path, out: str) -> None:
    (runs / out / "report.md").touch()
    assert command("runs=runs", f"out={out}", "overwrite=true").error == (
        f"out={out} holds the run runs/fedavg-2-1; choose another"
    )
    assert (runs / "runs" / "fedavg-2-1" / "summary.json").exists()


def test_a_disk_that_is_full(command: Run, runs: Path) -> None:
    error = command("runs=runs", largest_file=2000).error
    assert error.startswith(f"out={runs / 'report'} cannot be written: ")
    assert not (runs / "report").exists()
