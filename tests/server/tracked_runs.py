"""Small tracked runs, and the figures that a tracker must show for them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny

from server.app import prepare
from server.run.run import Run
from server.tracking.figures import round_figures, summary_figures

Steps = dict[str, list[tuple[int, float]]]


def begin(folder: Path, *overrides: str) -> Run:
    return prepare(tiny("clients.default=1", "strategy=fedavg", *overrides), folder)


def resumed(folder: Path, *overrides: str) -> Run:
    given = [f"resume={folder}", *overrides]
    return prepare(tiny(*given), folder.parent / "elsewhere", given)


def breaking(run: Run, number: int, error: BaseException) -> Run:
    """Have a run fail when its tracker has a round of which there is no checkpoint yet."""
    track = run.tracking.round

    def fails(records: list[dict[str, Any]]) -> None:
        track(records)
        if len(records) == number:
            raise error

    run.tracking.round = fails  # type: ignore[assignment, method-assign]
    return run


def expected(folder: Path) -> Steps:
    """Figure to its steps and values, from ``rounds.jsonl`` and ``summary.json``."""
    figures: Steps = {}
    for line in (folder / "rounds.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in round_figures(record).items():
            figures.setdefault(name, []).append((record["round"], pytest.approx(value, rel=1e-6)))
    summary = json.loads((folder / "summary.json").read_text())
    for name, value in summary_figures(summary).items():
        figures[name] = [(summary["rounds"], pytest.approx(value, rel=1e-6))]
    return figures
