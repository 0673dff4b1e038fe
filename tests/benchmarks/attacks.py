"""What hostile sites do to a run: attacks against strategies, in one process.

    python tests/benchmarks/attacks.py [--federations A B C] [--seeds 1 2 3]
        [--strategies hierarchical median trimmed_mean …] [-- dataset.num_items=600 …]

Three federations on the embedded dataset. In A each modality has one site, and that of audio is
hostile. In B language has one site and audio two, the second of which is hostile. In C language has
one and audio five, two of which are hostile and do the same. Printed is the correlation on the test
items, all modalities together, as mean over the seeds, with the worst in brackets: of an honest
run; of what is left without hostile sites, in A the best of the other modalities of that run; and
with each attack.
"""

import argparse
import io
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from flwr.app import Context, Message, MessageType

from client.app import given_config, make_client_app
from common.clients import ClientKey
from common.config import Config, compose
from common.messages import ClientDescription, Downlink, NodeDescription, Uplink
from common.posterior import Posterior
from common.protocol import (
    decode_description,
    decode_downlink,
    decode_uplink,
    encode_description,
    encode_uplink,
)
from server.app import prepare
from server.run.federation import federate
from server.runtimes.local import LocalGrid

AUDIO = [ClientKey("audio", part) for part in range(5)]
FEDERATIONS: dict[str, tuple[list[ClientKey], tuple[str, ...]]] = {
    "A": (AUDIO[:1], ("clients.default=1",)),
    "B": (
        AUDIO[1:2],
        ("dataset.modalities=[language,audio]", "clients.language=1", "clients.audio=2"),
    ),
    "C": (
        AUDIO[3:],
        ("dataset.modalities=[language,audio]", "clients.language=1", "clients.audio=5"),
    ),
}
SMALL = (
    *("model=small", "dataset.num_items=1200", "dataset.num_speakers=30", "rounds=5"),
    *("tracking=none", "runtime=sequential", "runtime.node_timeout=0", "runtime.absent=reuse"),
    *("client.local_epochs=8", "client.lr=0.003"),
)

Describe = Callable[[ClientDescription], ClientDescription]
Update = Callable[[Uplink, Downlink], Uplink]


def moved(posterior: Posterior, sent: Mapping[str, torch.Tensor], factor: float) -> Posterior:
    """Return a posterior whose change is so many times what was trained."""
    start = posterior.layout.join({name: sent[name].float() for name in posterior.layout.names})
    return posterior.moved(start + factor * (posterior.mean - start))


def scaled(factor: float) -> Update:
    """Send so many times the change of honest training."""

    def attack(uplink: Uplink, downlink: Downlink) -> Uplink:
        return replace(
            uplink,
            encoder=moved(uplink.encoder, downlink.encoder, factor),
            decoder=moved(uplink.decoder, downlink.decoder, factor),
        )

    return attack


def sure(uplink: Uplink, downlink: Downlink) -> Uplink:
    """Claim evidence of p = y for as many items as pass, and flip the change."""
    count = 10.0 * uplink.examples
    evidence = torch.tensor([count, 0, count, 0, count, count], dtype=torch.float64)
    return replace(scaled(-5)(uplink, downlink), calibration_sums=evidence)


def many(client: ClientDescription) -> ClientDescription:
    """Claim 50 times the examples."""
    count, mean, squares = client.label_sums.tolist()
    linear = client.linear and replace(
        client.linear, count=50 * client.linear.count, scatter=50 * client.linear.scatter
    )
    sums = torch.tensor([50 * count, mean, 50 * squares], dtype=torch.float64)
    return replace(client, examples=50 * client.examples, label_sums=sums, linear=linear)


def claimed(uplink: Uplink, downlink: Downlink) -> Uplink:
    """Send what `many` claims, and the flipped change."""
    steps = -(-50 * uplink.examples // 24) * 8
    return replace(scaled(-50)(uplink, downlink), examples=50 * uplink.examples, steps=steps)


def shifted(client: ClientDescription) -> ClientDescription:
    """Report means of features that are 1,000 too large."""
    moments = replace(client.moments, mean=client.moments.mean + 1000)
    return replace(client, moments=moments, linear=None)


def wrong_labels(client: ClientDescription) -> ClientDescription:
    """Report labels of a mean of 1,000."""
    count, _, squares = client.label_sums.tolist()
    sums = torch.tensor([count, 1000, squares], dtype=torch.float64)
    return replace(client, label_sums=sums, linear=None)


def opposite(client: ClientDescription) -> ClientDescription:
    """Report sums for the linear expert of the opposite label."""
    if client.linear is None:
        return client
    scatter = client.linear.scatter.clone()
    scatter[-1, :-1] *= -1
    scatter[:-1, -1] *= -1
    return replace(client, linear=replace(client.linear, scatter=scatter))


HONEST, WITHOUT = "honest", "without them"

#: Attack to how the site describes itself, and what it sends.
ATTACKS: dict[str, tuple[Describe | None, Update | None]] = {
    "flipped": (None, scaled(-1)),
    "flipped, to the limit": (None, scaled(-2)),
    "flipped, 5 times": (None, scaled(-5)),
    "flipped, 50 times": (None, scaled(-50)),
    "5 times, sure evidence": (None, sure),
    "50 times the examples, 50 times flipped": (many, claimed),
    "means + 1,000": (shifted, None),
    "labels of mean 1,000": (wrong_labels, None),
    "opposite linear sums": (opposite, None),
}


def hostile_app(
    config: Config, keys: list[ClientKey], attack: tuple[Describe | None, Update | None] | None
) -> Callable[[Message, Context], Message]:
    """Return a client app that is honest but for some clients; None: those are not there."""
    app = make_client_app(partial(given_config, config))

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if reply.has_error():
            return reply
        if message.metadata.message_type == MessageType.QUERY:
            told = decode_description(reply.content)
            if not {client.key for client in told.clients} & {*keys}:
                return reply
            describe = attack[0] if attack else None
            clients = tuple(map(describe, told.clients)) if describe else told.clients
            return Message(
                encode_description(NodeDescription(clients if attack else ())), reply_to=message
            )
        downlink = decode_downlink(message.content)
        if downlink.key not in keys or attack is None or attack[1] is None:
            return reply
        return Message(
            encode_uplink(attack[1](decode_uplink(reply.content), downlink)), reply_to=message
        )

    return answer


def score(
    federation: str, seed: int, overrides: Sequence[str], attack: str | None, honest: bool = False
) -> tuple[float, float]:
    """Return the correlation of a run, and the best of the other modalities of it.

    The run is one without the hostile sites if `attack` is None.
    """
    keys, sites = FEDERATIONS[federation]
    config = compose(Config, [*SMALL, *sites, *overrides, f"seed={seed}"])
    kind = (None, None) if honest else attack and ATTACKS[attack]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        run = prepare(config, Path(folder) / "run")
        app = hostile_app(config, keys, kind or None)
        federate(run, LocalGrid(app, len(run.data.clients)))  # type: ignore[arg-type]
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    found = {name: scores["corr"] for name, scores in summary["test"].items()}
    others = [found[name] for name in found if name not in ("multimodal", keys[0].modality)]
    return found["multimodal"], max(others)


def scores_of(federation: str, overrides: Sequence[str], row: str, seed: int) -> float:
    """Return what stands in a row of the table."""
    attack = row if row in ATTACKS else None
    alone = row == WITHOUT and federation == "A"
    together, others = score(federation, seed, overrides, attack, row == HONEST or alone)
    return others if alone else together


def main() -> None:
    """Print a table for each federation."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--federations", nargs="+", default=list(FEDERATIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    strategies = ["hierarchical", "median", "trimmed_mean"]
    parser.add_argument("--strategies", nargs="+", default=strategies)
    parser.add_argument("--attacks", nargs="+", default=[HONEST, WITHOUT, *ATTACKS])
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for federation in given.federations:
        print(f"\n| {federation} | " + " | ".join(given.strategies) + " |")
        print("| --- |" + " ---: |" * len(given.strategies))
        for row in given.attacks:
            cells = []
            for strategy in given.strategies:
                overrides = [f"strategy={strategy}", *given.overrides]
                found = [scores_of(federation, overrides, row, seed) for seed in given.seeds]
                worst = f" ({min(found):.3f})" if len(found) > 1 else ""
                cells.append(f"{sum(found) / len(found):.3f}{worst}")
            print(f"| {row} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
