"""The report as Markdown, and on the terminal; `server.report.page` is for browsers."""

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from server.report.comparison import LEVEL
from server.report.groups import ComparisonGroup, assignments, differing, present
from server.report.tables import MINOR, Report, pictures_of, tables_of, without_places
from server.report.view import Panel
from server.terminal import Terminal

REPORT = "report.md"
PAGE = "report.html"

#: Settings that are named where they are the same in all runs; a group with its dot.
_WORTH_NAMING = (
    "dataset.name",
    "dataset.path",
    "dataset.task",
    "rounds",
    "clients.",
    "partition.name",
    "client.lr",
    "client.local_epochs",
    "client.batch_size",
)

_SCORES = (
    "Scores are of the test items, all modalities together unless a column says otherwise: "
    "mean ± sd over the seeds. Runs that differ in nothing but the seed are one method. MB up: "
    "10^6 bytes that a client sends in a round."
)

_DIFFERENCES = (
    "The difference to the baseline, {baseline}, is paired by seed, with the {level:.0%} interval "
    'and the p of the paired t-test; "no difference" where the interval contains 0. Better means '
    "better, also where less is better. Intervals and p are not corrected for the number of "
    "comparisons."
)


def how_to_read(report: Report) -> list[str]:
    """Explain the scores, and where there is a baseline the differences."""
    if not any(map(report.compares, report.groups)):
        return [_SCORES]
    return [_SCORES, _DIFFERENCES.format(baseline=report.baseline, level=LEVEL)]


def markdown(report: Report) -> str:
    """Return the text of ``report.md``."""
    parts = ["# Report", f"```sh\n{report.command}\n```", f"{report.counts}.", _same(report)]
    parts += [f"**Warning:** {line}" for line in report.warnings()]
    parts.append(" ".join(how_to_read(report)))
    for group in report.groups:
        parts += _group_markdown(report, group)
    return "\n\n".join(part for part in parts if part) + "\n"


def _same(report: Report) -> str:
    """Name the settings that are the same in all runs and worth naming."""
    results = report.found.results
    changing = set(differing(results))
    same = {
        name: value
        for worth in _WORTH_NAMING
        for name, value in results[0].settings.items()
        if name not in changing
        and (name.startswith(worth) if worth.endswith(".") else name == worth)
    }
    return f"The same in all runs: {_code(assignments(same))}." if same else ""


def _group_markdown(report: Report, group: ComparisonGroup) -> Iterator[str]:
    yield f"## {report.title_of(group)}"
    if others := present(group.other_settings):
        yield f"Here also: {_code(assignments(others))}."
    for table in tables_of(report, group):
        yield f"### {table.title}" if table.title else ""
        yield table.note
        rules = ["---", *["---:"] * (len(table.header) - 1)]
        yield "\n".join(map(_markdown_row, [table.header, rules, *table.rows]))
    for picture in pictures_of(report, group):
        yield f"![{picture.title}]({picture.file})"
        yield f"{picture.title}. {picture.note}"


def _markdown_row(cells: Sequence[object]) -> str:
    escaped = (" ".join(str(cell).replace("|", r"\|").split()) for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _code(words: list[str]) -> str:
    return ", ".join(f"`{without_places(word)}`" for word in words)


def show(report: Report, out: str, terminal: Terminal) -> None:
    """Print the tables, the warnings and the files in the folder `out`."""
    for group in report.groups:
        terminal.tell(report.title_of(group), "bold")
        for table in tables_of(report, group):
            if table.title:
                terminal.tell(table.title)
            terminal.console.print(_rich_table(table, terminal.console.width))
            if table.note:
                terminal.tell(table.note, "dim")
    for line in report.warnings():
        terminal.warn(line)
    pictures = (picture for group in report.groups for picture in pictures_of(report, group))
    for name in (PAGE, REPORT, *(picture.file for picture in pictures)):
        terminal.tell(f"{out}/{name}")


def _rich_table(table: Panel, width: int) -> Table:
    """Build a table for a terminal so many characters wide."""
    columns = [list(map(str, column)) for column in zip(table.header, *table.rows, strict=True)]
    if sum(max(map(len, column)) + 3 for column in columns) > width:
        columns = [column for column in columns if column[0] not in MINOR]
    # As text: a list in a setting looks like markup.
    shown = Table()
    for place, (name, *_) in enumerate(columns):
        shown.add_column(Text(name), justify="right" if place else "left", overflow="fold")
    for cells in list(zip(*columns, strict=True))[1:]:
        shown.add_row(*map(Text, cells))
    return shown
