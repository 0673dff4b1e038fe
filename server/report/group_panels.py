"""Report section for one comparison group: scores, differences, learning curves and settings."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from server.report.comparison import LEVEL, Difference, Spread, Verdict, less_is_better
from server.report.figures import BETTER, MUTED, WORSE, Mark, Pens, mark_figure, step_pens
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
from server.report.records import TOGETHER, read_rounds
from server.report.series import Series, band, merged_rounds, over_rounds

MOST_TOGETHER = 6  #: methods whose curves share one chart, and whose own curves are open at first
MOST_METHODS = 24  #: methods whose own curves are shown
MOST_COLUMNS = 40  #: the most columns of the table of settings
LEAST_WEIGHT = 0.1  #: what an axis of weights spans at least
_SENTENCES = 8  #: differences that are put into sentences

#: Verdicts where there is no room for words.
_SIGNS = {Verdict.better: "+", Verdict.worse: "-", Verdict.none: "="}
_SIGNS_NOTE = "Against the baseline in the same column: + better, - worse, = no difference."

_HALF = "half of the interval"  #: column of a difference's reach

#: Settings that differ from run to run by their nature.
_OWN = frozenset({"seed", "run_dir", "resume"})


def group_section(group: ComparisonGroup, pens: Pens) -> Section:
    """Return all of a group; raise `UserError` if the rounds of a run are damaged."""
    metric = group.metric
    curves = [
        (method, [read_curves(Path(run.folder), metric) for run in method.results])
        for method in group.methods
    ]
    known = [(method, seeds) for method, seeds in curves if any(scores for scores, *_ in seeds)]
    others = [f"Here also: {', '.join(group.others)}."] if group.others else []
    panels = [
        *(notes(*lines) for lines in (others, sentences(group)) if lines),
        _score_table(group),
        *_comparison_charts(group),
        *([_curves_together(group, known)] if len(known) > 1 else []),
        *_kind_table(group, f"Fusion rules: {metric}", "test_by_fusion"),
        *_kind_table(group, f"Modalities at test: {metric}", "test_by_subset"),
    ]
    learning = _curves_section(group, known, pens)
    return Section(f"block-{group.number}", group.title, panels, [learning])


def sentences(group: ComparisonGroup) -> list[str]:
    """Say in words how the methods differ from the baseline."""
    lines = []
    for method in group.methods:
        if (baseline := group.baseline_of(method)) and (difference := group.difference(method)):
            words = _in_words(group.metric, difference)
            lines.append(f"{method.label} against {baseline.label}: {words}")
    if (more := len(lines) - _SENTENCES) > 0:
        lines[_SENTENCES:] = [f"{more} more differences are in the table."]
    return lines


def _in_words(metric: str, difference: Difference) -> str:
    amount, verdict = f"{metric} {difference.mean:+.3f}", str(difference.verdict)
    match difference.verdict:
        case Verdict.no_pair:
            return "no seed in common, so there is no difference to report."
        case Verdict.undefined:
            return "a score is not a number, so there is no difference to report."
        case Verdict.one_seed:
            return f"{amount} with one seed, which may be chance."
        case Verdict.none:
            verdict += " that these seeds can show"
        case _ if less_is_better(metric):
            verdict += ", and less is better"
    interval = f"{LEVEL:.0%} interval {difference.low:+.3f} to {difference.high:+.3f}"
    return f"{verdict}; {amount}, {interval}, {count(difference.pairs, 'shared seed')}."


def _score_table(group: ComparisonGroup) -> Panel:
    header = ["method", "seeds", *group.metrics, "best alone"]
    compared = [f"difference of {group.metric}", "p", "verdict"] if group.baselines else []
    against = ["against"] if len(group.baselines) > 1 else []
    rows = []
    for method in group.methods:
        best, baseline = method.best_alone(group.metric), group.baseline_of(method)
        row = [method.label, str(len(method.results))]
        row += [_score(method.spread(metric)) for metric in group.metrics]
        row.append(f"{best[0]} {best[1]:.3f}" if best else MISSING)
        if against:
            row.append(baseline.label if baseline else "")
        if compared:
            row += _difference_cells(group.difference(method), len(method.results))
        row.append(_mean((run.megabytes for run in method.results), 2))
        row.append(_mean((run.summary.seconds for run in method.results), 1))
        rows.append(row)
    return Panel(header=[*header, *against, *compared, "MB up", "seconds"], rows=rows)


def _difference_cells(difference: Difference | None, seeds: int) -> tuple[str, str, str]:
    """Return the difference with its interval, p, and the verdict."""
    if difference is None:
        return "", "", "baseline"
    interval = p = MISSING
    if not math.isnan(difference.mean):
        interval = f"{difference.mean:+.3f}"
    if not math.isnan(difference.p):
        interval += f" [{difference.low:+.3f}, {difference.high:+.3f}]"
        p = f"{difference.p:.3f}" if difference.p >= 0.001 else "<0.001"
    pairs = f", {difference.pairs} pairs" if 1 < difference.pairs < seeds else ""
    return interval, p, f"{difference.verdict}{pairs}"


def _kind_table(group: ComparisonGroup, title: str, kind: Kind) -> Iterator[Panel]:
    """Yield a column for each fusion rule, with signs against the baseline, or each subset."""
    names = dict.fromkeys(name for method in group.methods for name in method.titles(kind))
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
    return f"{scores.mean:.3f}" + ("" if math.isnan(scores.sd) else f" ± {scores.sd:.3f}")


def _mean(values: Iterable[float], digits: int) -> str:
    known = [value for value in values if not math.isnan(value)]
    return f"{sum(known) / len(known):.{digits}f}" if known else MISSING


def _comparison_charts(group: ComparisonGroup) -> Iterator[Panel]:
    metric, file = group.metric, f"block-{group.number}"
    better = "less" if less_is_better(metric) else "more"
    spreads = (method.spread(metric) for method in group.methods)
    scores = [Mark(score.mean, score.sd) for score in spreads]
    note = f"Mean and sd over the seeds; {better} is better."
    yield _mark_chart(group, f"Test {metric}", scores, ("mean", "sd"), note, f"{file}.png")
    if group.baselines:
        marks = [_difference_mark(group.difference(method)) for method in group.methods]
        title, columns = f"Test {metric} minus that of {group.baseline}", ("difference", _HALF)
        note = f"{LEVEL:.0%} interval. Blue: better; orange: worse; grey: no difference."
        yield _mark_chart(group, title, marks, columns, note, f"{file}-differences.png", 0.0)


def _mark_chart(
    group: ComparisonGroup,
    title: str,
    marks: Sequence[Mark],
    columns: tuple[str, str],
    note: str,
    file: str,
    reference: float | None = None,
) -> Panel:
    labels = [method.label for method in group.methods]
    figure = mark_figure(labels, {"": marks}, group.metric, reference=reference)
    rows = [(name, shown(m.value), shown(m.reach)) for name, m in zip(labels, marks, strict=True)]
    return chart(title, figure, ("method", *columns), rows, note, file)


def _difference_mark(difference: Difference | None) -> Mark:
    if difference is None:
        return Mark(0.0, shape="D")
    colour = {Verdict.better: BETTER, Verdict.worse: WORSE}.get(difference.verdict, MUTED)
    return Mark(difference.mean, difference.high - difference.mean, colour)


# Learning curves --------------------------------------------------------------------------------

#: Validation scores, train losses and fusion weights of a run, by ``multimodal`` and modality.
RunCurves = list[dict[str, Series]]

MethodCurves = tuple[Method, list[RunCurves]]  #: a method and the curves of its seeds


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
        lines[method.label] = band(scores, merged_rounds(scores))
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
        name, charts = f"{anchor}-{group.methods.index(method) + 1}", _charts(group, seeds, pens)
        folded = place >= MOST_TOGETHER
        sections.append(Section(name, method.label, list(charts), folded=folded))
    return Section(anchor, "Learning curves", [notes(*lines)], sections)


def _charts(group: ComparisonGroup, seeds: Sequence[RunCurves], pens: Pens) -> Iterator[Panel]:
    for part, title, label, least in (
        (0, f"Validation {group.metric}", group.metric, 0.0),
        (1, "Train loss", "loss", 0.0),
        (2, "Modality weights", "weight in the fusion", LEAST_WEIGHT),
    ):
        runs = [curves[part] for curves in seeds]
        if names := pens.ordered(name for series in runs for name in series):
            rounds = merged_rounds(one for series in runs for one in series.values())
            lines = {name: band([run.get(name, {}) for run in runs], rounds) for name in names}
            yield line_chart(title, label, lines, pens, least=least)


def settings_section(report: Report) -> Section:
    """Return the settings that are not the same in all runs, one column for each method."""
    names = [name for name in differing(report.results) if name not in _OWN]
    columns = report.methods[:MOST_COLUMNS]
    rows = [[name, *(_value(method, name) for _, method in columns)] for name in names]
    note = "Seeds and folders of the runs are left out."
    if (more := len(report.methods) - len(columns)) > 0:
        note += f" {count(more, 'method')} beyond the first {MOST_COLUMNS} are not shown."
    header = ("setting", *(label for label, _ in columns))
    panel = Panel(kind="words", header=header, rows=rows, note=note)
    if not names:
        panel = notes("All runs differ in nothing but seeds and folders.")
    if len(report.results) == 1:
        panel = notes("One run: there is nothing to compare it with.")
    return Section("settings", "What differs in the settings", [panel])


def _value(method: Method, name: str) -> str:
    """Return the value of a setting, which may differ between runs of one method."""
    values = dict.fromkeys(result.settings.get(name, ABSENT) for result in method.results)
    return " / ".join(map(shorten_paths, values))
