"""The report as one HTML file that needs nothing else: no network, no other file.

Whatever a run folder contains is text: it is escaped where it is put in, and a content security
policy lets nothing run, load or be styled but what the templates here contain.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from importlib import resources
from itertools import zip_longest
from typing import TYPE_CHECKING

from server.report.colours import COLOURS, INVERTED, Pens, modality_pens
from server.report.console import how_to_read
from server.report.group_panels import group_section, settings_section
from server.report.groups import ComparisonGroup, Method
from server.report.results import TOGETHER, Result
from server.report.run_panels import run_section
from server.report.tables import Report
from server.report.view import Section, notes

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_HOW_TO_READ = (
    "Curves are of the validation items and show how a method learnt; the tables are of the test "
    "items and show the outcome. A band is the mean over the seeds ± one sample standard "
    "deviation, which is no interval of the mean.",
    "Weights, widths, losses, time, confusions and calibration are of single runs. Runs of other "
    "seeds may look different: open more than one before you conclude from them.",
    "Calibration: an interval or a probability should hold as often as it promises. Confusions of "
    "numbers are of the classes -3 to 3, to which truth and prediction are clipped and rounded.",
    "Of long runs charts show rounds evenly spaced, the first and the last among them. The numbers "
    "behind a chart are under it; all of them are in the run's rounds.jsonl and summary.json.",
)


def page(report: Report, details: int) -> bytes:
    """Return the file, with at most `details` runs one by one; equal runs give equal bytes.

    Raises
    ------
    UserError
        If a file of a run is damaged.
    """
    results = report.found.results
    pens = modality_pens(name for result in results for name in result.test)
    sections = [
        *(group_section(report, group, pens) for group in report.groups),
        _runs_section(report, details, pens),
        settings_section(report),
    ]
    environment = _environment()
    style = environment.get_template("report.css.j2").render(
        light={name: light for name, (light, _) in COLOURS.items()},
        dark={name: dark for name, (_, dark) in COLOURS.items()},
        inverted=INVERTED,
    )
    script = (resources.files("server.report") / "templates" / "report.js").read_text("utf-8")
    text = environment.get_template("report.html.j2").render(
        report=report,
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


def _policy(style: str, script: str) -> str:
    """Allow the one style and the one script that are in the file, by their digests."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# Which runs are shown in detail -----------------------------------------------------------------


def _runs_section(report: Report, most: int, pens: Pens) -> Section:
    sections = []
    for place, (group, method, result) in enumerate([*_in_turns(report)][:most]):
        title = f"{report.label_of(group, method)}, seed {result.seed}"
        folded = place > 0 or result is not method.results[0]
        sections.append(run_section(f"run-{place + 1}", title, result, pens, folded=folded))
    panels = [notes(line)] if (line := _which(len(report.found.results), most)) else []
    return Section("runs", "Runs in detail", panels, sections)


def _which(runs: int, most: int) -> str:
    order = "The first seed of each method comes first, then the others."
    if runs <= most:
        return order if runs > 1 else ""
    return (
        f"{most} of {runs} runs. {order} For the rest give details={runs}, or "
        "runs=FOLDER for one of them."
    )


def _in_turns(report: Report) -> Iterator[tuple[ComparisonGroup, Method, Result]]:
    """Yield every run: the first seed of each method, then the second of each, and so on."""
    for turn in zip_longest(*(method.results for _, method in report.methods)):
        for (group, method), result in zip(report.methods, turn, strict=True):
            if result is not None:
                yield group, method, result
