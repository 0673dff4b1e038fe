"""Where a run runs, how long it waits, what it keeps and what it prints."""

from dataclasses import dataclass, field
from enum import StrEnum


class Runtime(StrEnum):
    """Where `utmp-train` runs clients: in processes of its own, in itself one by one, or on Ray."""

    processes = "processes"
    sequential = "sequential"
    simulation = "simulation"


class Absent(StrEnum):
    """What to do without the clients of a modality: keep its encoder as it is, or end the run."""

    reuse = "reuse"
    abort = "abort"


@dataclass
class RayConfig:
    """The Ray cluster of a simulation that is larger than one machine."""

    address: str | None = None  # host:port of its head; None: this machine alone


@dataclass
class RuntimeConfig:
    """Where clients run, how long the server waits for them, and how many it needs."""

    name: Runtime = Runtime.processes
    client_cpus: int = 1
    client_gpus: float | None = None
    node_timeout: float = 120.0
    round_timeout: float = 3600.0
    min_clients: int = 1  # of each modality, for its part of a round to count
    absent: Absent = Absent.reuse
    ray: RayConfig = field(default_factory=RayConfig)


class ConsoleStyle(StrEnum):
    """How a run tells what it does: to people, or one JSON object a line for a log collector."""

    text = "text"
    json = "json"


@dataclass
class CheckpointConfig:
    """Which checkpoints of a run are kept; see `server.run.checkpoint`."""

    keep: int = 2  # of the last
    best: bool = True  # and that of the round with the best validation score
