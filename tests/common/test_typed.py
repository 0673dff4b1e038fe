"""Overrides as they are typed: paths mean what they say, and what is meant for Hydra stays."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
from data_checks import refusal
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from common.config import (
    Config,
    CredentialsConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    PrepareConfig,
    ReportConfig,
    ServeConfig,
    Settings,
    argument,
    compose,
    config_of_settings,
    escaped,
    in_node_config,
    literal_paths,
    setting,
)

#: A setting of each command that is one path, and one that may be several.
ONE = [(Config, "run_dir"), (Config, "resume"), (PrepareConfig, "out"), (PrepareConfig, "arrays.a")]
ONE += [(ReportConfig, "out"), (CredentialsConfig, "out"), (ExportConfig, "model")]
ONE += [(PredictConfig, "arrays.b"), (EvaluateConfig, "model"), (ServeConfig, "token_file")]
ONE += [(ServeConfig, "ssl_key"), (ServeConfig, "examples"), (Config, "dataset.test_path")]
SEVERAL = [(Config, "dataset.path"), (PrepareConfig, "path"), (ReportConfig, "runs")]
SEVERAL += [(PredictConfig, "input"), (EvaluateConfig, "dataset")]

Case = tuple[type[Settings], str]


def as_hydra_reads(override: str) -> object:
    """What a command gets of an override."""
    value = OverridesParser.create().parse_override(override).value()
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")


@pytest.mark.parametrize("case", ONE + SEVERAL, ids=lambda case: f"{case[0].__name__} {case[1]}")
@pytest.mark.parametrize(
    "path", ["ü", "a, b", "a=b", "#", "it's", "{a:b}", "1.50", "a(b)", "${", "a\\,b"]
)
def test_every_path_is_what_was_typed(case: Case, path: str) -> None:
    [override] = literal_paths(case[0], [f"{case[1]}={path}"])
    assert as_hydra_reads(override) == path


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_any_text_is_a_path(text: str) -> None:
    [override] = literal_paths(Config, [f"run_dir={text}"])
    hydras = text[0] in "'\"~" or text.lower() == "null" or ("${" in text and "}" in text)
    assert hydras or as_hydra_reads(override) == text


@given(st.text("\\${}a'", min_size=1, max_size=8), st.booleans())
def test_nothing_in_the_settings_of_a_run_is_an_interpolation(text: str, inside: bool) -> None:
    content = {"run_dir": text, "list": [text, 1], "map": {"a": text}}
    kept = OmegaConf.to_yaml(OmegaConf.create(escaped(content)))
    assert OmegaConf.to_container(OmegaConf.create(kept), resolve=True) == content


def test_a_path_in_the_settings_of_a_run_is_no_interpolation() -> None:
    config = compose(Config, ["run_dir=a${b"])
    assert config.run_dir == "a${b"
    assert config_of_settings(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    "path", ["a,b", "[a]", "null", "'a'", '"a"', "${seed}", "a${now:%Y}b", "~", "true", "a\\"]
)
def test_what_exists_is_meant(tmp_path: Path, path: str) -> None:
    (tmp_path / path).touch()
    for schema, name in (*ONE[:1], *SEVERAL):
        for sweeping in (False, True):
            [override] = literal_paths(schema, [f"{name}={path}"], sweeping)
            assert as_hydra_reads(override) == path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("resume=null", None),
        ("run_dir='a b'", "a b"),
        ("run_dir=~/a", "/home/someone/a"),
        ("+resume=~", "/home/someone"),
        ("run_dir=a~", "a~"),
        ("run_dir=~nobody-of-this-name", "~nobody-of-this-name"),
        ("dataset.path=[a,b c]", ["a", "b c"]),
        ("dataset.path=[ü.npz, ~/b.npz,'c,d']", ["ü.npz", "/home/someone/b.npz", "c,d"]),
        ("run_dir=[a,b]", "[a,b]"),
        ("run_dir=", ""),
        ("run_dir=runs/${rounds}", "runs/7"),
    ],
)
def test_what_is_typed_is_meant(typed: str, meant: object) -> None:
    [override] = literal_paths(Config, [typed])
    value = OverridesParser.create().parse_override(override).value()
    resolved = OmegaConf.to_container(OmegaConf.create({"rounds": 7, "value": value}), resolve=True)
    assert isinstance(resolved, dict) and resolved["value"] == meant


@pytest.mark.parametrize(
    ("typed", "jobs"),
    [
        ("run_dir=a,b", ["a", "b"]),
        ("dataset.path=[a,b],[c]", [["a", "b"], ["c"]]),
        ("dataset.path=ü.npz,~/b.npz", ["ü.npz", "/home/someone/b.npz"]),
        ("run_dir=choice(a,b)", ["a", "b"]),
        ("run_dir='a,b','c'", ["a,b", "c"]),
    ],
)
def test_sweeps_over_paths_go_on_working(typed: str, jobs: list[object]) -> None:
    [override] = literal_paths(Config, [typed], sweeping=True)
    parsed = OverridesParser.create().parse_override(override)
    assert parsed.is_sweep_override()
    values = parsed.sweep_string_iterator()
    assert [as_hydra_reads(f"run_dir={value}") for value in values] == jobs


def test_other_settings_are_left_to_hydra() -> None:
    others = ["seed=1,2", "rounds=3", "--multirun", "dataset.modalities=[a,b]", "~rounds", "x"]
    assert literal_paths(Config, others) == others


@pytest.mark.parametrize("path", ["a\nb", "a\tb", "a\x1b[2Jb", "a\udcffb"])
def test_a_path_that_cannot_be_printed_is_refused(path: str) -> None:
    message = refusal(lambda: literal_paths(Config, [f"run_dir={path}"]))
    assert message.startswith("'run_dir=a\\") and "rename it" in message


@pytest.mark.parametrize("name", ["hydra.run.dir", "hydra.sweep.dir", "+hydra.output_subdir"])
@pytest.mark.parametrize(("schema", "own"), [(Config, "run_dir"), (PrepareConfig, "out")])
def test_folders_of_hydra_are_refused(schema: type[Settings], own: str, name: str) -> None:
    message = refusal(lambda: compose(schema, [f"{name}=x"]))
    assert message == f"{name.lstrip('+')} is not used here; give {own}=… instead"


def test_what_is_printed_can_be_pasted() -> None:
    assert setting("path", "a/b.npz") == "path=a/b.npz"
    assert shlex.split(setting("path", "it's $(x)")) == ["path=it's $(x)"]
    assert shlex.split(argument("-x y")) == ["./-x y"]
    assert in_node_config('a"b\\c') == r'"a\u0022b\\c"'
