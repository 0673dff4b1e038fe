"""Bytes of a round's two messages of one client, against those that the paper's code sends.

    python tests/benchmarks/payload.py

Whole messages as Flower serialises them, of the paper's model. The paper's code sends 1.6 MB up and
.8 MB down for a client and round.
"""

from collections.abc import Iterator

from aggregation import keys_of, prepare_process, strategy_of, updates
from figures import Figure, main
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from common.config import Config, Payload, compose

#: Bytes that the paper's code sends, up and down.
PAPERS = (1_600_000, 800_000)


def bytes_of(content: RecordDict) -> int:
    """Return the bytes of a message's content on the wire."""
    return len(recorddict_to_proto(content).SerializeToString())


def measure(*overrides: str) -> tuple[float, float]:
    """Return bytes up and down, the mean over the modalities."""
    config = compose(Config, ["model=paper", *overrides])
    strategy, arrays, nodes = strategy_of(config, keys_of(3))
    up = [bytes_of(content) for content in updates(strategy, config).values()]
    messages = strategy.configure_train(1, ArrayRecord(arrays), ConfigRecord(), nodes)
    down = [bytes_of(message.content) for message in messages]
    return sum(up) / 3, sum(down) / 3


def figures() -> Iterator[Figure]:
    """Measure some strategies."""
    prepare_process()
    for name in ("fedavg", "hierarchical", "few_rounds", "paper"):
        for payload in Payload:
            found = measure(f"strategy={name}", f"strategy.payload={payload}")
            for way, size, paper in zip(("up", "down"), found, PAPERS, strict=True):
                what = f"{way}, {name}, payload={payload}"
                yield Figure(what, size / 1e3, "kB", paper / 3e3, "a third of the paper's")


if __name__ == "__main__":
    main(figures)
