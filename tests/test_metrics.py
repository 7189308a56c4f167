"""Figures equal scikit-learn's, and their intervals hold what they say."""

import importlib.util
import math
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from headstart.metrics import (
    Estimate,
    calibration_error,
    confusion_matrix,
    mean_loss,
    measure,
    measure_each,
    wilson_interval,
)

SHARES = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "average_precision")
NANS = [math.nan] * 3
OF_CLASS = ("precision", "recall", "f1", "roc_auc", "average_precision")


def random_case(seed, count, classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    odds = np.exp(logits)
    return labels, (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("single", [1, 10])
def test_a_class_of_one_image_leaves_an_interval_to_the_means_over_classes(single):
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(20), 20), np.arange(20, 20 + single)])
    probabilities = rng.random((len(labels), 20 + single)) * 0.3
    probabilities[np.arange(len(labels)), labels] += rng.random(len(labels)) * 0.5
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    names = tuple(map(str, range(20 + single)))

    def widths(rows):
        found = measure(labels[rows], probabilities[rows].astype(np.float32), names)
        means = (found[n] for n in ("macro_f1", "roc_auc", "average_precision"))
        return np.array([e.high - e.low for e in means])

    whole, without = widths(slice(None)), widths(slice(400))
    assert (whole > without * 20 / (20 + single)).all()
    assert (whole < 0.4).all()
    alone = measure(np.arange(3), np.eye(3, dtype=np.float32), ("a", "b", "c"))
    assert (alone["macro_f1"].low, alone["macro_f1"].high) == (0, 1)


def test_a_thousand_classes_take_little_memory():
    labels = np.arange(3000) % 1000
    probabilities = random_case(0, 3000, 1000)[1]
    tracemalloc.start()
    try:
        measure(labels, probabilities, names(1000))
        measure_each(labels, probabilities, names(1000))
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def names(classes):
    return tuple(f"c{k}" for k in range(classes))


@pytest.mark.parametrize(
    ("seed", "count", "classes", "top"),
    [(0, 300, 2, 0), (1, 50, 3, 0), (2, 1000, 20, 5), (3, 12, 4, 2), (4, 60, 6, 3), (5, 60, 9, 3)],
)
def test_figures_are_scikit_learns(seed, count, classes, top):
    labels, probabilities = random_case(seed, count, classes)
    predicted = probabilities.argmax(axis=1)
    found = measure(labels, probabilities, names(classes))
    present = np.unique(labels)
    macro = {"labels": present, "average": "macro", "zero_division": 0}
    of_each = [(labels == k, probabilities[:, k]) for k in present]
    scores = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.recall_score(labels, predicted, **macro),
        "macro_f1": sk.f1_score(labels, predicted, **macro),
        "log_loss": -np.log(probabilities[np.arange(count), labels]).mean(),
        "calibration_error": of_bins(probabilities.max(axis=1), predicted == labels),
        "brier": sk.brier_score_loss(
            labels, probabilities, labels=range(classes), scale_by_half=False
        ),
        "roc_auc": np.mean([sk.roc_auc_score(*pair) for pair in of_each]),
        "average_precision": np.mean([sk.average_precision_score(*pair) for pair in of_each]),
    }
    if top:
        scores[f"top_{top}_accuracy"] = sk.top_k_accuracy_score(
            labels, probabilities, k=top, labels=range(classes)
        )
    assert found.keys() == scores.keys()
    assert next(iter(found)) == "accuracy"
    assert {name: e.value for name, e in found.items()} == pytest.approx(scores, abs=1e-6)
    for name, estimate in found.items():
        assert 0 <= estimate.low <= estimate.value <= estimate.high
        assert estimate.high <= {"log_loss": math.inf, "brier": 2}.get(name, 1)
    counts = confusion_matrix(labels, predicted, classes)
    assert (counts == sk.confusion_matrix(labels, predicted, labels=range(classes))).all()
    assert found == measure(labels, probabilities, names(classes))


def of_bins(confidence, right):
    """The calibration error by scikit-learn's curve, which leaves out how many images a bin has."""
    rates, means = calibration_curve(right, confidence, n_bins=15, strategy="quantile")
    edges = np.percentile(confidence, np.linspace(0, 100, 16))
    images = np.bincount(np.searchsorted(edges[1:-1], confidence))
    return abs(rates - means) @ images[images > 0] / len(right)


@pytest.mark.parametrize(("seed", "count", "classes"), [(0, 300, 2), (1, 50, 3), (2, 40, 20)])
def test_figures_of_each_class_are_scikit_learns(seed, count, classes):
    labels, probabilities = random_case(seed, count, classes)
    probabilities = np.round(probabilities, 1 + seed)  # with ties
    predicted = probabilities.argmax(axis=1)
    found = measure_each(labels, probabilities, names(classes))
    assert tuple(found) == names(classes)
    scores = sk.precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=np.nan
    )
    for k, (precision, recall, f1, images) in enumerate(zip(*scores, strict=True)):
        own = found[f"c{k}"]
        assert own.images == images
        of = (labels == k, probabilities[:, k])
        areas = (sk.roc_auc_score(*of), sk.average_precision_score(*of)) if images else NANS[:2]
        expected = (precision, recall, f1 if images else math.nan, *areas)
        values = [getattr(own, name).value for name in OF_CLASS]
        assert values == pytest.approx(expected, abs=1e-6, nan_ok=True)
        for name in OF_CLASS:
            estimate = getattr(own, name)
            if not math.isnan(estimate.value):
                assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert math.isnan(own.threshold)


def test_figures_of_many_images_of_few_probabilities():
    """All images are in one bin, or two: those of one probability stay together."""
    sure = calibration_error(np.full(40, 0.75), np.arange(40) < 20)
    assert sure.value == 0.25
    assert 0 < sure.low < 0.25 < sure.high
    right = np.arange(40) % 4 > 0
    assert calibration_error(np.full(40, 0.75), right) == pytest.approx(
        Estimate(0, 0, 0.75 - wilson_interval(30, 40).low)
    )
    two = calibration_error(np.repeat([0.5, 1.0], 20), np.arange(40) >= 10)
    assert two.value == pytest.approx(0)


@pytest.mark.parametrize("total", [1, 2, 7, 30, 1000])
def test_wilsons_interval(total):
    for successes in {0, 1, min(3, total), total // 2, max(0, total - 2), total - 1, total}:
        expected = stats.binomtest(successes, total).proportion_ci(method="wilson")
        low, high = expected.low, expected.high
        few = 2 if total <= 50 else 3
        if 0 < successes <= few:
            low = stats.chi2.ppf(0.05, 2 * successes) / 2 / total
        if 0 < total - successes <= few:
            high = 1 - stats.chi2.ppf(0.05, 2 * (total - successes)) / 2 / total
        found = wilson_interval(successes, total)
        assert found.value == successes / total
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("total", [20, 60, 200])
def test_wilsons_interval_covers_every_proportion(total):
    """In the mean over proportions, and nowhere much less: from the binomial distribution itself."""
    truth = np.linspace(0.5, 1, 800, endpoint=False)
    held = np.zeros(len(truth))
    for successes in range(total + 1):
        found = wilson_interval(successes, total)
        chance = stats.binom.pmf(successes, total, truth)
        held += chance * ((found.low <= truth) & (truth <= found.high))
    assert held.min() > 0.91  # 0.83 without what is done near 1
    assert 0.95 < held.mean() < 0.965


def test_losses_have_the_interval_of_counts():
    """Wide above: as Student's about the mean for many images, as a count's for few."""
    rng = np.random.default_rng(0)
    losses = rng.gamma(2, 0.2, size=4000)
    low, high = stats.t.interval(0.95, 3999, losses.mean(), stats.sem(losses))
    found = mean_loss(losses)
    assert (found.value, found.low, found.high) == pytest.approx((losses.mean(), low, high), 1e-3)
    few = mean_loss(np.array([0.0] * 19 + [1.0]))
    assert few.high - few.value > 2 * (few.value - few.low) > 0


def test_losses_that_are_announced_and_not_seen_widen_the_interval():
    """Nobody has seen the one in a hundred that the probabilities speak of."""
    labels = np.zeros(50, dtype=int)
    probabilities = np.tile([0.99, 0.01], (50, 1))
    probabilities[0] = [0.98, 0.02]
    found = measure(labels, probabilities, names(2))
    p = probabilities.astype(float)
    expected = -(p * np.log(p)).sum(axis=1).mean()
    assert found["log_loss"].value < 0.011 < expected < found["log_loss"].high
    assert found["brier"].value < 0.001 < 0.02 < found["brier"].high
    sure = measure(np.array([0, 1]), np.array([[0, 1.0], [0, 1.0]]), names(2))["log_loss"]
    assert 10 < sure.value < math.inf


# True class counts, and the probability of each answer a class.
PROBLEMS = {
    "two unequal classes": ([60, 6], [[0.95, 0.05], [0.3, 0.7]]),
    "three unequal classes": (
        [40, 12, 6],
        [[0.9, 0.07, 0.03], [0.2, 0.7, 0.1], [0.2, 0.2, 0.6]],
    ),
    "nearly perfect": ([50, 15, 10], [[0.99, 0.01, 0], [0.02, 0.98, 0], [0, 0.03, 0.97]]),
    "few images": ([5, 5, 5], [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]),
    "at chance": ([20, 10], [[0.5, 0.5], [0.5, 0.5]]),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_intervals_cover_the_truth(name):
    counts, answers = (np.array(part) for part in PROBLEMS[name])
    expected = counts[:, None] * answers  # the confusion matrix of endlessly many images
    hit = expected.diagonal()
    truth = {
        "accuracy": hit.sum() / counts.sum(),
        "balanced_accuracy": (hit / counts).mean(),
        "macro_f1": (2 * hit / (counts + expected.sum(axis=0))).mean(),
    }
    labels = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(0)
    covered = dict.fromkeys(truth, 0)
    for _ in range(400):
        predicted = np.concatenate(
            [rng.choice(len(counts), n, p=p) for n, p in zip(counts, answers, strict=True)]
        )
        found = measure(labels, np.eye(len(counts))[predicted], names(len(counts)))
        for figure, value in truth.items():
            covered[figure] += found[figure].low <= value <= found[figure].high
    assert {figure: n / 400 for figure, n in covered.items() if n / 400 < 0.92} == {}


def test_a_perfect_classifier_is_not_certain():
    labels = np.repeat([0, 1, 2], [10, 5, 3])
    found = measure(labels, np.eye(3)[labels], names(3))
    each = measure_each(labels, np.eye(3)[labels], names(3))
    of_classes = [getattr(own, name) for own in each.values() for name in OF_CLASS]
    for estimate in [*(found[name] for name in SHARES), *of_classes]:
        assert (estimate.value, estimate.high) == (1, 1)
        assert 0.2 < estimate.low < 0.95
    assert found["balanced_accuracy"].low < found["accuracy"].low
    assert found["log_loss"].value == found["brier"].value == found["calibration_error"].value == 0
    assert found["calibration_error"].high == 1 - found["accuracy"].low


def test_a_class_without_images_has_no_figure():
    labels = np.array([0, 0, 2, 2])
    found = measure(labels, np.eye(3)[[0, 1, 2, 2]], names(3))
    missing = measure_each(labels, np.eye(3)[[0, 1, 2, 2]], names(3))["c1"]
    assert found["balanced_accuracy"].value == 0.75
    assert found["macro_f1"].value == pytest.approx((2 / 3 + 1) / 2)
    assert found["roc_auc"].value == (0.75 + 1) / 2
    assert (missing.images, missing.precision.value) == (0, 0)
    for name in OF_CLASS[1:]:
        assert all(math.isnan(v) for v in vars(getattr(missing, name)).values())


def test_images_of_one_class_have_no_roc():
    found = measure(np.zeros(9, dtype=int), np.full((9, 2), 0.5), names(2))
    assert math.isnan(found["roc_auc"].value)
    assert found["average_precision"].value == 1


def test_one_image():
    found = measure(np.array([1]), np.array([[0.2, 0.8]]), names(2))
    for name in SHARES[:3]:
        assert found[name].value == 1
        assert found[name].low < 0.3
    assert found["log_loss"].value == pytest.approx(-math.log(0.8))
    assert math.isnan(found["log_loss"].low)
    assert wilson_interval(0, 0) == pytest.approx(Estimate(*NANS), nan_ok=True)


KINDS = {
    "few images": {"images": 60, "classes": 2, "skill": 2.2},
    "over-confident": {"images": 400, "classes": 3, "skill": 1.8, "sharp": 2},
    "groups": {"images": 200, "classes": 3, "skill": 1.8, "group": 8},
    "few groups": {"images": 300, "classes": 2, "skill": 2.5, "group": 30},
    "several labels": {"images": 200, "classes": 3, "skill": 1.8, "several": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_interval_covers_the_truth(kind, monkeypatch):
    """Of 300 simulated test sets; benchmarks/coverage.py looks at more of more kinds."""
    path = Path(__file__).parents[1] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", path)
    coverage = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, coverage)
    spec.loader.exec_module(coverage)
    monkeypatch.setattr(coverage, "POPULATION", 50_000)
    found = coverage.simulate(coverage.Problem(**KINDS[kind]), 300, 0, seed=2)
    least = {"groups": 0.88, "over-confident": 0.88, "few groups": 0.93}.get(kind, 0.91)
    assert {name: share for name, share in found.items() if share < least} == {}
    assert len(found) >= 12


def test_where_hardly_any_loss_was_seen_the_interval_of_the_loss_has_an_end():
    """One wrong image in seven is possible after 24 right ones, and costs about seven nats."""
    generator = np.random.default_rng(0)
    wrong = generator.uniform(0, 0.001, (24, 2))
    probabilities = np.column_stack([1 - wrong.sum(axis=1), wrong])
    loss = measure(np.zeros(24, dtype=np.int64), probabilities, ("a", "b", "c"))["log_loss"]
    assert loss.value < 0.002
    assert 0.05 < loss.high < 1.5
