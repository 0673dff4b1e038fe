"""Sound and pictures of files, by PyAV (FFmpeg); what a damaged file is said to be.

A file says what it is by its contents, but only formats of recordings are taken: no playlist, which
could name other files, and nothing on the network.

Notation: S samples, H height, W width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from server.extraction.method import library

AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")
VIDEO = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")

#: FFmpeg's names of the formats of these suffixes; and no protocol for what else a file may name.
_OPTIONS = {
    "format_whitelist": "wav,w64,flac,mp3,ogg,aac,mov,matroska,avi",
    "protocol_whitelist": "none",
}

#: Formats whose duration FFmpeg may have guessed.
_GUESSED = ("mp3", "aac")

#: Below so much of the duration that a file states, it is cut off.
_COMPLETE = 0.9

#: Of the times of pictures, in parts of the time between two that are taken.
_ROUNDING = 1e-6

#: Pixels of a picture.
_MOST_PIXELS = 1 << 26


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file, and say of whatever FFmpeg raises meanwhile that it is damaged."""
    av = library("av", "reading recordings")
    with path.open("rb") as file:
        _check_whole(file.read(8), path.stat().st_size)
        file.seek(0)
        try:
            with av.open(file, options=_OPTIONS) as container:
                yield container
        except UserError:
            raise
        except (av.error.FFmpegError, ValueError, IndexError) as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(f"is damaged, or no recording: {said}") from error


def _check_whole(head: bytes, size: int) -> None:
    """Raise `UserError` for a RIFF file (WAV, AVI) that is shorter than it says."""
    stated = int.from_bytes(head[4:8], "little") + 8
    streamed = stated >= 1 << 31  # not known when it was written
    if head[:4] == b"RIFF" and size < stated and not streamed:
        raise UserError(f"is cut off: {size:,} of {stated:,} bytes")


def _check_length(seconds: float, most_minutes: float) -> None:
    if seconds > 60 * most_minutes:
        raise UserError(f"is longer than max_minutes={most_minutes:g}")


def _check_complete(container: Any, stream: Any, seconds: float) -> None:
    stated = float((stream.duration or 0) * (stream.time_base or 0))
    guessed = container.format.name in _GUESSED
    if not guessed and seconds < _COMPLETE * stated:
        raise UserError(f"is cut off: {seconds:.1f} of {stated:.1f} seconds")


def read_sound(path: Path, rate: int, most_minutes: float) -> NDArray[np.float32]:
    """Return the sound (S,) of a file, from -1 to 1, as one channel of `rate` samples a second.

    Raises `UserError`, which completes "the file …", if it has none, is damaged or too long.
    """
    parts: list[NDArray[np.float32]] = []
    samples = 0
    with _opened(path) as container:
        if not container.streams.audio:
            raise UserError("has no sound")
        av, stream = library("av", "sound"), container.streams.audio[0]
        # Channels are averaged here: FFmpeg would make two that are alike louder than either.
        resampler = av.AudioResampler(format="fltp", rate=rate)
        for frame in chain(container.decode(stream), [None]):  # None: what the resampler still has
            for part in resampler.resample(frame):
                parts.append(part.to_ndarray().mean(axis=0, dtype=np.float32))
                samples += len(parts[-1])
            _check_length(samples / rate, most_minutes)
        _check_complete(container, stream, samples / rate)
    if samples == 0:
        raise UserError("has no sound")
    return np.concatenate(parts)


def read_pictures(
    path: Path, every: float, size: tuple[int, int], most_minutes: float
) -> Iterator[NDArray[np.uint8]]:
    """Yield one picture (H, W, 3) of a video, RGB, every so many seconds, scaled to a size.

    Raises `UserError` as `read_sound`.
    """
    with _opened(path) as container:
        if not container.streams.video:
            raise UserError("has no pictures")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        if stream.width * stream.height > _MOST_PIXELS:
            raise UserError(f"has pictures of {stream.width} x {stream.height}")
        height, width = size
        begin, due, seconds = None, 0, 0.0
        for frame in container.decode(stream):
            begin = frame.time or 0.0 if begin is None else begin
            seconds = (frame.time or 0.0) - begin
            _check_length(seconds, most_minutes)
            if (passed := int(seconds / every + _ROUNDING)) >= due:
                yield frame.reformat(width, height, format="rgb24").to_ndarray()
                due = passed + 1
        if begin is None:
            raise UserError("has no pictures")
        _check_complete(container, stream, seconds + 1 / float(stream.average_rate or 1))
