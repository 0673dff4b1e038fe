"""The settings of `utmp-extract`; ``conf/extract.yaml`` holds their values."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from common.config.ranges import Settings, at_least, path_setting, positive
from common.errors import UserError

#: What recordings are; auto: as the modality is called.
Kind = StrEnum("Kind", ["auto", "text", "audio", "video"])

#: How modalities are usually called, by kind.
_CALLED = {
    Kind.text: ("language", "text", "transcript"),
    Kind.audio: ("audio", "acoustic", "sound", "speech"),
    Kind.video: ("vision", "video", "visual"),
}


@dataclass
class TextConfig:
    """How a text becomes a vector for each token."""

    column: str = "text"
    model: str | None = path_setting(None)


@dataclass
class AudioConfig:
    """How sound becomes steps."""

    rate: int = at_least(1000, 16000)
    frame: float = positive(0.025)
    hop: float = positive(0.01)
    step: float = positive(0.2)
    mels: int = at_least(1, 40)
    mfcc: int = at_least(0, 13)
    model: str | None = path_setting(None)
    normalise: bool = False


@dataclass
class VideoConfig:
    """How a video becomes steps."""

    model: str | None = path_setting(None)
    every: float = positive(0.5)
    size: int = positive(224)
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


@dataclass
class ExtractConfig(Settings):
    """Settings of `utmp-extract`."""

    modality: Any = None
    source: str | None = path_setting(None, "a folder of files, or a table")
    out: str | None = path_setting(None, "the folder of features")
    kind: Kind = Kind.auto
    overwrite: bool = False
    file_column: str = "file"
    max_minutes: float = positive(60)
    text: TextConfig = field(default_factory=TextConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    video: VideoConfig = field(default_factory=VideoConfig)

    @property
    def modalities(self) -> list[str]:
        """What to extract."""
        given = self.modality if isinstance(self.modality, list) else [self.modality]
        return [str(name) for name in given if name is not None]

    def kind_of(self, modality: str) -> Kind:
        """Return what the recordings of a modality are; auto where that is not known."""
        if self.kind is not Kind.auto:
            return self.kind
        names = _CALLED.items()
        return next((kind for kind, called in names if modality.lower() in called), Kind.auto)

    def check(self) -> None:
        """Refuse a modality of no kind, and settings that do not fit together."""
        if not all(self.modalities) or not self.modalities:
            raise UserError(
                "modality is required; give it as modality=audio, modality=language or "
                "modality=vision"
            )
        for name in self.modalities:
            if self.kind_of(name) is Kind.auto:
                raise UserError(
                    f"modality={name}: what is it? Give kind=text, kind=audio or kind=video"
                )
        audio, video = self.audio, self.video
        if not audio.hop <= audio.step or audio.hop * audio.rate < 1:
            raise UserError(
                f"audio.hop={audio.hop}: expected at most audio.step={audio.step} and at least one "
                "sample"
            )
        if audio.mfcc > audio.mels:
            raise UserError(
                f"audio.mfcc={audio.mfcc}: expected at most audio.mels={audio.mels} coefficients"
            )
        if not len(video.mean) == len(video.std) == 3 or 0 in video.std:
            raise UserError("video.mean and video.std: expected three numbers each, std not 0")
