"""All runs side by side: a row for each, with a column for each setting that differs."""

import csv
import io
import math
from collections.abc import Sequence

from common.metrics import COMPARED, HEADLINE
from server.report.comparison import less_is_better
from server.report.figures import Mark, mark_figure
from server.report.groups import (
    ABSENT,
    count,
    differing,
    is_in,
    natural,
    shorten_paths,
)
from server.report.panels import MISSING, Panel, Section, chart, shown
from server.report.records import TOGETHER, Result

TABLE = "runs.csv"

MOST_RUNS = 40  #: runs of a chart

#: Settings that differ from run to run by their nature, or do not change what is learnt.
_OWN = ("run_dir", "resume", "runtime.", "tracking.", "console")


def varied(results: Sequence[Result]) -> list[str]:
    """Return the settings that differ among runs; of a choice from a group its name alone."""
    names = [name for name in differing(results) if not is_in(name, _OWN)]
    chosen = {name.removesuffix("name") for name in names if name.endswith(".name")}
    return [n for n in names if n.endswith(".name") or not n.startswith(tuple(chosen or ("\0",)))]


def overview(results: Sequence[Result]) -> Section:
    """Return a table of all runs, and a chart of their headline metric."""
    names, metric = varied(results), HEADLINE[results[0].task]
    short = [_short(name, names) for name in names]
    ordered = sorted(results, key=lambda run: [natural(run.settings.get(n, "")) for n in names])
    metrics = list(dict.fromkeys((metric, COMPARED[results[0].task])))
    header = [*short, *metrics, "constant", "best alone", "round"]
    rows = [[*_values(run, names), *_outcome(run, metrics)] for run in ordered]
    title = f"All {count(len(results), 'run')}"
    note = f"Test items, all modalities together. Constant: {metrics[-1]} of the mean, or the most "
    note += "frequent class."
    panels = [Panel(header=header, rows=rows, note=note)]
    if len(results) <= MOST_RUNS:
        panels.append(_chart(ordered, names, short, metric))
    return Section("all", title, panels)


def _chart(
    results: Sequence[Result], names: Sequence[str], short: Sequence[str], metric: str
) -> Panel:
    labels = [
        ", ".join(f"{name}={value}" for name, value in zip(short, _values(run, names), strict=True))
        for run in results
    ]
    scores = [_score(run, metric) for run in results]
    figure = mark_figure(labels, {"": [Mark(score) for score in scores]}, metric)
    rows = [(label, shown(score)) for label, score in zip(labels, scores, strict=True)]
    note = f"A run each; {'less' if less_is_better(metric) else 'more'} is better."
    title, points = f"Test {metric} of all runs", [(None, place) for place in range(len(rows))]
    return chart(title, figure, ("run", metric), rows, note, "runs.png", points)


def _short(name: str, names: Sequence[str]) -> str:
    """Return the last word of a setting, or of a group, unless another setting has it too."""
    plain = [each.removesuffix(".name").rpartition(".")[2] for each in names]
    last = name.removesuffix(".name").rpartition(".")[2]
    return last if plain.count(last) == 1 else name


def _values(run: Result, names: Sequence[str]) -> list[str]:
    return [shorten_paths(run.settings.get(name, ABSENT)) for name in names]


def _score(run: Result, metric: str, title: str = TOGETHER) -> float:
    return run.summary.test.get(title, {}).get(metric, math.nan)


def _outcome(run: Result, metrics: Sequence[str]) -> list[str]:
    alone = {name: _score(run, metrics[0], name) for name in run.summary.test if name != TOGETHER}
    sign = -1 if less_is_better(metrics[0]) else 1
    known = {name: score for name, score in alone.items() if not math.isnan(score)}
    best = max(known, key=lambda name: sign * known[name], default=None)
    constant = run.summary.test_constant.get(metrics[-1], math.nan)
    scores = [_score(run, metric) for metric in metrics]
    return [
        *(MISSING if math.isnan(score) else f"{score:.3f}" for score in (*scores, constant)),
        f"{best} {known[best]:.3f}" if best else MISSING,
        str(run.summary.delivered_round or ""),
    ]


def runs_csv(results: Sequence[Result]) -> bytes:
    """Return ``runs.csv``: folder, settings that differ, and every test score of all modalities."""
    names, text = varied(results), io.StringIO(newline="")
    metrics = dict.fromkeys(name for run in results for name in run.summary.test.get(TOGETHER, {}))
    others = ("delivered_round", "seconds", "megabytes_up")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["folder", *names, *metrics, *others])
    for run in results:
        scores = [_score(run, metric) for metric in metrics]
        more = [run.summary.delivered_round, run.summary.seconds, run.megabytes]
        cells = ["" if value is None or math.isnan(value) else value for value in (*scores, *more)]
        writer.writerow([shorten_paths(run.folder), *_values(run, names), *cells])
    return text.getvalue().encode("utf-8", "replace")
