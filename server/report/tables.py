"""What a report says, as tables of text; `server.report.console` shows them."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.metrics import HEADLINE
from common.task import Task
from server.report.blocks import Block, Method, Scores, assignments, present
from server.report.comparison import Difference, Spread, Verdict, spread
from server.report.plot import Row
from server.report.results import TOGETHER, Found

#: What is shown beside the headline metric.
_BESIDE: dict[Task, tuple[str, ...]] = {
    Task.regression: ("mae", "acc2"),
    Task.classification: ("log_loss",),
    Task.multilabel: ("weighted_accuracy",),
}

#: Verdicts where there is no room for words.
_SIGNS = {Verdict.better: "+", Verdict.worse: "-", Verdict.none: "="}

#: In the place of what is not known.
MISSING = "n/a"

#: Of unfinished runs.
_NAMED = 3

_SIGNS_SAY = "Against the baseline in the same column: + better, - worse, = no difference."


@dataclass(frozen=True)
class Report:
    """What is reported.

    Attributes
    ----------
    command
        That asked for it.
    found, blocks
        The runs, and their groups.
    baseline
        ``strategy.name`` of what the others are compared with.
    metrics
        As chosen; none for those of the task.
    """

    command: str
    found: Found
    blocks: tuple[Block, ...]
    baseline: str | None
    metrics: tuple[str, ...]

    @property
    def compares(self) -> bool:
        """Whether any block has the baseline."""
        return any(map(self.compares_in, self.blocks))

    def compares_in(self, block: Block) -> bool:
        """Whether a block has the baseline."""
        return bool(block.baselines(self.baseline))

    def metrics_of(self, block: Block) -> list[str]:
        """Return the metrics that are shown of a block; the first is the one compared."""
        known = _metric_names([block])
        headline = HEADLINE[block.task]
        chosen = self.metrics or (headline, *_BESIDE[block.task])
        return [metric for metric in chosen if metric in known] or [headline]

    def title_of(self, block: Block) -> str:
        """``1. dataset.name=npz, rounds=20``."""
        number = self.blocks.index(block) + 1
        settings = present(block.telling) or block.telling
        return f"{number}. {without_places(', '.join(assignments(settings)) or 'All runs')}"

    def picture_of(self, block: Block) -> str:
        """Return the name of a block's picture."""
        return f"block-{self.blocks.index(block) + 1}.png"

    def rows_of(self, block: Block) -> list[Row]:
        """Return what is drawn of a block."""
        metric = self.metrics_of(block)[0]
        return [
            Row(
                without_places(method.label),
                spread(method.together(metric).values()),
                block.difference(method, self.baseline, metric, lambda each: each.together(metric)),
            )
            for method in block.methods
        ]

    def warnings(self) -> Iterator[str]:
        """Say what should be known before the numbers."""
        if self.found.unfinished:
            runs = count(len(self.found.unfinished), "unfinished run")
            more = ["…"] if len(self.found.unfinished) > _NAMED else []
            named = [*self.found.unfinished[:_NAMED], *more]
            yield f"{runs} left out: {without_places(', '.join(named))}"
        if self.baseline is not None:
            yield from self._lacking()

    def _lacking(self) -> Iterator[str]:
        """Name the blocks without the baseline; all of them at once."""
        where = {self.title_of(each): [each] for each in self.blocks if not self.compares_in(each)}
        if not self.compares:
            where = {"runs": list(self.blocks)}
        for title, blocks in where.items():
            names = sorted({method.name for block in blocks for method in block.methods})
            yield (
                f"{title}: no baseline {self.baseline}, so no differences; "
                f"there are {', '.join(names)}"
            )


def check_metrics(blocks: Iterable[Block], metrics: Iterable[str]) -> None:
    """Raise `UserError` for a metric that no run has."""
    known = _metric_names(blocks)
    for metric in metrics:
        if metric not in known:
            raise UserError(f"metrics: there is no metric {metric!r}; there are {', '.join(known)}")


def _metric_names(blocks: Iterable[Block]) -> list[str]:
    results = (run for block in blocks for method in block.methods for run in method.results)
    return list(dict.fromkeys(name for result in results for name in result.test[TOGETHER]))


# Tables -----------------------------------------------------------------------------------------


#: Columns of the scores that a narrow terminal leaves out; the report has them.
MINOR = frozenset({"best alone", "against", "p", "MB up", "seconds"})


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the rows."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables_of(report: Report, block: Block) -> list[Table]:
    """Return the tables of a block: scores; fusion rules and modalities where they were tried."""
    metric = report.metrics_of(block)[0]
    tables = [_scores(report, block)]
    if rules := _names(block, "by_fusion"):
        compares = report.compares_in(block)
        table = _by(report, block, "by_fusion", rules, marked=compares)
        note = _SIGNS_SAY if compares else ""
        tables.append(Table(f"Fusion rules: {metric}", *table, note))
    if subsets := _names(block, "by_subset"):
        table = _by(report, block, "by_subset", subsets, marked=False)
        tables.append(Table(f"Modalities at test: {metric}", *table))
    return tables


def _scores(report: Report, block: Block) -> Table:
    metrics = report.metrics_of(block)
    columns = [
        ("method", [without_places(method.label) for method in block.methods]),
        ("seeds", [str(len(method.results)) for method in block.methods]),
        *(
            (m, [_cell(spread(each.together(m).values())) for each in block.methods])
            for m in metrics
        ),
        ("best alone", [_best(method, metrics[0]) for method in block.methods]),
        *_differences(report, block, metrics[0]),
        ("MB up", [_mean((r.megabytes for r in m.results), 2) for m in block.methods]),
        ("seconds", [_mean((r.seconds for r in m.results), 1) for m in block.methods]),
    ]
    header, cells = zip(*columns, strict=True)
    return Table("", tuple(header), tuple(zip(*cells, strict=True)))


def _together(block: Block, metric: str) -> list[str]:
    return [_cell(spread(method.together(metric).values())) for method in block.methods]


def _differences(report: Report, block: Block, metric: str) -> Iterator[tuple[str, list[str]]]:
    """Columns of the comparison, where there is a baseline."""
    baselines = block.baselines(report.baseline)
    if not baselines:
        return
    found = [row.difference for row in report.rows_of(block)]
    if len(baselines) > 1:
        nearest = [block.baseline_of(method, report.baseline) for method in block.methods]
        labels = [without_places(each.label) if each else "" for each in nearest]
        yield "against", [label if d else "" for label, d in zip(labels, found, strict=True)]
    yield f"difference of {metric}", [_interval(difference) for difference in found]
    yield "p", [_probability(difference) for difference in found]
    yield (
        "verdict",
        [_verdict(each, len(m.results)) for each, m in zip(found, block.methods, strict=True)],
    )


def _by(
    report: Report, block: Block, part: str, names: Sequence[str], *, marked: bool
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Header and rows of methods by the names of a part, as to the metric that is compared."""
    metric = report.metrics_of(block)[0]
    columns = {name: _scores_by(part, name, metric) for name in names}

    def cell(method: Method, scores: Scores) -> str:
        text = _cell(spread(scores(method).values()))
        if not marked:
            return text
        difference = block.difference(method, report.baseline, metric, scores)
        return f"{text} {_SIGNS.get(difference.verdict, '')}".rstrip() if difference else text

    rows = [
        (without_places(method.label), *(cell(method, each) for each in columns.values()))
        for method in block.methods
    ]
    return ("method", *names), tuple(rows)


def _scores_by(part: str, name: str, metric: str) -> Scores:
    return lambda method: method.scores(metric, lambda result: getattr(result, part).get(name, {}))


def _names(block: Block, part: str) -> list[str]:
    results = (result for method in block.methods for result in method.results)
    return list(dict.fromkeys(name for result in results for name in getattr(result, part)))


# Cells ------------------------------------------------------------------------------------------


def _cell(found: Spread) -> str:
    if found.count == 0:
        return MISSING
    return f"{found.mean:.3f}" + ("" if math.isnan(found.sd) else f" ± {found.sd:.3f}")


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
    missing = 1 < difference.pairs < seeds
    return f"{difference.verdict}, {difference.pairs} pairs" if missing else difference.verdict


def count(number: int, what: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def without_places(text: str) -> str:
    """Return a text whose absolute paths say nothing of the machine.

    They become relative to the working directory, or ``…/folder/name`` if they lie outside it.
    """
    return re.sub(r"(?<![^\s=,\[\"'(])/[^,\]\"')=]*[^,\]\"')=\s]", _without_place, text)


def _without_place(match: re.Match[str]) -> str:
    path = Path(match[0])
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return "/".join(["…", *path.parts[1:][-2:]])
