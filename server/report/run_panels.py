"""Report section for one run: weights, losses, time, posterior widths, rejections and scores."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np

from server.report.diagnosis_panels import diagnosis_panels
from server.report.figures import (
    Line,
    Mark,
    Pen,
    Pens,
    bar_figure,
    envelope,
    lines_of,
    mark_figure,
)
from server.report.group_panels import LEAST_WEIGHT
from server.report.groups import shorten_paths
from server.report.panels import (
    MISSING,
    STRONGEST,
    Cell,
    Panel,
    Section,
    chart,
    line_chart,
    notes,
    shown,
)
from server.report.records import (
    WHOLE_ROUND,
    History,
    Matrix,
    Numbers,
    Result,
    Summary,
    read_history,
    read_summary,
    reading,
)
from server.run.folder import SUMMARY
from server.run.verdict import Comparison
from server.terminal import rounded

MOST_CLIENTS = 30  #: clients up to which each has a line of its own
MOST_BARS = 60  #: bars of a chart of time; of more rounds, several share one
_TILES = ("chart", "heat")  #: panels that stand side by side, and therefore come first

_MEDIAN = "in a band from the least to the greatest."


def run_section(anchor: str, title: str, result: Result, pens: Pens, *, folded: bool) -> Section:
    """Return what one run recorded; raise `UserError` if a file of it is damaged."""
    folder = Path(result.folder)
    history, summary = read_history(folder), read_summary(folder)
    panels: list[Panel] = []
    training: list[Panel] = []
    for key, (make, why) in _OF_ROUNDS.items():
        recorded = any(key in record.model_fields_set for record in history.sample)
        training += make(history, pens) if history.of(key) else [_missing(why, recorded)]
    panels.append(_rejections(history))
    if summary.diagnostics:
        with reading(folder / SUMMARY, "diagnostics"):
            panels += diagnosis_panels(summary.diagnostics, pens)
    else:
        why = "Confusions and calibration: this run has no single model that predicts."
        panels.append(_missing(why, "diagnostics" in summary.model_fields_set))
    with reading(folder / SUMMARY, "summary"):
        facts = _facts(result, history.count, summary)
    settings = [(name, shorten_paths(value)) for name, value in result.settings.items()]
    panels += _scores(summary)
    panels.append(Panel("All settings", "words", ("setting", "value"), settings, folded=True))
    title_of_training = "How it was trained: weights, losses, seconds, posteriors"
    inner = Section(f"{anchor}-training", title_of_training, _in_order(training), folded=True)
    return Section(anchor, title, _in_order(panels), [inner], facts=facts, folded=folded)


def _in_order(panels: Sequence[Panel]) -> list[Panel]:
    """Return what stands side by side first, and why others are not there last, in one panel."""
    content = [panel for panel in panels if panel.kind != "notes"]
    content.sort(key=lambda panel: panel.kind not in _TILES)
    missing = [line for panel in panels for line in panel.lines]
    return [*content, *([notes(*missing, title="Not shown, and why")] if missing else [])]


def _missing(why: str, recorded: bool) -> Panel:
    older = f"{why.partition(':')[0]}: the version that made this run did not record them."
    return notes(why if recorded else older)


def _fusion(history: History, pens: Pens) -> Iterator[Panel]:
    lines, label = lines_of(history.of("fusion_weights")), "weight in the fusion"
    ordered = {name: lines[name] for name in pens.ordered(lines)}
    note = "How much each modality counts when all predict together; 1 in all."
    yield line_chart("Modality weights", label, ordered, pens, note, least=LEAST_WEIGHT)


def _decoder(history: History, pens: Pens) -> Iterator[Panel]:
    """Yield the modalities' shares in the merged decoder, by layer and over the rounds."""
    rounds, label = history.of("decoder_weights"), "weight in the merged decoder"
    layers = rounds[last := max(rounds)]
    names = pens.ordered(name for shares in layers.values() for name in shares)
    columns = {
        name: [[layer.get(name, math.nan) for layer in one.values()] for one in rounds.values()]
        for name in names
    }
    marks = {
        name: [Mark(share, colour=pens[name].colour, shape=shape) for share in columns[name][-1]]
        for name, shape in zip(names, cycle("os^DvP"), strict=False)
    }
    title, equal = f"Decoder weights by layer, round {last}", 1 / len(names)
    figure = mark_figure(list(layers), marks, label, reference=equal, least=LEAST_WEIGHT)
    table = zip(layers, *marks.values(), strict=True)
    rows = [(layer, *(shown(mark.value) for mark in row)) for layer, *row in table]
    note = "CmDA's choice, or shares of the examples where it does not choose; dotted: equal."
    points = [(None, place) for place in range(len(rows))]
    yield chart(title, figure, ("", *names), rows, note, points=points)
    if len(rounds) > 1:
        lines = {name: envelope(list(rounds), column) for name, column in columns.items()}
        title, note = "Decoder weights over the rounds", f"The median over the layers, {_MEDIAN}"
        yield line_chart(title, label, lines, pens, note, least=LEAST_WEIGHT)


def _by_modality(clients: Iterable[str], pens: Pens) -> dict[str, list[str]]:
    """Return clients, which are named as ``audio-0``, by their modality in the pens' order."""
    owners = {client: client.rpartition("-")[0] or client for client in clients}
    names = pens.ordered(owners.values())
    return {name: [client for client in owners if owners[client] == name] for name in names}


def _envelopes(rounds: Mapping[int, Numbers], pens: Pens) -> dict[str, Line]:
    """Return the range of the clients of each modality over the rounds."""
    groups = _by_modality((client for values in rounds.values() for client in values), pens)
    return {
        name: envelope(list(rounds), ([v[c] for c in clients if c in v] for v in rounds.values()))
        for name, clients in groups.items()
    }


def _losses(history: History, pens: Pens) -> Iterator[Panel]:
    """Yield the train loss of each client, or of many clients the range by modality."""
    rounds, title = history.of("client_losses"), "Train loss of each client"
    lines = lines_of(rounds)
    if len(lines) > MOST_CLIENTS:
        note = f"{len(lines)} clients, more than {MOST_CLIENTS}: the median of each modality's "
        yield line_chart(title, "loss", _envelopes(rounds, pens), pens, f"{note}clients, {_MEDIAN}")
        return
    groups = _by_modality(lines, pens)
    owners = {client: name for name, clients in groups.items() for client in clients}
    lines = {client: lines[client] for client in owners}
    client_pens = {client: Pen(pens[name].colour, width=1.0) for client, name in owners.items()}
    legend = {name: clients[0] for name, clients in groups.items()}
    note = "A line for each client in the colour of its modality; a gap where it was not merged."
    yield line_chart(title, "loss", lines, client_pens, note, legend=legend)


_PHASES = (
    "configure: choose clients, encode; wait: send, train, reply; merge: decode, check, merge; "
    "evaluate: score the validation items. The checkpoint after it is in none."
)


def _seconds(history: History, _: Pens) -> Iterator[Panel]:
    seconds, rounds = history.seconds, sorted(history.seconds)
    names = list(dict.fromkeys(name for phases in seconds.values() for name in phases))
    table = np.array([[seconds[number].get(name, 0.0) for name in names] for number in rounds])
    width = math.ceil(len(rounds) / MOST_BARS)
    starts = range(0, len(rounds), width)
    bars = [_known_mean(table[start : start + width]) for start in starts]
    title, note = "Seconds of a round, by phase", _PHASES
    if names == [WHOLE_ROUND]:
        title, note = title[:-10], "The version that made this run did not record phases."
    if width > 1:
        note = f"Each bar is the mean of {width} rounds. {note}"
    parts = dict(zip(names, np.transpose(bars), strict=True))
    figure = bar_figure([rounds[start] - 0.43 for start in starts], width, parts, "seconds")
    sums = table.sum(axis=0).tolist()
    rows = []
    for name, total in zip(names, sums, strict=True):
        share = f"{total / sum(sums):.1%}" if sum(sums) > 0 else MISSING
        rows.append((name, shown(total), shown(total / len(rounds), 3), share))
    yield chart(title, figure, ("phase", "seconds", "a round", "share"), rows, note)


def _known_mean(rows: np.ndarray) -> np.ndarray:
    """Return the mean of each column's finite values; NaN for none."""
    known = np.isfinite(rows)
    means = np.full(rows.shape[1], math.nan)
    np.divide(rows.sum(axis=0, where=known), known.sum(axis=0), means, where=known.any(axis=0))
    return means


# Posterior widths -------------------------------------------------------------------------------

_WIDTHS = (
    "How unsure a client is of a layer: the stronger, the wider, on a logarithmic scale. In units "
    "of the weights, or relative to the client's own scale where the strategy leaves that out; for "
    "precisions of inputs, 1 over the root mean square of what the layer reads."
)


def _widths(history: History, pens: Pens) -> Iterator[Panel]:
    """Yield the widths over the rounds, and the last ones by layer and client."""
    rounds = history.of("posterior_widths")
    if len(rounds) > 1:
        clients = {
            number: {client: _median(layers.values()) for client, layers in matrix.items()}
            for number, matrix in rounds.items()
        }
        note = "A client's width is the median over its layers. The median of a modality's clients,"
        note, lines = f"{note} {_MEDIAN}", _envelopes(clients, pens)
        yield line_chart("Posterior widths over the rounds", "width", lines, pens, note, log=True)
    yield _width_heat(rounds, history.count, pens)


def _width_heat(rounds: Mapping[int, Matrix], count: int, pens: Pens) -> Panel:
    last, note = max(rounds), _WIDTHS
    columns, groups = rounds[last], _by_modality(rounds[last], pens)
    layers = list(dict.fromkeys(layer for widths in columns.values() for layer in widths))
    if len(columns) > MOST_CLIENTS:
        note += f" {len(columns)} clients: the medians of each modality's."
        columns = {
            name: {
                layer: _median(rounds[last][client].get(layer, 0.0) for client in clients)
                for layer in layers
            }
            for name, clients in groups.items()
        }
    else:
        columns = {client: columns[client] for clients in groups.values() for client in clients}
    if last < count:
        note += f" Round {last} is the last in which clients sent precisions."
    known = [w for widths in columns.values() for w in widths.values() if 0 < w < math.inf]
    low, high = min(known, default=1.0), max(known, default=1.0)

    def cell(width: float) -> str | Cell:
        if not 0 < width < math.inf:
            return "" if math.isnan(width) else shown(width, 3)
        share = math.log(width / low) / math.log(high / low) if high > low else 0.5
        return Cell(shown(width, 3), round(STRONGEST * share))

    rows = [
        [layer, *(cell(widths.get(layer, math.nan)) for widths in columns.values())]
        for layer in layers
    ]
    title = f"Posterior width by layer and client, round {last}"
    return Panel(title, "wide heat", ("layer", *columns), rows, note)


def _median(widths: Iterable[float]) -> float:
    """Return the median of the widths that are positive; NaN for none."""
    return median([width for width in widths if width > 0] or [math.nan])


#: What is recorded of rounds: its key, what shows it, and why nothing of it may be there.
_OF_ROUNDS: Mapping[str, tuple[Callable[[History, Pens], Iterator[Panel]], str]] = {
    "fusion_weights": (_fusion, "Modality weights: nothing is weighted in this run."),
    "decoder_weights": (
        _decoder,
        "Decoder weights: this run has no merged decoder, or a rule without weights.",
    ),
    "client_losses": (_losses, "Client losses: no client trains by itself here."),
    "seconds": (_seconds, "Seconds of the rounds: none were measured."),
    "posterior_widths": (
        _widths,
        "Posterior widths: no client sent a precision, as where weights are averaged.",
    ),
}


def _facts(result: Result, rounds: int, summary: Summary) -> list[tuple[str, str]]:
    epsilon = (summary.privacy or {}).get("epsilon")
    skew = shown(summary.label_skew, 3) if "label_skew" in summary.model_fields_set else ""
    facts = {
        "folder": shorten_paths(str(Path(result.folder).absolute())),
        "seed": str(result.seed),
        "rounds": str(rounds),
        "delivered round": str(summary.delivered_round or ""),
        "seconds": shown(summary.seconds),
        "items": ", ".join(f"{value} {name}" for name, value in (summary.items or {}).items()),
        "parameters": "" if summary.parameters is None else f"{summary.parameters:,}",
        "fusion": str(summary.fusion or ""),
        "label skew": skew,
        "epsilon": "" if epsilon is None else shown(float(epsilon), 3),
        "verdict": "; ".join(str(Comparison.of(each)) for each in summary.comparisons),
    }
    return [(name, value) for name, value in facts.items() if value]


def _rejections(history: History) -> Panel:
    if not history.rejected:
        return notes("Rejections: no client failed, and no update was refused.")
    listed = len(history.rejections)
    note = f"The first {listed} of {history.rejected}." if listed < history.rejected else ""
    rows = [(str(number), message) for number, message in history.rejections]
    return Panel(f"Rejections: {history.rejected}", "lines", ("round", "what"), rows, note)


def _scores(summary: Summary) -> Iterator[Panel]:
    """Yield every metric of every kind of prediction, and of every subset."""
    for title, scores in (
        ("Test scores", summary.test),
        ("Test scores by subset", summary.test_by_subset),
        ("Test scores by fusion rule", summary.test_by_fusion),
    ):
        if scores:
            names = dict.fromkeys(name for metrics in scores.values() for name in metrics)
            rows = [
                [row, *(rounded(metrics[name]) if name in metrics else "" for name in names)]
                for row, metrics in scores.items()
            ]
            yield Panel(title, header=("", *names), rows=rows)
