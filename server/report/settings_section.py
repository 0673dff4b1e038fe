"""What differs between the settings of the reported runs."""

from collections.abc import Iterable

from server.report.blocks import ABSENT, Block, Method, differing
from server.report.results import Result
from server.report.tables import Report, count, without_places
from server.report.view import Grid, Notes, Part, Section

#: What differs from run to run by its nature.
_OWN = frozenset({"seed", "run_dir", "resume"})

#: The most columns of the table.
MOST_COLUMNS = 40


def settings_section(report: Report) -> Section:
    """Return the settings that are not the same in all runs, one column for each method."""
    return Section("settings", "What differs in the settings", [_part(report)])


def _part(report: Report) -> Part:
    names = [name for name in differing(report.found.results) if name not in _OWN]
    if not names:
        runs = len(report.found.results)
        alone = "One run: there is nothing to compare it with."
        return Notes((alone if runs == 1 else "All runs differ in nothing but seeds and folders.",))
    columns = [(block, method) for block in report.blocks for method in block.methods]
    left = len(columns) - MOST_COLUMNS
    rows = tuple(
        (name, *(_value(method.results, name) for _, method in columns[:MOST_COLUMNS]))
        for name in names
    )
    header = [_heading(report, block, method) for block, method in columns[:MOST_COLUMNS]]
    note = "Seeds and folders of the runs are left out."
    if left > 0:
        note += f" {count(left, 'method')} beyond the first {MOST_COLUMNS} are not shown."
    return Grid(("setting", *header), rows, note=note, kind="words")


def _heading(report: Report, block: Block, method: Method) -> str:
    label = without_places(method.label)
    return label if len(report.blocks) == 1 else f"{report.blocks.index(block) + 1}. {label}"


def _value(results: Iterable[Result], name: str) -> str:
    """Return the value of a setting; of runs that are one method it may still differ."""
    values = dict.fromkeys(result.settings.get(name, ABSENT) for result in results)
    return " / ".join(without_places(value) for value in values)
