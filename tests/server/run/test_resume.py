"""A run that was interrupted and resumed is the run that was not interrupted, to the bit."""

import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import copytree, rmtree

import pytest
from broken_runs import RUNS, begin, cut, damage, go_on
from data_checks import files
from tiny_runs import left_in

from server.run.checkpoint import Checkpoints, read_checkpoint
from server.run.interruption import InterruptedRunError, interruptible

Make = Callable[..., Path]


@pytest.mark.parametrize(("name", "rounds"), [*((name, 1) for name in RUNS), ("overshooting", 2)])
def test_resumed_it_ends_as_if_uninterrupted(
    whole: Make, interrupted: Make, name: str, rounds: int
) -> None:
    folder = interrupted(name, rounds)
    go_on(folder)
    assert left_in(folder) == left_in(whole(name))
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_the_first_signal_ends_a_run_at_its_next_check_and_the_second_at_once() -> None:
    former = signal.getsignal(signal.SIGINT)
    with interruptible() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(InterruptedRunError, match=r"^interrupted by SIGINT$") as raised:
            check()
        assert raised.value.status == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not former
    assert signal.getsignal(signal.SIGINT) is former


def test_an_interrupted_run_says_how_to_resume_and_can_break_off_again(
    tmp_path: Path, whole: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["hierarchical"], "rounds=3", before=1)
    assert list(files(folder)) == ["config.yaml"]
    go_on(folder, before=2)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("warning: the run broke off: BreakError; ")
    assert line.endswith(f"; round 1 is kept: go on with resume={folder}")
    for _ in range(2):  # twice in the same round
        go_on(folder, after=2)
        assert not (folder / "summary.json").exists()
        assert Checkpoints(folder / "checkpoints").rounds() == [1]
    go_on(folder)
    assert left_in(folder) == left_in(whole("hierarchical"))


def only_config(folder: Path) -> None:
    (folder / "rounds.jsonl").unlink()
    rmtree(folder / "checkpoints")


def damage_newest(folder: Path) -> None:
    damage(max((folder / "checkpoints").iterdir()))


def append(folder: Path, tail: bytes) -> None:
    path = folder / "rounds.jsonl"
    path.write_bytes(path.read_bytes() + tail)


@pytest.mark.parametrize(
    ("left", "change", "shown"),
    [  # rounds and checkpoints
        ((1, 0), only_config, "round 1 "),
        ((1, 0), Path.exists, "round 1 "),
        ((2, 1), Path.exists, "going on after round 1 of 3"),
        ((2, 2), damage_newest, "round-000002.safetensors is damaged"),
        ((2, 2), partial(append, tail=b'{"round": 2, "train_l'), "going on after round 2 of 3"),
        ((2, 2), partial(append, tail=b"\0" * 100), "going on after round 2 of 3"),
        ((3, 2), Path.exists, "going on after round 2 of 3"),
        ((3, 3), Path.exists, "Test, "),  # all rounds, but no summary yet
    ],
)
def test_resumed_from_whatever_an_interruption_leaves(
    interrupted: Make,
    whole: Make,
    capsys: pytest.CaptureFixture[str],
    left: tuple[int, int],
    change: Callable[[Path], None],
    shown: str,
) -> None:
    folder = interrupted("adam", *left)
    change(folder)
    capsys.readouterr()
    go_on(folder)
    assert shown in capsys.readouterr().out
    assert left_in(folder) == left_in(whole())
    assert read_checkpoint(Checkpoints(folder / "checkpoints").path(3)).round == 3


def test_a_run_goes_on_where_no_checkpoint_can_be_written(
    tmp_path: Path, whole: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").write_text("not a folder, as a full disk would be")
    begin(tmp_path, *RUNS["adam"], "rounds=3")
    shown = capsys.readouterr().out
    assert all(f"warning: no checkpoint of round {n}: File exists" in shown for n in (1, 2, 3))
    assert left_in(tmp_path) == left_in(whole())


@pytest.mark.parametrize(
    ("overrides", "spoilt", "since"),
    [
        # A node one fault short of exclusion, and what an absent modality last reported.
        (("clients.default=2", "strategy=fedavg", "strategy.screening.max_faults=3"), 3, 1),
        (("strategy=fedavg", "fusion=product_of_experts"), 2, 2),
    ],
)
def test_faults_and_absences_count_after_a_resume(
    tmp_path: Path, overrides: tuple[str, ...], spoilt: int, since: int
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    begin(whole, *overrides, "rounds=4", "checkpoint.keep=9", spoilt=spoilt, since=since)
    cut(copytree(whole, folder), 2)
    go_on(folder, spoilt=spoilt, since=since)
    left = left_in(folder)
    assert left == left_in(whole)
    excluded = ["left out for the rest" in str(record["rejected"]) for record in left[0]]
    # After the third fault.
    assert excluded == [number == since + 1 for number in (0, 1, 2, 3)]
    reused = [len(record["reused"]) for record in left[0]]
    assert reused == ([0] * 4 if since == 1 else [0, 1, 1, 1])


def test_more_rounds_are_as_if_asked_for_at_first(tmp_path: Path, whole: Make) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["adam"], "rounds=2")
    go_on(folder, "rounds=3", before=3)
    assert not (folder / "summary.json").exists()
    go_on(folder)
    assert left_in(folder) == left_in(whole())


def test_time_goes_on_where_it_stood(interrupted: Make) -> None:
    folder = interrupted(rounds=2)
    kept = read_checkpoint(Checkpoints(folder / "checkpoints").path(2))
    time.sleep(0.01)
    go_on(folder)
    summary = json.loads((folder / "summary.json").read_text())
    seconds = json.loads((folder / "rounds.jsonl").read_text().splitlines()[2])["seconds"]
    assert 0 < kept.seconds + seconds <= summary["seconds"] < 600


# The best round -----------------------------------------------------------------------------------


def delivered(folder: Path) -> int:
    return int(left_in(folder)[1]["delivered_round"])


def test_the_best_round_is_kept_for_a_resume_however_few_are(tmp_path: Path, whole: Make) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["overshooting"], "rounds=3", "checkpoint.keep=1", before=3)
    assert Checkpoints(folder / "checkpoints").rounds() == [1, 2]
    go_on(folder)
    assert Checkpoints(folder / "checkpoints").rounds() == [1, 3]
    left = left_in(folder)
    assert left == left_in(whole("overshooting"))
    assert (left[1]["delivered_round"], left[1]["rounds"]) == (1, 3)
    assert left[1]["validation"] == left[0][0]["validation"]
    assert left[2]["model.safetensors"] != left[2]["last.safetensors"]


@pytest.mark.parametrize("spoil", [damage, Path.unlink])
def test_without_the_best_round_the_last_passes_for_it(
    interrupted: Make, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = interrupted("overshooting", 2)
    spoil(Checkpoints(folder / "checkpoints").path(1))
    go_on(folder)
    assert "; round 2 passes for the best so far" in capsys.readouterr().out
    assert delivered(folder) == 2


def test_a_resumed_run_may_deliver_its_last_round_instead(interrupted: Make, whole: Make) -> None:
    folder = interrupted("overshooting", 2)
    go_on(folder, "checkpoint.deliver=last")
    _, summary, models = left_in(folder)
    assert summary["delivered_round"] == 3
    last = left_in(whole("overshooting"))[2]["last.safetensors"]
    assert models == {"model.safetensors": last}


def test_a_run_out_of_patience_goes_on_with_more_of_it(tmp_path: Path, whole: Make) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["overshooting"], "rounds=3", "patience=1")
    _, summary, _ = left_in(folder)
    assert (summary["rounds"], summary["delivered_round"]) == (2, 1)
    assert "patience: 1" in (folder / "config.yaml").read_text()
    go_on(folder, "patience=2")
    assert left_in(folder) == left_in(whole("overshooting"))


def test_patience_counts_on_in_a_run_that_gets_more_rounds(tmp_path: Path, whole: Make) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["overshooting"], "rounds=2", "patience=2")
    go_on(folder, "rounds=9")
    assert left_in(folder) == left_in(whole("overshooting"))
