"""Report section for one comparison group: scores, differences, learning curves and settings."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from server.report.comparison import LEVEL, Difference, Spread, Verdict, less_is_better
from server.report.figures import (
    BETTER,
    MUTED,
    WORSE,
    Mark,
    Pens,
    Series,
    band,
    mark_figure,
    over_rounds,
    step_pens,
)
from server.report.groups import (
    ABSENT,
    ComparisonGroup,
    Kind,
    Method,
    Report,
    count,
    differing,
    shorten_paths,
)
from server.report.panels import MISSING, Panel, Section, chart, line_chart, notes, shown
from server.report.records import TOGETHER, read_rounds, thinned
from server.terminal import rounded

MOST_TOGETHER = 6  #: methods whose curves share one chart, and whose own curves are open at first
MOST_METHODS = 24  #: methods whose own curves are shown
MOST_COLUMNS = 40  #: the most columns of the table of settings
LEAST_WEIGHT = 0.1  #: what an axis of weights spans at least

#: Verdicts where there is no room for words.
_SIGNS = {Verdict.better: "+", Verdict.worse: "-", Verdict.none: "="}
_SIGNS_NOTE = "Against the baseline in the same column: + better, - worse, = no difference."

#: Settings that differ from run to run by their nature.
_OWN = frozenset({"seed", "run_dir", "resume"})

#: Validation scores, train losses and fusion weights of a run, by ``multimodal`` and modality.
RunCurves = list[dict[str, Series]]

MethodCurves = tuple[Method, list[RunCurves]]  #: a method and the curves of its seeds


def group_section(group: ComparisonGroup, pens: Pens) -> Section:
    """Return all of a group; raise `UserError` if the rounds of a run are damaged."""
    metric = group.metric
    curves = [
        (method, [read_curves(Path(run.folder), metric) for run in method.results])
        for method in group.methods
    ]
    known = [(method, seeds) for method, seeds in curves if any(scores for scores, *_ in seeds)]
    panels = [
        *([notes(f"Here also: {', '.join(group.others)}.")] if group.others else []),
        _score_table(group),
        *_mark_charts(group),
        *([_curves_together(group, known)] if len(known) > 1 else []),
        *_kind_table(group, f"Fusion rules: {metric}", "test_by_fusion"),
        *_kind_table(group, f"Modalities at test: {metric}", "test_by_subset"),
    ]
    learning = _curves_section(group, known, pens)
    return Section(f"block-{group.number}", group.title, panels, [learning])


# Scores and differences -------------------------------------------------------------------------


def _score_table(group: ComparisonGroup) -> Panel:
    rows = []
    for method in group.methods:
        best, runs = method.best_alone(group.metric), method.results
        row = {"method": method.label, "seeds": str(len(runs))}
        row |= {metric: _score(method.spread(metric)) for metric in group.metrics}
        row["best alone"] = f"{best[0]} {rounded(best[1])}" if best else MISSING
        if len(group.baselines) > 1:
            baseline = group.baseline_of(method)
            row["against"] = baseline.label if baseline else ""
        if group.baselines:
            cells = _difference_cells(group.difference(method), len(runs))
            row |= zip((f"difference of {group.metric}", "p", "verdict"), cells, strict=True)
        row["MB up"] = _mean((run.megabytes for run in runs), 2)
        row["seconds"] = _mean((run.summary.seconds for run in runs), 1)
        rows.append(row)
    return Panel(header=list(rows[0]), rows=[list(row.values()) for row in rows])


def _difference_cells(difference: Difference | None, seeds: int) -> tuple[str, str, str]:
    """Return the difference with its interval, p, and the verdict."""
    if difference is None:
        return "", "", "baseline"
    interval = p = MISSING
    if not math.isnan(difference.mean):
        interval = rounded(difference.mean, sign="+")
    if not math.isnan(difference.p):
        interval += f" [{rounded(difference.low, sign='+')}, {rounded(difference.high, sign='+')}]"
        p = f"{difference.p:.3f}" if difference.p >= 0.001 else "<0.001"
    pairs = f", {difference.pairs} pairs" if 1 < difference.pairs < seeds else ""
    return interval, p, f"{difference.verdict}{pairs}"


def _kind_table(group: ComparisonGroup, title: str, kind: Kind) -> Iterator[Panel]:
    """Yield a column for each fusion rule, with signs against the baseline, or each subset."""
    runs = (run for method in group.methods for run in method.results)
    names = dict.fromkeys(name for run in runs for name in getattr(run.summary, kind))
    signed = kind == "test_by_fusion" and bool(group.baselines)

    def cell(method: Method, name: str) -> str:
        difference = group.difference(method, name, kind) if signed else None
        sign = _SIGNS.get(difference.verdict, "") if difference else ""
        return f"{_score(method.spread(group.metric, name, kind))} {sign}".rstrip()

    if names:
        rows = [[one.label, *(cell(one, name) for name in names)] for one in group.methods]
        yield Panel(title, header=("method", *names), rows=rows, note=_SIGNS_NOTE * signed)


def _score(scores: Spread) -> str:
    if scores.count == 0:
        return MISSING
    return f"{rounded(scores.mean)} ± {rounded(scores.sd, scores.mean)}".removesuffix(" ± nan")


def _mean(values: Iterable[float], digits: int) -> str:
    known = [value for value in values if not math.isnan(value)]
    return f"{sum(known) / len(known):.{digits}f}" if known else MISSING


def _mark_charts(group: ComparisonGroup) -> Iterator[Panel]:
    """Yield the scores of the methods, and their differences to the baseline."""
    metric, labels = group.metric, [method.label for method in group.methods]
    spreads = [method.spread(metric) for method in group.methods]
    marks = [Mark(scores.mean, scores.sd) for scores in spreads]
    note = f"Mean and sd over the seeds; {'less' if less_is_better(metric) else 'more'} is better."
    charts = [(f"Test {metric}", marks, ("mean", "sd"), note, "")]
    if group.baselines:
        marks = [_difference_mark(group.difference(method)) for method in group.methods]
        columns = ("difference", "half of the interval")
        note = f"{LEVEL:.0%} interval. Blue: better; orange: worse; grey: no difference."
        title = f"Test {metric} minus that of {group.baseline}"
        charts.append((title, marks, columns, note, "-differences"))
    for title, marks, columns, note, suffix in charts:
        figure = mark_figure(labels, {"": marks}, metric, reference=0.0 if suffix else None)
        cells = [(shown(mark.value), shown(mark.reach)) for mark in marks]
        rows = [(label, *pair) for label, pair in zip(labels, cells, strict=True)]
        file = f"block-{group.number}{suffix}.png"
        points = [(None, place) for place in range(len(rows))]
        yield chart(title, figure, ("method", *columns), rows, note, file, points)


def _difference_mark(difference: Difference | None) -> Mark:
    if difference is None:
        return Mark(0.0, shape="D")
    colour = {Verdict.better: BETTER, Verdict.worse: WORSE}.get(difference.verdict, MUTED)
    return Mark(difference.mean, difference.high - difference.mean, colour)


# Learning curves --------------------------------------------------------------------------------


def read_curves(folder: Path, metric: str) -> RunCurves:
    """Read a run's curves; raise `UserError` if its rounds are damaged."""
    scores, losses, weights = {}, {}, {}
    for record in read_rounds(folder):
        known = ((name, values.get(metric)) for name, values in record.validation.items())
        scores[record.round] = {name: value for name, value in known if value is not None}
        losses[record.round], weights[record.round] = record.train_loss, record.fusion_weights
    return list(map(over_rounds, (scores, losses, weights)))


def _about_bands(curves: Sequence[MethodCurves]) -> str:
    if all(len(seeds) == 1 for _, seeds in curves):
        return "One seed each, so there is no spread."
    return "The mean over the seeds, in a band of ± one sd."


def _curves_together(group: ComparisonGroup, known: Sequence[MethodCurves]) -> Panel:
    """Return one chart of all methods if they are few, else of the baseline and the best."""
    metric = group.metric
    sign = 1 if less_is_better(metric) else -1

    def rank(method: Method) -> tuple[bool, float]:
        mean = method.spread(metric).mean
        return method not in group.baselines, math.inf if math.isnan(mean) else sign * mean

    best = sorted((method for method, _ in known), key=rank)[:MOST_TOGETHER]
    chosen = [(method, seeds) for method, seeds in known if method in best]
    lines = {}
    for method, seeds in chosen:
        scores = [scores.get(TOGETHER, {}) for scores, *_ in seeds]
        lines[method.label] = band(scores, thinned(sorted(set().union(*scores))))
    note = f"Validation items, all modalities together. {_about_bands(chosen)}"
    if len(chosen) < len(known):
        note += f" Of {len(known)} methods the baseline and the best by their test {metric}."
    return line_chart(f"Validation {metric} of the methods", metric, lines, step_pens(lines), note)


def _curves_section(group: ComparisonGroup, known: Sequence[MethodCurves], pens: Pens) -> Section:
    anchor = f"block-{group.number}-curves"
    lines = [f"Of the validation items, round by round. {_about_bands(known)}"]
    if len(known) > MOST_METHODS:
        lines.append(f"Of {len(known)} methods the first {MOST_METHODS} are shown.")
    if not known:
        lines = ["No run here recorded validation scores over its rounds."]
    sections = []
    for place, (method, seeds) in enumerate(known[:MOST_METHODS]):
        name = f"{anchor}-{group.methods.index(method) + 1}"
        charts = list(_charts(group.metric, seeds, pens))
        sections.append(Section(name, method.label, charts, folded=place >= MOST_TOGETHER))
    return Section(anchor, "Learning curves", [notes(*lines)], sections)


def _charts(metric: str, seeds: Sequence[RunCurves], pens: Pens) -> Iterator[Panel]:
    options = (
        (f"Validation {metric}", metric, 0.0),
        ("Train loss", "loss", 0.0),
        ("Modality weights", "weight in the fusion", LEAST_WEIGHT),
    )
    for (title, label, least), *runs in zip(options, *seeds, strict=True):
        if names := pens.ordered(name for series in runs for name in series):
            rounds = set().union(*(one for series in runs for one in series.values()))
            places = thinned(sorted(rounds))
            lines = {name: band([run.get(name, {}) for run in runs], places) for name in names}
            yield line_chart(title, label, lines, pens, least=least)


# Settings ---------------------------------------------------------------------------------------


def settings_section(report: Report) -> Section:
    """Return the settings that are not the same in all runs, one column for each method."""
    rows = []
    columns = report.methods[:MOST_COLUMNS]
    for name in differing(report.results):
        if name not in _OWN:
            # A setting of the runtime may differ between runs of one method.
            values = [
                dict.fromkeys(run.settings.get(name, ABSENT) for run in method.results)
                for _, method in columns
            ]
            rows.append([name, *(" / ".join(map(shorten_paths, cell)) for cell in values)])
    note = "Seeds and folders of the runs are left out."
    if (more := len(report.methods) - len(columns)) > 0:
        note += f" {count(more, 'method')} beyond the first {MOST_COLUMNS} are not shown."
    header = ("setting", *(label for label, _ in columns))
    panel = Panel(kind="words", header=header, rows=rows, note=note)
    if not rows:
        panel = notes("All runs differ in nothing but seeds and folders.")
    if len(report.results) == 1:
        panel = notes("One run: there is nothing to compare it with.")
    return Section("settings", "What differs in the settings", [panel])
