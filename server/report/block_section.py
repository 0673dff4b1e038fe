"""What is told of a block: who scores what, and how the methods learnt."""

import math
from collections.abc import Iterator, Mapping, Sequence

from server.report.blocks import Block, Method, assignments, present
from server.report.charts import difference_chart, line_chart, score_chart
from server.report.comparison import LEVEL, Difference, Verdict, less_is_better, spread
from server.report.curves import band
from server.report.palette import Pens, step_pens
from server.report.records import Curves, merged_rounds, read_curves
from server.report.results import TOGETHER
from server.report.tables import Report, count, tables_of, without_places
from server.report.view import Chart, Grid, Notes, Part, Section

#: Methods whose curves stand in one chart, and whose own curves are open at first.
MOST_TOGETHER = 6

#: Methods whose own curves are shown.
MOST_METHODS = 24

#: What an axis of weights spans at least.
_LEAST_WEIGHT = 0.1

#: Differences that are told in sentences.
_SENTENCES = 8


def block_section(report: Report, block: Block, pens: Pens) -> Section:
    """Return all of a block.

    Parameters
    ----------
    report, block
        What is reported, and of it the block.
    pens
        Of the modalities.

    Raises
    ------
    UserError
        If the rounds of a run are damaged.
    """
    anchor = f"block-{report.blocks.index(block) + 1}"
    metric = report.metrics_of(block)[0]
    first, *others = tables_of(report, block)
    parts: list[Part] = []
    if own := present(block.others):
        parts.append(Notes((f"Here also: {without_places(', '.join(assignments(own)))}.",)))
    if told := sentences(report, block):
        parts.append(Notes(tuple(told)))
    parts.append(Grid(first.header, first.rows))
    curves = {
        method.label: [read_curves(each.folder, metric) for each in method.results]
        for method in block.methods
    }
    if len(block.methods) > 1:
        parts += _comparisons(report, block, anchor)
        parts += _methods_together(report, block, anchor, curves)
    parts += [Grid(each.header, each.rows, each.title, each.note) for each in others]
    sections = [_curves_section(report, block, f"{anchor}-curves", curves, pens)]
    return Section(anchor, report.title_of(block), parts, sections)


def sentences(report: Report, block: Block) -> list[str]:
    """Say in words how the methods differ from the baseline."""
    metric = report.metrics_of(block)[0]
    told = []
    for method, row in zip(block.methods, report.rows_of(block), strict=True):
        baseline = block.baseline_of(method, report.baseline)
        if row.difference is not None and baseline is not None:
            other = without_places(baseline.label)
            told.append(_sentence(row.label, other, metric, row.difference))
    if len(told) > _SENTENCES:
        return [*told[:_SENTENCES], f"{len(told) - _SENTENCES} more differences are in the table."]
    return told


def _sentence(method: str, baseline: str, metric: str, found: Difference) -> str:
    beside = f"{method} against {baseline}"
    seeds = count(found.pairs, "shared seed")
    match found.verdict:
        case Verdict.no_pair:
            return f"{beside}: no seed in common, so no difference can be told."
        case Verdict.undefined:
            return f"{beside}: a score is not a number, so no difference can be told."
        case Verdict.one_seed:
            return (
                f"{beside}: {metric} {found.mean:+.3f}, of one seed; that says nothing of chance."
            )
        case Verdict.none:
            verdict = "no difference that the seeds can show"
        case verdict_word:
            verdict = f"{verdict_word}"
            verdict += ", and less is better" if less_is_better(metric) else ""
    interval = f"{LEVEL:.0%} interval {found.low:+.3f} to {found.high:+.3f}"
    return f"{beside}: {verdict}; {metric} {found.mean:+.3f}, {interval}, {seeds}."


def _comparisons(report: Report, block: Block, anchor: str) -> Iterator[Chart]:
    metric = report.metrics_of(block)[0]
    rows = report.rows_of(block)
    better = "less" if less_is_better(metric) else "more"
    note = f"Mean and sd over the seeds; {better} is better."
    yield score_chart(f"{anchor}-scores", f"Test {metric}", metric, rows, note=note)
    if report.compares_in(block):
        note = f"{LEVEL:.0%} interval. Blue: better; orange: worse; grey: no difference."
        title = f"Test {metric} less that of {report.baseline}"
        yield difference_chart(f"{anchor}-differences", title, metric, rows, note=note)


def _methods_together(
    report: Report, block: Block, anchor: str, curves: Mapping[str, Sequence[Curves]]
) -> Iterator[Chart]:
    known = _with_curves(block, curves)
    if len(known) < 2:
        return
    metric = report.metrics_of(block)[0]
    chosen = _chosen(report, block, known)
    labels = [without_places(method.label) for method in chosen]
    lines = {
        label: band([each.scores.get(TOGETHER, {}) for each in curves[method.label]])
        for label, method in zip(labels, chosen, strict=True)
    }
    note = f"Validation items, all modalities together. {_band_says(chosen)}"
    if len(chosen) < len(known):
        note += f" Of {len(known)} methods the baseline and the best by their test {metric}."
    yield line_chart(
        f"{anchor}-together",
        f"Validation {metric} of the methods",
        ("round", metric),
        lines,
        step_pens(labels),
        note=note,
    )


# Learning curves --------------------------------------------------------------------------------


def _curves_section(
    report: Report,
    block: Block,
    anchor: str,
    curves: Mapping[str, Sequence[Curves]],
    pens: Pens,
) -> Section:
    metric = report.metrics_of(block)[0]
    known = _with_curves(block, curves)
    if not known:
        note = Notes(("No run here recorded validation scores over its rounds.",))
        return Section(anchor, "Learning curves", [note])
    told = [f"Of the validation items, round by round. {_band_says(known)}"]
    if len(known) > MOST_METHODS:
        told.append(f"Of {len(known)} methods the first {MOST_METHODS} are shown.")
    sections = []
    for place, method in enumerate(known[:MOST_METHODS]):
        name = f"{anchor}-{block.methods.index(method) + 1}"
        charts = list(_method_charts(name, metric, curves[method.label], pens))
        title = without_places(method.label)
        sections.append(Section(name, title, charts, folded=place >= MOST_TOGETHER))
    return Section(anchor, "Learning curves", [Notes(tuple(told))], sections)


def _with_curves(block: Block, curves: Mapping[str, Sequence[Curves]]) -> list[Method]:
    return [method for method in block.methods if any(each.scores for each in curves[method.label])]


def _band_says(methods: Sequence[Method]) -> str:
    if all(len(method.results) == 1 for method in methods):
        return "One seed each, so there is no spread."
    return "The mean over the seeds, in a band of ± one sd."


def _chosen(report: Report, block: Block, methods: Sequence[Method]) -> list[Method]:
    """Return the methods of one chart: all if they are few, else the baseline and the best."""
    if len(methods) <= MOST_TOGETHER:
        return list(methods)
    metric = report.metrics_of(block)[0]
    sign = 1 if less_is_better(metric) else -1

    def rank(method: Method) -> tuple[bool, bool, float]:
        mean = spread(method.together(metric).values()).mean
        unknown = math.isnan(mean)
        return (
            method not in block.baselines(report.baseline),
            unknown,
            0 if unknown else sign * mean,
        )

    best = sorted(methods, key=rank)[:MOST_TOGETHER]
    return [method for method in methods if method in best]


def _method_charts(name: str, metric: str, curves: Sequence[Curves], pens: Pens) -> Iterator[Chart]:
    for part, title, label in (
        ("scores", f"Validation {metric}", metric),
        ("losses", "Train loss", "loss"),
        ("weights", "Modality weights", "weight in the fusion"),
    ):
        seeds = [getattr(each, part) for each in curves]
        names = pens.ordered(each for series in seeds for each in series)
        if not names:
            continue
        found = {each: [series.get(each, {}) for series in seeds] for each in names}
        rounds = merged_rounds(series for every in found.values() for series in every)
        lines = {each: band(every, rounds) for each, every in found.items()}
        least = _LEAST_WEIGHT if part == "weights" else 0.0
        yield line_chart(f"{name}-{part}", title, ("round", label), lines, pens, least=least)
