"""What is told of one run."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from server.report.diagnosis_parts import diagnosis_parts
from server.report.palette import Pens
from server.report.records import Details, number, read_details, reading
from server.report.results import Result
from server.report.round_parts import decoder_parts, fusion_parts, loss_parts, time_parts
from server.report.tables import without_places
from server.report.view import TILES, Grid, Notes, Part, Section, shown
from server.report.width_parts import width_parts
from server.run.folder import SUMMARY


def run_section(anchor: str, title: str, result: Result, pens: Pens, *, folded: bool) -> Section:
    """Return what one run left.

    Parameters
    ----------
    anchor, title, folded
        Of the section.
    result
        The run.
    pens
        Of the modalities.

    Raises
    ------
    UserError
        If a file of it is damaged.
    """
    details = read_details(result.folder)
    summary = Path(result.folder) / SUMMARY
    parts: list[Part] = [
        *fusion_parts(anchor, details, pens),
        *decoder_parts(anchor, details, pens),
        *loss_parts(anchor, details, pens),
        *time_parts(anchor, details),
        *width_parts(anchor, details, pens),
        *_rejections(details),
        *reading(summary, "diagnostics", lambda: list(diagnosis_parts(anchor, details, pens))),
        *_scores(result),
        _settings(result),
    ]
    facts = reading(summary, "summary", lambda: list(_facts(result, details)))
    return Section(anchor, title, _in_order(parts), facts=facts, folded=folded)


def _in_order(parts: Sequence[Part]) -> list[Part]:
    """Put first what stands side by side, and last, in one place, what is not there."""
    lines = [line for part in parts if isinstance(part, Notes) for line in part.lines]
    there = [part for part in parts if not isinstance(part, Notes)]
    there.sort(key=lambda part: part.kind not in TILES)
    return [*there, *([Notes(tuple(lines), "Not shown, and why")] if lines else [])]


def _facts(result: Result, details: Details) -> Iterator[tuple[str, str]]:
    summary, items = details.summary, details.summary.get("items") or {}
    yield "folder", without_places(str(Path(result.folder).absolute()))
    yield "seed", str(result.seed)
    yield "rounds", str(details.count)
    yield "seconds", shown(result.seconds)
    if items:
        yield "items", ", ".join(f"{value} {name}" for name, value in items.items())
    if "parameters" in summary:
        yield "parameters", f"{int(summary['parameters']):,}"
    if summary.get("fusion"):
        yield "fusion", str(summary["fusion"])
    if "label_skew" in summary:
        yield "label skew", shown(number(summary["label_skew"]), 3)
    if (summary.get("privacy") or {}).get("epsilon") is not None:
        yield "epsilon", shown(number(summary["privacy"]["epsilon"]), 3)


def _rejections(details: Details) -> Iterator[Part]:
    if not details.rejected:
        yield Notes(("Rejections: no client failed, and no update was refused.",))
        return
    left = details.rejected - len(details.rejections)
    note = f"The first {len(details.rejections)} of {details.rejected}." if left else ""
    rows = tuple((str(at), line) for at, line in details.rejections)
    yield Grid(("round", "what"), rows, f"Rejections: {details.rejected}", note, kind="lines")


def _settings(result: Result) -> Grid:
    rows = tuple((name, without_places(value)) for name, value in result.settings.items())
    return Grid(("setting", "value"), rows, "All settings", kind="words", folded=True)


def _scores(result: Result) -> Iterator[Part]:
    """Every metric of every kind of prediction, and of every subset."""
    for title, found in (
        ("Test scores", result.test),
        ("Test scores by subset", result.by_subset),
        ("Test scores by fusion rule", result.by_fusion),
    ):
        if found:
            metrics = list(dict.fromkeys(metric for each in found.values() for metric in each))
            rows = tuple(
                (name, *(f"{each[metric]:.3f}" if metric in each else "" for metric in metrics))
                for name, each in found.items()
            )
            yield Grid(("", *metrics), rows, title)
