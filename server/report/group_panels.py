"""Report section for one comparison group: the scores, the differences and how methods learnt."""

import math
from collections.abc import Iterator, Mapping, Sequence

from server.report.colours import Pens, step_pens
from server.report.comparison import LEVEL, Difference, Verdict, less_is_better, spread
from server.report.groups import (
    ABSENT,
    ComparisonGroup,
    Method,
    assignments,
    differing,
    present,
)
from server.report.records import Series, merged_rounds, read_curves
from server.report.results import TOGETHER
from server.report.series import band
from server.report.tables import Report, count, pictures_of, tables_of, without_places
from server.report.view import Panel, Section, chart, line_chart, notes, shown

#: Methods whose curves share one chart, and whose own curves are open at first.
MOST_TOGETHER = 6

#: Methods whose own curves are shown.
MOST_METHODS = 24

#: The most columns of the table of settings.
MOST_COLUMNS = 40

#: What an axis of weights spans at least.
LEAST_WEIGHT = 0.1

#: Differences that are put into sentences.
_SENTENCES = 8

#: Settings that differ from run to run by their nature.
_OWN = frozenset({"seed", "run_dir", "resume"})

#: Label of a method to the curves of its seeds, see `read_curves`.
Curves = Mapping[str, Sequence[Mapping[str, Mapping[str, Series]]]]


def group_section(report: Report, group: ComparisonGroup, pens: Pens) -> Section:
    """Return all of a group; raise `UserError` if the rounds of a run are damaged."""
    anchor = f"block-{report.number_of(group)}"
    metric = report.metrics_of(group)[0]
    curves = {
        method.label: [read_curves(result.folder, metric) for result in method.results]
        for method in group.methods
    }
    scores, *others = tables_of(report, group)
    panels: list[Panel] = []
    if own := present(group.other_settings):
        panels.append(notes(f"Here also: {without_places(', '.join(assignments(own)))}."))
    if lines := sentences(report, group):
        panels.append(notes(*lines))
    panels.append(scores)
    if len(group.methods) > 1:
        panels += _comparisons(report, group, anchor)
        panels += _curves_together(report, group, anchor, curves)
    learning = _curves_section(report, group, f"{anchor}-curves", curves, pens)
    return Section(anchor, report.title_of(group), [*panels, *others], [learning])


def sentences(report: Report, group: ComparisonGroup) -> list[str]:
    """Say in words how the methods differ from the baseline."""
    metric = report.metrics_of(group)[0]
    lines = []
    for method, row in zip(group.methods, report.rows_of(group), strict=True):
        baseline = group.baseline_of(method, report.baseline)
        if row.difference is not None and baseline is not None:
            pair = f"{row.label} against {without_places(baseline.label)}"
            lines.append(f"{pair}: {_in_words(metric, row.difference)}")
    if len(lines) <= _SENTENCES:
        return lines
    more = len(lines) - _SENTENCES
    return [*lines[:_SENTENCES], f"{more} more differences are in the table."]


def _in_words(metric: str, difference: Difference) -> str:
    amount = f"{metric} {difference.mean:+.3f}"
    match difference.verdict:
        case Verdict.no_pair:
            return "no seed in common, so there is no difference to report."
        case Verdict.undefined:
            return "a score is not a number, so there is no difference to report."
        case Verdict.one_seed:
            return f"{amount} with one seed, which may be chance."
        case Verdict.none:
            verdict = "no difference that these seeds can show"
        case _:
            verdict = str(difference.verdict)
            verdict += ", and less is better" if less_is_better(metric) else ""
    interval = f"{LEVEL:.0%} interval {difference.low:+.3f} to {difference.high:+.3f}"
    return f"{verdict}; {amount}, {interval}, {count(difference.pairs, 'shared seed')}."


def _comparisons(report: Report, group: ComparisonGroup, anchor: str) -> Iterator[Panel]:
    metric, rows = report.metrics_of(group)[0], report.rows_of(group)
    data = [
        (
            ("method", "mean", "sd"),
            [(row.label, shown(row.score.mean), shown(row.score.sd)) for row in rows],
        ),
        (
            ("method", "difference", "half of the interval"),
            [(row.label, *_difference_cells(row.difference)) for row in rows],
        ),
    ]
    pictures = pictures_of(report, group)
    for place, (picture, (header, cells)) in enumerate(zip(pictures, data, strict=False)):
        figure = picture.draw(metric, rows)
        yield chart(f"{anchor}-{place}", picture.title, figure, header, cells, picture.note)


def _difference_cells(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return "0", shown(math.nan)
    return shown(difference.mean), shown(difference.high - difference.mean)


def _curves_together(
    report: Report, group: ComparisonGroup, anchor: str, curves: Curves
) -> Iterator[Panel]:
    known = _with_curves(group, curves)
    if len(known) < 2:
        return
    metric = report.metrics_of(group)[0]
    chosen = _chosen(report, group, known)
    lines = {}
    for method in chosen:
        seeds = [each["scores"].get(TOGETHER, {}) for each in curves[method.label]]
        lines[without_places(method.label)] = band(seeds, merged_rounds(seeds))
    note = f"Validation items, all modalities together. {_about_bands(chosen)}"
    if len(chosen) < len(known):
        note += f" Of {len(known)} methods the baseline and the best by their test {metric}."
    title = f"Validation {metric} of the methods"
    yield line_chart(f"{anchor}-together", title, metric, lines, step_pens(lines), note)


def _with_curves(group: ComparisonGroup, curves: Curves) -> list[Method]:
    return [m for m in group.methods if any(seed["scores"] for seed in curves[m.label])]


def _about_bands(methods: Sequence[Method]) -> str:
    if all(len(method.results) == 1 for method in methods):
        return "One seed each, so there is no spread."
    return "The mean over the seeds, in a band of ± one sd."


def _chosen(report: Report, group: ComparisonGroup, methods: Sequence[Method]) -> list[Method]:
    """Return the methods of one chart: all if they are few, else the baseline and the best."""
    metric = report.metrics_of(group)[0]
    sign = 1 if less_is_better(metric) else -1
    baselines = group.baselines(report.baseline)

    def rank(method: Method) -> tuple[bool, float]:
        mean = spread(method.together(metric).values()).mean
        return method not in baselines, math.inf if math.isnan(mean) else sign * mean

    best = sorted(methods, key=rank)[:MOST_TOGETHER]
    return [method for method in methods if method in best]


# Learning curves --------------------------------------------------------------------------------


def _curves_section(
    report: Report, group: ComparisonGroup, anchor: str, curves: Curves, pens: Pens
) -> Section:
    metric = report.metrics_of(group)[0]
    known = _with_curves(group, curves)
    if not known:
        nothing = notes("No run here recorded validation scores over its rounds.")
        return Section(anchor, "Learning curves", [nothing])
    lines = [f"Of the validation items, round by round. {_about_bands(known)}"]
    if len(known) > MOST_METHODS:
        lines.append(f"Of {len(known)} methods the first {MOST_METHODS} are shown.")
    sections = []
    for place, method in enumerate(known[:MOST_METHODS]):
        name = f"{anchor}-{group.methods.index(method) + 1}"
        charts = list(_method_charts(name, metric, curves[method.label], pens))
        title = without_places(method.label)
        sections.append(Section(name, title, charts, folded=place >= MOST_TOGETHER))
    return Section(anchor, "Learning curves", [notes(*lines)], sections)


def _method_charts(
    anchor: str, metric: str, seeds: Sequence[Mapping[str, Mapping[str, Series]]], pens: Pens
) -> Iterator[Panel]:
    for part, title, label, least in (
        ("scores", f"Validation {metric}", metric, 0.0),
        ("losses", "Train loss", "loss", 0.0),
        ("weights", "Modality weights", "weight in the fusion", LEAST_WEIGHT),
    ):
        names = pens.ordered(name for curves in seeds for name in curves[part])
        if not names:
            continue
        series = {name: [curves[part].get(name, {}) for curves in seeds] for name in names}
        rounds = merged_rounds(one for every in series.values() for one in every)
        lines = {name: band(every, rounds) for name, every in series.items()}
        yield line_chart(f"{anchor}-{part}", title, label, lines, pens, least=least)


# Settings ---------------------------------------------------------------------------------------


def settings_section(report: Report) -> Section:
    """Return the settings that are not the same in all runs, one column for each method."""
    return Section("settings", "What differs in the settings", [_settings(report)])


def _settings(report: Report) -> Panel:
    results = report.found.results
    names = [name for name in differing(results) if name not in _OWN]
    if len(results) == 1:
        return notes("One run: there is nothing to compare it with.")
    if not names:
        return notes("All runs differ in nothing but seeds and folders.")
    columns = report.methods[:MOST_COLUMNS]
    header = ["setting", *(report.label_of(group, method) for group, method in columns)]
    rows = [[name, *(_setting(method, name) for _, method in columns)] for name in names]
    note = "Seeds and folders of the runs are left out."
    if (more := len(report.methods) - len(columns)) > 0:
        note += f" {count(more, 'method')} beyond the first {MOST_COLUMNS} are not shown."
    return Panel(kind="words", header=header, rows=rows, note=note)


def _setting(method: Method, name: str) -> str:
    """Return the value of a setting, which may differ between runs of one method."""
    values = dict.fromkeys(result.settings.get(name, ABSENT) for result in method.results)
    return " / ".join(map(without_places, values))
