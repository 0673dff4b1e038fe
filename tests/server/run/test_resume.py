"""A run that broke off and was gone on with is the run that did not break off, to the bit."""

import json
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from broken_runs import begin, damage, files, go_on
from tiny_runs import left_in

from common.errors import UserError
from server.run.checkpoint import Checkpoints, read_checkpoint

pytestmark = pytest.mark.usefixtures("in_a_task")

Left = tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]

#: Each carries something else from round to round: moments, trust and evidence.
RUNS = {
    "momentum": ("strategy=fedavgm",),
    "adam": ("strategy=fedadam", "fusion=product_of_experts"),
    "hierarchical": ("strategy=hierarchical", "strategy.weights=agreement", "fusion=reliability"),
    "sampled": (
        "clients.default=2",
        "strategy=paper",
        "strategy.fraction=0.5",
        "strategy.decoder.noise=0.01",
    ),
}
ROUNDS = 3


@cache
def _whole(folder: Path, name: str) -> Left:
    begin(folder / name, *RUNS[name], f"rounds={ROUNDS}")
    return left_in(folder / name)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where unbroken runs are, made when they are first asked for."""
    return tmp_path_factory.mktemp("unbroken")


def whole(unbroken: Path, name: str) -> Left:
    return _whole(unbroken, name)


@pytest.mark.parametrize("name", RUNS)
def test_broken_off_in_the_second_round_it_ends_as_if_it_had_not(
    tmp_path: Path, unbroken: Path, name: str
) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS[name], f"rounds={ROUNDS}", before=2)
    assert not (folder / "summary.json").exists()
    go_on(folder)
    assert left_in(folder) == whole(unbroken, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_broken_off_in_any_round(tmp_path: Path, unbroken: Path, number: int, moment: str) -> None:
    folder = tmp_path / "run"
    if (number, moment) == (1, "before"):
        # There is no list of rounds yet, only what the run was to be.
        begin(folder, *RUNS["adam"], f"rounds={ROUNDS}", before=1)
        assert list(files(folder)) == ["config.yaml"]
    else:
        begin(folder, *RUNS["adam"], f"rounds={ROUNDS}", **{moment: number})
        kept = Checkpoints(folder / "checkpoints").rounds()
        assert kept == [each for each in range(1, number) if each >= number - 2]
    go_on(folder)
    assert left_in(folder) == whole(unbroken, "adam")


def test_a_node_that_was_nearly_left_out_is_so_after_the_next_fault(tmp_path: Path) -> None:
    overrides = ("clients.default=2", "strategy=fedavg", "rounds=4")
    screening = "strategy.screening.max_faults=3"
    begin(tmp_path / "whole", *overrides, screening, spoilt=3)
    begin(tmp_path / "run", *overrides, screening, spoilt=3, before=3)
    go_on(tmp_path / "run", spoilt=3)
    left = left_in(tmp_path / "run")
    assert left == left_in(tmp_path / "whole")
    rejected = [record["rejected"] for record in left[0]]
    assert [any("left out for the rest" in line for line in lines) for lines in rejected] == [
        False,
        False,
        True,
        False,
    ]
    assert rejected[3] == []


def test_what_an_absent_modality_last_told_counts_on(tmp_path: Path) -> None:
    overrides = ("strategy=fedavg", "fusion=product_of_experts", f"rounds={ROUNDS}")
    begin(tmp_path / "whole", *overrides, spoilt=2, since=2)
    begin(tmp_path / "run", *overrides, spoilt=2, since=2, before=3)
    go_on(tmp_path / "run", spoilt=2, since=2)
    left = left_in(tmp_path / "run")
    assert [len(record["reused"]) for record in left[0]] == [0, 1, 1]
    assert left == left_in(tmp_path / "whole")


def test_broken_off_twice(tmp_path: Path, unbroken: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["hierarchical"], f"rounds={ROUNDS}", before=2)
    go_on(folder, before=3)
    go_on(folder)
    assert left_in(folder) == whole(unbroken, "hierarchical")


def test_broken_off_twice_in_the_same_round(tmp_path: Path, unbroken: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["momentum"], f"rounds={ROUNDS}", after=2)
    go_on(folder, after=2)
    go_on(folder)
    assert left_in(folder) == whole(unbroken, "momentum")


def test_a_damaged_checkpoint_costs_one_more_round(
    tmp_path: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["adam"], f"rounds={ROUNDS}", before=3)
    newest = Checkpoints(folder / "checkpoints").path(2)
    damage(newest)
    capsys.readouterr()
    go_on(folder)
    shown = capsys.readouterr().out
    assert f"warning: checkpoint {newest} is damaged" in shown
    assert f"going on after round 1 of {ROUNDS}" in shown
    assert left_in(folder) == whole(unbroken, "adam")
    assert read_checkpoint(newest).round == 2


def test_with_no_whole_checkpoint_it_has_to_be_started_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["adam"], "rounds=3", before=3)
    for number in (1, 2):
        damage(Checkpoints(folder / "checkpoints").path(number))
    before = files(folder)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read; start a new run"):
        go_on(folder)
    assert files(folder) == before


@pytest.mark.parametrize("tail", [b'{"round": 2, "train_l', b"\n", b"\0" * 100])
def test_what_was_half_written_into_the_list_of_rounds_is_cut_off(
    tmp_path: Path, unbroken: Path, tail: bytes
) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["adam"], f"rounds={ROUNDS}", before=2)
    with (folder / "rounds.jsonl").open("ab") as file:
        file.write(tail)
    go_on(folder)
    assert left_in(folder) == whole(unbroken, "adam")


@pytest.mark.parametrize("content", [b"", b"{}\n", b'{"round": 2}\n', b"\xff\n"])
def test_a_list_of_rounds_that_lacks_some_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["adam"], "rounds=3", before=2)
    (folder / "rounds.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"rounds\.jsonl is damaged: "):
        go_on(folder)
    assert (folder / "rounds.jsonl").read_bytes() == content


def test_rounds_that_had_no_checkpoint_are_done_again(tmp_path: Path, unbroken: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoints").write_text("not a folder, as a full disk would be")
    begin(folder, *RUNS["adam"], f"rounds={ROUNDS}", before=3)
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 2
    (folder / "checkpoints").unlink()
    go_on(folder)
    assert left_in(folder) == whole(unbroken, "adam")


def test_a_run_goes_on_where_no_checkpoint_can_be_written(
    tmp_path: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoints").write_text("")
    begin(folder, *RUNS["adam"], f"rounds={ROUNDS}")
    shown = capsys.readouterr().out
    for number in range(1, ROUNDS + 1):
        assert f"warning: no checkpoint of round {number}: File exists" in shown
    assert left_in(folder) == whole(unbroken, "adam")


def test_more_rounds_are_as_if_they_had_been_asked_for_at_first(
    tmp_path: Path, unbroken: Path
) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["momentum"], "rounds=2")
    go_on(folder, f"rounds={ROUNDS}")
    assert left_in(folder) == whole(unbroken, "momentum")


def test_more_rounds_that_broke_off_leave_no_summary_of_fewer(
    tmp_path: Path, unbroken: Path
) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["momentum"], "rounds=2")
    go_on(folder, f"rounds={ROUNDS}", before=3)
    assert not (folder / "summary.json").exists()
    go_on(folder)
    assert left_in(folder) == whole(unbroken, "momentum")


def test_a_run_that_has_all_rounds_but_no_summary_gets_it(tmp_path: Path, unbroken: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["adam"], f"rounds={ROUNDS}")
    for name in ("summary.json", "model.safetensors"):
        (folder / name).unlink()
    go_on(folder)
    assert left_in(folder) == whole(unbroken, "adam")


def test_a_break_is_told_with_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["adam"], "rounds=2", before=2)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("warning: the run broke off: BreakError; ")
    assert line.endswith(f"; round 1 is kept: go on with resume={folder}")


def test_time_goes_on_where_it_stood(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["adam"], "rounds=2", before=2)
    kept = read_checkpoint(Checkpoints(folder / "checkpoints").path(1))
    assert 0 < kept.seconds < 600
    time.sleep(0.01)
    go_on(folder)
    summary = json.loads((folder / "summary.json").read_text())
    seconds = json.loads((folder / "rounds.jsonl").read_text().splitlines()[1])["seconds"]
    assert kept.seconds + seconds <= summary["seconds"] < 600


KILLED = """
import sys
from broken_runs import begin
from pathlib import Path

begin(Path(sys.argv[1]), *sys.argv[2:])
"""


def test_a_process_that_is_killed_can_be_gone_on_with(tmp_path: Path, unbroken: Path) -> None:
    folder, kept = tmp_path / "run", Checkpoints(tmp_path / "run" / "checkpoints")
    here = [str(Path(__file__).parents[1]), str(Path(__file__).parents[3])]
    code = f"import sys; sys.path[:0] = {here}\n{KILLED}"
    arguments = [str(folder), *RUNS["hierarchical"], f"rounds={ROUNDS}"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not kept.rounds():
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    go_on(folder)
    assert left_in(folder) == whole(unbroken, "hierarchical")
