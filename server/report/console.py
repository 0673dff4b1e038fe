"""How a report is shown: as Markdown, and on the terminal; `server.report.page` is for browsers."""

from collections.abc import Iterator

from rich.table import Table as RichTable
from rich.text import Text

from server.report.blocks import assignments, differing, present
from server.report.comparison import LEVEL
from server.report.tables import MINOR, Report, Table, count, tables_of, without_places
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
    'and the p of the paired t-test; "no difference" where the interval holds 0. Better means '
    "better, also where less is better. Intervals and p are not corrected for the number of "
    "comparisons."
)


def markdown(report: Report) -> str:
    """Return the text of ``report.md``."""
    parts = ["# Report", f"```sh\n{report.command}\n```", _runs(report), _same(report)]
    parts += [f"**Warning:** {line}" for line in report.warnings()]
    parts += [" ".join(how_to_read(report)), *_sections(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _runs(report: Report) -> str:
    results = report.found.results
    seeds = sorted({result.seed for result in results})
    return (
        f"{count(len(results), 'run')}, {count(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds))}), {count(len(report.blocks), 'block')}."
    )


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


def how_to_read(report: Report) -> list[str]:
    """Say what the scores are, and where there is a baseline the differences."""
    if not report.compares:
        return [_SCORES]
    return [_SCORES, _DIFFERENCES.format(baseline=report.baseline, level=LEVEL)]


def _sections(report: Report) -> Iterator[str]:
    for block in report.blocks:
        yield f"## {report.title_of(block)}"
        if others := present(block.others):
            yield f"Here also: {_code(assignments(others))}."
        for table in tables_of(report, block):
            yield f"### {table.title}" if table.title else ""
            yield table.note
            yield _markdown_table(table)
        yield f"![{report.metrics_of(block)[0]} of each method]({report.picture_of(block)})"


def _markdown_table(table: Table) -> str:
    rules = ["---", *["---:"] * (len(table.header) - 1)]
    lines = [table.header, rules, *table.rows]
    return "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in lines)


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("|", r"\|").split())


def _code(words: list[str]) -> str:
    return ", ".join(f"`{without_places(word)}`" for word in words)


class ReportConsole(Terminal):
    """The terminal of a report."""

    def show(self, report: Report, out: str) -> None:
        """Print the tables, and where the files are.

        Parameters
        ----------
        report
            All of it.
        out
            The folder that was written.
        """
        for block in report.blocks:
            self.tell(report.title_of(block), "bold")
            for table in tables_of(report, block):
                if table.title:
                    self.tell(table.title)
                self.console.print(_rich_table(table, self.console.width))
                if table.note:
                    self.tell(table.note, "dim")
        for line in report.warnings():
            self.warn(line)
        for name in (PAGE, REPORT, *map(report.picture_of, report.blocks)):
            self.tell(f"{out}/{name}")


def _rich_table(table: Table, width: int) -> RichTable:
    """Build a table for a terminal so many characters wide."""
    columns = [(name, *cells) for name, *cells in zip(table.header, *table.rows, strict=True)]
    if sum(max(map(len, column)) + 3 for column in columns) > width:
        columns = [column for column in columns if column[0] not in MINOR]
    # As text: a list in a setting looks like markup.
    shown = RichTable()
    for number, (name, *_) in enumerate(columns):
        shown.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for cells in list(zip(*columns, strict=True))[1:]:
        shown.add_row(*map(Text, cells))
    return shown
