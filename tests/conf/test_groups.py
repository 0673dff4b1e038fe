"""Every file of every group composes, and what it configures can be built and used."""

import shlex
from collections.abc import Collection
from dataclasses import fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from client.app import run_round
from client.node import SimulatedNode
from common import config as schema
from common.clients import ClientKey
from common.config import Config, compose
from common.data.batching import Padded
from common.data.federation import load_joint
from common.messages import Downlink
from common.model.ha_fedformer import ModelSpec, build_model, join_arrays, split_arrays
from common.task import Task
from server.aggregation.hierarchy import RoundSum, merge_round
from server.aggregation.server_optimizer import OptimizerState, step

CONF = Path(str(files("conf")))
#: Group to its files; `trained` is no group, see test_trained.py.
GROUPS: dict[str, list[str]] = {}
for path in sorted(CONF.glob("*/*.yaml")):
    if path.parent.name != "trained":
        GROUPS.setdefault(path.parent.name, []).append(path.stem)
EVERY = [(group, name) for group, names in GROUPS.items() for name in names]


def every(group: str, but: Collection[str] = ()) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name in GROUPS[group] if name not in but])


def launch_command(name: str) -> list[str]:
    """Return the command in the head of an experiment file, word by word."""
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    head = next(line for line in lines if not line.startswith("# @package"))
    assert head.startswith("# utmp-")
    return shlex.split(head.removeprefix("# "))


def swept(name: str) -> dict[str, list[str]]:
    """Return what a sweep runs over: setting to its values, from its file or its command."""
    settings = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    ways = dict(settings.get("hydra", {}).get("sweeper", {}).get("params", {}))
    ways |= dict(word.split("=") for word in launch_command(name) if "," in word)
    return {setting: values.split(",") for setting, values in ways.items()}


def overrides_for(group: str, name: str) -> list[str]:
    if group == "experiment":
        words = launch_command(name)[1:]
        return [word for word in words if word != "--multirun" and "," not in word]
    if group == "privacy":
        # Alone it lacks what it needs of the strategy.
        return ["experiment=private", f"privacy={name}"]
    path = ["dataset.path=a"] if group == "dataset" and name in ("file", "shards") else []
    return [f"{group}={name}", *path]


@cache
def composed(group: str, name: str) -> Any:
    if group == "partition":
        return compose(schema.PrepareConfig, overrides_for(group, name))
    return compose(Config, overrides_for(group, name))


def test_the_groups_are_those_of_the_schema() -> None:
    assert set(GROUPS) >= {"dataset", "model", "client", "strategy", "fusion", "runtime"}
    known = {**vars(schema.Config(run_dir="")), **vars(schema.PrepareConfig())}
    assert set(GROUPS) <= set(known) | {"experiment"}


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_file_composes_into_its_dataclass(group: str, name: str) -> None:
    config = composed(group, name)
    if group != "experiment":
        part = getattr(config, group)
        kinds = {item.name: item.type for item in fields(config)}
        assert type(part) is schema.KINDS.get(f"{group}={name}", kinds[group])
        assert getattr(part, "name", name) == name


@every("experiment")
def test_every_experiment_starts_with_its_command(name: str) -> None:
    command = launch_command(name)
    assert command[0] == "utmp-train"
    assert f"experiment={name}" in command
    assert ("--multirun" in command) == bool(swept(name))


@every("experiment", but=[name for name in GROUPS["experiment"] if not swept(name)])
def test_every_job_of_a_sweep_composes(name: str) -> None:
    for setting, values in swept(name).items():
        # Seeds are all alike.
        for value in values[:1] if setting == "seed" else values:
            compose(Config, [*overrides_for("experiment", name), f"{setting}={value}"])


@every("model")
def test_every_model_predicts(name: str) -> None:
    config = composed("model", name).model
    spec = ModelSpec({"audio": (3,), "vision": (2,)}, 1, Task.regression, config)
    model = build_model(spec, seed=0).eval()
    for modality, (width,) in spec.features.items():
        outputs = model(modality, Padded(torch.randn(10, 2, width), torch.full((10,), 2)))
        assert outputs.shape == (10, 1)
        assert outputs.isfinite().all()
    assert len(model.encoders["audio"].layers) == config.layers
    assert model.decoder.lstm.num_layers == config.decoder_layers


#: A federation of four small clients.
ROUND = (
    *("dataset.num_items=120", "dataset.num_speakers=24", "dataset.modalities=[audio,vision]"),
    *("model.width=4", "model.heads=2", "model.layers=1", "model.decoder_layers=1"),
    *("clients.default=2", "client.local_epochs=3", "client.device=cpu"),
)

#: Strategies without a federation; `server.baselines` runs them.
BASELINES = {"local", "pooled", "centralised", "early_fusion", "cross_modal"}


@every("strategy", but=BASELINES)
def test_every_federated_strategy_makes_a_round(name: str) -> None:
    config = compose(Config, [f"strategy={name}", *ROUND])
    strategy, sequences = config.strategy, load_joint(config).items.sequences
    shapes = {modality: own.statistics_shape for modality, own in sequences.items()}
    model = build_model(ModelSpec(shapes, 1, Task.regression, config.model), seed=0)
    sent = {key: weight.detach() for key, weight in model.named_parameters()}
    total, whole = RoundSum(strategy), split_arrays(model.state_dict())
    prior = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for key in (ClientKey(modality, part) for modality in shapes for part in range(2)):
        downlink = Downlink(key, 1, whole.encoders[key.modality], whole.decoder, prior)
        total = total.add(run_round(downlink, SimulatedNode(0, 1), config))
    result = merge_round(total, split_arrays(sent), torch.Generator().manual_seed(0))
    scales, optimizer = join_arrays(result.change_scales), strategy.server_optimizer
    assert set(scales) == (set(sent) if strategy.normalise_steps else set())
    stepped, moments = step(sent, join_arrays(result.parts), OptimizerState(), optimizer, scales)
    remembered = set() if optimizer.name is schema.ServerOptimizer.sgd else set(sent)
    assert set(moments.first) == remembered
    assert stepped.keys() == sent.keys()
    for key, array in stepped.items():
        assert array.shape == sent[key].shape and array.isfinite().all()
        assert not torch.equal(array, sent[key])


@every("partition")
def test_both_commands_share_the_partition(name: str) -> None:
    trained = compose(Config, [f"partition={name}"])
    assert trained.partition == composed("partition", name).partition
