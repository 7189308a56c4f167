"""How far the statistics of images are from those that a network keeps."""

import math

import numpy as np
import pytest

import headstart
from headstart.features.shift import measure_divergence, measure_shift


def test_the_divergence_of_normal_distributions():
    one, none = np.ones(3), np.zeros(3)
    assert measure_divergence(none, one, none, one) == 0
    assert measure_divergence(none + 1, one, none, one) == pytest.approx(0.5)
    assert measure_divergence(none, 2 * one, none, one) == pytest.approx((2 - 1 - math.log(2)) / 2)


def test_constant_channels_say_nothing():
    own, kept = np.zeros(4), np.array([1.0, 1.0, 1.0, 1e-30])
    mean, variance = np.array([0.0, 0.0, 9.0, 9.0]), np.array([1.0, 1.0, 0.0, 1.0])
    assert measure_divergence(mean, variance, own, kept) == 0
    assert math.isnan(measure_divergence(own, np.zeros(4), own, kept))
    assert math.isnan(measure_divergence(own * math.nan, np.ones(4), own, kept))


def test_every_layer_has_a_shift_which_is_the_same_every_time(photos):
    dataset = headstart.load_dataset(photos)
    backbone = headstart.load_backbone()
    rows = np.arange(6)
    shift = measure_shift(dataset, rows, backbone)
    assert len(shift) == 49  # of EfficientNet-Lite0
    assert all(s >= 0 for s in shift)
    assert measure_shift(dataset, rows, backbone) == shift
    assert measure_shift(dataset, rows[:0], backbone) == ()


def test_a_network_without_such_layers_has_no_shift(photos, tiny):
    options = {n: tiny[n] for n in ("weights",)}
    backbone = headstart.load_backbone(tiny["backbone"], **options)
    assert measure_shift(headstart.load_dataset(photos), np.arange(4), backbone) == ()
