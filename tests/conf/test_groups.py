"""Every file of every group composes, and what it configures can be built and used."""

import shlex
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from client.trainer import read_moments, train
from common.clients import ClientKey
from common.config import (
    ClientConfig,
    Config,
    DirichletConfig,
    FusionRule,
    ModelConfig,
    NpzConfig,
    PartitionConfig,
    PrepareConfig,
    Sampler,
    SamplerConfig,
    ServerOptimizer,
    ShardsConfig,
    SizeConfig,
    StrategyConfig,
    SyntheticConfig,
    compose,
    compose_config,
)
from common.data.batching import pad_all
from common.data.dataset import Sequences
from common.data.federation import ClientData, read_items
from common.messages import Uplink
from common.model.calibration import (
    agreement_size,
    calibration_size,
    calibration_sums,
    label_sums,
    prior_of,
)
from common.model.fusion import fit_fusion
from common.model.ha_fedformer import ModelArrays, ModelSpec, build_model, join_arrays, split_arrays
from common.model.predict import predict
from common.posterior import Posterior
from common.structures import fit_gaussian
from common.structures.inputs import mapped_gaussian
from common.task import Task
from server.aggregation.hierarchy import RoundSum, merge_round
from server.aggregation.server_optimizer import OptimizerState, step

CONF = Path(str(files("conf")))
GROUPS = {
    folder.name: sorted(folder.glob("*.yaml"))
    for folder in CONF.iterdir()
    if folder.is_dir() and folder.name != "trained"  # no group, see test_trained.py
}
GROUPS = {name: found for name, found in sorted(GROUPS.items()) if found}


def names(group: str) -> list[str]:
    return [path.stem for path in GROUPS[group]]


EVERY = [(group, name) for group in GROUPS for name in names(group)]


def launch_command(path: Path) -> list[str]:
    """Return the command in the head of an experiment file, word by word."""
    head = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert head[0].startswith("# utmp-")
    return shlex.split(head[0].removeprefix("# "))


def swept(name: str) -> dict[str, list[str]]:
    """Return what a sweep runs over: setting to its values, from its file or its command."""
    path = CONF / "experiment" / f"{name}.yaml"
    hydra = yaml.safe_load(path.read_text()).get("hydra", {})
    ways = dict(hydra.get("sweeper", {}).get("params", {}))
    ways |= dict(word.split("=") for word in launch_command(path) if "," in word)
    return {setting: values.split(",") for setting, values in ways.items()}


def overrides_for(group: str, name: str) -> list[str]:
    if group == "experiment":
        words = launch_command(CONF / group / f"{name}.yaml")[1:]
        return [word for word in words if word != "--multirun" and "," not in word]
    if group == "privacy":
        # Alone it lacks what it needs of the strategy.
        return ["experiment=private", f"privacy={name}"]
    path = ["dataset.path=a"] if group == "dataset" and name in ("npz", "shards") else []
    return [f"{group}={name}", *path]


@cache
def composed(group: str, name: str) -> Any:
    if group == "partition":
        return compose(PrepareConfig, overrides_for(group, name))
    return compose_config("config", overrides_for(group, name))


def test_the_groups_are_those_of_the_schema() -> None:
    assert set(GROUPS) >= {"dataset", "model", "client", "strategy", "fusion", "runtime"}
    known = {**vars(Config(run_dir="")), **vars(PrepareConfig())}
    assert set(GROUPS) <= set(known) | {"experiment"}


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_file_composes_into_its_dataclass(group: str, name: str) -> None:
    config = composed(group, name)
    kinds = {
        "client": ClientConfig,
        "model": ModelConfig,
        "partition": {"dirichlet": DirichletConfig, "size": SizeConfig}.get(name, PartitionConfig),
        "strategy": StrategyConfig,
        "experiment": Config,
        "dataset": {"npz": NpzConfig, "shards": ShardsConfig, "synthetic": SyntheticConfig}.get(
            name
        ),
    }
    part = config if group == "experiment" else getattr(config, group)
    assert isinstance(part, kinds.get(group, object))
    if hasattr(part, "name"):
        assert part.name == name


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_starts_with_its_command(name: str) -> None:
    command = launch_command(CONF / "experiment" / f"{name}.yaml")
    assert command[0] == "utmp-train"
    assert f"experiment={name}" in command
    assert ("--multirun" in command) == bool(swept(name))


@pytest.mark.parametrize("name", [each for each in names("experiment") if swept(each)])
def test_every_job_of_a_sweep_composes(name: str) -> None:
    for setting, values in swept(name).items():
        # Seeds are all alike.
        for value in values[:1] if setting == "seed" else values:
            compose_config("config", [*overrides_for("experiment", name), f"{setting}={value}"])


WIDTHS = {"audio": 3, "vision": 2}
SMALL = ModelConfig(width=4, heads=2, layers=1, decoder_layers=1)


def spec(model: ModelConfig, *modalities: str) -> ModelSpec:
    return ModelSpec({name: (WIDTHS[name],) for name in modalities}, 1, Task.regression, model)


def client_data(modality: str = "audio", items: int = 10) -> ClientData:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(items * 2, WIDTHS[modality])).astype(np.float32)
    sequences = Sequences(values, np.arange(items) * 2, np.full(items, 2))
    labels = rng.normal(size=items).astype(np.float32)
    groups = np.arange(items)
    return ClientData(
        modality, Task.regression, sequences, labels, groups, np.arange(items), np.arange(0)
    )


@pytest.mark.parametrize("name", names("model"))
def test_every_model_predicts(name: str) -> None:
    config = composed("model", name).model
    model = build_model(spec(config, "audio", "vision"), seed=0).eval()
    for modality in WIDTHS:
        outputs = model(modality, pad_all(client_data(modality).sequences))
        assert outputs.shape == (10, 1)
        assert outputs.isfinite().all()
    assert len(model.encoders["audio"].layers) == config.layers
    assert model.decoder.lstm.num_layers == config.decoder_layers


@pytest.mark.parametrize("name", names("client"))
def test_every_local_training_moves_every_weight(name: str) -> None:
    config = composed("client", name).client
    model = build_model(spec(SMALL, "audio"), seed=0)
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    trained = train(
        model, client_data(), config, SamplerConfig(Sampler.iasg, num_samples=2), seed=1
    )
    assert set(trained.samples) == set(before)
    assert all(not torch.equal(weight, before[key]) for key, weight in model.named_parameters())


#: Strategies without a federation; `server.baselines` runs them.
BASELINES = {"local", "pooled", "centralised", "early_fusion", "cross_modal"}


def trained_uplink(key: ClientKey, current: ModelArrays, strategy: StrategyConfig) -> Uplink:
    """Train a client for real; each begins elsewhere, so that two of them differ."""
    model = build_model(spec(SMALL, key.modality), seed=key.part)
    data = client_data(key.modality)
    trained = train(model, data, ClientConfig(), strategy.sampler, seed=1)
    samples, read = split_arrays(trained.samples), split_arrays(read_moments(model, data))
    received, own = current.encoders[key.modality], read.encoders[key.modality]
    encoder = {
        name: fit_gaussian(sample, strategy.encoder, received[name], own.get(name))
        for name, sample in samples.encoders[key.modality].items()
    }
    maps = read.decoder if strategy.decoder.merge == "posterior" else {}
    decoder = {
        name: mapped_gaussian(sample.mean(dim=0), maps.get(name), strategy.decoder.shrinkage)
        for name, sample in samples.decoder.items()
    }
    sums = (
        torch.zeros(size(Task.regression)).double() for size in (calibration_size, agreement_size)
    )
    posteriors = (Posterior.of(encoder), Posterior.of(decoder))
    return Uplink(key, 1, *posteriors, 10, 1.0, *sums, trained.steps)


@pytest.mark.parametrize("name", [each for each in names("strategy") if each not in BASELINES])
def test_every_federated_strategy_makes_a_round(name: str) -> None:
    strategy = composed("strategy", name).strategy
    model = build_model(spec(SMALL, "audio", "vision"), seed=0)
    sent = {key: weight.detach() for key, weight in model.named_parameters()}
    total, current = RoundSum(strategy), split_arrays(sent)
    for key in (ClientKey(modality, part) for modality in WIDTHS for part in range(2)):
        total = total.add(trained_uplink(key, current, strategy))
    result = merge_round(total, current, torch.Generator().manual_seed(0))
    scales, optimizer = join_arrays(result.change_scales), strategy.server_optimizer
    assert set(scales) == (set(sent) if strategy.normalise_steps else set())
    merged = join_arrays(result.parts)
    stepped, moments = step(sent, merged, OptimizerState(), optimizer, scales)
    remembered = set() if optimizer.name is ServerOptimizer.sgd else set(sent)
    assert set(moments.first) == remembered
    assert {key: array.shape for key, array in stepped.items()} == {
        key: array.shape for key, array in sent.items()
    }
    assert all(array.isfinite().all() for array in stepped.values())
    assert all(not torch.equal(array, sent[key]) for key, array in stepped.items())


PBEA, CMDA = {"encoder.merge": "pbea"}, {"decoder.merge": "cmda"}


@pytest.mark.parametrize("name", names("partition"))
def test_both_commands_share_the_partition(name: str) -> None:
    trained = compose_config("config", [f"partition={name}"])
    assert trained.partition == composed("partition", name).partition


@pytest.mark.parametrize("name", names("fusion"))
def test_every_fusion_predicts(name: str) -> None:
    rule = composed("fusion", name).fusion.name
    model = build_model(spec(SMALL, "audio", "vision"), seed=0).eval()
    data = {modality: client_data(modality) for modality in WIDTHS}
    labels = torch.from_numpy(data["audio"].labels)
    prior = prior_of(label_sums(labels, Task.regression, 1), Task.regression)
    inputs = {modality: pad_all(part.sequences) for modality, part in data.items()}
    with torch.inference_mode():
        sums = {
            modality: calibration_sums(model(modality, padded), labels, prior, Task.regression)
            for modality, padded in inputs.items()
        }
    fusion = fit_fusion(rule, Task.regression, prior, sums)
    assert fusion.rule is not FusionRule.auto
    assert rule in (fusion.rule, FusionRule.auto)
    assert predict(model, fusion, inputs).values.isfinite().all()


def test_the_file_dataset_is_read_as_configured(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, label=np.arange(4.0), audio=np.zeros((4, 60, 2)), vision=np.zeros((4, 3)))
    items = read_items(compose_config("config", ["dataset=npz", f"dataset.path={path}"]))
    assert {name: seqs.width for name, seqs in items.sequences.items()} == {"audio": 2, "vision": 3}
    assert items.sequences["audio"].lengths.tolist() == [50] * 4
