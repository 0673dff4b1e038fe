"""Which clients a node hosts, and their data.

The configuration of a deployed node holds ``modality="audio"``, with ``data="a.safetensors"`` for a
file of its own, or else ``part=0`` for a part of the run's dataset. A node of a simulation has only
a partition number, and hosts the clients of that number modulo the number of nodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from common.clients import ClientKey, check_modality_name
from common.config import Config, with_home
from common.data.federation import (
    ClientData,
    FederatedDataset,
    client_data_of,
    count_outputs,
    load_federation,
)
from common.data.manifest import MANIFEST
from common.data.moments import FeatureMoments
from common.data.site import site_client_data
from common.errors import UserError
from common.messages import ClientDescription, NodeDescription
from common.model.calibration import label_sums, standardise
from common.model.linear import LinearSums, has_linear, measure_linear

_SIMULATED = {"partition-id": int, "num-partitions": int}
_TYPES: dict[str, type] = {"modality": str, "part": int, "data": str, **_SIMULATED}

NodeValue = bool | int | float | str | bytes


@dataclass(frozen=True)
class DeployedNode:
    """A node that hosts one client."""

    key: ClientKey
    data: str | None  # path of the site's own file; None for a part of the run's dataset


@dataclass(frozen=True)
class SimulatedNode:
    """One of several nodes that share all clients of a simulation."""

    partition: int
    num_partitions: int


Node = DeployedNode | SimulatedNode


def parse_node(settings: Mapping[str, NodeValue]) -> Node:
    """Read a node's configuration; `UserError` names what is unknown, ill-typed or missing."""
    for name, value in settings.items():
        _check_type(name, value)
    if "modality" not in settings and set(settings) >= set(_SIMULATED):
        partition, nodes = int(settings["partition-id"]), int(settings["num-partitions"])
        if not 0 <= partition < nodes:
            raise UserError(
                f"--node-config partition-id={partition} num-partitions={nodes}: expected a "
                "partition-id from 0 and below num-partitions"
            )
        return SimulatedNode(partition, nodes)
    if "modality" not in settings:
        raise UserError("--node-config lacks modality, as in 'modality=\"audio\"'")
    modality = str(settings["modality"])
    check_modality_name(modality)
    part, data = int(settings.get("part", 0)), settings.get("data")
    if part < 0:
        raise UserError(f"--node-config part={part}: expected a number from 0")
    if data == "":
        raise UserError("--node-config data is empty: expected the path of the site's file")
    return DeployedNode(ClientKey(modality, part), None if data is None else with_home(str(data)))


def _check_type(name: str, value: NodeValue) -> None:
    if name not in _TYPES:
        raise UserError(f"--node-config {name}: unknown; allowed are {', '.join(_TYPES)}")
    if type(value) is not _TYPES[name]:
        example = "0" if _TYPES[name] is int else '"text"'
        raise UserError(
            f"--node-config {name}={value!r}: expected {_TYPES[name].__name__}, "
            f"as in '{name}={example}'"
        )


def hosted_clients(node: Node, config: Config) -> list[ClientKey]:
    """Return the clients that a node hosts, in the dataset's order."""
    if isinstance(node, DeployedNode):
        return [node.key]
    return list(_federation(_source(config)).clients)[node.partition :: node.num_partitions]


def client_data(node: Node, key: ClientKey, config: Config) -> ClientData:
    """Return the data of one hosted client; read once per process.

    Raises `UserError` if the node does not host that client, or its data cannot be read.
    """
    if isinstance(node, DeployedNode) and node.key != key:
        raise UserError(f"this node is {node.key} and was asked for {key}")
    if isinstance(node, DeployedNode) and node.data is not None:
        return _site(_source(config, node.data), node.data, key)
    return client_data_of(_federation(_source(config)), key, config)


def describe(node: Node, config: Config) -> NodeDescription:
    """Answer the server's query; a `UserError` becomes the description's error."""
    try:
        keys = hosted_clients(node, config)
        clients = (describe_client(client_data(node, key, config), key, config) for key in keys)
        return NodeDescription(tuple(clients))
    except UserError as error:
        return NodeDescription((), str(error))


def describe_client(data: ClientData, key: ClientKey, config: Config) -> ClientDescription:
    """Summarise a client's train items, as it does once before the first round."""
    moments = FeatureMoments.of(data.sequences.select(data.train))
    sums = client_label_sums(data)
    linear = _linear_sums(data, moments) if config.strategy.linear else None
    said = (data.label_names, data.extractor)
    return ClientDescription(key, len(data.train), data.task, sums, moments, linear, *said)


def _linear_sums(data: ClientData, moments: FeatureMoments) -> LinearSums | None:
    """Return sums for the linear expert; None if the modality is too wide."""
    labels = data.labels[data.train]
    outputs = count_outputs(data.task, data.label_names, labels)
    if not has_linear(moments.mean.shape, outputs):
        return None
    items = data.sequences.select(data.train)
    return measure_linear(items, labels, data.task, outputs, moments.mean)


def client_label_sums(data: ClientData) -> Tensor:
    """Summarise a client's train labels, see `common.model.calibration.label_sums`."""
    labels = data.labels[data.train]
    outputs = count_outputs(data.task, data.label_names, labels)
    return label_sums(torch.from_numpy(labels), data.task, outputs)


def standardised(data: ClientData, prior: Tensor) -> ClientData:
    """Return a client's data with labels that are standardised by a prior, as all else expects."""
    return replace(data, labels=standardise(data.labels, prior, data.task))


@dataclass(frozen=True)
class _Source:
    """Settings and files that data are read from; differs once a file was replaced."""

    state: str
    config: Config = field(compare=False)


def _source(config: Config, *files: str) -> _Source:
    read = [getattr(config.dataset, name, None) for name in ("path", "test_path")]
    stamps = [_stamp(path) for setting in (*read, *files) for path in _paths(setting)]
    # The run folder differs from one message to the next, and does not change the data.
    return _Source(repr((replace(config, run_dir="", resume=None), stamps)), config)


def _paths(setting: object) -> list[Path]:
    """Return the paths of a setting, the files inside of folders, and manifests beside files."""
    given = setting if isinstance(setting, (list, tuple)) else [setting]
    paths = [Path(path) for path in given if isinstance(path, str)]
    inside = [file for path in paths if path.is_dir() for file in sorted(path.iterdir())]
    return [*paths, *inside, *(path.parent / MANIFEST for path in paths)]


def _stamp(path: Path) -> tuple[int, ...]:
    """Return numbers that change when the file does; empty if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=2)
def _federation(source: _Source) -> FederatedDataset:
    return load_federation(source.config)


@lru_cache(maxsize=2)
def _site(source: _Source, path: str, key: ClientKey) -> ClientData:
    return site_client_data(path, key, source.config)
