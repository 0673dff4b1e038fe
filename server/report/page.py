"""The report as one HTML file that needs nothing else: no network, no other file.

Whatever a run folder says is text: it is escaped where it is put in, and a content security policy
lets nothing run, load or be styled but what this module wrote.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from importlib import resources
from typing import TYPE_CHECKING

from server.report.block_section import block_section
from server.report.blocks import Block, Method
from server.report.console import how_to_read
from server.report.palette import ALL, INVERTED, Pens, modality_pens
from server.report.results import TOGETHER, Result
from server.report.run_section import run_section
from server.report.settings_section import settings_section
from server.report.tables import Report, count, without_places
from server.report.view import Notes, Section

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def page(report: Report, details: int) -> bytes:
    """Return the file; equal runs give equal bytes.

    Parameters
    ----------
    report
        What is reported.
    details
        The most runs that are shown in detail.

    Raises
    ------
    UserError
        If a file of a run is damaged.
    """
    pens = modality_pens(_modalities(report))
    sections = [
        *(block_section(report, block, pens) for block in report.blocks),
        _runs_section(report, details, pens),
        settings_section(report),
    ]
    environment = _environment()
    style = environment.get_template("report.css.j2").render(inks=ALL, inverted=INVERTED)
    script = _template("report.js")
    text = environment.get_template("report.html.j2").render(
        report=report,
        command=report.command,
        numbers=_numbers(report),
        warnings=list(report.warnings()),
        sections=sections,
        pens=pens,
        together=TOGETHER,
        reading=[*how_to_read(report), *_HOW_TO_READ],
        style=style,
        script=script,
        policy=_policy(style, script),
    )
    # A name of a folder need not be text.
    return text.encode("utf-8", "replace")


def _environment() -> "Environment":
    # Imported here: no other command needs it.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("server.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(text: str) -> "Markup":
    """Let a long name be broken between its words."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._+=,/])", r"\1<wbr>", str(escape(text))))


def _template(name: str) -> str:
    return (resources.files("server.report") / "templates" / name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Allow the one style and the one script that are in the file, by their digests."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _modalities(report: Report) -> Iterator[str]:
    for result in report.found.results:
        yield from (name for name in result.test if name != TOGETHER)


def _numbers(report: Report) -> str:
    results = report.found.results
    seeds = sorted({result.seed for result in results})
    told = ", ".join(map(str, seeds[:_SEEDS])) + (", …" if len(seeds) > _SEEDS else "")
    methods = sum(len(block.methods) for block in report.blocks)
    return (
        f"{count(len(results), 'run')}, {count(methods, 'method')}, "
        f"{count(len(seeds), 'seed')} ({told}), {count(len(report.blocks), 'block')}"
    )


#: Seeds that are named at the top.
_SEEDS = 12

_HOW_TO_READ = (
    "Curves are of the validation items and say how a method learnt; the tables are of the test "
    "items and say what came of it. A band is the mean over the seeds ± one sample standard "
    "deviation, which is no interval of the mean.",
    "Weights, widths, losses, time, confusions and calibration are of single runs. Runs of other "
    "seeds may look different: open more than one before you conclude from them.",
    "Calibration: an interval or a probability is to hold as often as it says. Confusions of "
    "numbers are of the classes -3 to 3, to which truth and prediction are clipped and rounded.",
    "Of long runs charts show rounds evenly spaced, the first and the last among them. The numbers "
    "behind a chart are under it; all of them are in the run's rounds.jsonl and summary.json.",
)


# Which runs are shown in detail -----------------------------------------------------------------


def _runs_section(report: Report, most: int, pens: Pens) -> Section:
    chosen = list(_by_turns(report))
    sections = []
    for place, (block, method, result) in enumerate(chosen[:most]):
        title = f"{without_places(method.label)}, seed {result.seed}"
        if len(report.blocks) > 1:
            title = f"{report.blocks.index(block) + 1}. {title}"
        first = result is method.results[0]
        sections.append(
            run_section(f"run-{place + 1}", title, result, pens, folded=place > 0 or not first)
        )
    return Section("runs", "Runs in detail", [_which(len(chosen), most)], sections)


def _which(runs: int, most: int) -> Notes:
    shown = min(runs, most)
    told = "The first seed of each method comes first, then the others."
    if runs <= most:
        return Notes((told,) if runs > 1 else ())
    return Notes(
        (
            f"{shown} of {runs} runs. {told} For the rest give details={runs}, or "
            "runs=FOLDER for one of them.",
        )
    )


def _by_turns(report: Report) -> Iterator[tuple[Block, Method, Result]]:
    """Every run: the first seed of each method, then the second of each, and so on."""
    methods = [(block, method) for block in report.blocks for method in block.methods]
    for turn in range(max(len(method.results) for _, method in methods)):
        for block, method in methods:
            if turn < len(method.results):
                yield block, method, method.results[turn]
