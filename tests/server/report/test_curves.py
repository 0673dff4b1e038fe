"""Bands over seeds against NumPy, also where a seed lacks a round or a number."""

import math

import numpy as np
import pytest

from server.report.curves import band, by_modality, envelope, modality_of
from server.report.palette import modality_pens

NAN = math.nan


def test_a_band_is_the_mean_and_one_sample_deviation() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5))
    line = band([dict(enumerate(row)) for row in values])
    mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
    assert list(line.x) == [0, 1, 2, 3, 4]
    assert line.y == pytest.approx(mean) and line.spread == pytest.approx(sd)
    assert line.low == pytest.approx(mean - sd) and line.high == pytest.approx(mean + sd)


def test_one_seed_has_no_band() -> None:
    line = band([{1: 0.5, 2: 0.7}])
    assert (line.y, line.low, line.high, line.spread) == ([0.5, 0.7], (), (), ())


def test_a_round_that_one_seed_lacks_is_the_others() -> None:
    line = band([{1: 1.0, 2: 3.0}, {1: 2.0}])
    assert line.y == [1.5, 3.0]
    assert line.low[1] == line.high[1] == 3.0 and math.isnan(line.spread[1])


def test_what_is_no_number_is_a_gap_in_mean_and_band() -> None:
    line = band([{1: NAN, 2: 1.0}, {1: 1.0, 2: 1.0}])
    assert math.isnan(line.y[0]) and math.isnan(line.low[0])
    assert (line.y[1], line.low[1], line.high[1]) == (1.0, 1.0, 1.0)


def test_an_envelope_is_the_median_between_the_extremes() -> None:
    line = envelope([{1: 1.0, 2: NAN}, {1: 9.0}, {1: 2.0, 2: NAN}], [1, 2, 3])
    assert (line.y[0], line.low[0], line.high[0]) == (2.0, 1.0, 9.0)
    assert all(math.isnan(values[place]) for values in (line.y, line.low) for place in (1, 2))


def test_clients_are_grouped_by_their_modality() -> None:
    series = {1: 0.0}
    clients = dict.fromkeys(["vision-0", "audio_2-11", "vision-10", "odd"], series)
    found = by_modality(clients, modality_pens(["audio_2", "vision"]))
    assert {name: list(each) for name, each in found.items()} == {
        "audio_2": ["audio_2-11"],
        "vision": ["vision-0", "vision-10"],
        "odd": ["odd"],
    }
    assert list(found) == ["audio_2", "vision", "odd"]
    assert modality_of("audio_2-11") == "audio_2"
