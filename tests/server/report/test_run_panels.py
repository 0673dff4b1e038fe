"""The report of one run, against what is in its folder."""

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import (
    MODALITIES,
    change_summary,
    full_record,
    write_full_run,
    write_rounds,
    write_run,
)

from common.errors import UserError
from server.report.diagnosis_panels import MOST_CLASSES, confusion_panel
from server.report.figures import STEP_COLOURS, modality_pens
from server.report.panels import Cell, Panel, Section, as_csv, shown
from server.report.records import MOST_POINTS, MOST_REJECTIONS, read_result
from server.report.run_panels import MOST_BARS, MOST_CLIENTS, run_section

PENS = modality_pens(MODALITIES)

#: In the order of the modalities.
CLIENTS = tuple(f"{name}-{part}" for name in MODALITIES for part in (0, 1))


def section_of(folder: Path) -> Section:
    return run_section("run-1", "A run", read_result(folder), PENS, folded=False)


def everything(section: Section) -> list[Panel]:
    """The panels of a run, those of its training last."""
    (training,) = section.sections
    assert training.folded
    return [*section.panels, *training.panels]


def panel_of(section: Section, title: str) -> Panel:
    (panel,) = (panel for panel in everything(section) if panel.title.startswith(title))
    return panel


def rows_of(section: Section, title: str) -> list[list[str | Cell]]:
    return [list(row) for row in panel_of(section, title).rows]


def lines(section: Section) -> list[str]:
    return [line for panel in everything(section) for line in panel.lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Section:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return section_of(write_full_run(folder, rejected=["audio-1 (node 7): no reply"]))


def test_all_of_it_is_there(whole: Section) -> None:
    kinds = ["chart", *["heat"] * 4, "lines", *["table"] * 3, "words"]
    assert [panel.kind for panel in whole.panels] == kinds
    (training,) = whole.sections
    assert [panel.kind for panel in training.panels] == [*["chart"] * 6, "wide heat"]
    facts = "|".join(f"{name} {value}" for name, value in whole.facts[1:])
    assert facts == (
        "seed 1|rounds 3|delivered round 2|seconds 10|items 100 train, 10 validation, 20 test|"
        "parameters 1,234|fusion reliability|label skew 0.125"
    )
    # Only the first of them is explained.
    assert [bool(panel.note) for panel in whole.of_kind("heat")] == [True, False, False, False]
    settings = rows_of(whole, "All settings")
    assert ["strategy.name", "hierarchical"] in settings and ["seed", "1"] in settings


@pytest.mark.parametrize(
    ("title", "header", "first"),
    [
        ("Modality weights", "round|language|audio|vision", "1|0.5|0.2|0.3"),
        (
            "Decoder weights by layer, round 3",
            "|language|audio|vision",
            "head.weight|0.35|0.25|0.4",
        ),
        # The medians of two layers.
        ("Decoder weights over", "round|language|audio|vision", "1|0.325|0.375|0.3"),
        ("Train loss", f"round|{'|'.join(CLIENTS)}", "1|3|4|1|2|5|6"),
        ("Seconds of a round", "phase|seconds|a round|share", "configure|0.3|0.1|10.0%"),
        # Of audio-0 the median of 0.5 and 2, of audio-1 that of 0.5 and 3; and of both the median.
        ("Posterior widths over the rounds", "round|language|audio|vision", "1|2.5|1.5|3.5"),
        ("Calibration", "|nominal|observed|width", "all modalities|0.1|0.2|1"),
        ("Confusions: all", "truth|-1|0|1", "-1|8 (6)|2 (2)|0 (0)"),
        ("Rejections: 3", "round|what", "1|audio-1 (node 7): no reply"),
        ("Test scores by subset", "|corr|mae", "language+audio|0.510|1.000"),
        ("Test scores by fusion", "|corr|mae", "mean|0.510|1.000"),
    ],
)
def test_a_panel_shows_what_was_recorded(
    whole: Section, title: str, header: str, first: str
) -> None:
    panel = panel_of(whole, title)
    cells = (f"{c.text} ({c.level})" if isinstance(c, Cell) else c for c in panel.rows[0])
    assert ("|".join(panel.header), "|".join(cells)) == (header, first)


def test_widths_are_stronger_the_wider_on_a_logarithmic_scale(whole: Section) -> None:
    assert panel_of(whole, "Posterior width by").header == ("layer", *CLIENTS)
    levels = [8 * math.log(width / 1.5) / math.log(7 / 1.5) for width in (4, 5, 2, 3, 6, 7)]
    assert rows_of(whole, "Posterior width by") == [
        ["encoder.embed", *[Cell("1.5", 0)] * 6],
        ["encoder.norm", *map(Cell, "452367", map(round, levels))],
    ]


# What is missing --------------------------------------------------------------------------------


def test_what_is_missing_is_explained(tmp_path: Path) -> None:
    """By an older version that did not record it, or by a run that has nothing of the kind."""
    older = section_of(write_run(tmp_path / "older"))
    kinds = ("fusion_weights", "decoder_weights", "posterior_widths", "client_losses")
    run = write_full_run(tmp_path / "nothing", **{kind: {} for kind in kinds})
    nothing = section_of(change_summary(run, diagnostics={}))
    rejections, *whys = sorted(lines(nothing), key=lambda line: not line.startswith("Rejections"))
    assert rejections == "Rejections: no client failed, and no update was refused."
    assert sorted(why.partition(": ")[::2] for why in whys) == [
        ("Client losses", "no client trains by itself here."),
        ("Confusions and calibration", "this run has no single model that predicts."),
        ("Decoder weights", "this run has no merged decoder, or a rule without weights."),
        ("Modality weights", "nothing is weighted in this run."),
        ("Posterior widths", "no client sent a precision, as where weights are averaged."),
    ]
    why = "the version that made this run did not record them."
    names = [*(why.partition(":")[0] for why in whys), "Seconds of the rounds"]
    assert {*lines(older)} == {rejections, *(f"{what}: {why}" for what in names)}
    titles = [panel.title for panel in everything(older)]
    missing = "Not shown, and why"
    assert titles == ["Test scores", "All settings", missing, missing]


def test_rounds_without_phases_or_precisions_say_so(tmp_path: Path) -> None:
    records = [full_record(number, phases={}) for number in (1, 2)]
    last = full_record(3, posterior_widths={}, phases={})
    section = section_of(write_rounds(write_full_run(tmp_path / "a"), *records, last))
    assert rows_of(section, "Seconds of a round") == [["round", "3", "1", "100.0%"]]
    assert "did not record phases" in panel_of(section, "Seconds of a round").note
    heat = panel_of(section, "Posterior width by layer and client, round 2")
    assert heat.note.endswith("Round 2 is the last in which clients sent precisions.")


def test_without_deviations_there_is_no_calibration_and_empty_bins_are_gaps(tmp_path: Path) -> None:
    folder = write_full_run(tmp_path / "a")
    parts: dict[str, Any] = {"confusion": {"classes": [0, 1], "counts": [[1, 2], [3, 4]]}}
    section = section_of(change_summary(folder, diagnostics={"multimodal": parts}))
    assert panel_of(section, "Confusions: all modalities").rows
    assert "Calibration: this model predicts numbers without a deviation." in lines(section)
    shares = {"probability": [None, 0.75], "frequency": [None, 1]}
    parts["calibration"] = {"upper": [0.5, 1], "count": [0, 4], **shares}
    section = section_of(change_summary(folder, diagnostics={"audio": parts}))
    expected = [["audio", "0.5", "0", "n/a", "n/a"], ["audio", "1", "4", "0.75", "1"]]
    assert rows_of(section, "Calibration") == expected
    assert panel_of(section, "Calibration").note.startswith("Bins of equal width.")


# Large runs -------------------------------------------------------------------------------------


def test_many_clients_are_shown_by_their_modality(tmp_path: Path) -> None:
    names = [f"{name}-{part}" for name in MODALITIES for part in range(1 + MOST_CLIENTS // 3)]
    losses = {name: float(name.rpartition("-")[2]) for name in names}
    widths = {name: {"encoder.embed": 1 + loss} for name, loss in losses.items()}
    parts = {"client_losses": losses, "posterior_widths": widths}
    section = section_of(write_full_run(tmp_path / "a", **parts))
    chart = panel_of(section, "Train loss of each client")
    assert chart.header == ("round", *MODALITIES)
    assert list(chart.rows[0]) == ["1", "5", "5", "5"]
    assert chart.note.startswith("33 clients, more than 30: ")
    heat = panel_of(section, "Posterior width by")
    assert heat.header == ("layer", *MODALITIES)
    assert list(heat.rows[0]) == ["encoder.embed", *[Cell("6", 4)] * 3]
    assert "33 clients: the medians of each modality's." in heat.note


def test_of_a_long_run_seconds_and_rejections_are_counted_in_all_rounds(tmp_path: Path) -> None:
    count = 2 * MOST_BARS + 1
    parts = {"phases": {"wait": 2.0}, "rejected": ["late"]}
    section = section_of(write_full_run(tmp_path / "a", rounds=count, **parts))
    chart = panel_of(section, "Seconds of a round, by phase")
    assert chart.note.startswith("Each bar is the mean of 3 rounds.")
    assert list(chart.rows[0]) == ["wait", str(2 * count), "2", "100.0%"]
    svg = base64.b64decode(chart.image.partition(",")[2]).decode()
    assert svg.count(f"fill: {STEP_COLOURS[0]}") == 2 * MOST_BARS // 3 + 1
    rejections = panel_of(section, f"Rejections: {count}")
    assert len(rejections.rows) == MOST_REJECTIONS
    assert rejections.note == f"The first {MOST_REJECTIONS} of {count}."
    losses = rows_of(section, "Train loss of each client")
    assert len(losses) == MOST_POINTS and (losses[0][0], losses[-1][0]) == ("1", str(count))


def test_a_bar_of_many_rounds_leaves_out_those_without_seconds(tmp_path: Path) -> None:
    images = []
    for unknown in (2.0, None):
        waits = [2.0, unknown, *[2.0] * (2 * MOST_BARS)]
        records = [full_record(n, phases={"wait": wait}) for n, wait in enumerate(waits, 1)]
        run = write_rounds(write_full_run(tmp_path / str(unknown)), *records)
        images.append(panel_of(section_of(run), "Seconds of a round, by phase").image)
    assert images[0] == images[1]


def test_of_many_classes_the_greatest_confusions_are_listed() -> None:
    size = MOST_CLASSES + 1
    counts = [[10 if row == column else 0 for column in range(size)] for row in range(size)]
    counts[3][4], counts[5][0] = 30, 10
    panel = confusion_panel("audio", {"classes": list(range(size)), "counts": counts})
    assert panel.rows == [("3", "4", "30", "75%"), ("5", "0", "10", "50%")]
    assert panel.note == f"{size} classes; {10 * size} of {10 * size + 40} items are right."


def test_labels_have_a_row_each() -> None:
    counts = [[[50, 10], [5, 20]], [[9, 0], [0, 0]]]
    rows = confusion_panel("audio", {"classes": [0, 1], "counts": counts}).rows
    assert [" ".join(map(str, row)) for row in rows] == [
        "0 20 10 5 50 0.67 0.80",
        "1 0 0 0 9 n/a n/a",
    ]


@pytest.mark.parametrize("calibrated", [True, False])
def test_numbers_without_confusions(tmp_path: Path, calibrated: bool) -> None:
    table = {"nominal": [0.5], "observed": [0.4], "width": [2.0]}
    parts = {"calibration": table} if calibrated else {}
    folder = change_summary(
        write_full_run(tmp_path / "a"), diagnostics={"multimodal": parts, "audio": parts}
    )
    section = section_of(folder)
    titles = [panel.title for panel in everything(section)]
    assert not any("onfusions" in said for said in [*titles, *lines(section)])
    assert ("Calibration" in titles) == calibrated
    without = "Calibration: this model predicts numbers without a deviation."
    assert (without in lines(section)) != calibrated


def test_numbers_are_shown_against_the_truth_each_at_its_place(tmp_path: Path) -> None:
    pairs = {"truth": [0.0, 2.0, 4.0], "predicted": [1.0, 1.0, 3.0]}
    diagnostics = {"multimodal": {"predictions": pairs}, "audio": {"predictions": pairs}}
    panel = panel_of(
        section_of(change_summary(write_full_run(tmp_path / "a"), diagnostics=diagnostics)),
        "Predicted against true",
    )
    assert panel.rows == [["0", "1"], ["2", "1"], ["4", "3"]]
    (x0, y0), (x1, y1), (x2, y2) = json.loads(panel.places)
    assert 0 < x0 < x1 < x2 < 1 and x1 - x0 == pytest.approx(x2 - x1, abs=1e-3)
    assert y0 == y1 > y2 > 0  # from above
    content = base64.b64decode(as_csv(panel).partition("base64,")[2]).decode()
    assert content == "truth,predicted\n0,1\n2,1\n4,3\n"


def test_the_verdict_of_a_run_is_among_its_facts(tmp_path: Path) -> None:
    known = {"against": "predicting the mean", "metric": "mae", "score": 0.5, "other": 0.75}
    given = [known | {"margin": 0.125, "clear": True}]
    run = change_summary(write_full_run(tmp_path / "a"), comparisons=given)
    facts = dict(section_of(run).facts)
    said = "better than predicting the mean: mae 0.500 against 0.750 (± 0.125)"
    assert facts["verdict"] == said


def test_numbers_are_short() -> None:
    values = (0.65432, 12345.0, -0.00012345, 1e9, math.inf, math.nan, 0.0)
    assert " ".join(map(shown, values)) == "0.6543 12345 -0.0001234 1e+09 inf n/a 0"


@pytest.mark.parametrize(
    "diagnostics",
    [
        [1],
        {"audio": 1},
        {"audio": {"calibration": {"nominal": [1]}}},
        {
            "audio": {"calibration": {"nominal": [1], "observed": [1]}},
            "vision": {"calibration": {"nominal": [1], "observed": [1], "surplus": [1]}},
        },
        {"audio": {"confusion": {"classes": [0, 1], "counts": [[1, 2]]}}},
        {"audio": {"confusion": {"classes": [0], "counts": [["x"]]}}},
        {"audio": {"confusion": {"classes": [0], "counts": []}, "calibration": {"nominal": ["x"]}}},
    ],
)
def test_damaged_diagnostics_are_one_line(tmp_path: Path, diagnostics: Any) -> None:
    folder = change_summary(write_full_run(tmp_path / "a"), diagnostics=diagnostics)
    with pytest.raises(UserError, match=r"^.*summary\.json is damaged: .*diagnostics: .*$"):
        section_of(folder)
