"""What `utmp-extract` shows: a progress bar, what it made, what was bad, the next command."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common.config import PrepareConfig, setting
from server.extraction.extraction import Extracted, Watch
from server.terminal import Terminal, counted

#: Bad recordings that are named.
_NAMED = 5


@contextmanager
def progress(terminal: Terminal, modality: str) -> Iterator[Watch]:
    """Show a bar of the recordings."""
    shown = terminal.progress("recordings")
    bar = shown.add_task(f"extracting {modality}", total=None)
    with shown:
        yield lambda done, total: shown.update(bar, completed=done, total=total)


def show_extracted(terminal: Terminal, extracted: Extracted) -> None:
    """Print what was extracted, and what could not be."""
    lengths, bad = extracted.lengths, extracted.bad
    steps = f"{min(lengths)}-{np.median(lengths):.0f}-{max(lengths)}"
    terminal.tell(f"extractor: {extracted.extractor.identity}")
    items = counted(len(lengths), "item")
    terminal.tell(
        f"{terminal.place(extracted.arrays)}: {items}, width {extracted.width}, steps {steps} "
        "(least, median, most)"
    )
    if extracted.resumed:
        terminal.tell(f"{extracted.resumed} of them were there already, of a run that stopped")
    if extracted.others:
        terminal.data({"files that are no recordings, ignored": extracted.others})
    for name, why in list(bad.items())[:_NAMED]:
        terminal.warn(f"{name}: {why}")
    if bad:
        terminal.warn(
            f"{len(bad)} of {len(bad) + len(lengths)} recordings left out; all are listed in "
            f"{extracted.unreadable}"
        )
    most = PrepareConfig().max_seq_len or max(lengths)
    if max(lengths) > most:
        terminal.tell(
            f"utmp-prepare keeps the last {most} steps of an item; max_seq_len={max(lengths)} "
            "keeps all"
        )


def show_next(terminal: Terminal, extracted: Extracted, out: str, paired: bool) -> None:
    """Print the command that uses the features, which are of several modalities if `paired`."""
    if extracted.labelled:
        shards = setting("out", Path("shards") / Path(out).name)
        prepare = f"utmp-prepare {setting('path', out)} {shards}"
        if paired:
            terminal.tell(f"next, at the coordinator: {prepare} split=evaluation")
        else:
            terminal.tell(f"next, at a site: {prepare} split=none clients.default=1")
    else:
        terminal.tell(f"next: utmp-predict model=… {setting('input', out)}")
