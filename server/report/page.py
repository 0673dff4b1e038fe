"""The report as one HTML file that needs no network, as Markdown, and on the terminal.

Whatever a run folder contains is text: it is escaped where it is put in, and a content security
policy lets nothing run, load or be styled but what the templates here contain.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from rich.table import Table
from rich.text import Text

from server.report.figures import Pens, modality_pens
from server.report.group_panels import group_section, settings_section
from server.report.groups import Report, assignments, differing, is_in
from server.report.overview import TABLE, overview
from server.report.panels import Panel, Section, as_csv, notes
from server.report.records import TOGETHER
from server.report.run_panels import run_section
from server.terminal import Terminal

REPORT = "report.md"
PAGE = "report.html"

#: Columns of the scores that a narrow terminal leaves out; the report has them.
MINOR = frozenset({"best alone", "against", "p", "MB up", "seconds"})

#: Settings that are named where they are the same in all runs; a group with its dot.
_WORTH_NAMING = (
    *("dataset.name", "dataset.path", "dataset.task", "rounds", "clients.", "partition.name"),
    *("client.lr", "client.local_epochs", "client.batch_size"),
)


def group_sections(report: Report) -> list[Section]:
    """Return a section of all runs, if there are several, and one for each group.

    Raises `UserError` if the rounds of a run are damaged.
    """
    pens = _pens(report)
    every = [overview(report.results)] if len(report.results) > 1 else []
    return [*every, *(group_section(group, pens) for group in report.groups)]


def page(report: Report, groups: Sequence[Section], details: int) -> bytes:
    """Return the HTML file, with at most `details` runs one by one; equal runs give equal bytes.

    Raises `UserError` if a file of a run is damaged.
    """
    pens = _pens(report)
    text = _render(
        "report.html.j2",
        report=report,
        sections=[*groups, runs_section(report, details, pens), settings_section(report)],
        pens=pens,
        together=TOGETHER,
        style=_render("report.css"),
        script=_render("report.js"),
    )
    # A name of a folder need not be text.
    return text.encode("utf-8", "replace")


def markdown(report: Report, groups: Sequence[Section]) -> bytes:
    """Return ``report.md``."""
    changing = differing(report.results)
    same = {
        name: value
        for worth in _WORTH_NAMING
        for name, value in report.results[0].settings.items()
        if name not in changing and is_in(name, [worth])
    }
    every = len(groups) - len(report.groups)
    pairs = zip([None] * every + [*report.groups], groups, strict=True)
    text = _render("report.md.j2", report=report, same=assignments(same), groups=pairs)
    return (text.rstrip() + "\n").encode("utf-8", "replace")


def show(report: Report, groups: Sequence[Section], out: str, terminal: Terminal) -> None:
    """Print the tables, the warnings and the files in the folder `out`."""
    for section in groups:
        terminal.tell(section.title, "bold")
        for table in section.of_kind("table"):
            if table.title:
                terminal.tell(table.title)
            for part in rich_tables(table, terminal.console.width):
                terminal.console.print(part)
            if table.note:
                terminal.tell(table.note, "dim", wrap=True)
    for line in report.warnings():
        terminal.warn(line)
    pictures = [panel.file for section in groups for panel in section.panels if panel.file]
    tables = [TABLE] if len(report.results) > 1 else []
    for name in (PAGE, REPORT, *tables, *pictures):
        terminal.tell(f"{out}/{name}")


def rich_tables(table: Panel, width: int) -> Iterator[Table]:
    """Yield a table for a terminal so many characters wide, in parts that fit, side after side."""
    columns = [list(map(str, column)) for column in zip(table.header, *table.rows, strict=True)]
    room = [max(map(len, column)) + 3 for column in columns]
    if sum(room) >= width:
        kept = [place for place, column in enumerate(columns) if column[0] not in MINOR]
        columns, room = [columns[place] for place in kept], [room[place] for place in kept]
    part, used = [columns[0]], room[0]
    for column, needed in zip(columns[1:], room[1:], strict=True):
        if len(part) > 1 and used + needed >= width:
            yield _rich_table(part)
            part, used = [columns[0]], room[0]
        part, used = [*part, column], used + needed
    yield _rich_table(part)


def _rich_table(columns: Sequence[Sequence[str]]) -> Table:
    # As text: a list in a setting looks like markup.
    printed = Table()
    for place, (name, *_) in enumerate(columns):
        printed.add_column(Text(name), justify="right" if place else "left", overflow="fold")
    for cells in list(zip(*columns, strict=True))[1:]:
        printed.add_row(*map(Text, cells))
    return printed


def runs_section(report: Report, most: int, pens: Pens) -> Section:
    """Return the runs one by one: the first seed of each method, then the second, and so on."""
    turns = zip_longest(*(method.results for _, method in report.methods))
    labels = [label for label, _ in report.methods]
    runs = [pair for turn in turns for pair in zip(labels, turn, strict=True) if pair[1]]
    sections = [
        run_section(f"run-{n}", f"{label}, seed {result.seed}", result, pens, folded=n > 1)
        for n, (label, result) in enumerate(runs[:most], 1)
    ]
    order = "The first seed of each method comes first, then the others."
    if len(runs) > most:
        order = (
            f"{most} of {len(runs)} runs. {order} For the rest give details={len(runs)}, or "
            "runs=FOLDER for one of them."
        )
    panels = [notes(order)] if len(runs) > min(most, 1) else []
    return Section("runs", "Runs in detail", panels, sections)


def _pens(report: Report) -> Pens:
    return modality_pens(name for run in report.results for name in run.summary.test)


def _render(template: str, **values: object) -> str:
    environment = Environment(
        loader=PackageLoader("server.report"),
        autoescape=".html" in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for own in (_breakable, _code, _digest, _markdown, _markdown_row, as_csv):
        environment.filters[own.__name__.removeprefix("_")] = own
    return environment.get_template(template).render(values)


def _breakable(text: str) -> Markup:
    """Let a long name be broken between its words."""
    return Markup(re.sub(r"([._+=,/])", r"\1<wbr>", str(escape(text))))


def _markdown(text: object) -> str:
    """Return text as one line of Markdown, in which it makes no HTML, link or picture."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace("](", r"]\(")
    return " ".join(escaped.split())


def _code(text: str) -> str:
    """Return text as a code span of Markdown, which only a backtick or an empty line can end."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def _markdown_row(cells: Sequence[object]) -> str:
    escaped = (_markdown(cell).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _digest(text: str) -> Markup:
    """Return what a content security policy calls a style or a script."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest())
    return Markup(f"'sha256-{digest.decode()}'")
