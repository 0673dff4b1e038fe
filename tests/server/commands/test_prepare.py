"""`utmp-prepare` as its users meet it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_command import Run, rows_of

COMMAND = "utmp-prepare"
LOADS = """
import server.preparation.preparation, server.preparation.console
import matplotlib.backends.backend_agg, matplotlib.figure
from server.commands.prepare import main
"""

SYNTHETIC = "format=synthetic"


def write(folder: Path, name: str, **arrays: Any) -> str:
    """Write a file of sixty items in thirty groups; None takes an array out."""
    content = {
        "label": np.linspace(-3, 3, 60),
        "audio": np.ones((60, 4, 3)),
        "video": np.repeat(np.arange(30), 2),
        **arrays,
    }
    np.savez(folder / name, **{key: array for key, array in content.items() if array is not None})
    return f"path={name}"


def first_cells(shown: str) -> dict[str, list[str]]:
    """The cells of each row of the tables that were printed, by the first."""
    return {row[0]: row[1:] for row in rows_of(shown) if row}


def test_preparing_needs_no_more_libraries_than_it_uses() -> None:
    heavy = ("torch", "datasets", "flwr_datasets", "h5py", "pyarrow", "pandas", "matplotlib")
    module = "server.preparation.preparation"
    script = f"import {module}, sys; print(*sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


def test_who_got_what_and_the_next_command(loaded: Run, tmp_path: Path) -> None:
    shown = loaded(SYNTHETIC, "out=here/shards", "clients.default=2", "clients.audio=4").shown
    manifest = json.loads((tmp_path / "here" / "shards" / "manifest.json").read_text())
    rows = first_cells(shown)
    for file, shard in manifest["shards"].items():
        scores = [f"{shard['labels'][name]:.3f}" for name in ("mean", "sd")]
        counts = [str(shard[name]) for name in ("items", "groups")]
        assert rows[file.removesuffix(".safetensors")] == counts + scores
    assert len(manifest["shards"]) == 10
    sides = ", ".join(f"{name} {side['items']}" for name, side in manifest["sides"].items())
    assert f"here/shards: 8 clients; items: {sides}; " in shown
    assert shown.splitlines()[-1] == "next: utmp-train dataset.path=here/shards"


def test_the_file_is_named_with_its_fingerprint_and_cleaning(loaded: Run, tmp_path: Path) -> None:
    label = np.arange(60) % 3.0
    label[:4] = np.nan
    file = write(tmp_path, "calls.npz", label=label)
    shown = loaded(file, "task=classification", "out=s").shown
    assert (tmp_path / "s" / "partition.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert re.search(r"^calls\.npz: \d+\.\d kB, SHA-256 [0-9a-f]{64}", shown, re.M)
    assert re.search(r"^format npz: .*3 arrays", shown, re.M)
    assert "data: 4 items without a label, dropped\n" in shown
    rows = first_cells(shown)
    assert rows["shard"] == ["items", "groups", "0", "1", "2"]
    for name in ("audio-0", "validation", "test"):
        items, _, *counts = map(int, rows[name])
        assert sum(counts) == items


def test_many_classes_have_no_columns(loaded: Run, tmp_path: Path) -> None:
    file = write(tmp_path, "calls.npz", label=np.arange(60) % 15)
    rows = first_cells(loaded(file, "task=classification", "out=s").shown)
    assert rows["shard"] == ["items", "groups", "different labels"]
    assert 0 < int(rows["test"][-1]) <= 15


def test_there_is_no_next_command_for_a_site_or_a_server(loaded: Run) -> None:
    site = loaded(SYNTHETIC, "out=site", "split=none", "clients.default=1").shown
    server = loaded(SYNTHETIC, "out=server", "clients.default=0").shown
    assert "utmp-train" not in site + server
    assert "site: 3 clients; items: train 6000; " in site
    assert "server: 0 clients; " in server


def test_a_split_that_shares_groups_is_warned_of(loaded: Run, tmp_path: Path) -> None:
    split = np.array(["train", "train", "test"])[np.arange(60) % 3]
    file = write(tmp_path, "s.npz", split=split)
    for arguments in (["out=s"], ["describe=true"]):
        shown = loaded(file, "group=video", *arguments).shown
        assert "warning: the source's own split has 20 groups" in shown


@pytest.mark.parametrize("rule", ["groups", "iid", "dirichlet", "natural", "size"])
def test_every_rule_prints_nothing_but_its_result(loaded: Run, tmp_path: Path, rule: str) -> None:
    shown = loaded(write(tmp_path, "s.npz"), "group=video", "out=s", f"partition={rule}").shown
    assert "audio-0" in first_cells(shown)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.npz"]


# Describing -------------------------------------------------------------------------------------


def test_describing_writes_nothing_and_tells_all(loaded: Run, tmp_path: Path) -> None:
    nan, split = np.ones((60, 4, 3)), np.array(["train", "dev", "test"])[np.arange(60) // 20]
    nan[3, 1, 2], nan[4, 0], nan[:, :, 0] = np.nan, np.inf, 7
    offsets = np.concatenate([[0, 0], np.cumsum(np.arange(59) % 5 + 1)])
    vision = np.random.default_rng(0).normal(size=(offsets[-1], 6)).astype(np.float16)
    file = write(tmp_path, "d.npz", audio=nan, vision=vision, vision_offsets=offsets, split=split)
    shown = loaded(file, "group=video", "describe=true", "out=ignored").shown
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]
    rows = first_cells(shown)
    assert rows["train"] == rows["validation"] == rows["test"] == ["20", "10"]
    assert rows["audio"] == ["3", "float32", "60", "0", "4-4-4", "1", "2", "3"]
    assert rows["vision"] == ["6", "float16", "59", "1", "1-3-5", "0", "0", "0"]
    bars = re.findall(r"^ *(\S+) to (\S+) +(\d+) +█+", shown, re.M)
    assert [int(count) for _, _, count in bars] == [9, 8, 9, 8, 9, 8, 9]
    assert (bars[0][0], bars[-1][1]) == ("-3", "3")


def test_describing_several_labels_without_sides(loaded: Run, tmp_path: Path) -> None:
    label = np.stack([np.arange(60) % 2, np.arange(60) % 3 == 0], axis=1)
    shown = loaded(write(tmp_path, "m.npz", label=label), "task=multilabel", "describe=true").shown
    assert first_cells(shown)["no side given"] == ["60", "60"]
    for name, count in ((0, 30), (1, 20)):
        assert re.search(rf"^ *{name} +{count} +█{{{count}}} *$", shown, re.M)


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["out=s"], "path is required; give it as path=…, or format=synthetic"),
        (["path=nope.npz", "describe=true"], "nope.npz does not exist"),
        (["partition=unknown"], "partition=unknown: there is no such partition; there are dirich"),
        (["partition=dirichlet", "partition.alpha=0"], "partition.alpha=0.0: expected a number ab"),
        (["partition.alpha=1"], "partition.alpha is a setting of partition=dirichlet; give that"),
        (["clients.language=many"], "clients.language=many: "),
        (["task=sentiment"], "task=sentiment: Invalid value 'sentiment', expected one of [regress"),
        (
            ["validation_fraction=.6", "test_fraction=.6"],
            "validation_fraction + test_fraction=1.2:",
        ),
        ([SYNTHETIC, "out=s", "clients.default=30"], "90 clients are too many for the train items"),
        (
            [SYNTHETIC, "out=s", "partition=dirichlet", "partition.min_items=400"],
            "partition=dirichlet cannot deal ",
        ),
        (["path=/proc/self/environ", "out=s"], "/proc/self/environ is of no known format; expect"),
        (["format=hdf", "describe=true"], "format=hdf: expected one of auto, csd, mmsa"),
    ],
)
def test_a_mistake_is_one_line(loaded: Run, tmp_path: Path, given: list[str], message: str) -> None:
    assert loaded(*given).error.startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(loaded: Run, tmp_path: Path) -> None:
    error = loaded(SYNTHETIC, "out=/proc/s").error
    assert re.fullmatch(r"out=\S+ cannot be written: [A-Z][a-z ]+; [a-z ]+", error)
    error = loaded(SYNTHETIC, "out=s", largest_file=100_000).error
    assert error.startswith(f"out={tmp_path / 's'} cannot be written: ")
    assert list(tmp_path.iterdir()) == []


def test_names_are_shown_as_they_were_typed(loaded: Run, tmp_path: Path) -> None:
    name = "[b]a:key:b[red]" + "a" * 150 + " " + "b" * 40
    write(tmp_path, f"{name}.npz")
    shown = loaded(f'path="{name}.npz"', f'out="{name}"').shown
    assert f"{name}.npz: " in shown
    assert f"{name}: 3 clients; " in shown


# Without the extra ------------------------------------------------------------------------------

MISSING = ("flwr_datasets", "datasets", "h5py", "pyarrow")


def test_only_rules_of_flower_datasets_need_the_extra(loaded: Run, tmp_path: Path) -> None:
    for rule in ("iid", "dirichlet", "natural", "size"):
        error = loaded(SYNTHETIC, "out=s", f"partition={rule}", missing=MISSING).error
        assert error == (
            "partitions other than groups need flwr-datasets: pip install 'ha-fedformer[prepare]'"
        )
    assert list(tmp_path.iterdir()) == []
    assert "next: utmp-train" in loaded(SYNTHETIC, "out=without", missing=MISSING).shown
