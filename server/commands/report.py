"""`utmp-report`: from run folders to tables of methods, with what differs and how sure it is."""

import shlex
from collections.abc import Sequence
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import ReportConfig
from common.errors import UserError
from server.commands.command import given_overrides, hydra_command

if TYPE_CHECKING:
    from server.report.groups import Report
    from server.report.panels import Section


@hydra_command(ReportConfig)
def main(config: ReportConfig) -> None:
    """Report runs."""
    from server.report.page import show
    from server.terminal import Terminal

    show(*write_report(config, given_overrides()), config.out, Terminal())


def write_report(config: ReportConfig, overrides: Sequence[str]) -> "tuple[Report, list[Section]]":
    """Read runs, and write a page and a text with pictures as one whole folder.

    The overrides are quoted there, without absolute paths.

    Returns
    -------
    tuple
        The report, and a section for each comparison group.

    Raises
    ------
    UserError
        If there are no runs, a file is damaged or no run has a metric; if the folder is there
        already, would replace runs, or cannot be written.
    """
    from common.atomic import atomic_folder
    from server.report.groups import Report, make_groups, shorten_paths, without_repeats
    from server.report.overview import TABLE, runs_csv
    from server.report.page import PAGE, REPORT, group_sections, markdown, page
    from server.report.records import find_results

    results, unfinished = find_results(config.places)
    command = shlex.join(["utmp-report", *map(shorten_paths, overrides)])
    results, repeated = without_repeats(results)
    groups = make_groups(results, config.baseline, config.metrics)
    report = Report(command, results, unfinished, groups, config.baseline, repeated)
    out = Path(config.out).absolute()
    for result in results:
        # Path.resolve raises an error where links go in a circle.
        if Path(realpath(result.folder)).is_relative_to(realpath(out)):
            raise UserError(f"out={config.out} holds the run {result.folder}; choose another")
    with atomic_folder(out, config.overwrite, REPORT) as folder:
        sections = group_sections(report)
        (folder / REPORT).write_bytes(markdown(report, sections))
        (folder / PAGE).write_bytes(page(report, sections, config.details))
        for panel in (panel for section in sections for panel in section.panels if panel.file):
            (folder / panel.file).write_bytes(panel.png)
        if len(results) > 1:
            (folder / TABLE).write_bytes(runs_csv(results))
    return report, sections
