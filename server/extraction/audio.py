"""Sound to log-mel spectra and cepstral coefficients, or to what an ONNX model makes of it.

Notation: S samples, T steps, D width.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import AudioConfig, ExtractConfig
from common.data.extractor import Extractor
from common.errors import UserError
from server.extraction.media import AUDIO, VIDEO, read_sound
from server.extraction.method import Features, Loaded, Method, Recording, checked
from server.extraction.onnx_model import OnnxModel

_TAKES = "float32 of shape (1, samples)"


def load(config: ExtractConfig) -> Loaded:
    """Load the spectra, or the ONNX model that ``audio.model`` names."""
    audio = config.audio
    extractor, features = _spectra(audio) if audio.model is None else _model(audio, audio.model)

    def extract(recording: Recording) -> Features:
        sound = read_sound(Path(recording.source), audio.rate, config.max_minutes)
        return checked(features(sound))

    return Loaded(extractor, extract)


def spectra(sound: NDArray[np.float32], audio: AudioConfig) -> Features:
    """Return the steps (T, mels + mfcc) of sound (S,): log-mel in dB, then MFCC.

    There is a step for every ``audio.step`` seconds that have begun.
    """
    from server.extraction.mel import log_mel, mean_steps, mfcc

    frame, hop = round(audio.frame * audio.rate), round(audio.hop * audio.rate)
    spectrum = log_mel(sound, audio.rate, max(frame, 1), hop, audio.mels)
    frames = np.concatenate([spectrum, mfcc(spectrum, audio.mfcc)], axis=1)
    return mean_steps(frames, max(1, round(audio.step / audio.hop)))


def _spectra(audio: AudioConfig) -> tuple[Extractor, Any]:
    names = ("rate", "frame", "hop", "step", "mels", "mfcc")
    settings = {name: getattr(audio, name) for name in names}
    name = "log-mel+mfcc" if audio.mfcc else "log-mel"
    return Extractor(name, "1", settings), lambda sound: spectra(sound, audio)


def _model(audio: AudioConfig, given: str) -> tuple[Extractor, Any]:
    model = OnnxModel("audio.model", given, _TAKES)
    if len(model.shape) != 2:
        raise model.refusal
    settings = {"rate": audio.rate, "normalise": audio.normalise, "sha256": model.sha256}

    def features(sound: NDArray[np.float32]) -> NDArray[Any]:
        if audio.normalise:
            sound = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
        output = model(sound[None])
        if output.ndim not in (2, 3) or len(output) != 1:
            raise UserError(
                f"the model makes {output.shape} of it, expected (1, steps, width) or (1, width)"
            )
        return output[0] if output.ndim == 3 else output

    return Extractor("audio-onnx", "1", settings), features


METHOD = Method(AUDIO, load, otherwise=VIDEO)
