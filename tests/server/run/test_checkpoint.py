"""Checkpoints: to the bit, the last ones and the best, and damage costs a round and not the run."""

import errno
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from broken_runs import damage
from data_checks import files
from made_up_checkpoints import checkpoint
from wire import assert_same

from common.errors import UserError
from common.seal import read_sealed, write_sealed
from server.model_file import CHECKPOINT
from server.run.checkpoint import Checkpoint, Checkpoints, read_checkpoint


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


def latest(kept: Checkpoints) -> Checkpoint:
    newest = kept.latest(pytest.fail)
    assert newest is not None
    return newest


def names(kept: Checkpoints) -> list[str]:
    """All that is in the folder, hidden files too."""
    return sorted(path.name for path in kept.folder.iterdir())


# What goes in comes out ---------------------------------------------------------------------------


@pytest.mark.parametrize("moments", [True, False])
def test_what_is_saved_is_read_to_the_bit(kept: Checkpoints, moments: bool) -> None:
    given = checkpoint(4, moments=moments)
    bits = torch.tensor([0x7FC00001, 0x7F800000, -0x80000000, 1], dtype=torch.int32)
    extra = {"a/b.ü": bits.view(torch.float32), "turned": torch.arange(6.0).view(2, 3).T}
    given = replace(given, model={**given.model, **extra})
    kept.save(given)
    assert_same(latest(kept), given)
    assert_same(read_checkpoint(kept.path(4)), given)
    content = kept.path(4).read_bytes()
    kept.save(given)
    assert kept.path(4).read_bytes() == content


def test_what_is_read_can_be_trained_on_and_is_no_part_of_the_file(kept: Checkpoints) -> None:
    kept.save(checkpoint(1))
    read = latest(kept)
    for tensor in [*read.model.values(), *read.strategy.calibration_sums.values()]:
        tensor += 1
    assert_same(latest(kept), checkpoint(1))
    kept.path(1).write_bytes(b"")  # a mapped file would now end the process
    assert all(torch.isfinite(tensor).all() for tensor in read.model.values())


# Which are kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 10])
def test_the_last_ones_are_kept_and_nothing_aside(kept: Checkpoints, keep: int) -> None:
    kept, saved = replace(kept, keep=keep), [2, 10, 999_999, 1_000_000]
    for count, number in enumerate(saved, start=1):
        kept.save(checkpoint(number))
        expected = saved[:count][-keep:]
        assert kept.rounds() == expected
        assert names(kept) == sorted(f"round-{each:06d}.safetensors" for each in expected)
    assert_same(latest(kept), checkpoint(1_000_000))


def test_the_best_is_kept_too_as_long_as_it_is_the_best(kept: Checkpoints) -> None:
    bests = (1, 1, 1, 1, 5, 5, 5, None)
    expected = "1 12 123 134 45 56 567 78"
    for number, (best, rounds) in enumerate(zip(bests, expected.split(), strict=True), start=1):
        kept.save(checkpoint(number), best)
        assert kept.rounds() == list(map(int, rounds))
    assert_same(read_checkpoint(kept.path(7)), checkpoint(7))


def test_what_a_kill_left_goes_with_the_next_and_users_files_stay(
    kept: Checkpoints,
) -> None:
    assert kept.latest(pytest.fail) is None and kept.rounds() == []
    kept.folder.mkdir()
    (kept.folder / "notes.txt").write_text("mine")
    for name in (".round-000001.safetensors.part", ".tmpAbCdEf"):
        (kept.folder / name).write_bytes(b"half")
    assert kept.latest(pytest.fail) is None and kept.rounds() == []
    kept.save(checkpoint(1))
    assert names(kept) == ["notes.txt", "round-000001.safetensors"]
    assert (kept.folder / "notes.txt").read_text() == "mine"


# Damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil", [damage, *(partial(os.truncate, length=length) for length in (0, 1000))]
)
def test_a_damaged_one_costs_its_round_and_one_warning_and_all_are_an_error(
    kept: Checkpoints, spoil: Callable[[Path], None]
) -> None:
    for number in (1, 2):
        kept.save(checkpoint(number))
    path, warnings = kept.path(2), list[str]()
    spoil(path)
    intact = kept.latest(warnings.append)
    assert intact is not None
    assert_same(intact, checkpoint(1))
    (line,) = warnings
    assert line.startswith(f"checkpoint {path} ") and line.endswith("; trying the one before")
    assert "\n" not in line
    damage(kept.path(1))
    with pytest.raises(UserError, match=f"no checkpoint in {kept.folder} .* start a new run"):
        kept.latest(warnings.append)
    assert [line.split()[1] for line in warnings[1:]] == [str(path), str(kept.path(1))]


def test_the_one_that_is_done_again_stays_though_a_later_one_was_damaged(kept: Checkpoints) -> None:
    kept = replace(kept, keep=1)
    kept.save(checkpoint(1))
    kept.save(checkpoint(3), best=1)
    damage(kept.path(3))
    kept.save(checkpoint(2), best=1)
    assert kept.rounds() == [1, 2]
    assert_same(latest(kept), checkpoint(2))


def test_another_format_or_no_file_is_refused_with_the_reason(kept: Checkpoints) -> None:
    kept.save(checkpoint(1))
    header, tensors, _ = read_sealed(kept.path(1))
    del header["seal"]
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    for other in ("ha-fedformer-checkpoint-0", None):
        write_sealed(kept.path(2), arrays, {**header, "format": other})
        with pytest.raises(UserError, match=f"has format {other}, expected {CHECKPOINT}"):
            read_checkpoint(kept.path(2))
    with pytest.raises(UserError, match=r"3\.safetensors cannot be read: No such file"):
        read_checkpoint(kept.path(3))
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(kept.folder)


# No room ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5_000])
def test_a_file_that_may_not_be_so_large_leaves_all_as_it_was(kept: Checkpoints, size: int) -> None:
    for number in (1, 2):
        kept.save(checkpoint(number, size=1000))
    assert kept.path(2).stat().st_size > 40_000
    before, former = files(kept.folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            kept.save(checkpoint(3, size=1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert files(kept.folder) == before
    kept.save(checkpoint(3, size=1000))
    assert kept.rounds() == [2, 3]
