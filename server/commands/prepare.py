"""`utmp-prepare`: from any supported file to a folder of shards."""

from common.config import PrepareConfig
from server.commands.command import hydra_command


@hydra_command(PrepareConfig)
def main(config: PrepareConfig) -> None:
    """Prepare a folder of shards, or describe a source."""
    # Imported here, so that --help and a mistyped setting answer at once.
    from server.preparation.console import (
        PLOT,
        partition_plot,
        progress,
        show_prepared,
        show_source,
    )
    from server.preparation.preparation import prepare, read
    from server.terminal import Terminal

    terminal = Terminal()
    with progress(terminal) as watch:
        if config.describe:
            source = read(config, watch)
        else:
            manifest = prepare(config, watch, lambda manifest: {PLOT: partition_plot(manifest)})
    if config.describe:
        show_source(terminal, source)
    else:
        show_prepared(terminal, manifest, str(config.out))
