"""Log-mel spectra and MFCC against closed forms, and against librosa's of the same sound."""

import numpy as np
import pytest
from recordings import RATE, tone

from server.extraction.mel import hz_of, log_mel, mean_steps, mel_filters, mel_of, mfcc

#: What librosa 0.11.0 makes of `tone(440)`: in frame 50 of
#: ``power_to_db(melspectrogram(y, sr=16000, n_fft=512, win_length=400, hop_length=160, n_mels=40),
#: top_db=None)``, bands 0, 5, 6, 7, 20, 39, and the first six of ``mfcc(S=that, n_mfcc=13)``.
LIBROSA_BANDS = {0: -47.39, 5: 16.965, 6: 8.53, 7: -22.602, 20: -87.079, 39: -100.0}
LIBROSA_MFCC = [-454.134, 186.816, 66.217, -1.579, -16.626, -28.744]


def test_the_spectrum_and_the_coefficients_are_those_of_librosa() -> None:
    spectrum = log_mel(tone(440), RATE, 400, 160, 40)
    assert spectrum.shape == (101, 40)
    expected = list(LIBROSA_BANDS.values())
    np.testing.assert_allclose(spectrum[50][list(LIBROSA_BANDS)], expected, atol=0.02)
    np.testing.assert_allclose(mfcc(spectrum, 13)[50][:6], LIBROSA_MFCC, atol=0.05)


@pytest.mark.parametrize("hz", [0.0, 150.0, 999.0, 1000.0, 3000.0, 8000.0])
def test_the_scale_goes_both_ways_and_is_linear_below_1000_hz(hz: float) -> None:
    assert hz_of(np.array([mel_of(hz)]))[0] == pytest.approx(hz)
    assert hz > 1000 or mel_of(hz) == pytest.approx(3 * hz / 200)


def test_every_filter_is_a_triangle_of_area_one() -> None:
    filters = mel_filters(RATE, 4096, 20).astype(np.float64)
    np.testing.assert_allclose(filters.sum(axis=1) * RATE / 4096, 1, rtol=0.01)
    for band in filters:
        inside = np.flatnonzero(band)
        assert (np.diff(inside) == 1).all()  # one piece, that rises once and falls once
        assert len(np.unique(np.sign(np.diff(band[inside])))) == 2


def test_a_sine_has_the_power_of_its_filter() -> None:
    """Of amplitude a, in a bin of the spectrum: |X| = a Σw / 2 there, and a Σw / 4 beside it."""
    size, hz = 512, 32 * RATE / 512
    spectrum = log_mel(tone(hz), RATE, size, 256, 40)[20]
    power = np.zeros(size // 2 + 1)
    power[31:34] = np.square([0.5 * size / 8, 0.5 * size / 4, 0.5 * size / 8])
    expected = mel_filters(RATE, size, 40) @ power
    band = expected.argmax()
    assert spectrum[band] == pytest.approx(10 * np.log10(expected[band]), abs=1e-3)


def test_coefficients_are_the_cosine_transform_of_bands() -> None:
    spectrum = np.random.default_rng(0).normal(size=(3, 8)).astype("f4")
    bands = np.arange(8)
    for k in range(5):
        scale = np.sqrt((1 if k == 0 else 2) / 8)
        cosine = scale * np.cos(np.pi * k * (2 * bands + 1) / 16)
        np.testing.assert_allclose(mfcc(spectrum, 5)[:, k], spectrum @ cosine, atol=1e-5)
    assert mfcc(spectrum, 0).shape == (3, 0)


def test_silence_is_as_low_as_it_gets_and_long_sound_is_made_in_blocks() -> None:
    silence = log_mel(np.zeros(RATE, dtype="f4"), RATE, 400, 160, 40)
    np.testing.assert_allclose(silence, -100, rtol=1e-6)
    long = np.tile(tone(300, 1), 45)  # more frames than fit into a block
    whole = log_mel(long, RATE, 400, 160, 4)
    assert len(whole) == 4501
    np.testing.assert_allclose(whole[4090:4102], np.repeat(whole[3990:3991], 12, 0), atol=0.05)


def test_steps_are_means_of_frames() -> None:
    frames = np.arange(10, dtype="f4").reshape(5, 2)
    np.testing.assert_array_equal(mean_steps(frames, 2), [[1, 2], [5, 6], [8, 9]])
    np.testing.assert_array_equal(mean_steps(frames, 1), frames)
    np.testing.assert_array_equal(mean_steps(frames, 99), [[4, 5]])
