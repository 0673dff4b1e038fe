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
    from server.report.tables import Report

# What reads, compares and draws is imported in functions, so that --help and a mistyped setting
# answer at once.


@hydra_command(ReportConfig)
def main(config: ReportConfig) -> None:
    """Report runs."""
    from server.report.console import show
    from server.terminal import Terminal

    report = make_report(config, HydraConfig.get().overrides.task)
    write_report(report, config)
    show(report, config.out, Terminal())


def make_report(config: ReportConfig, overrides: Sequence[str]) -> "Report":
    """Read runs and group them.

    Parameters
    ----------
    config
        What to report.
    overrides
        How the user gave it; quoted in the report, without the machine's places.

    Raises
    ------
    UserError
        If there are no runs, a file is damaged, two runs are the same or no run has a metric.
    """
    from server.report.groups import group_results
    from server.report.results import find_results
    from server.report.tables import Report, check_metrics, without_places

    found = find_results(config.places)
    groups = group_results(found.results)
    check_metrics(groups, config.metrics)
    command = shlex.join(["utmp-report", *map(without_places, overrides)])
    return Report(command, found, groups, config.baseline, tuple(config.metrics))


def write_report(report: "Report", config: ReportConfig) -> None:
    """Write the report, as a page and as text with pictures, as one whole folder.

    Raises
    ------
    UserError
        If the folder is there already, would replace runs, or cannot be written; or if the rounds
        of a run are damaged.
    """
    from common.atomic import atomic_folder
    from server.report.console import PAGE, REPORT, markdown
    from server.report.figures import to_png
    from server.report.page import page
    from server.report.tables import pictures_of

    out = Path(config.out).absolute()
    for result in report.found.results:
        if Path(result.folder).resolve().is_relative_to(out.resolve()):
            raise UserError(f"out={config.out} holds the run {result.folder}; choose another")
    with atomic_folder(out, config.overwrite, REPORT) as folder:
        # A name of a folder need not be text.
        (folder / REPORT).write_bytes(markdown(report).encode("utf-8", "replace"))
        (folder / PAGE).write_bytes(page(report, config.details))
        for group in report.groups:
            metric, rows = report.metrics_of(group)[0], report.rows_of(group)
            for picture in pictures_of(report, group):
                (folder / picture.file).write_bytes(to_png(picture.draw(metric, rows)))


if __name__ == "__main__":
    main()
