"""`utmp-prepare`: from any supported file to a folder of shards."""

from common.config import PrepareConfig
from server.commands.command import hydra_command


@hydra_command(PrepareConfig)
def main(config: PrepareConfig) -> None:
    """Prepare a folder of shards, or describe a source."""
    # Imported here, so that --help and a mistyped setting answer at once.
    from server.preparation.console import PrepareConsole
    from server.preparation.partition_plot import PLOT, partition_plot
    from server.preparation.preparation import prepare
    from server.preparation.reading import read

    console = PrepareConsole()
    if config.describe:
        with console:
            found = read(config, console.watch)
        console.describe(found)
        return
    with console:
        manifest = prepare(config, console.watch, lambda manifest: {PLOT: partition_plot(manifest)})
    console.prepared(manifest, str(config.out))


if __name__ == "__main__":
    main()
