"""The methods by the kind of recordings, as ``kind=…`` takes it."""

from collections.abc import Mapping

from server.extraction import audio, text, video
from server.extraction.method import Method

METHODS: Mapping[str, Method] = {
    "text": text.METHOD,
    "audio": audio.METHOD,
    "video": video.METHOD,
}
