"""`utmp-report` as its users meet it."""

import re
import shutil
from itertools import product
from pathlib import Path

import pytest
from data_checks import files
from forked_command import Run, run_alone
from made_up_runs import write_run

from common.config import ReportConfig, compose

COMMAND = "utmp-report"
LOADS = """
import matplotlib.backends.backend_agg, matplotlib.backends.backend_svg
import server.report.page
from server.commands.report import main
"""


def test_places_that_look_like_dates_or_numbers() -> None:
    assert compose(ReportConfig, ["runs=[2026-11-24,1]"]).places == ["2026-11-24", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    methods = {"fedavg": 0.0, "hierarchical": 0.1}
    for clients, (name, gain), seed in product((2, 3), methods.items(), (1, 2, 3)):
        overrides = (f"strategy={name}", f"clients.default={clients}")
        corr = 0.5 + seed / 50 + gain * (1 + seed / 20)
        write_run(folder / f"{name}-{clients}-{seed}", *overrides, seed=seed, corr=corr)
    return folder


@pytest.fixture
def runs(tmp_path: Path, finished: Path) -> Path:
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path


def test_the_report_and_its_pictures(loaded: Run, runs: Path) -> None:
    shown = loaded("runs=runs", "out=there/report").shown
    out = runs / "there" / "report"
    pictures = [f"block-{n}{which}.png" for n in (1, 2) for which in ("-differences", "")]
    names = [*pictures, "report.html", "report.md", "runs.csv", "runs.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert [path.name for path in out.parent.iterdir()] == ["report"]
    text = (out / "report.md").read_text()
    assert "```sh\nutmp-report runs=runs out=there/report\n```" in text
    assert "12 runs, 4 methods, 3 seeds (1, 2, 3), 2 comparison groups." in text
    assert "## 1. clients.default=2" in text and "## 2. clients.default=3" in text
    row = (
        r"\| hierarchical \| 3 \| 0\.650 ± 0\.025 \| 1\.000 ± 0\.000 \| audio 0\.250 \| \+0\.110 \["
    )
    assert re.search(row + r".* \| better \| 1\.50 \| 20\.0 \|", text)
    assert "1. clients.default=2" in shown
    assert shown.endswith("\nthere/report/block-2.png\nthere/report/block-2-differences.png\n")


def test_another_process_writes_the_same_bytes(loaded: Run, runs: Path) -> None:
    """Also: a report is replaced only when asked."""

    assert run_alone(runs, COMMAND, "runs=runs").shown
    before = files(runs / "report")
    assert loaded("runs=runs", "metrics=[mae]").error == (
        f"out={runs / 'report'} exists already; choose another, or give overwrite=true"
    )
    assert files(runs / "report") == before
    assert loaded("runs=runs", "overwrite=true").status == 0
    after = files(runs / "report")
    for name in ("report.html", "report.md"):
        assert after[name] != before[name]
        after[name] = after[name].replace(b"runs=runs overwrite=true", b"runs=runs")
    assert after == before


def test_absolute_places_stay_out_of_the_report(loaded: Run, runs: Path) -> None:
    given = [f"runs=[{runs}/runs/*-2-*,{runs}/runs/x]", f"out={runs}/report", "metrics=[mae,corr]"]
    shutil.copytree(runs / "runs" / "fedavg-3-1", runs / "runs" / "x")
    assert loaded(*given).status == 0
    text = (runs / "report" / "report.md").read_text()
    assert str(runs) not in text + (runs / "report" / "report.html").read_text()
    assert "utmp-report 'runs=[runs/*-2-*,runs/x]' out=report 'metrics=[mae,corr]'" in text
    assert "7 runs, " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs is required; give it as runs=…: a folder, a glob, or a list of them"),
        (["runs=[]"], "runs is required"),
        (["runs={a:1}"], "runs={a:1}: there is no such folder"),
        (["runs=['']"], "runs=['']: expected a folder"),
        (["runs=nope"], "runs=nope: there is no such folder"),
        (["runs=.", "out=''"], "out is required"),
        (["+seed=1"], "there is no setting 'seed'"),
        (["runs=.", "overwrite=perhaps"], "overwrite=perhaps: "),
        (["runs=.", "details=-1"], "details=-1: expected a number of at least 0"),
    ],
)
def test_a_mistake_is_one_line(
    loaded: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert loaded(*arguments).error.startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_repeated_is_reported_once(loaded: Run, runs: Path) -> None:
    write_run(runs / "twin", "strategy=fedavg", "clients.default=2", seed=2)
    shown = loaded("runs=.")
    assert shown.status == 0
    line = (
        "1 repeated run left out: runs/fedavg-2-2; of runs that are equal in settings and seed, "
        "the last folder is reported"
    )
    assert f"warning: {line}" in shown.shown
    assert line in (runs / "report" / "report.md").read_text()


def test_runs_that_cannot_be_reported(loaded: Run, runs: Path) -> None:
    write_run(runs / "twin", "strategy=fedavg", "clients.default=2", seed=2)
    assert loaded("runs=runs", "metrics=[bleu]").error == (
        "metrics: there is no metric 'bleu'; there are corr, mae"
    )
    (runs / "twin" / "summary.json").write_text("{")
    assert loaded("runs=twin").error.startswith("twin/summary.json is damaged: ")
    assert not (runs / "report").exists()


@pytest.mark.parametrize("out", [".", "runs", "runs/fedavg-2-1"])
def test_runs_are_never_replaced(loaded: Run, runs: Path, out: str) -> None:
    (runs / out / "report.md").touch()
    assert loaded("runs=runs", f"out={out}", "overwrite=true").error == (
        f"out={out} holds the run runs/fedavg-2-1; choose another"
    )
    assert (runs / "runs" / "fedavg-2-1" / "summary.json").exists()


def test_a_disk_that_is_full(loaded: Run, runs: Path) -> None:
    error = loaded("runs=runs", largest_file=2000).error
    assert error.startswith(f"out={runs / 'report'} cannot be written: ")
    assert not (runs / "report").exists()
