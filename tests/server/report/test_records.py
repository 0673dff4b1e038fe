"""What a run recorded is read as it is, of any version, and damage is named with its line."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import CLIENTS, full_record, write_full_run, write_run

from common.errors import UserError
from server.report.records import (
    MOST_POINTS,
    MOST_REJECTIONS,
    merged_rounds,
    read_curves,
    read_details,
    thinned,
)
from server.run.folder import ROUNDS, SUMMARY


def write_rounds(folder: Path, *records: dict[str, Any]) -> str:
    (folder / ROUNDS).write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)


def test_curves_are_those_of_the_rounds(tmp_path: Path) -> None:
    folder = str(write_full_run(tmp_path / "a", rounds=3))
    curves = read_curves(folder, "corr")
    assert curves["losses"]["audio"] == pytest.approx({1: 3, 2: 2, 3: 1 + 2 / 3})
    assert curves["scores"]["vision"] == pytest.approx({1: -0.04, 2: 0.06, 3: 0.16})
    assert curves["weights"]["language"] == {1: 0.5, 2: 0.5, 3: 0.5}
    assert list(curves["scores"]) == ["multimodal", "language", "audio", "vision"]
    assert read_curves(folder, "bleu")["scores"] == {}


def test_details_are_those_of_the_rounds(tmp_path: Path) -> None:
    details = read_details(str(write_full_run(tmp_path / "a", rejected=["audio-1: <late>"])))
    assert details.count == 3
    assert details.fusion["vision"] == {1: 0.3, 2: 0.3, 3: 0.3}
    assert details.losses["language-1"] == pytest.approx({1: 4, 2: 3.5, 3: 3 + 1 / 3})
    assert details.decoder[2]["head.bias"] == {"audio": 0.5, "language": 0.3, "vision": 0.2}
    assert list(details.widths[3]) == list(CLIENTS)
    assert details.widths[3]["audio-0"] == {"encoder.embed": 1.5, "encoder.norm": 2.0}
    assert details.seconds[1] == {"configure": 0.1, "wait": 0.6, "merge": 0.2, "evaluate": 0.1}
    assert details.rejections == [(number, "audio-1: <late>") for number in (1, 2, 3)]
    assert details.summary["parameters"] == 1234


def test_a_run_without_details_or_rounds_has_less(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    details = read_details(str(folder))
    assert (details.count, details.rejected) == (2, 0)
    assert not (details.fusion or details.losses or details.decoder or details.widths)
    assert details.seconds == {} and "client_losses" not in details.recorded
    (folder / ROUNDS).unlink()
    assert read_details(str(folder)).count == 0
    assert not any(read_curves(str(folder), "corr").values())


def test_null_and_nan_are_gaps(tmp_path: Path) -> None:
    folder = write_rounds(
        write_run(tmp_path / "a"),
        {"round": 1, "seconds": 2.5, "train_loss": {"audio": math.nan}},
        {"round": 2, "seconds": None, "validation": {"audio": {"corr": None}}},
    )
    seconds, curves = read_details(folder).seconds, read_curves(folder, "corr")
    assert seconds[1] == {"": 2.5} and math.isnan(seconds[2][""])
    assert math.isnan(curves["losses"]["audio"][1]) and math.isnan(curves["scores"]["audio"][2])


def test_of_a_long_run_some_rounds_are_kept_but_all_seconds(tmp_path: Path) -> None:
    count = 10 * MOST_POINTS
    line = full_record(1, rejected=["one", "other"])
    rounds = [{**line, "round": number} for number in range(1, count + 1)]
    details = read_details(write_rounds(write_run(tmp_path / "a"), *rounds))
    assert details.count == count == len(details.seconds)
    assert len(details.decoder) == len(details.fusion["audio"]) == MOST_POINTS
    assert {1, count} <= details.decoder.keys()
    assert details.rejected == 2 * count and len(details.rejections) == MOST_REJECTIONS


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (6, 5), (3000, 100), (7, 2)])
def test_thinned_places_are_spread_evenly(count: int, most: int) -> None:
    places = thinned(count, most)
    assert len(places) == min(count, most) and places == sorted(set(places))
    assert not count or (places[0], places[-1]) == (0, count - 1)
    gaps = [after - before for before, after in pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_rounds_of_several_series_are_put_together() -> None:
    assert merged_rounds([{1: 0.0, 3: 0.0}, {2: 0.0, 3: 0.0}]) == [1, 2, 3]
    assert len(merged_rounds([dict.fromkeys(range(5 * MOST_POINTS))])) == MOST_POINTS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"round": 1', "JSONDecodeError: "),
        (b"3", "TypeError: "),
        (b"\xff\xfe", "UnicodeDecodeError: "),
        (b"{}", "KeyError: 'round'"),
        (b'{"round": "one"}', "TypeError: round 'one' is not an integer"),
        (b'{"round": 2, "client_losses": [1]}', "AttributeError: "),
        (b'{"round": 2, "client_losses": {"audio-0": "much"}}', "ValueError: "),
        (b'{"round": 2, "decoder_weights": {"head": 3}}', "AttributeError: "),
        (b'{"round": 2, "phases": {"wait": []}}', "TypeError: "),
        (b'{"round": 2, "rejected": 7}', "TypeError: "),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / ROUNDS).write_bytes(b'{"round": 1}\n' + line + b"\n")
    with pytest.raises(UserError) as raised:
        read_details(str(folder))
    assert str(raised.value).startswith(f"{folder / ROUNDS} is damaged: line 2: {reason}")
    assert "\n" not in str(raised.value)


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / SUMMARY).write_text("[1]")
    with pytest.raises(UserError, match=r"summary\.json is damaged: summary: TypeError"):
        read_details(str(folder))
