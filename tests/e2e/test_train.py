"""`utmp-train` as a user runs it."""

import json
import re

import pytest
from safetensors import safe_open
from tiny_runs import untimed

pytestmark = pytest.mark.e2e


def test_a_run_shows_its_rounds_leaves_its_folder_and_comes_out_the_same_again(
    command, tiny, tmp_path
) -> None:
    done = command("utmp-train", *tiny, "clients.language=2", "run_dir=run")
    folder = tmp_path / "run"

    assert len(re.findall(r"^round \d", done.stdout, re.MULTILINE)) == 2
    assert "Test, " in done.stdout
    # Flower's own words are in the log file, and nowhere else.
    assert ("INFO" in done.stdout, done.stderr) == (False, "")
    assert "ROUND 1/2" in (folder / "flower.log").read_text()

    rounds, summary = untimed(folder)
    assert list(summary["test"]) == ["multimodal", "language", "audio", "vision"]
    assert summary["rounds"] == len(rounds) == 2
    assert summary["seed"] == 1234
    assert sum(summary["fusion_weights"].values()) == pytest.approx(1)
    assert "num_items: 240" in (folder / "config.yaml").read_text()
    with safe_open(folder / "model.safetensors", framework="np") as model:
        assert {"format", "spec", "fusion"} <= set(model.metadata())
    best = summary["delivered_round"]
    assert f"model of round {best} of 2 (least validation mae)" in done.stdout
    assert summary["validation"] == rounds[best - 1]["validation"]

    # What is delivered is the checkpoint of its round.
    for name in ("model", "last", *(f"checkpoints/round-{n:06d}" for n in (1, 2))):
        given = [f"model=run/{name}.safetensors", "side=validation", "overwrite=true"]
        command("utmp-evaluate", *given, "out=found.json")
        found = json.loads((tmp_path / "found.json").read_text())["test"]
        number = {"model": best, "last": 2}.get(name) or int(name[-1])
        assert found == rounds[number - 1]["validation"], name
    command("utmp-evaluate", f"model=run/checkpoints/round-{best:06d}.safetensors", "out=test.json")
    tested = json.loads((tmp_path / "test.json").read_text())
    assert tested["test"] == summary["test"]

    # The same seed, whatever the runtime: Flower's simulation on Ray.
    done = command("utmp-train", *tiny, "clients.language=2", "run_dir=again", "runtime=simulation")
    assert ("INFO" in done.stdout, done.stderr) == (False, "")
    assert untimed(tmp_path / "again") == untimed(folder)


def test_a_sweep_makes_a_run_folder_for_each_job(command, tiny, tmp_path) -> None:
    done = command("utmp-train", "--multirun", *tiny, "rounds=1", "seed=1,2", "run_dir=sweep")

    (rounds, summary), (other, last) = (
        untimed(tmp_path / "sweep" / f"seed={seed}") for seed in (1, 2)
    )
    assert (summary["seed"], last["seed"]) == (1, 2)
    assert rounds != other
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("== ")] == ["== seed=1", "== seed=2"]
    assert lines[-1].startswith("next: utmp-report runs=") and "All 2 runs" in lines
    table = (tmp_path / "sweep/runs.csv").read_text().splitlines()
    assert len(table) == 3 and table[0].startswith("folder,seed,mae,")


def test_a_client_that_always_fails_ends_the_run_with_one_line(command, tiny, tmp_path) -> None:
    fails = ["client.lr=1e30", "client.optimizer=sgd", "run_dir=run"]
    done = command("utmp-train", *tiny, *fails, check=False)

    assert done.returncode == 2
    # Flower gives nodes random numbers.
    assert re.fullmatch(
        r"error: round 1: no client could be merged; audio-0 \(node \d+\): "
        r"the training loss is not finite; lower client\.lr\n",
        done.stderr,
    )
    # The folder is free for the next try.
    assert not (tmp_path / "run" / "rounds.jsonl").exists()
