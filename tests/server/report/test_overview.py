"""All runs side by side, with what was swept."""

import csv
import io
from typing import Any

from made_up_runs import result

from server.report.overview import overview, runs_csv, varied

KEYS = ("clients.default", "client.lr", "strategy.name", "strategy.weights", "run_dir")


def runs() -> list[Any]:
    """A sweep of two settings; the strategies bring others with them."""
    made = []
    for method, weights in (("hier", "examples"), ("fedavg", "uniform")):
        for count in (16, 8):
            settings = {"clients.default": str(count), "client.lr": "1", "run_dir": f"r{method}"}
            settings |= {"strategy.weights": weights}
            parts = {"test_constant": {"mae": 1.25}, "delivered_round": 3}
            made.append(result(method, 1, count / 20, settings=settings, **parts))
    return made


def test_a_choice_from_a_group_stands_for_what_it_brings() -> None:
    assert varied(runs()) == ["strategy.name", "clients.default"]
    same = [each for each in runs() if each.settings["strategy.name"] == "hier"]
    assert varied(same) == ["clients.default"]


def test_there_is_a_row_for_each_run_in_the_order_of_the_settings() -> None:
    section = overview(runs())
    table, picture = section.panels
    assert section.title == "All 4 runs"
    assert list(table.header) == [
        *("strategy", "default", "corr", "mae", "constant", "best alone", "round"),
    ]
    assert [row[:3] for row in table.rows] == [
        ["fedavg", "8", "0.400"],
        ["fedavg", "16", "0.800"],
        ["hier", "8", "0.400"],
        ["hier", "16", "0.800"],
    ]
    assert list(table.rows[0][3:]) == ["n/a", "1.250", "audio 0.200", "3"]
    assert picture.rows[0][0] == "strategy=fedavg, default=8"
    assert picture.file == "runs.png" and picture.png.startswith(b"\x89PNG")


def test_more_runs_than_a_chart_holds_have_a_table_alone() -> None:
    many = [result("a", seed, settings={"rounds": "1"}) for seed in range(50)]
    (table,) = overview(many).panels
    assert len(table.rows) == 50 and table.header[0] == "seed"


def test_the_file_has_names_in_full_and_every_score() -> None:
    rows = list(csv.DictReader(io.StringIO(runs_csv(runs()).decode())))
    assert len(rows) == 4
    assert rows[0] == {
        "folder": "hier/regression/16/1/rhier/examples/1",
        **{"strategy.name": "hier", "clients.default": "16", "corr": "0.8"},
        **{"delivered_round": "3", "seconds": "10.0", "megabytes_up": "1.0"},
    }
