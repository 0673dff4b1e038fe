"""`utmp-extract`: from recordings to a table and arrays that `utmp-prepare` reads."""

from common.config import ExtractConfig
from server.commands.command import hydra_command


@hydra_command(ExtractConfig)
def main(config: ExtractConfig) -> None:
    """Extract a modality of all recordings of a source."""
    # Imported here, so that --help and a mistyped setting answer at once.
    from server.extraction.console import progress, show_extracted, show_next
    from server.extraction.extraction import extract
    from server.terminal import Terminal

    terminal = Terminal()
    for modality in config.modalities:
        with progress(terminal, modality) as watch:
            extracted = extract(config, modality, watch)
        show_extracted(terminal, extracted)
    show_next(terminal, extracted, str(config.out), len(config.modalities) > 1)
