"""Figures equal scikit-learn's, and their intervals hold what they say."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from headstart.metrics import (
    Estimate,
    confusion_matrix,
    log_loss,
    measure,
    measure_recall,
    wilson_interval,
)

FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")


def random_case(seed, count, classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    odds = np.exp(logits)
    return labels, (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def test_a_thousand_classes_take_little_memory():
    labels = np.arange(3000) % 1000
    probabilities = random_case(0, 3000, 1000)[1]
    tracemalloc.start()
    try:
        measure(labels, probabilities, names(1000))
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def names(classes):
    return tuple(f"c{k}" for k in range(classes))


@pytest.mark.parametrize(
    ("seed", "count", "classes"), [(0, 300, 2), (1, 50, 3), (2, 1000, 20), (3, 12, 4)]
)
def test_figures_are_scikit_learns(seed, count, classes):
    labels, probabilities = random_case(seed, count, classes)
    predicted = probabilities.argmax(axis=1)
    found = measure(labels, probabilities, names(classes))
    assert tuple(found) == FIGURES
    recall = measure_recall(labels, probabilities, names(classes))
    assert tuple(recall) == names(classes)
    found |= recall
    present = np.unique(labels)
    scores = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.recall_score(
            labels, predicted, labels=present, average="macro", zero_division=0
        ),
        "macro_f1": sk.f1_score(
            labels, predicted, labels=present, average="macro", zero_division=0
        ),
        "log_loss": -np.log(probabilities[np.arange(count), labels]).mean(),
    }
    recalls = sk.recall_score(
        labels, predicted, labels=range(classes), average=None, zero_division=0
    )
    scores |= {f"c{k}": recalls[k] for k in present}
    assert {name: found[name].value for name in scores} == pytest.approx(scores, abs=1e-6)
    for estimate in (found[name] for name in scores):
        assert estimate.low <= estimate.value <= estimate.high
    assert all(found[n].low >= 0 and found[n].high <= 1 for n in scores if n != "log_loss")
    counts = confusion_matrix(labels, predicted, classes)
    assert (counts == sk.confusion_matrix(labels, predicted, labels=range(classes))).all()
    assert repr(found) == repr(measure(labels, probabilities, names(classes)) | recall)


@pytest.mark.parametrize("total", [1, 2, 7, 30, 1000])
def test_wilsons_interval(total):
    for successes in {0, 1, total // 2, total - 1, total}:
        expected = stats.binomtest(successes, total).proportion_ci(method="wilson")
        found = wilson_interval(successes, total)
        assert found.value == successes / total
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_log_loss_has_students_interval():
    labels, probabilities = random_case(0, 40, 3)
    losses = -np.log(probabilities[np.arange(40), labels].astype(float))
    low, high = stats.t.interval(0.95, 39, losses.mean(), stats.sem(losses))
    found = log_loss(labels, probabilities)
    assert (found.value, found.low, found.high) == pytest.approx((losses.mean(), low, high))
    sure = log_loss(np.array([0, 1]), np.array([[0, 1.0], [0, 1.0]]))
    assert math.isfinite(sure.value)
    assert sure.value > 10


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
    found |= measure_recall(labels, np.eye(3)[labels], names(3))
    for name, estimate in found.items():
        if name != "log_loss":
            assert (estimate.value, estimate.high) == (1, 1)
            assert 0.2 < estimate.low < 0.95
    assert found["balanced_accuracy"].low < found["accuracy"].low
    assert found["log_loss"].value == 0


def test_a_class_without_images_has_no_figure():
    labels = np.array([0, 0, 2, 2])
    found = measure(labels, np.eye(3)[[0, 1, 2, 2]], names(3))
    recall = measure_recall(labels, np.eye(3)[[0, 1, 2, 2]], names(3))
    assert found["balanced_accuracy"].value == 0.75
    assert found["macro_f1"].value == pytest.approx((2 / 3 + 1) / 2)
    assert all(math.isnan(v) for v in vars(recall["c1"]).values())


def test_one_image():
    found = measure(np.array([1]), np.array([[0.2, 0.8]]), names(2))
    for name in FIGURES[:3]:
        assert found[name].value == 1
        assert found[name].low < 0.3
    assert found["log_loss"].value == pytest.approx(-math.log(0.8))
    assert math.isnan(found["log_loss"].low)
    assert wilson_interval(0, 0) == pytest.approx(Estimate(*[math.nan] * 3), nan_ok=True)
