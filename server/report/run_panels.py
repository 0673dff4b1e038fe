"""Report section for one run: weights, losses, time, posterior widths, rejections and scores."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from server.report.colours import STRONGEST, Pen, Pens, step_pens
from server.report.diagnosis_panels import diagnosis_panels
from server.report.figures import bar_figure, dot_figure
from server.report.group_panels import LEAST_WEIGHT
from server.report.records import (
    Details,
    Matrix,
    Series,
    merged_rounds,
    number,
    read_details,
    reading,
)
from server.report.results import Metrics, Result
from server.report.series import by_modality, envelope, line_of, modality_of
from server.report.tables import without_places
from server.report.view import Cell, Panel, Section, chart, line_chart, mean_of, notes, shown
from server.run.folder import SUMMARY

#: Clients up to which each has a line of its own.
MOST_CLIENTS = 30

#: Bars of a chart of time; of more rounds, several share one.
MOST_BARS = 60

#: Panels that stand side by side, and therefore come first.
_TILES = ("chart", "heat")


def run_section(anchor: str, title: str, result: Result, pens: Pens, *, folded: bool) -> Section:
    """Return what one run recorded; raise `UserError` if a file of it is damaged."""
    details = read_details(result.folder)
    panels = [
        *_fusion(anchor, details, pens),
        *_decoder(anchor, details, pens),
        *_losses(anchor, details, pens),
        *_seconds(anchor, details),
        *_widths(anchor, details, pens),
        _rejections(details),
    ]
    with reading(Path(result.folder) / SUMMARY, "diagnostics"):
        panels += diagnosis_panels(anchor, details.summary, pens)
    with reading(Path(result.folder) / SUMMARY, "summary"):
        facts = list(_facts(result, details))
    panels += [*_scores(result), _settings(result)]
    shown_panels = sorted(
        (panel for panel in panels if panel.kind != "notes"), key=lambda p: p.kind not in _TILES
    )
    missing = [line for panel in panels if panel.kind == "notes" for line in panel.lines]
    if missing:
        shown_panels.append(notes(*missing, title="Not shown, and why"))
    return Section(anchor, title, shown_panels, facts=facts, folded=folded)


def _left_out(what: str, details: Details, key: str, why: str) -> Panel:
    """Explain why a panel is missing: nothing of its kind, or a version that recorded none."""
    older = "the version that made this run did not record them."
    return notes(f"{what}: {why if key in details.recorded else older}")


def _fusion(anchor: str, details: Details, pens: Pens) -> Iterator[Panel]:
    if not details.fusion:
        yield notes("Modality weights: nothing is weighted in this run.")
        return
    rounds = merged_rounds(details.fusion.values())
    lines = {name: line_of(details.fusion[name], rounds) for name in pens.ordered(details.fusion)}
    note = "How much each modality counts when all predict together; 1 in all."
    label = "weight in the fusion"
    yield line_chart(
        f"{anchor}-fusion", "Modality weights", label, lines, pens, note, least=LEAST_WEIGHT
    )


def _decoder(anchor: str, details: Details, pens: Pens) -> Iterator[Panel]:
    """Yield the modalities' shares in the merged decoder, by layer and over the rounds."""
    if not details.decoder:
        why = "this run has no merged decoder, or a rule without weights."
        yield _left_out("Decoder weights", details, "decoder_weights", why)
        return
    last = max(details.decoder)
    layers = details.decoder[last]
    names = pens.ordered(name for shares in layers.values() for name in shares)
    label = "weight in the merged decoder"
    dots = {name: [shares.get(name, math.nan) for shares in layers.values()] for name in names}
    cells = zip(layers, *(map(shown, values) for values in dots.values()), strict=True)
    reference = 1 / len(names)
    yield chart(
        f"{anchor}-layers",
        f"Decoder weights by layer, round {last}",
        dot_figure(list(layers), dots, pens, label, reference=reference, least=LEAST_WEIGHT),
        ("", *dots),
        list(cells),
        "CmDA's choice, or shares of the examples where it does not choose; dotted: equal.",
    )
    if len(details.decoder) > 1:
        rounds = sorted(details.decoder)
        lines = {name: envelope(_shares_by_layer(details, name).values(), rounds) for name in names}
        title = "Decoder weights over the rounds"
        note = "The median over the layers, in a band from the least to the greatest."
        yield line_chart(f"{anchor}-decoder", title, label, lines, pens, note, least=LEAST_WEIGHT)


def _shares_by_layer(details: Details, modality: str) -> dict[str, Series]:
    layers: dict[str, Series] = {}
    for at, matrix in details.decoder.items():
        for layer, shares in matrix.items():
            layers.setdefault(layer, {})[at] = shares.get(modality, math.nan)
    return layers


def _losses(anchor: str, details: Details, pens: Pens) -> Iterator[Panel]:
    """Yield the train loss of each client, or of many clients the range by modality."""
    if not details.losses:
        why = "no client trains by itself here."
        yield _left_out("Client losses", details, "client_losses", why)
        return
    rounds = merged_rounds(details.losses.values())
    groups = by_modality(details.losses, pens)
    anchor, title = f"{anchor}-losses", "Train loss of each client"
    if len(details.losses) > MOST_CLIENTS:
        lines = {name: envelope(clients.values(), rounds) for name, clients in groups.items()}
        note = (
            f"{len(details.losses)} clients, more than {MOST_CLIENTS}: the median of each "
            "modality's clients, in a band from the least to the greatest."
        )
        yield line_chart(anchor, title, "loss", lines, pens, note)
        return
    owners = {client: name for name, clients in groups.items() for client in clients}
    lines = {client: line_of(details.losses[client], rounds) for client in owners}
    client_pens = {client: Pen(pens[name].name, width=1.0) for client, name in owners.items()}
    legend = {name: next(iter(clients)) for name, clients in groups.items()}
    note = "A line for each client in the colour of its modality; a gap where it was not merged."
    yield line_chart(anchor, title, "loss", lines, client_pens, note, legend=legend)


_PHASES = (
    "configure: choose clients, encode; wait: send, train, reply; merge: decode, check, merge; "
    "evaluate: score the validation items. The checkpoint after it is in none."
)


def _seconds(anchor: str, details: Details) -> Iterator[Panel]:
    if not details.seconds:
        yield _left_out("Seconds of the rounds", details, "seconds", "none were measured.")
        return
    rounds = sorted(details.seconds)
    names = list(dict.fromkeys(name for phases in details.seconds.values() for name in phases))
    width = max(1, math.ceil(len(rounds) / MOST_BARS))
    bars = [rounds[start : start + width] for start in range(0, len(rounds), width)]
    parts = {
        name or "round": [mean_of(details.seconds[at].get(name, 0.0) for at in bar) for bar in bars]
        for name in names
    }
    has_phases = names != [""]
    note = _PHASES if has_phases else "The version that made this run did not record phases."
    if width > 1:
        note = f"Each bar is the mean of {width} rounds. {note}"
    starts = [bar[0] - 0.43 for bar in bars]
    yield chart(
        f"{anchor}-seconds",
        "Seconds of a round, by phase" if has_phases else "Seconds of a round",
        bar_figure(starts, width, parts, step_pens(parts), ("round", "seconds")),
        ("phase", "seconds", "a round", "share"),
        _seconds_rows(details, names),
        note,
    )


def _seconds_rows(details: Details, names: Sequence[str]) -> list[tuple[str, ...]]:
    rounds = details.seconds.values()
    sums = {name: sum(phases.get(name, 0.0) for phases in rounds) for name in names}
    total = sum(sums.values())
    return [
        (
            name or "round",
            shown(value),
            shown(value / len(rounds), 3),
            f"{value / total:.1%}" if total > 0 else shown(math.nan),
        )
        for name, value in sums.items()
    ]


# Posterior widths, see `server.aggregation.widths` ----------------------------------------------


def _widths(anchor: str, details: Details, pens: Pens) -> Iterator[Panel]:
    """Yield the widths over the rounds, and the last ones by layer and client."""
    if not details.widths:
        why = "no client sent a precision, as where weights are averaged."
        yield _left_out("Posterior widths", details, "posterior_widths", why)
        return
    if len(details.widths) > 1:
        groups = by_modality(_client_widths(details), pens)
        rounds = sorted(details.widths)
        lines = {name: envelope(clients.values(), rounds) for name, clients in groups.items()}
        title = "Posterior widths over the rounds"
        note = (
            "A client's width is the median over its layers. The median of a modality's clients, "
            "in a band from the least to the greatest."
        )
        yield line_chart(f"{anchor}-widths", title, "width", lines, pens, note, log=True)
    yield _width_heat(details, pens)


def _client_widths(details: Details) -> dict[str, Series]:
    clients: dict[str, Series] = {}
    for at, matrix in details.widths.items():
        for client, layers in matrix.items():
            known = [width for width in layers.values() if width > 0]
            clients.setdefault(client, {})[at] = median(known) if known else math.nan
    return clients


_WIDTHS = (
    "How unsure a client is of a layer: the stronger, the wider, on a logarithmic scale. In units "
    "of the weights, or relative to the client's own scale where the strategy leaves that out; for "
    "precisions of inputs, 1 over the root mean square of what the layer reads."
)


def _width_heat(details: Details, pens: Pens) -> Panel:
    """Return layer by client; of many clients the medians of each modality."""
    last = max(details.widths)
    ranks = {name: rank for rank, name in enumerate(pens)}
    clients = sorted(details.widths[last], key=lambda name: ranks.get(modality_of(name), 0))
    matrix, note = {name: details.widths[last][name] for name in clients}, _WIDTHS
    if len(matrix) > MOST_CLIENTS:
        note += f" {len(matrix)} clients: the medians of each modality's."
        matrix = _medians(matrix)
    if last < details.count:
        note += f" Round {last} is the last in which clients sent precisions."
    layers = dict.fromkeys(layer for widths in matrix.values() for layer in widths)
    known = [w for widths in matrix.values() for w in widths.values() if 0 < w < math.inf]
    low, high = min(known, default=1.0), max(known, default=1.0)
    rows = [
        [layer, *(_width_cell(w.get(layer, math.nan), low, high) for w in matrix.values())]
        for layer in layers
    ]
    title = f"Posterior width by layer and client, round {last}"
    return Panel(title, "wide heat", ("layer", *matrix), rows, note)


def _width_cell(width: float, low: float, high: float) -> str | Cell:
    if not 0 < width < math.inf:
        return "" if math.isnan(width) else shown(width, 3)
    share = math.log(width / low) / math.log(high / low) if high > low else 0.5
    return Cell(shown(width, 3), round(STRONGEST * share))


def _medians(matrix: Matrix) -> Matrix:
    groups: dict[str, dict[str, list[float]]] = {}
    for client, layers in matrix.items():
        group = groups.setdefault(modality_of(client), {})
        for layer, width in layers.items():
            group.setdefault(layer, []).append(width)
    return {
        name: {layer: median(widths) for layer, widths in layers.items()}
        for name, layers in groups.items()
    }


# Tables -----------------------------------------------------------------------------------------


def _facts(result: Result, details: Details) -> Iterator[tuple[str, str]]:
    summary = details.summary
    yield "folder", without_places(str(Path(result.folder).absolute()))
    yield "seed", str(result.seed)
    yield "rounds", str(details.count)
    yield "seconds", shown(result.seconds)
    if items := summary.get("items"):
        yield "items", ", ".join(f"{value} {name}" for name, value in items.items())
    if "parameters" in summary:
        yield "parameters", f"{int(summary['parameters']):,}"
    if summary.get("fusion"):
        yield "fusion", str(summary["fusion"])
    if "label_skew" in summary:
        yield "label skew", shown(number(summary["label_skew"]), 3)
    if (epsilon := (summary.get("privacy") or {}).get("epsilon")) is not None:
        yield "epsilon", shown(number(epsilon), 3)


def _rejections(details: Details) -> Panel:
    if not details.rejected:
        return notes("Rejections: no client failed, and no update was refused.")
    listed = len(details.rejections)
    note = f"The first {listed} of {details.rejected}." if listed < details.rejected else ""
    rows = [(str(at), message) for at, message in details.rejections]
    return Panel(f"Rejections: {details.rejected}", "lines", ("round", "what"), rows, note)


def _scores(result: Result) -> Iterator[Panel]:
    """Yield every metric of every kind of prediction, and of every subset."""
    for title, scores in (
        ("Test scores", result.test),
        ("Test scores by subset", result.by_subset),
        ("Test scores by fusion rule", result.by_fusion),
    ):
        if scores:
            names = dict.fromkeys(name for metrics in scores.values() for name in metrics)
            rows = [[title, *_score_cells(metrics, names)] for title, metrics in scores.items()]
            yield Panel(title, header=("", *names), rows=rows)


def _score_cells(metrics: Metrics, names: Mapping[str, None]) -> list[str]:
    return [f"{metrics[name]:.3f}" if name in metrics else "" for name in names]


def _settings(result: Result) -> Panel:
    rows = [(name, without_places(value)) for name, value in result.settings.items()]
    return Panel("All settings", "words", ("setting", "value"), rows, folded=True)
