"""A run over its rounds: what modalities weigh, what clients lose, where the time goes."""

import math
from collections.abc import Iterator, Sequence

from server.report.charts import dot_chart, line_chart, stack_chart
from server.report.curves import by_modality, envelope
from server.report.drawing import Line, mean_of
from server.report.palette import Pen, Pens, step_pens
from server.report.records import Details, Series, merged_rounds
from server.report.view import Grid, Notes, Part, shown

#: Clients up to which each has a line of its own.
MOST_CLIENTS = 30

#: Bars of a chart of time; of more rounds, several share one.
MOST_BARS = 60

#: Of what a run cannot have recorded.
OLDER = "the version that made this run did not record them."


def left_out(what: str, why: str) -> Notes:
    """Say why a part of the report is not there."""
    return Notes((f"{what}: {why}",))


def fusion_parts(anchor: str, details: Details, pens: Pens) -> Iterator[Part]:
    """Draw what the modalities weigh in the fusion."""
    if not details.fusion:
        yield Notes(("Modality weights: nothing is weighted in this run.",))
        return
    rounds = merged_rounds(details.fusion.values())
    lines = {name: Line.of(details.fusion[name], rounds) for name in pens.ordered(details.fusion)}
    yield line_chart(
        f"{anchor}-fusion",
        "Modality weights",
        ("round", "weight in the fusion"),
        lines,
        pens,
        least=0.1,
        note="What each modality counts when all predict together; 1 in all.",
    )


def decoder_parts(anchor: str, details: Details, pens: Pens) -> Iterator[Part]:
    """Draw what the modalities weigh in the merged decoder, by layer and over the rounds."""
    if not details.decoder:
        known = "decoder_weights" in details.recorded
        yield left_out(
            "Decoder weights",
            "this run has no merged decoder, or a rule without weights." if known else OLDER,
        )
        return
    last = max(details.decoder)
    layers = details.decoder[last]
    names = pens.ordered(name for shares in layers.values() for name in shares)
    dots = {name: [shares.get(name, math.nan) for shares in layers.values()] for name in names}
    yield dot_chart(
        f"{anchor}-layers",
        f"Decoder weights by layer, round {last}",
        "weight in the merged decoder",
        list(layers),
        dots,
        pens,
        reference=1 / len(names),
        least=0.1,
        note="CmDA's choice, or shares of the examples where it does not choose; dotted: equal.",
    )
    if len(details.decoder) > 1:
        yield _decoder_rounds(anchor, details, names, pens)


def _decoder_rounds(anchor: str, details: Details, names: Sequence[str], pens: Pens) -> Part:
    rounds = sorted(details.decoder)
    lines = {}
    for name in names:
        layers: dict[str, Series] = {}
        for at, table in details.decoder.items():
            for layer, shares in table.items():
                layers.setdefault(layer, {})[at] = shares.get(name, math.nan)
        lines[name] = envelope(layers.values(), rounds)
    return line_chart(
        f"{anchor}-decoder",
        "Decoder weights over the rounds",
        ("round", "weight in the merged decoder"),
        lines,
        pens,
        least=0.1,
        note="The median over the layers, in a band from the least to the greatest.",
    )


def loss_parts(anchor: str, details: Details, pens: Pens) -> Iterator[Part]:
    """Draw the train loss of each client, or of many clients their range."""
    if not details.losses:
        known = "client_losses" in details.recorded
        yield left_out("Client losses", "no client trains by itself here." if known else OLDER)
        return
    rounds = merged_rounds(details.losses.values())
    groups = by_modality(details.losses, pens)
    title, labels = "Train loss of each client", ("round", "loss")
    if len(details.losses) > MOST_CLIENTS:
        lines = {name: envelope(each.values(), rounds) for name, each in groups.items()}
        note = (
            f"{len(details.losses)} clients, more than {MOST_CLIENTS}: the median of each "
            "modality's, in a band from the least to the greatest."
        )
        yield line_chart(f"{anchor}-losses", title, labels, lines, pens, note=note)
        return
    owner = {client: name for name, each in groups.items() for client in each}
    lines = {
        client: Line.of(details.losses[client], rounds)
        for each in groups.values()
        for client in each
    }
    yield line_chart(
        f"{anchor}-losses",
        title,
        labels,
        lines,
        {client: Pen(pens[owner[client]].colour, width=1.0) for client in lines},
        legend={name: next(iter(each)) for name, each in groups.items()},
        note="A line for each client in the colour of its modality; a gap where it was not merged.",
    )


def time_parts(anchor: str, details: Details) -> Iterator[Part]:
    """Draw the seconds of the rounds, by phase."""
    if not details.seconds:
        yield left_out("Seconds of the rounds", OLDER)
        return
    rounds = sorted(details.seconds)
    names = list(dict.fromkeys(name for each in details.seconds.values() for name in each))
    width = max(1, math.ceil(len(rounds) / MOST_BARS))
    groups = [rounds[start : start + width] for start in range(0, len(rounds), width)]
    parts = {
        name or "round": [
            mean_of(details.seconds[at].get(name, 0.0) for at in group) for group in groups
        ]
        for name in names
    }
    notes = [] if width == 1 else [f"Each bar is the mean of {width} rounds."]
    if names == [""]:
        notes.append("The version that made this run did not record phases.")
    else:
        notes.append(_PHASES)
    yield stack_chart(
        f"{anchor}-seconds",
        "Seconds of a round, by phase" if names != [""] else "Seconds of a round",
        ("round", "seconds"),
        [group[0] - 0.43 for group in groups],
        width,
        parts,
        step_pens(parts),
        data=_seconds_table(details, names),
        note=" ".join(notes),
    )


_PHASES = (
    "configure: choose clients, encode; wait: send, train, reply; merge: decode, check, merge; "
    "evaluate: score the validation items. The checkpoint after it is in none."
)


def _seconds_table(details: Details, names: Sequence[str]) -> Grid:
    sums = {name: sum(each.get(name, 0.0) for each in details.seconds.values()) for name in names}
    total = sum(sums.values())
    rows = [
        (
            name or "round",
            shown(value),
            shown(value / len(details.seconds), 3),
            f"{value / total:.1%}" if total > 0 else shown(math.nan),
        )
        for name, value in sums.items()
    ]
    return Grid(("phase", "seconds", "a round", "share"), tuple(rows))
