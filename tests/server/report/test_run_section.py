"""What is told of one run, against what is in its folder."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import CLIENTS, MODALITIES, full_record, write_full_run, write_run

from common.errors import UserError
from server.report.diagnosis_parts import MOST_CLASSES, confusion_part
from server.report.palette import modality_pens
from server.report.records import MOST_REJECTIONS
from server.report.results import read_result
from server.report.round_parts import MOST_BARS, MOST_CLIENTS
from server.report.run_section import run_section
from server.report.view import Cell, Chart, Grid, Heat, Notes, Section
from server.run.folder import ROUNDS, SUMMARY

PENS = modality_pens(MODALITIES)


def section_of(folder: Path) -> Section:
    return run_section("run-1", "A run", read_result(folder), PENS, folded=False)


def charts(section: Section) -> dict[str, Chart]:
    return {part.title: part for part in section.parts if isinstance(part, Chart)}


def grids(section: Section) -> dict[str, Grid]:
    return {part.title: part for part in section.parts if isinstance(part, Grid)}


def heats(section: Section) -> dict[str, Heat]:
    return {part.title: part for part in section.parts if isinstance(part, Heat)}


def lines(section: Section) -> list[str]:
    return [line for part in section.parts if isinstance(part, Notes) for line in part.lines]


def change_summary(folder: Path, **parts: Any) -> Path:
    summary = json.loads((folder / SUMMARY).read_text())
    (folder / SUMMARY).write_text(json.dumps(summary | parts))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Section:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return section_of(write_full_run(folder, rejected=["audio-1 (node 7): no reply"]))


def test_all_of_it_is_there(whole: Section) -> None:
    assert list(charts(whole)) == [
        "Modality weights",
        "Decoder weights by layer, round 3",
        "Decoder weights over the rounds",
        "Train loss of each client",
        "Seconds of a round, by phase",
        "Posterior widths over the rounds",
        "Calibration",
    ]
    assert list(heats(whole)) == [
        *(f"Confusions: {name}" for name in ("all modalities", *MODALITIES)),
        "Posterior width by layer and client, round 3",
    ]
    assert list(grids(whole)) == [
        "Rejections: 3",
        "Test scores",
        "Test scores by subset",
        "Test scores by fusion rule",
        "All settings",
    ]
    assert lines(whole) == []
    assert dict(whole.facts) | {"folder": ""} == {
        "folder": "",
        "seed": "1",
        "rounds": "3",
        "seconds": "10",
        "items": "100 train, 10 validation, 20 test",
        "parameters": "1,234",
        "fusion": "reliability",
        "label skew": "0.125",
    }


def test_weights_losses_and_shares_are_those_of_the_rounds(whole: Section) -> None:
    found = charts(whole)
    assert found["Modality weights"].data.header == ("round", *MODALITIES)
    assert found["Modality weights"].data.rows[0] == ("1", "0.5", "0.2", "0.3")
    layers = found["Decoder weights by layer, round 3"].data
    assert layers.header == ("", *MODALITIES)
    assert layers.rows == (
        ("head.weight", "0.35", "0.25", "0.4"),
        ("head.bias", "0.3", "0.5", "0.2"),
    )
    # The medians of two layers.
    over = found["Decoder weights over the rounds"].data
    assert over.rows[0] == ("1", "0.325", "0.375", "0.3")
    losses = found["Train loss of each client"].data
    assert losses.header == ("round", "language-0", "language-1", *CLIENTS[:2], *CLIENTS[4:])
    assert losses.rows[1] == ("2", "2.5", "3.5", "0.5", "1.5", "4.5", "5.5")


def test_time_is_summed_by_phase(whole: Section) -> None:
    assert charts(whole)["Seconds of a round, by phase"].data.rows == (
        ("configure", "0.3", "0.1", "10.0%"),
        ("wait", "1.8", "0.6", "60.0%"),
        ("merge", "0.6", "0.2", "20.0%"),
        ("evaluate", "0.3", "0.1", "10.0%"),
    )


def test_widths_are_stronger_the_wider_on_a_logarithmic_scale(whole: Section) -> None:
    heat = heats(whole)["Posterior width by layer and client, round 3"]
    assert heat.columns == ("language-0", "language-1", *CLIENTS[:2], *CLIENTS[4:])
    (embed, norm) = heat.rows
    assert embed == ("encoder.embed", (Cell("1.5", 0),) * 6)
    widths = [4, 5, 2, 3, 6, 7]
    assert norm[0] == "encoder.norm"
    assert norm[1] == tuple(
        Cell(str(width), round(8 * math.log(width / 1.5) / math.log(7 / 1.5))) for width in widths
    )


def test_widths_over_the_rounds_are_medians_of_medians(whole: Section) -> None:
    rows = charts(whole)["Posterior widths over the rounds"].data.rows
    # Of audio-0 in round 1: of 0.5 and 2; of audio-1: of 0.5 and 3.
    audio = ((0.5 + 2) / 2 + (0.5 + 3) / 2) / 2
    assert rows[0][2] == f"{audio:g}"


def test_a_last_round_without_precisions_is_said(tmp_path: Path) -> None:
    folder = write_full_run(tmp_path / "a", rounds=2)
    with (folder / ROUNDS).open("a") as file:
        file.write(json.dumps(full_record(3, posterior_widths={})) + "\n")
    (heat,) = (each for title, each in heats(section_of(folder)).items() if "width" in title)
    assert heat.title.endswith("round 2")
    assert heat.note.endswith("Round 2 is the last in which clients sent precisions.")


def test_calibration_and_confusions_are_those_of_the_summary(whole: Section) -> None:
    data = charts(whole)["Calibration"].data
    assert data.header == ("", "nominal", "observed", "width")
    assert data.rows[:3] == (
        ("all modalities", "0.1", "0.2", "1"),
        ("all modalities", "0.5", "0.4", "2"),
        ("all modalities", "0.9", "0.8", "4"),
    )
    heat = heats(whole)["Confusions: all modalities"]
    assert heat.columns == ("-1", "0", "1")
    assert heat.rows == (
        ("-1", (Cell("8", 6), Cell("2", 2), Cell("0", 0))),
        ("0", (Cell("1", 1), Cell("9", 7), Cell("0", 0))),
        ("1", (Cell("0", 0), Cell("0", 0), Cell("0", 0))),
    )
    assert heat.note and not heats(whole)["Confusions: audio"].note


def test_every_rejection_is_told_with_its_round(whole: Section) -> None:
    grid = grids(whole)["Rejections: 3"]
    assert grid.rows == tuple((str(n), "audio-1 (node 7): no reply") for n in (1, 2, 3))
    assert grid.note == ""


def test_scores_have_every_metric(whole: Section) -> None:
    grid = grids(whole)["Test scores"]
    assert grid.header == ("", "corr", "mae")
    assert grid.rows[1] == ("language", "0.410", "1.000")
    assert grids(whole)["Test scores by subset"].rows == (("language+audio", "0.510", "1.000"),)
    settings = dict(grids(whole)["All settings"].rows)  # type: ignore[arg-type]
    assert settings["strategy.name"] == "hierarchical" and settings["seed"] == "1"


def test_an_older_run_says_what_it_did_not_record(tmp_path: Path) -> None:
    section = section_of(write_run(tmp_path / "a"))
    assert charts(section) == heats(section) == {}
    assert lines(section) == [
        "Modality weights: nothing is weighted in this run.",
        *(
            f"{what}: the version that made this run did not record them."
            for what in (
                "Decoder weights",
                "Client losses",
                "Seconds of the rounds",
                "Posterior widths",
            )
        ),
        "Rejections: no client failed, and no update was refused.",
        "Confusions and calibration: the version that made this run did not record them.",
    ]
    assert list(grids(section)) == ["Test scores", "All settings"]


def test_a_run_that_has_nothing_of_a_kind_says_why(tmp_path: Path) -> None:
    kinds = ("fusion_weights", "decoder_weights", "posterior_widths", "client_losses")
    nothing: dict[str, Any] = {kind: {} for kind in kinds}
    folder = change_summary(write_full_run(tmp_path / "a", **nothing), diagnostics={})
    assert lines(section_of(folder)) == [
        "Modality weights: nothing is weighted in this run.",
        "Decoder weights: this run has no merged decoder, or a rule without weights.",
        "Client losses: no client trains by itself here.",
        "Posterior widths: no client sent a precision, as where weights are averaged.",
        "Rejections: no client failed, and no update was refused.",
        "Confusions and calibration: no one model predicts in this run.",
    ]


def test_a_round_without_phases_is_one_bar(tmp_path: Path) -> None:
    section = section_of(write_full_run(tmp_path / "a", phases={}))
    chart = charts(section)["Seconds of a round"]
    assert chart.data.rows == (("round", "3", "1", "100.0%"),)
    assert "did not record phases" in chart.note


def test_a_model_without_deviations_has_confusions_only(tmp_path: Path) -> None:
    each = {"confusion": {"classes": [0, 1], "counts": [[1, 2], [3, 4]]}}
    folder = change_summary(write_full_run(tmp_path / "a"), diagnostics={"multimodal": each})
    section = section_of(folder)
    assert "Calibration" not in charts(section) and "Confusions: all modalities" in heats(section)
    assert "Calibration: this model gives its numbers without a deviation." in lines(section)


def test_empty_bins_are_gaps(tmp_path: Path) -> None:
    table = {
        "upper": [0.5, 1],
        "count": [0, 4],
        "probability": [None, 0.75],
        "frequency": [None, 1],
    }
    each = {"confusion": {"classes": [0], "counts": [[4]]}, "calibration": table}
    folder = change_summary(write_full_run(tmp_path / "a"), diagnostics={"audio": each})
    chart = charts(section_of(folder))["Calibration"]
    assert chart.data.rows == (
        ("audio", "0.5", "0", "n/a", "n/a"),
        ("audio", "1", "4", "0.75", "1"),
    )
    assert "frequency against probability: audio from 1 to 1" in chart.svg


# Large runs -------------------------------------------------------------------------------------


def test_many_clients_are_told_by_their_modality(tmp_path: Path) -> None:
    names = [f"{name}-{part}" for name in MODALITIES for part in range(1 + MOST_CLIENTS // 3)]
    losses = {name: float(name.rpartition("-")[2]) for name in names}
    widths = {name: {"encoder.embed": 1 + loss} for name, loss in losses.items()}
    parts = {"client_losses": losses, "posterior_widths": widths}
    section = section_of(write_full_run(tmp_path / "a", **parts))
    chart = charts(section)["Train loss of each client"]
    assert chart.data.header == ("round", *MODALITIES)
    assert chart.data.rows[0] == ("1", "5", "5", "5")
    assert chart.note.startswith("33 clients, more than 30: ")
    heat = heats(section)["Posterior width by layer and client, round 3"]
    assert heat.columns == MODALITIES
    assert heat.rows == (("encoder.embed", (Cell("6", 4),) * 3),)
    assert "33 clients: the medians of each modality's." in heat.note


def test_many_rounds_share_bars(tmp_path: Path) -> None:
    folder = write_full_run(tmp_path / "a", rounds=1)
    count = 2 * MOST_BARS + 1
    records = [full_record(1, round=n, phases={"wait": n}) for n in range(1, count + 1)]
    (folder / ROUNDS).write_text("".join(json.dumps(each) + "\n" for each in records))
    chart = charts(section_of(folder))["Seconds of a round, by phase"]
    assert chart.note.startswith("Each bar is the mean of 3 rounds.")
    assert chart.data.rows == (
        ("wait", str(count * (count + 1) // 2), str((count + 1) // 2), "100.0%"),
    )
    bars = chart.svg.count('fill="var(--step-0)"')
    assert 41 <= bars <= 43  # and one or two of the legend


def test_many_rejections_are_counted(tmp_path: Path) -> None:
    section = section_of(write_full_run(tmp_path / "a", rejected=["late"] * MOST_REJECTIONS))
    grid = grids(section)[f"Rejections: {3 * MOST_REJECTIONS}"]
    assert len(grid.rows) == MOST_REJECTIONS
    assert grid.note == f"The first {MOST_REJECTIONS} of {3 * MOST_REJECTIONS}."


def test_of_many_classes_the_greatest_confusions_are_told() -> None:
    size = MOST_CLASSES + 1
    counts = [[10 if row == column else 0 for column in range(size)] for row in range(size)]
    counts[3][4], counts[5][0] = 30, 10
    part = confusion_part("audio", {"classes": list(range(size)), "counts": counts})
    assert isinstance(part, Grid)
    assert part.rows == (("3", "4", "30", "75%"), ("5", "0", "10", "50%"))
    assert part.note == f"{size} classes; {10 * size} of {10 * size + 40} items are right."


def test_labels_have_a_row_each() -> None:
    counts = [[[50, 10], [5, 20]], [[9, 0], [0, 0]]]
    part = confusion_part("audio", {"classes": [0, 1], "counts": counts})
    assert isinstance(part, Grid)
    assert part.rows == (
        ("0", "20", "10", "5", "50", "0.67", "0.80"),
        ("1", "0", "0", "0", "9", "n/a", "n/a"),
    )


# Damage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "diagnostics",
    [
        [1],
        {"audio": 1},
        {"audio": {"calibration": {"nominal": [1]}}},
        {"audio": {"confusion": {"classes": [0, 1], "counts": [[1, 2]]}}},
        {"audio": {"confusion": {"classes": [0], "counts": [["x"]]}}},
        {"audio": {"confusion": {"classes": [0], "counts": []}, "calibration": {"nominal": ["x"]}}},
    ],
)
def test_damaged_diagnostics_are_one_line(tmp_path: Path, diagnostics: Any) -> None:
    folder = change_summary(write_full_run(tmp_path / "a"), diagnostics=diagnostics)
    with pytest.raises(UserError, match=r"^[^\n]*summary\.json is damaged: diagnostics: [^\n]*$"):
        section_of(folder)
