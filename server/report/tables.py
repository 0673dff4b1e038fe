"""What is reported, and its tables of text, which the page, ``report.md`` and the terminal show."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.errors import UserError
from common.metrics import HEADLINE
from common.task import Task
from server.report.comparison import LEVEL, Difference, Spread, Verdict, less_is_better, spread
from server.report.figures import Row, difference_figure, score_figure
from server.report.groups import ComparisonGroup, Method, assignments, present
from server.report.results import TOGETHER, Found, Metrics, Result
from server.report.view import MISSING, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is shown beside the headline metric.
_BESIDE: dict[Task, tuple[str, ...]] = {
    Task.regression: ("mae", "acc2"),
    Task.classification: ("log_loss",),
    Task.multilabel: ("weighted_accuracy",),
}

#: Verdicts where there is no room for words.
_SIGNS = {Verdict.better: "+", Verdict.worse: "-", Verdict.none: "="}
_SIGNS_NOTE = "Against the baseline in the same column: + better, - worse, = no difference."

#: The most seeds, and the most unfinished runs, that are named.
_SEEDS, _UNFINISHED = 12, 3

#: Columns of the scores that a narrow terminal leaves out; the report has them.
MINOR = frozenset({"best alone", "against", "p", "MB up", "seconds"})


@dataclass(frozen=True)
class Report:
    """What is reported.

    Attributes
    ----------
    command
        That asked for it.
    found, groups
        The runs, and their comparison groups.
    baseline
        ``strategy.name`` or label of what the others are compared with.
    metrics
        As chosen; none for those of the task.
    """

    command: str
    found: Found
    groups: tuple[ComparisonGroup, ...]
    baseline: str | None
    metrics: tuple[str, ...]

    @property
    def methods(self) -> list[tuple[ComparisonGroup, Method]]:
        """Every method with its group."""
        return [(group, method) for group in self.groups for method in group.methods]

    @property
    def counts(self) -> str:
        """``4 runs, 2 methods, 2 seeds (1, 2), 1 comparison group``."""
        seeds = sorted({result.seed for result in self.found.results})
        named = ", ".join([*map(str, seeds[:_SEEDS]), *(["…"] if len(seeds) > _SEEDS else [])])
        return (
            f"{count(len(self.found.results), 'run')}, {count(len(self.methods), 'method')}, "
            f"{count(len(seeds), 'seed')} ({named}), "
            f"{count(len(self.groups), 'comparison group')}"
        )

    def compares(self, group: ComparisonGroup) -> bool:
        """Whether a group has the baseline."""
        return bool(group.baselines(self.baseline))

    def metrics_of(self, group: ComparisonGroup) -> list[str]:
        """Return the metrics that are shown of a group; the first is the one compared."""
        known = _metric_names([group])
        headline = HEADLINE[group.task]
        chosen = self.metrics or (headline, *_BESIDE[group.task])
        return [metric for metric in chosen if metric in known] or [headline]

    def number_of(self, group: ComparisonGroup) -> int:
        """Return the place of a group, from 1."""
        return self.groups.index(group) + 1

    def title_of(self, group: ComparisonGroup) -> str:
        """``1. dataset.name=npz, rounds=20``."""
        settings = present(group.title_settings) or group.title_settings
        words = without_places(", ".join(assignments(settings)) or "All runs")
        return f"{self.number_of(group)}. {words}"

    def label_of(self, group: ComparisonGroup, method: Method) -> str:
        """Return the label of a method, with the number of its group if there are several."""
        label = without_places(method.label)
        return label if len(self.groups) == 1 else f"{self.number_of(group)}. {label}"

    def rows_of(self, group: ComparisonGroup) -> list[Row]:
        """Return what is drawn of a group."""
        metric = self.metrics_of(group)[0]

        def together(method: Method) -> dict[int, float]:
            return method.together(metric)

        return [
            Row(
                without_places(method.label),
                spread(together(method).values()),
                group.difference(method, self.baseline, metric, together),
            )
            for method in group.methods
        ]

    def warnings(self) -> Iterator[str]:
        """Yield what a reader should know before the numbers."""
        if unfinished := self.found.unfinished:
            runs = count(len(unfinished), "unfinished run")
            more = ["…"] if len(unfinished) > _UNFINISHED else []
            names = ", ".join([*unfinished[:_UNFINISHED], *more])
            yield f"{runs} left out: {without_places(names)}"
        without = [group for group in self.groups if not self.compares(group)]
        if self.baseline is None or not without:
            return
        if len(without) == len(self.groups):
            yield self._no_baseline("runs", without)
        else:
            yield from (self._no_baseline(self.title_of(group), [group]) for group in without)

    def _no_baseline(self, where: str, groups: Iterable[ComparisonGroup]) -> str:
        names = ", ".join(sorted({method.name for group in groups for method in group.methods}))
        return f"{where}: no baseline {self.baseline}, so no differences; there are {names}"


def check_metrics(groups: Iterable[ComparisonGroup], metrics: Iterable[str]) -> None:
    """Raise `UserError` for a metric that no run has."""
    known = _metric_names(groups)
    for metric in metrics:
        if metric not in known:
            raise UserError(f"metrics: there is no metric {metric!r}; there are {', '.join(known)}")


def _metric_names(groups: Iterable[ComparisonGroup]) -> list[str]:
    results = (run for group in groups for method in group.methods for run in method.results)
    return list(dict.fromkeys(name for result in results for name in result.test[TOGETHER]))


class Picture(NamedTuple):
    """A chart of a comparison group: its file, title and note, and what draws it from rows."""

    file: str
    title: str
    note: str
    draw: Callable[[str, Sequence[Row]], "Figure"]


def pictures_of(report: Report, group: ComparisonGroup) -> list[Picture]:
    """Return the charts of a group: the scores, and the differences if there is a baseline."""
    name, metric = f"block-{report.number_of(group)}", report.metrics_of(group)[0]
    better = "less" if less_is_better(metric) else "more"
    note = f"Mean and sd over the seeds; {better} is better."
    pictures = [Picture(f"{name}.png", f"Test {metric}", note, score_figure)]
    if report.compares(group):
        title = f"Test {metric} minus that of {report.baseline}"
        note = f"{LEVEL:.0%} interval. Blue: better; orange: worse; grey: no difference."
        pictures.append(Picture(f"{name}-differences.png", title, note, difference_figure))
    return pictures


# Tables -----------------------------------------------------------------------------------------


def tables_of(report: Report, group: ComparisonGroup) -> list[Panel]:
    """Return the scores of a group; fusion rules and modalities where they were tried."""
    metric = report.metrics_of(group)[0]
    baseline = report.baseline if report.compares(group) else None
    note = _SIGNS_NOTE if baseline is not None else ""
    fusion = _columns(group, metric, baseline, lambda result: result.by_fusion)
    subset = _columns(group, metric, None, lambda result: result.by_subset)
    return [
        _table(group, _score_columns(report, group)),
        *([_table(group, fusion, f"Fusion rules: {metric}", note)] if fusion else []),
        *([_table(group, subset, f"Modalities at test: {metric}")] if subset else []),
    ]


#: Header to the cells of all methods.
Columns = dict[str, list[str]]


def _table(group: ComparisonGroup, columns: Columns, title: str = "", note: str = "") -> Panel:
    labels = [without_places(method.label) for method in group.methods]
    rows = tuple(zip(labels, *columns.values(), strict=True))
    return Panel(title, header=("method", *columns), rows=rows, note=note)


def _score_columns(report: Report, group: ComparisonGroup) -> Columns:
    metrics, methods = report.metrics_of(group), group.methods
    return {
        "seeds": [str(len(method.results)) for method in methods],
        **{name: [_cell(spread(m.together(name).values())) for m in methods] for name in metrics},
        "best alone": [_best(method, metrics[0]) for method in methods],
        **(_difference_columns(report, group, metrics[0]) if report.compares(group) else {}),
        "MB up": [_mean((run.megabytes for run in m.results), 2) for m in methods],
        "seconds": [_mean((run.seconds for run in m.results), 1) for m in methods],
    }


def _difference_columns(report: Report, group: ComparisonGroup, metric: str) -> Columns:
    differences = [row.difference for row in report.rows_of(group)]
    compared = list(zip(group.methods, differences, strict=True))
    columns = {
        f"difference of {metric}": list(map(_interval, differences)),
        "p": list(map(_probability, differences)),
        "verdict": [_verdict(difference, len(method.results)) for method, difference in compared],
    }
    if len(group.baselines(report.baseline)) == 1:
        return columns
    nearest = [group.baseline_of(m, report.baseline) if d else None for m, d in compared]
    return {"against": [without_places(m.label) if m else "" for m in nearest], **columns}


def _columns(
    group: ComparisonGroup,
    metric: str,
    baseline: str | None,
    pick: Callable[[Result], Mapping[str, Metrics]],
) -> Columns:
    """Return a column for each name that `pick` has, with signs against the baseline, if any."""
    results = (result for method in group.methods for result in method.results)
    names = dict.fromkeys(name for result in results for name in pick(result))

    def cell(method: Method, name: str) -> str:
        def scores(of: Method) -> Mapping[int, float]:
            return of.scores(metric, lambda result: pick(result).get(name, {}))

        text = _cell(spread(scores(method).values()))
        difference = group.difference(method, baseline, metric, scores)
        return f"{text} {_SIGNS.get(difference.verdict, '')}".rstrip() if difference else text

    return {name: [cell(method, name) for method in group.methods] for name in names}


# Cells ------------------------------------------------------------------------------------------


def _cell(scores: Spread) -> str:
    if scores.count == 0:
        return MISSING
    return f"{scores.mean:.3f}" + ("" if math.isnan(scores.sd) else f" ± {scores.sd:.3f}")


def _best(method: Method, metric: str) -> str:
    best = method.best_alone(metric)
    return MISSING if best is None else f"{best[0]} {best[1]:.3f}"


def _mean(values: Iterable[float], digits: int) -> str:
    known = [value for value in values if not math.isnan(value)]
    return f"{sum(known) / len(known):.{digits}f}" if known else MISSING


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if math.isnan(difference.mean):
        return MISSING
    if math.isnan(difference.low):
        return f"{difference.mean:+.3f}"
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _probability(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if math.isnan(difference.p):
        return MISSING
    return f"{difference.p:.3f}" if difference.p >= 0.001 else "<0.001"


def _verdict(difference: Difference | None, seeds: int) -> str:
    if difference is None:
        return "baseline"
    fewer = 1 < difference.pairs < seeds
    return f"{difference.verdict}, {difference.pairs} pairs" if fewer else difference.verdict


def count(number: int, what: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def without_places(text: str) -> str:
    """Return a text whose absolute paths reveal nothing of the machine.

    They become relative to the working directory, or ``…/folder/name`` if they lie outside it.
    """
    return re.sub(r"(?<![^\s=,\[\"'(])/[^,\]\"')=]*[^,\]\"')=\s]", _without_place, text)


def _without_place(match: re.Match[str]) -> str:
    path = Path(match[0])
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return "/".join(["…", *path.parts[1:][-2:]])
