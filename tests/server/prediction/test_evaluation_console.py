"""What is shown of an evaluation, on terminals of any width."""

import io

import pytest
from forked_command import rows_of
from made_up_models import dataset_for, features_for, fusion_for, model_for
from rich.console import Console

from common.task import Task
from server.evaluate import diagnose, evaluate, evaluate_rules, evaluate_subsets
from server.prediction.evaluation import Evaluation, show_evaluation
from server.terminal import Terminal

COUNT = 12


def evaluation(task: Task, names: tuple[str, ...] = ()) -> Evaluation:
    features = features_for({"language": [3] * COUNT, "audio": [2] * COUNT, "vision": [4] * COUNT})
    items = dataset_for(features, task)
    model, fusion = model_for(task), fusion_for(task)
    results = {
        "test": evaluate(model, fusion, items),
        "test_by_fusion": evaluate_rules(model, {"reliability": fusion}, items),
        "test_by_subset": evaluate_subsets(model, fusion, items),
        "diagnostics": diagnose(model, fusion, items),
    }
    return Evaluation({"model": "a", "dataset": "b", "items": COUNT}, task, names, results)


def shown(found: Evaluation, width: int | None = None) -> str:
    stream, terminal = io.StringIO(), width is not None
    console = Console(file=stream, force_terminal=terminal, width=width, color_system=None)
    show_evaluation(Terminal(console), found)
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 200, None])
def test_no_figure_is_cut_on_a_narrow_terminal_and_all_go_into_a_file(width: int | None) -> None:
    found = evaluation(Task.regression)
    text = shown(found, width)
    rows = rows_of(text)
    columns = ["corr", *(name for name in found.results["test"]["audio"] if name != "corr")]
    if width == 60:
        columns = ["corr"]
    assert ["", *columns] in [row[: len(columns) + 1] for row in rows]
    for subset, scores in found.results["test_by_subset"].items():
        cells = [subset, *(f"{scores[metric]:.3f}" for metric in columns)]
        assert cells in [row[: len(cells)] for row in rows]
    hint = "more metrics on a wider terminal, and all of them with out=….json"
    assert (hint in text) == (width == 60)
    text = text.replace(hint, "")
    assert width is None or max(map(len, text.splitlines())) <= width
    assert "…" not in text


@pytest.mark.parametrize("names", [(), ("joy", "fear", "[b]awe")])
def test_classes_are_called_by_their_names(names: tuple[str, ...]) -> None:
    said = names or ("0", "1", "2")
    found = evaluation(Task.classification, names)
    rows = rows_of(shown(found))
    diagnosis = found.results["diagnostics"]["multimodal"]
    assert ["", *said] in rows
    for name, each in zip(said, diagnosis["confusion"]["counts"], strict=True):
        assert [f"true {name}", *map(str, each)] in rows
    # An empty bin has empty cells.
    table = diagnosis["calibration"]
    assert None in table["probability"]
    for upper, count, probability, _ in zip(*table.values(), strict=True):
        if probability is None:
            assert [f"{upper:.3f}", str(count), "", ""] in rows


@pytest.mark.parametrize("names", [(), ("joy", "[b]fear")])
def test_every_label_has_its_confusion(names: tuple[str, ...]) -> None:
    said = names or ("label 0", "label 1")
    found = evaluation(Task.multilabel, names)
    lines = shown(found).splitlines()
    counts = found.results["diagnostics"]["multimodal"]["confusion"]["counts"]
    for name, (absent, present) in zip(said, counts, strict=True):
        first = lines.index(f"Confusion of {name}: rows are true, columns predicted")
        rows = rows_of("\n".join(lines[first : first + 7]))
        assert rows[0] == ["", "0", "1"]
        assert rows[1:3] == [["true 0", *map(str, absent)], ["true 1", *map(str, present)]]
