"""Every file of every group composes, and what it configures can be built and used."""

import shlex
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from client import sampling
from client.trainer import read_moments, train
from common.clients import ClientKey
from common.config import (
    ClientConfig,
    Config,
    DirichletConfig,
    FusionRule,
    ModelConfig,
    NpzConfig,
    Optimizer,
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


def test_mosei_raw_is_what_the_authors_published() -> None:
    config = composed("experiment", "mosei_raw")
    assert (config.seed, config.rounds) == (1234, 300)
    assert isinstance(config.dataset, NpzConfig)
    assert config.dataset.path == "mosei_raw.npz"
    assert config.dataset.modalities == ["language", "audio", "vision"]
    assert config.dataset.max_seq_len == 50
    assert config.client.optimizer is Optimizer.adamw
    assert (config.client.lr, config.client.weight_decay) == (1e-3, 1e-5)
    assert (config.client.batch_size, config.client.num_workers) == (512, 0)


def test_an_experiment_can_be_overridden() -> None:
    config = compose_config("config", [*overrides_for("experiment", "mosei_raw"), "rounds=2"])
    assert config.rounds == 2
    assert config.client.batch_size == 512


# What can be built ------------------------------------------------------------------------------

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


@pytest.mark.parametrize("name", names("strategy"))
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_every_sampler_has_a_plan_for_any_number_of_steps(name: str, steps: int) -> None:
    sampler = composed("strategy", name).strategy.sampler
    plan = sampling.plan(sampler, steps)
    assert plan.num_samples >= 1 and plan.segment >= 1 and plan.burn_in >= 0
    assert plan.burn_in + plan.num_samples * plan.segment == steps


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


@pytest.mark.parametrize("name", names("strategy"))
def test_all_but_the_baselines_are_federated(name: str) -> None:
    strategy = composed("strategy", name).strategy
    assert (strategy.setting != "federated") == (name in BASELINES)


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


def settings_of(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted name to value."""
    found: dict[str, Any] = {}
    for item in fields(node):
        value = getattr(node, item.name)
        name = prefix + item.name
        found |= settings_of(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found


IASG = {"sampler.name": "iasg"}
PBEA, CMDA = {"encoder.merge": "pbea"}, {"decoder.merge": "cmda"}
BY_INPUTS: dict[str, Any] = {
    **PBEA,
    "encoder.structure": "inputs",
    "encoder.shrinkage": 0.1,
    "encoder.scale": "absolute",
    "posterior_rounds": 0.34,
}
CENTRALISED = {"setting": "centralised"}

#: What distinguishes each strategy from FedAvg.
DIFFERENCES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"local.proximal": 0.01},
    "fednova": {"normalise_steps": True},
    "fedavgm": {
        "server_optimizer.name": "momentum",
        "server_optimizer.lr": 0.7,
        "server_optimizer.momentum": 0.6,
    },
    "fedadam": {"server_optimizer.name": "adam", "server_optimizer.lr": 0.003},
    "fedatt": {"encoder.merge": "fedatt", "decoder.merge": "fedatt"},
    "median": {"encoder.merge": "median", "decoder.merge": "median"},
    "trimmed_mean": {
        "encoder.merge": "trimmed_mean",
        "decoder.merge": "trimmed_mean",
        "trim": 0.34,
    },
    "pbea": {**IASG, **PBEA},
    "cmda": CMDA,
    "paper": {**IASG, **PBEA, **CMDA},
    "hierarchical": {**BY_INPUTS, **CMDA, "decoder.noise": 0.0},
    "few_rounds": {**BY_INPUTS, "decoder.merge": "posterior"},
    "local": {"setting": "local"},
    "pooled": {"setting": "pooled"},
    "centralised": CENTRALISED,
    "early_fusion": {**CENTRALISED, "architecture": "early_fusion"},
    "cross_modal": {**CENTRALISED, "architecture": "cross_modal"},
}

#: FedAvg, in full.
FEDAVG: dict[str, Any] = {
    **{"setting": "federated", "architecture": "ha_fedformer", "fraction": 1.0},
    **{"weights": "examples", "normalise_steps": False, "trim": 0.2, "posterior_rounds": 1.0},
    **{"skew_threshold": 0.1, "payload": "float32", "local.proximal": 0.0},
    **{"local.logit_adjustment": "never", "local.lr_decay": "never"},
    **{"sampler.name": "last", "sampler.num_samples": 4, "sampler.burn_in": 0.75},
    **{"sampler.segment": None, "sampler.lr": 0.01, "sampler.temperature": 1.0},
    **{"sampler.friction": 0.1, "encoder.merge": "average", "encoder.structure": "row"},
    **{"encoder.shrinkage": 0.5, "encoder.scale": "relative", "decoder.merge": "average"},
    **{"decoder.shrinkage": 0.1, "decoder.epsilon": 1.2, "decoder.temperature": 1.0},
    **{"decoder.sign": 1, "decoder.noise": 0.001, "fedatt.epsilon": 1.2, "fedatt.noise": 0.001},
    **{"server_optimizer.name": "sgd", "server_optimizer.lr": 1.0},
    **{"server_optimizer.momentum": 0.9, "server_optimizer.beta2": 0.99},
    **{"server_optimizer.tau": 0.001, "server_optimizer.when": "always"},
    **{"screening.norm_factor": 10.0, "screening.precision_factor": 100.0},
    **{"screening.clip_norm": None, "screening.max_faults": 3},
}


@pytest.mark.parametrize("name", names("strategy"))
def test_a_strategy_is_what_its_name_says(name: str) -> None:
    expected = {**FEDAVG, **DIFFERENCES[name], "name": name}
    assert settings_of(composed("strategy", name).strategy) == expected


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


def test_the_embedded_dataset_is_made_as_configured() -> None:
    config = compose_config("config", ["dataset=synthetic", "dataset.num_items=30"])
    items = read_items(config)
    assert len(items) == 30
    assert list(items.sequences) == config.dataset.modalities


def test_the_file_dataset_is_read_as_configured(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, label=np.arange(4.0), audio=np.zeros((4, 60, 2)), vision=np.zeros((4, 3)))
    items = read_items(compose_config("config", ["dataset=npz", f"dataset.path={path}"]))
    assert {name: seqs.width for name, seqs in items.sequences.items()} == {"audio": 2, "vision": 3}
    assert items.sequences["audio"].lengths.tolist() == [50] * 4
