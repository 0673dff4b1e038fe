"""Log-mel spectra and cepstral coefficients of sound, as librosa defines them by default.

Mel scale and area-normalised filters are Slaney's (Auditory Toolbox, 1998), frames are centred and
padded with zeros, the window is a periodic Hann window. Written out here: librosa needs numba and
llvmlite, 210 MB, for these sixty lines.

Notation: S samples, T frames, B bands, F bins of a spectrum.
"""

import numpy as np
import scipy.fft
import scipy.signal
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: The least power that is told from silence: -100 dB.
LEAST_POWER = 1e-10

#: Slaney's scale: linear up to 1000 Hz, then logarithmic.
_HZ_PER_MEL = 200 / 3
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27

#: Frames that are transformed together, to save memory.
_BLOCK = 4096


def hz_of(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return frequencies in Hz of numbers on the mel scale."""
    logarithmic = _KNEE_HZ * np.exp(_LOG_STEP * (mels - _KNEE_MEL))
    return np.where(mels < _KNEE_MEL, _HZ_PER_MEL * mels, logarithmic)


def mel_of(hz: float) -> float:
    """Return a frequency in Hz on the mel scale."""
    if hz < _KNEE_HZ:
        return hz / _HZ_PER_MEL
    return float(_KNEE_MEL + np.log(hz / _KNEE_HZ) / _LOG_STEP)


def mel_filters(rate: int, size: int, bands: int) -> Floats:
    """Return triangular filters (B, F) over the spectrum of `size` samples, each of area 1."""
    corners = hz_of(np.linspace(0.0, mel_of(rate / 2), bands + 2))
    bins = np.fft.rfftfreq(size, 1 / rate)
    slopes = (bins - corners[:-1, None]) / np.diff(corners)[:, None]
    filters = np.maximum(0, np.minimum(slopes[:-1], 1 - slopes[1:]))
    areas = 2 / (corners[2:] - corners[:bands])
    return np.asarray(filters * areas[:, None], dtype=np.float32)


def log_mel(sound: Floats, rate: int, frame: int, hop: int, bands: int) -> Floats:
    """Return the log-mel spectrum (T, B) of (S,), in dB; T is 1 + S // hop.

    `frame` and `hop` are in samples; the spectrum is of the next power of 2.
    """
    size = 1 << (frame - 1).bit_length()
    window = np.zeros(size, dtype=np.float32)
    begin = (size - frame) // 2
    window[begin : begin + frame] = scipy.signal.get_window("hann", frame)
    filters = mel_filters(rate, size, bands).T
    padded = np.pad(sound, size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    parts = []
    for first in range(0, len(frames), _BLOCK):
        spectrum = scipy.fft.rfft(frames[first : first + _BLOCK] * window, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2) @ filters
        parts.append(10 * np.log10(np.maximum(power, LEAST_POWER)))
    return np.asarray(np.concatenate(parts), dtype=np.float32)


def mfcc(spectrum: Floats, count: int) -> Floats:
    """Return so many cepstral coefficients (T, count) of a log-mel spectrum (T, B)."""
    cepstra: Floats = scipy.fft.dct(spectrum, axis=1, type=2, norm="ortho")[:, :count]
    return cepstra


def mean_steps(frames: Floats, size: int) -> Floats:
    """Return the means (ceil(T / size), D) of every `size` frames (T, D); the last may be fewer."""
    starts = np.arange(0, len(frames), size)
    sums = np.add.reduceat(frames.astype(np.float64), starts)
    counts = np.diff(np.r_[starts, len(frames)])
    return np.asarray(sums / counts[:, None], dtype=np.float32)
