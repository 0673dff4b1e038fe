"""The typed configuration."""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import pytest
from data_checks import refusal

from common.config import (
    KINDS,
    SCHEMAS,
    Config,
    DirichletConfig,
    PartitionConfig,
    PartitionRule,
    SyntheticConfig,
    check,
    compose,
)
from common.task import Task

CONF = Path(__file__).resolve().parents[2] / "conf"


def composed(*overrides: str) -> Config:
    return compose(Config, overrides)


def refused(*overrides: str) -> str:
    message = refusal(lambda: composed(*overrides))
    assert message == message.strip()
    return message


def test_the_defaults_have_the_types_of_the_schema() -> None:
    config = composed()
    assert (config.seed, config.rounds, config.clients) == (1234, 20, {"default": None})
    assert type(config.dataset) is SyntheticConfig
    assert type(config.dataset.modalities) is list
    assert config.dataset.task is Task.regression
    assert config.model.attention_dropout == {"default": 0.0, "language": 0.1}
    encoder, decoder = config.strategy.encoder, config.strategy.decoder
    assert (encoder.merge, encoder.structure, decoder.merge) == ("pbea", "inputs", "cmda")
    assert config.runtime.client_gpus is None
    assert config.partition == PartitionConfig(PartitionRule.groups)
    assert config.run_dir.startswith("runs/") and "${" not in repr(config)


def test_modalities_rules_and_structures_may_have_any_name() -> None:
    config = composed("clients.audio=4", "clients.fourier=2", "model.attention_dropout.fourier=.3")
    assert config.clients == {"default": None, "audio": 4, "fourier": 2}
    assert config.model.attention_dropout == {"default": 0.0, "language": 0.1, "fourier": 0.3}
    encoder = composed("strategy.encoder.merge=mine", "strategy.encoder.structure=ours").strategy
    assert (encoder.encoder.merge, encoder.encoder.structure) == ("mine", "ours")


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("round=3", "did you mean rounds"),
        ("client.lrr=1", "did you mean client.lr"),
        ("strategy.encoder.shrink=1", "did you mean strategy.encoder.shrinkage"),
        ("datset=npz", "did you mean dataset"),
        *((override, "") for override in ("+foo=1", "++client.lrr=1", "zzz.qqq=1")),
    ],
)
def test_a_wrong_name_suggests_near_ones(override: str, near: str) -> None:
    name = override.strip("+").split("=")[0]
    message = refused(override)
    assert message.startswith(f"there is no setting {name!r}" + ("; " if near else "") + near)
    assert near or "did you mean" not in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rounds=many"], "many"),
        (["rounds=2.5"], "2.5"),
        (["rounds"], "rounds"),
        (["clients.audio=two"], "two"),
        (["model.causal=perhaps"], "perhaps"),
        (["dataset.modalities=audio"], "dataset.modalities"),
        (["clients=4"], "clients"),
        # A word that is no choice lists the choices.
        (["client.optimizer=rmsprop"], "adamw, adam, sgd"),
        (["strategy.weights=loss"], "examples, uniform, agreement"),
        (["dataset.task=ranking"], "regression, classification, multilabel"),
        (["partition=size", "partition.law=cubic"], "linear, square, exponential"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_setting(overrides: list[str], words: str) -> None:
    message = refused(*overrides)
    assert overrides[-1].split("=")[0] in message and words in message
    assert composed("rounds=3").rounds == 3  # not spoilt by the refusal


SWEEP = "several values need --multirun, which makes one run for each; a list is"
QUOTES = """and a value with special characters in quotes, as in 'NAME="VALUE"'"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1,2", f"seed=1,2: {SWEEP} 'seed=[1,2]'"),
        ("strategy=fedavg,pbea", f"strategy=fedavg,pbea: {SWEEP} 'strategy=[fedavg,pbea]'"),
        ("seed=range(1,3)", f"seed=range(1,3): {SWEEP} 'seed=[range(1,3)]'"),
        ("seed", "cannot read the override seed: expected NAME=VALUE"),
        ("seed=1;2", f"cannot read the override seed=1;2: expected NAME=VALUE, {QUOTES}"),
        (
            "client=5",
            "a group, such as strategy, takes the name of a choice, as in strategy=fedavg",
        ),
        ("+strategy=fedavg", "strategy is a setting already; give it without +"),
        ("+rounds=5", "rounds is a setting already; give it without +"),
        ("seed=${foo}", "seed: there is no setting 'foo' to take the value from"),
        ("clients=4", "clients=4: expected a value for each name, as in clients.NAME=…"),
        (
            "dataset.modalities=audio",
            "dataset.modalities=audio: expected a list, as in 'dataset.modalities=[a]' or "
            "'dataset.modalities=[a,b]'",
        ),
        (
            "rounds=x",
            "rounds=x: Value 'x' of type 'str' could not be converted to Integer; expected a whole "
            "number",
        ),
    ],
)
def test_a_refusal_of_hydra_s_names_the_way_out(override: str, message: str) -> None:
    assert refused(override) == message


@pytest.mark.parametrize("override", ["strategy=fedsgd", "partition=pathological"])
def test_a_file_that_is_not_there_lists_those_that_are(override: str) -> None:
    group = override.split("=")[0]
    choices = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
    # And not where Hydra searched.
    assert refused(override) == f"{override}: there is no such {group}; there are {choices}"


@pytest.mark.parametrize(
    ("setting", "owner"),
    [("partition.law", "partition=size"), ("dataset.path", "dataset=file or dataset=shards")],
)
def test_the_choice_that_has_a_setting_is_named(setting: str, owner: str) -> None:
    assert refused(f"{setting}=a") == f"{setting} is a setting of {owner}; give that too"


def check_with(setting: str, value: Any) -> None:
    """Check the schema's defaults with one value changed."""
    dataset = SyntheticConfig(modalities=["audio"])
    config = Config(run_dir="runs/x", dataset=dataset, partition=DirichletConfig())
    *path, last = setting.split(".")
    target = reduce(getattr, path, config)
    if isinstance(target, dict):
        target[last] = value
    else:
        assert hasattr(target, last)
        setattr(target, last, value)
    check(config)


#: One setting of each range with what is out of it and what is just in it.
RANGES: list[tuple[str, list[float], list[float], str]] = [
    ("client.lr", [0, -1, math.nan, math.inf], [1e-9], "a number above 0"),
    ("strategy.sampler.segment", [0], [1], "a number above 0"),
    ("strategy.local.proximal", [-1, math.nan, math.inf], [0], "a number of at least 0"),
    ("clients.default", [-1], [0], "a number of at least 0"),
    ("clients.fourier", [-1], [0], "a number of at least 0"),
    ("runtime.client_gpus", [-1.0], [0.5], "a number of at least 0"),
    ("strategy.screening.norm_factor", [0.5, math.nan], [1], "a number of at least 1"),
    ("strategy.sampler.burn_in", [-0.1, 1.0, math.nan], [0.0], "a share in [0, 1)"),
    ("model.attention_dropout.fourier", [-0.1, 1.0], [0.0], "a share in [0, 1)"),
    ("strategy.fraction", [0.0, 1.1, math.nan], [0.01, 1.0], "a share in (0, 1]"),
    ("strategy.decoder.sign", [0, 2], [1, -1], "1 or -1"),
    ("strategy.trim", [-0.1, 0.5, math.nan], [0.0, 0.49], "a share in [0, 0.5)"),
    ("strategy.posterior_rounds", [-0.1, 1.1, math.nan], [0.0, 1.0], "a share in [0, 1]"),
    ("privacy.delta", [0.0, 1.0, math.nan], [0.5], "a probability in (0, 1)"),
]

#: Numbers of which every value can be used.
FREE = {"Config.seed", "PrepareConfig.seed"}


@pytest.mark.parametrize(("setting", "outside", "inside", "expected"), RANGES)
def test_values_outside_a_range_are_refused(
    setting: str, outside: list[float], inside: list[float], expected: str
) -> None:
    for value in inside:
        check_with(setting, value)
    for value in outside:
        message = refusal(partial(check_with, setting, value))
        assert message == f"{setting}={value}: expected {expected}"


def schemas(schema: Any) -> Iterator[type]:
    """Yield a schema and those of its groups."""
    yield schema
    for item in fields(schema):
        if is_dataclass(item.type):
            yield from schemas(item.type)


EVERY = {each for root in [*SCHEMAS, *KINDS.values()] for each in schemas(root)}


def test_every_number_has_a_range_that_holds_for_its_default() -> None:
    numbers = {int, float, int | None, float | None}
    for schema in EVERY:
        for item in fields(schema):
            if item.type in numbers and f"{schema.__name__}.{item.name}" not in FREE:
                assert "expected" in item.metadata, f"{schema.__name__}.{item.name}"
                default = item.default_factory()  # type: ignore[misc]
                assert default is None or item.metadata["holds"](default)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("dataset.test_fraction=.5 dataset.validation_fraction=.5", r"fraction=1\.0"),
        ("model.width=32", r"model\.width=32 .* model\.heads=5"),
        ("runtime.ray.address='a:1'", "a:1 needs runtime=simulation, .* runtime=processes"),
        ("runtime.ray.address='a:1' runtime=simulation", None),
        ("strategy=median strategy.normalise_steps=true", r"encoder\.merge=median"),
        ("strategy=cmda strategy.normalise_steps=true", r"decoder\.merge=cmda"),
        ("strategy=pbea strategy.normalise_steps=true", None),
        ("dataset.max_seq_len=null strategy.sampler.segment=null", None),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(overrides: str, words: str | None) -> None:
    if words is None:
        composed(*overrides.split())
    else:
        assert re.search(words, refused(*overrides.split()))
