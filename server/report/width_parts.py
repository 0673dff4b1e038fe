"""How wide the posteriors of a run's clients are; see `server.aggregation.widths`."""

import math
from collections.abc import Iterator
from statistics import median

from server.report.charts import line_chart
from server.report.curves import by_modality, envelope, modality_of
from server.report.palette import Pens
from server.report.records import Details, Series, Table
from server.report.round_parts import MOST_CLIENTS, OLDER, left_out
from server.report.view import STRONGEST, Cell, Heat, Part, shown


def width_parts(anchor: str, details: Details, pens: Pens) -> Iterator[Part]:
    """Draw the widths over the rounds, and tabulate the last ones by layer and client."""
    if not details.widths:
        known = "posterior_widths" in details.recorded
        yield left_out(
            "Posterior widths",
            "no client sent a precision, as where weights are averaged." if known else OLDER,
        )
        return
    if len(details.widths) > 1:
        yield _width_rounds(anchor, details, pens)
    last = max(details.widths)
    yield _width_heat(details.widths[last], last, details, pens)


def _width_rounds(anchor: str, details: Details, pens: Pens) -> Part:
    rounds = sorted(details.widths)
    clients: dict[str, Series] = {}
    for at, table in details.widths.items():
        for client, layers in table.items():
            known = [width for width in layers.values() if width > 0]
            clients.setdefault(client, {})[at] = median(known) if known else math.nan
    groups = by_modality(clients, pens)
    lines = {name: envelope(each.values(), rounds) for name, each in groups.items()}
    return line_chart(
        f"{anchor}-widths",
        "Posterior widths over the rounds",
        ("round", "width"),
        lines,
        pens,
        log=True,
        note="A client's is the median over its layers. The median of a modality's clients, in a "
        "band from the least to the greatest.",
    )


def _width_heat(table: Table, at: int, details: Details, pens: Pens) -> Heat:
    """Return layer by client; of many clients the medians of each modality."""
    ranks = {name: rank for rank, name in enumerate(pens)}
    table = dict(sorted(table.items(), key=lambda each: ranks.get(modality_of(each[0]), 0)))
    notes = [_WIDTHS]
    if len(table) > MOST_CLIENTS:
        notes.append(f"{len(table)} clients: the medians of each modality's.")
        table = _medians(table)
    if at < details.count:
        notes.append(f"Round {at} is the last in which clients sent precisions.")
    layers = list(dict.fromkeys(layer for each in table.values() for layer in each))
    logs = [math.log(w) for each in table.values() for w in each.values() if 0 < w < math.inf]
    low, high = (min(logs), max(logs)) if logs else (0.0, 0.0)

    def cell(width: float) -> Cell:
        if not 0 < width < math.inf:
            return Cell("" if math.isnan(width) else shown(width, 3))
        share = (math.log(width) - low) / (high - low) if high > low else 0.5
        return Cell(shown(width, 3), round(STRONGEST * share))

    rows = tuple(
        (layer, tuple(cell(each.get(layer, math.nan)) for each in table.values()))
        for layer in layers
    )
    title = f"Posterior width by layer and client, round {at}"
    return Heat(title, "layer", tuple(table), rows, " ".join(notes), "wide heat")


_WIDTHS = (
    "How unsure a client is of a layer: the stronger, the wider, on a logarithmic scale. In units "
    "of the weights, or relative to the client's own scale where the strategy leaves that out; for "
    "precisions of inputs, 1 over the root mean square of what the layer reads."
)


def _medians(table: Table) -> Table:
    found: dict[str, dict[str, list[float]]] = {}
    for client, layers in table.items():
        group = found.setdefault(modality_of(client), {})
        for layer, width in layers.items():
            group.setdefault(layer, []).append(width)
    return {
        name: {layer: median(widths) for layer, widths in layers.items()}
        for name, layers in found.items()
    }
