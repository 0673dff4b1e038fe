"""`utmp-report`: from run folders to tables of methods, with what differs and how sure it is."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig

from common.config import ReportConfig
from common.errors import UserError
from server.commands.command import hydra_command

if TYPE_CHECKING:
    from server.report.groups import Report
    from server.report.panels import Section

# What reads, compares and draws is imported in functions, so that --help and a mistyped setting
# answer at once.


@hydra_command(ReportConfig)
def main(config: ReportConfig) -> None:
    """Report runs."""
    from server.report.page import show
    from server.terminal import Terminal

    report = make_report(config, HydraConfig.get().overrides.task)
    show(report, write_report(report, config), config.out, Terminal())


def make_report(config: ReportConfig, overrides: Sequence[str]) -> "Report":
    """Read runs and group them; the overrides are quoted, without absolute paths.

    Raises
    ------
    UserError
        If there are no runs, a file is damaged, two runs are the same or no run has a metric.
    """
    from server.report.groups import Report, make_groups, shorten_paths
    from server.report.records import find_results

    results, unfinished = find_results(config.places)
    groups = make_groups(results, config.baseline, config.metrics)
    command = shlex.join(["utmp-report", *map(shorten_paths, overrides)])
    return Report(command, results, unfinished, groups, config.baseline)


def write_report(report: "Report", config: ReportConfig) -> "list[Section]":
    """Write the report, as a page and as text with pictures, as one whole folder.

    Returns
    -------
    list
        A section for each comparison group.

    Raises
    ------
    UserError
        If the folder is there already, would replace runs, or cannot be written; or if the rounds
        of a run are damaged.
    """
    from common.atomic import atomic_folder
    from server.report.page import PAGE, REPORT, group_sections, markdown, page

    out = Path(config.out).absolute()
    for result in report.results:
        if Path(result.folder).resolve().is_relative_to(out.resolve()):
            raise UserError(f"out={config.out} holds the run {result.folder}; choose another")
    with atomic_folder(out, config.overwrite, REPORT) as folder:
        groups = group_sections(report)
        (folder / REPORT).write_bytes(markdown(report, groups))
        (folder / PAGE).write_bytes(page(report, groups, config.details))
        for panel in (panel for section in groups for panel in section.panels if panel.file):
            (folder / panel.file).write_bytes(panel.png)
    return groups


if __name__ == "__main__":
    main()
