"""Facts survive a file, and learning curves are fitted by a power law."""

import json
import math

import pytest

from headstart.training.facts import CurvePoint, Depth, Facts, fit_power_law

FACTS = Facts(
    images=200,
    per_class=(150, 50),
    measured=200,
    depths=(
        Depth((("a",),), 0.7, 0.03, 0.6),
        Depth((("b",),), 0.8, 0.02, 0.5),
        Depth((("a", "b"),), 0.81, 0.02, 0.5),
    ),
    curve=(CurvePoint(50, 0.6, 0.05), CurvePoint(200, 0.8, 0.03)),
    shift=(0.1, 0.3),
    confidence=0.4,
)


def test_facts_survive_a_file():
    assert Facts.from_json(json.loads(json.dumps(FACTS.to_json()))) == FACTS
    assert FACTS.classes == 2
    assert [d.cut for d in FACTS.singles] == ["a", "b"]


def test_a_power_law_is_found_again():
    law = fit_power_law([CurvePoint(n, 1 - 2 * n**-0.4, 0.01) for n in (250, 500, 1000)])
    assert law.rate == pytest.approx(0.4, abs=0.03)
    for images in (100, 2000, 4000):
        assert law.accuracy(images) == pytest.approx(1 - 2 * images**-0.4, abs=0.01)


def test_the_band_holds_the_measured_points_and_widens_away_from_them():
    law = fit_power_law(
        [CurvePoint(250, 0.6, 0.03), CurvePoint(500, 0.66, 0.02), CurvePoint(1000, 0.7, 0.015)]
    )
    low, high = law.interval(1000)
    assert low < 0.7 < high
    widths = [high - low for low, high in map(law.interval, (1000, 4000, 16_000))]
    assert widths == sorted(widths)
    assert 0 <= law.interval(1)[0] <= law.interval(1)[1] <= 1


@pytest.mark.parametrize(
    "curve",
    [
        [],
        [CurvePoint(10, 0.5, 0.1)],
        [CurvePoint(10, 0.5, 0.1), CurvePoint(10, 0.6, 0.1)],
        [CurvePoint(10, math.nan, 0.1), CurvePoint(20, 0.6, 0.1)],
        [CurvePoint(0, 0.5, 0.1), CurvePoint(20, 0.6, 0.1)],
    ],
)
def test_too_few_points_make_no_law(curve):
    assert fit_power_law(curve) is None


def test_no_mistakes_and_no_gain_are_no_trouble():
    perfect = fit_power_law([CurvePoint(50, 1.0, 0.0), CurvePoint(100, 1.0, 0.0)])
    assert 0.99 < perfect.accuracy(1000) < 1
    worse = fit_power_law([CurvePoint(50, 0.9, 0.01), CurvePoint(100, 0.8, 0.01)])
    assert worse.rate == 0  # more images do no harm
