"""The linear head equals scikit-learn's, and its penalty is chosen without leaks."""

import _thread
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from headstart.errors import InputError, UsageError
from headstart.problem import softmax
from headstart.training.heads import (
    CutScore,
    HeadShape,
    LinearHead,
    MlpHead,
    assign_folds,
    average_heads,
    average_probabilities,
    choose_cuts,
    choose_penalty,
    choose_shallow,
    fit_linear,
    head_of_arrays,
    parse_head,
    suggest_cuts,
)
from headstart.training.logistic import fold_standardisation, standardise


def problem(count, width, classes, seed=0, noise=1.0):
    """Features of unequal scale and offset, correlated, with every class present."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=count - classes)])
    centres = rng.normal(size=(classes, width)) / np.sqrt(width) * 2
    mixed = rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) / np.sqrt(width)
    features = (centres[labels] + noise * mixed) * rng.uniform(0.1, 10, width)
    return (features + rng.normal(size=width) * 5).astype(np.float32), labels


def units(count):
    return tuple(f"{n}.png" for n in range(count))


def scores(head, features):
    return features.astype(np.float64) @ head.weight.T + head.bias


def objective(logits, weight, labels, weights, penalty):
    """What the head minimises; `weight` is in standardised features."""
    losses = -np.log(softmax(logits)[np.arange(len(labels)), labels])
    return np.average(losses, weights=weights) + penalty / 2 * (weight**2).sum()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize(("count", "width"), [(200, 15), (60, 150)])
@pytest.mark.parametrize("classes", [2, 7])
def test_the_head_is_scikit_learns(classes, count, width, penalty, weighted):
    check_against_scikit_learn(classes, count, width, penalty, weighted, 1e-9)


@pytest.mark.parametrize(("count", "width"), [(2500, 100), (330, 1000)])
def test_of_large_problems_too(count, width):
    check_against_scikit_learn(9, count, width, 0.1, True, 1e-5)


def check_against_scikit_learn(classes, count, width, penalty, weighted, tolerance):
    features, labels = problem(count, width, classes)
    weights = np.random.default_rng(1).uniform(0.2, 5, count) if weighted else np.ones(count)
    head = fit_linear(
        features, labels, classes, penalty=penalty, weights=weights if weighted else None
    )
    assert (head.weight.shape, head.bias.shape) == ((classes, width), (classes,))
    mean, std = features.astype(float).mean(axis=0), features.astype(float).std(axis=0)
    standardised = (features - mean) / std
    # Of two classes scikit-learn keeps one row w, which stands for -w / 2 and w / 2.
    strength = 1 / (penalty * weights.sum()) * (2 if classes == 2 else 1)
    model = LogisticRegression(C=strength, tol=tolerance, max_iter=5000)
    model.fit(standardised, labels, sample_weight=weights)
    theirs, bias = model.coef_, model.intercept_
    if classes == 2:
        theirs, bias = np.vstack([-theirs, theirs]) / 2, np.append(-bias, bias) / 2
    mine = objective(scores(head, features), head.weight * std, labels, weights, penalty)
    best = objective(standardised @ theirs.T + bias, theirs, labels, weights, penalty)
    assert mine == pytest.approx(best, abs=1e-4)
    given_by = head.predict_proba(features)
    assert given_by.dtype == np.float32
    assert given_by.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert given_by == pytest.approx(model.predict_proba(standardised), abs=5e-3)


def test_weights_count_images():
    features, labels = problem(60, 10, 3)
    weights = np.random.default_rng(0).integers(1, 4, 60)
    weighted = fit_linear(features, labels, 3, penalty=0.1, weights=2.5 * weights)
    scaled = fit_linear(features, labels, 3, penalty=0.1, weights=weights)
    assert weighted.predict_proba(features) == pytest.approx(scaled.predict_proba(features), 1e-3)


@pytest.mark.parametrize("value", [0, 0.1, 1000])
def test_a_constant_feature_says_nothing(value):
    features, labels = problem(50, 8, 3)
    more = np.insert(features, 4, value, axis=1).astype(np.float32)
    plain = fit_linear(features, labels, 3, penalty=0.01)
    head = fit_linear(more, labels, 3, penalty=0.01)
    assert (head.weight[:, 4] == 0).all()
    assert np.isfinite(head.weight).all()
    assert np.isfinite(head.bias).all()
    assert head.predict_proba(more) == pytest.approx(plain.predict_proba(features), abs=1e-3)


def test_the_scale_of_a_feature_does_not_matter():
    features, labels = problem(50, 8, 3)
    scaled = features * np.float32(10.0) ** np.arange(-4, 4).astype(np.float32)
    plain = fit_linear(features, labels, 3, penalty=0.01).predict_proba(features)
    assert fit_linear(scaled, labels, 3, penalty=0.01).predict_proba(scaled) == pytest.approx(
        plain, abs=1e-3
    )


def test_copies_of_a_feature_share_its_weight():
    features, labels = problem(2500, 1, 3)
    many = np.repeat(features, 400, axis=1)
    head = fit_linear(many, labels, 3, penalty=4.0)
    # The sum of 400 equal weights costs a 400th of the penalty.
    alone = fit_linear(features, labels, 3, penalty=4.0 / 400)
    assert head.predict_proba(many) == pytest.approx(alone.predict_proba(features), abs=2e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_are_refused(value):
    features, labels = problem(20, 5, 2)
    features[7, 3] = value
    for call in (
        lambda: fit_linear(features, labels, 2, penalty=1),
        lambda: choose_penalty(features, labels, units(20), 2),
    ):
        with pytest.raises(InputError, match="features of row 7 are NaN or infinite"):
            call()


def test_probabilities_never_overflow():
    head = LinearHead(np.float32([[1e4], [-1e4]]), np.zeros(2, np.float32))
    assert head.predict_proba(np.float32([[1], [-1], [0]])).tolist() == [[1, 0], [0, 1], [0.5, 0.5]]


# ---------------------------------------------------------------- the penalty


def test_the_penalty_is_near_the_best_of_fresh_images():
    features, labels = problem(2100, 30, 3, noise=2.0)
    train, test = slice(100), slice(100, None)
    found = choose_penalty(features[train], labels[train], units(100), 3)
    assert found.folds == 5
    assert found.probabilities.shape == (100, 3)
    assert found.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    tried = dict(found.path)
    assert tried[found.value] <= min(tried.values()) + 0.001

    def loss(penalty):
        head = fit_linear(features[train], labels[train], 3, penalty=penalty)
        shares = head.predict_proba(features[test])
        return -np.log(shares[np.arange(2000), labels[test]]).mean()

    best = min(loss(10**e) for e in np.arange(-4, 2.1, 0.5))
    assert loss(found.value) < best + 0.05
    out_of_fold = -np.log(found.probabilities[np.arange(100), labels[train]]).mean()
    assert out_of_fold == pytest.approx(tried[found.value], abs=1e-3)


def test_cross_validation_is_honest_about_groups():
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.permutation(np.arange(40) % 2), 5)  # says nothing beyond the group
    features = np.repeat(rng.normal(size=(40, 60)), 5, axis=0) + rng.normal(size=(200, 60)) / 10
    whole = choose_penalty(features, labels, tuple(str(n // 5) for n in range(200)), 2)
    split = choose_penalty(features, labels, units(200), 2)
    assert (split.probabilities.argmax(axis=1) == labels).mean() > 0.95
    assert (whole.probabilities.argmax(axis=1) == labels).mean() < 0.7
    assert whole.value > split.value


def test_the_penalty_is_the_same_every_time_and_in_any_order():
    features, labels = problem(80, 20, 3, noise=2.0)
    names = units(80)
    found = choose_penalty(features, labels, names, 3, seed=5)
    again = choose_penalty(features, labels, names, 3, seed=5)
    assert (found.value, found.path) == (again.value, again.path)
    assert (found.probabilities == again.probabilities).all()
    order = np.random.default_rng(0).permutation(80)
    mixed = choose_penalty(
        features[order], labels[order], tuple(names[i] for i in order), 3, seed=5
    )
    assert mixed.value == found.value
    assert mixed.probabilities == pytest.approx(found.probabilities[order], abs=1e-3)
    other = choose_penalty(features, labels, names, 3, seed=6)
    assert not np.array_equal(other.probabilities, found.probabilities)


@pytest.mark.parametrize(
    ("labels", "folds"), [([0, 1], 0), ([0, 0, 0, 1], 0), ([0, 0, 1, 1], 2), ([0] * 9 + [1] * 3, 3)]
)
def test_folds_follow_the_smallest_class(labels, folds):
    features = np.random.default_rng(0).normal(size=(len(labels), 4))
    steps = []
    found = choose_penalty(
        features, np.array(labels), units(len(labels)), 2, progress=lambda *s: steps.append(s)
    )
    assert found.folds == folds
    assert (found.probabilities is None) == (folds == 0)
    assert found.value > 0
    assert (folds == 0) or steps[-1][1] == steps[-1][2]


def test_the_bits_do_not_depend_on_the_number_of_cpus(monkeypatch):
    features, labels = problem(2500, 200, 5, noise=2.0)
    results = []
    for cpus in (1, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cpus: range(n), raising=False)
        found = choose_penalty(features, labels, units(2500), 5)
        head = fit_linear(features, labels, 5, penalty=found.value)
        results.append((found.path, found.probabilities.tobytes(), head.weight.tobytes()))
    assert results[0] == results[1]


def test_with_many_images_one_fold_decides_and_all_are_predicted_honestly():
    features, labels = problem(6000, 20, 3, noise=3.0)
    found = choose_penalty(features, labels, units(6000), 3, seed=2)
    fold = assign_folds(labels, units(6000), 5, 2)
    for k in range(5):
        held = fold == k
        head = fit_linear(features[~held], labels[~held], 3, penalty=found.value)
        theirs = head.predict_proba(features[held])
        assert found.probabilities[held] == pytest.approx(theirs, abs=0.02)
    first = -np.log(found.probabilities[fold == 0][np.arange((fold == 0).sum()), labels[fold == 0]])
    assert dict(found.path)[found.value] == pytest.approx(first.mean(), abs=1e-4)


def test_an_interrupt_ends_the_choice_at_once():
    features, labels = problem(10_000, 300, 40, noise=2.0)
    sent = []

    def interrupt():
        sent.append(time.perf_counter())
        _thread.interrupt_main()

    def progress(name, step, total):
        if step == 1:
            threading.Timer(0.1, interrupt).start()

    with pytest.raises(KeyboardInterrupt):
        choose_penalty(features, labels, units(10_000), 40, progress=progress)
    assert time.perf_counter() - sent[-1] < 2


LABELLED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(LABELLED, st.integers(2, 5), st.integers(0, 99), st.booleans(), st.randoms())
def test_folds(table, folds, seed, grouped, random):
    labels = np.array([label for label, _ in table])
    groups = tuple(f"g{g}" for _, g in table) if grouped else units(len(table))
    found = assign_folds(labels, groups, folds, seed)
    assert found.shape == labels.shape
    assert set(found.tolist()) <= set(range(folds))
    for group in set(groups):
        assert len({f for f, g in zip(found, groups, strict=True) if g == group}) == 1
    if not grouped:
        for label in set(labels.tolist()):
            counts = np.bincount(found[labels == label], minlength=folds)
            assert counts.max() - counts.min() <= 1
        sizes = np.bincount(found, minlength=folds)
        assert sizes.max() - sizes.min() <= len(set(labels.tolist()))
    order = list(range(len(table)))
    random.shuffle(order)
    mixed = assign_folds(labels[order], tuple(groups[i] for i in order), folds, seed)
    assert (mixed == found[order]).all()


def test_folds_are_even_in_every_class_where_groups_span_classes():
    """40 patients with one to six images each; the rarest class has a twentieth of the images."""
    rng = np.random.default_rng(0)
    uneven = []
    for seed in range(40):
        table = [
            (int(label), f"patient {patient}")
            for patient in range(40)
            for label in rng.choice(4, rng.integers(1, 7), p=[0.6, 0.2, 0.15, 0.05])
        ]
        labels = np.array([label for label, _ in table])
        fold = assign_folds(labels, tuple(patient for _, patient in table), 5, seed)
        for label in range(4):
            counts = np.bincount(fold[labels == label], minlength=5)
            uneven.append((counts.max() - counts.min()) / counts.sum())
    assert np.mean(uneven) < 0.1


# ---------------------------------------------------------------- cut points


def layers(count=300, classes=3, seed=0):
    """Cut points that know nothing, part of the labels, the other part, and less than both."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    centres = rng.normal(size=(classes, 12)) * 1.2
    known = centres[labels] + rng.normal(size=(count, 12))
    return {
        "noise": rng.normal(size=(count, 8)).astype(np.float32),
        "first": known[:, :6].astype(np.float32),
        "second": known[:, 6:].astype(np.float32),
        "last": (known[:, :6] + 2 * rng.normal(size=(count, 6))).astype(np.float32),
    }, labels


def test_cut_points_together_win_where_each_knows_a_part():
    values, labels = layers()
    steps = []
    found = choose_cuts(
        values,
        labels,
        units(300),
        3,
        candidates=suggest_cuts(list(values)),
        progress=lambda *s: steps.append(s),
    )
    best = found.heads[0]
    assert {"first", "second"} <= set(best)
    candidates = suggest_cuts(list(values))
    assert [s.heads for s in found.scores[: len(candidates)]] == [(cuts,) for cuts in candidates]
    scores = {s.heads: s for s in found.scores}
    noise, alone = scores[("noise",),], scores[best,]
    assert noise.log_loss == pytest.approx(np.log(3), abs=0.03)
    assert noise.accuracy < 0.5
    assert alone.log_loss == min(scores[cuts,].log_loss for cuts in candidates)
    assert alone.log_loss < scores[("first",),].log_loss
    matrix = np.concatenate([values[name] for name in best], axis=1)
    penalty = choose_penalty(matrix, labels, units(300), 3)
    assert found.penalties[0].value == penalty.value
    losses = -np.log(penalty.probabilities[np.arange(300), labels])
    assert alone.log_loss == pytest.approx(losses.mean(), abs=1e-5)
    assert alone.losses == pytest.approx(losses, abs=1e-5)
    assert alone.error == pytest.approx(losses.std(ddof=1) / 300**0.5, rel=1e-3)
    right = (penalty.probabilities.argmax(axis=1) == labels).mean()
    assert alone.accuracy == pytest.approx(right)
    assert steps[-1] == ("choice of cut points", len(candidates), len(candidates))


def test_heads_that_know_different_parts_are_averaged():
    values, labels = layers()
    del values["last"]
    found = choose_cuts(values, labels, units(300), 3, candidates=[(n,) for n in values])
    assert set(found.heads) == {("first",), ("second",)}
    mean = found.scores[-1]
    assert mean.heads == found.heads
    held_out = average_probabilities([p.probabilities for p in found.penalties])
    losses = -np.log(held_out[np.arange(300), labels])
    assert mean.log_loss == pytest.approx(losses.mean(), abs=1e-5)
    alone = [s for s in found.scores if s.heads in [(cuts,) for cuts in found.heads]]
    assert mean.log_loss < 0.7 * min(s.log_loss for s in alone)


def test_the_mean_of_heads_is_one_head_on_their_cut_points():
    values, labels = layers()
    widths = {name: matrix.shape[1] for name, matrix in values.items()}
    parts = [("first",), ("noise", "second"), ("first", "last")]
    heads = {
        cuts: fit_linear(np.concatenate([values[n] for n in cuts], axis=1), labels, 3, penalty=0.1)
        for cuts in parts
    }
    names, mean = average_heads(heads, widths)
    assert names == ("noise", "first", "second", "last")
    each = [
        head.predict_proba(np.concatenate([values[n] for n in cuts], axis=1))
        for cuts, head in heads.items()
    ]
    joined = mean.predict_proba(np.concatenate([values[n] for n in names], axis=1))
    assert joined == pytest.approx(average_probabilities(each), abs=1e-6)
    assert joined.dtype == mean.weight.dtype == mean.bias.dtype == np.float32


def test_a_probability_of_zero_is_averaged_without_infinity():
    sure = np.array([[1.0, 0.0]], dtype=np.float32)
    assert np.isfinite(average_probabilities([sure, 1 - sure])).all()


def test_images_of_a_unit_are_one_observation_and_weights_count():
    values, labels = layers(100)
    twice = {name: np.repeat(matrix, 2, axis=0) for name, matrix in values.items()}
    names = tuple(name for name in units(100) for _ in range(2))
    cuts = [("first",)]
    one = choose_cuts(values, labels, units(100), 3, candidates=cuts).scores[0]
    two = choose_cuts(twice, np.repeat(labels, 2), names, 3, candidates=cuts).scores[0]
    assert two.log_loss == pytest.approx(one.log_loss, abs=1e-3)
    assert two.error == pytest.approx(one.error, rel=0.01)
    weights = np.where(labels == 0, 5.0, 1.0)
    heavy = choose_cuts(values, labels, units(100), 3, candidates=cuts, weights=weights)
    shares = heavy.penalties[0].probabilities
    losses = -np.log(shares[np.arange(100), labels])
    assert heavy.scores[0].log_loss == pytest.approx(np.average(losses, weights=weights), abs=1e-5)


def test_many_images_are_compared_on_a_sample_and_the_penalty_is_of_all():
    values, labels = layers(9000)
    cuts = [("noise",), ("first",), ("first", "second")]
    found = choose_cuts(values, labels, units(9000), 3, candidates=cuts, seed=3)
    assert found.heads[0] == ("first", "second")
    assert {len(s.losses) for s in found.scores} == {2250}
    assert found.penalties == ()  # which are chosen on all images when they are trained
    again = choose_cuts(values, labels, units(9000), 3, candidates=cuts, seed=3)
    assert [s.losses.tobytes() for s in again.scores] == [s.losses.tobytes() for s in found.scores]


def test_too_few_images_to_compare_cut_points():
    values = {"early": np.eye(3, dtype=np.float32), "late": np.eye(3, dtype=np.float32)}
    names = suggest_cuts(["early", "late"])
    found = choose_cuts(values, np.array([0, 0, 1]), units(3), 2, candidates=names)
    assert (found.heads, found.scores, found.penalties[0].folds) == ((("late",),), (), 0)
    with pytest.raises(UsageError, match="at least two single cut points"):
        choose_shallow(found.scores)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], "needs candidates"),
        ([("first",), ()], "at least one cut point"),
        ([("frist",)], r"cut point 'frist' is unknown \(nearest: first\); known: noise, first"),
    ],
)
def test_wrong_candidates_are_refused(candidates, message):
    values, labels = layers(30)
    with pytest.raises(UsageError, match=message):
        choose_cuts(values, labels, units(30), 3, candidates=candidates)


def test_suggested_cuts():
    assert suggest_cuts("abcdef") == (
        *(("a",), ("b",), ("c",), ("d",), ("e",), ("f",)),
        *(("e", "f"), ("d", "e", "f"), ("c", "d", "e", "f"), ("a", "b", "c", "d", "e", "f")),
    )
    assert suggest_cuts("ab") == (("a",), ("b",), ("a", "b"))
    assert suggest_cuts("a") == (("a",),)


def score(name, losses):
    losses = np.array(losses, dtype=float)
    error = losses.std(ddof=1) / len(losses) ** 0.5
    return CutScore((tuple(name),), losses.mean(), 0.5, error, 0.1, losses)


def test_the_shallow_cut_is_the_earliest_that_is_about_as_good_on_the_same_images():
    base = np.array([0.0, 2.0, 4.0, 6.0])
    best, last, both = score("c", base), score("d", base - 1), score("cd", base - 2)
    # Worse on average by 0.1 with a standard error of 0.03, 0.08 and 0.6 of the paired difference.
    steady = score("a", base + np.array([0.05, 0.15, 0.05, 0.15]))
    level = score("b", base + np.array([-0.1, 0.1, 0.1, 0.301]))
    varied = score("b", base + np.array([-0.9, 1.1, 1.1, -0.9]))
    assert choose_shallow([steady, best, last]) == "c"
    assert choose_shallow([steady, varied, best, last, both]) == "b"
    assert choose_shallow([level, best, both, last]) == "c"
    assert choose_shallow([best, last]) == "c"
    with pytest.raises(UsageError, match="at least two single cut points"):
        choose_shallow([last, both])


# ---------------------------------------------------------------- heads as such

MLP = MlpHead(
    (
        (np.float32([[1, -1], [2, 0], [0, 1]]), np.float32([0, 1, -1])),
        (np.float32([[1, 0, 1], [0, 1, 0]]), np.float32([0.5, 0])),
    )
)


def test_an_mlp_is_scikit_learns():
    features, labels = problem(80, 6, 3)
    model = MLPClassifier((8, 5), max_iter=50, random_state=0)
    mean, scale = standardise(features)
    with pytest.warns(ConvergenceWarning):
        model.fit((features - mean) / scale, labels)
    dense = [(w.T, b) for w, b in zip(model.coefs_, model.intercepts_, strict=True)]
    first = fold_standardisation(*dense[0], mean, scale)
    rest = [(w.astype(np.float32), b.astype(np.float32)) for w, b in dense[1:]]
    head = MlpHead((first, *rest))
    assert (head.width, head.classes) == (6, 3)
    found = head.predict_proba(features)
    assert (found.dtype, found.shape) == (np.float32, (80, 3))
    assert found == pytest.approx(model.predict_proba((features - mean) / scale), abs=1e-4)


@pytest.mark.parametrize("head", [LinearHead(*MLP.layers[0]), MLP], ids=["linear", "mlp"])
def test_a_head_is_the_same_from_its_arrays(head):
    loaded = head_of_arrays(head.arrays())
    assert type(loaded) is type(head)
    assert (loaded.width, loaded.classes) == (head.width, head.classes)
    features = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    assert (loaded.predict_proba(features) == head.predict_proba(features)).all()


def test_the_names_of_the_arrays_stay():
    assert list(LinearHead(*MLP.layers[0]).arrays()) == ["weight", "bias"]
    names = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert list(MLP.arrays()) == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.0.bias": None}, "'layers.0.bias' is missing; has: layers.0.weight, layers.1"),
        ({"layers.0.weight": None}, "'layers.0.weight' is missing"),
        ({"layers.2.bias": np.zeros(2)}, "'layers.2.bias' is unknown; needs: layers.0.weight,"),
        ({"scale": np.zeros(2)}, "'scale' is unknown"),
        (
            {"layers.1.weight": np.zeros((2, 4), np.float32)},
            r"'layers.1.weight' has the shape \(2, 4\), needs \(out, 3\)",
        ),
        (
            {"layers.0.weight": np.zeros(3, np.float32)},
            r"'layers.0.weight' has the shape \(3,\), needs \(out, in\)",
        ),
        ({"layers.0.weight": np.zeros((3, 0), np.float32)}, r"has the shape \(3, 0\)"),
        (
            {"layers.1.bias": np.zeros(3, np.float32)},
            r"'layers.1.bias' has the shape \(3,\), needs \(2,\), one for each row of 'layers.1.weight'",
        ),
        ({"layers.1.bias": np.zeros(2)}, "'layers.1.bias' is of float64, needs float32"),
        ({"layers.1.bias": np.float32([0, np.nan])}, "'layers.1.bias' has NaN or infinite"),
    ],
)
def test_arrays_that_make_no_head_are_refused(change, message):
    arrays = {k: v for k, v in {**MLP.arrays(), **change}.items() if v is not None}
    with pytest.raises(InputError, match=message):
        head_of_arrays(arrays)


def test_no_arrays_make_no_head():
    with pytest.raises(InputError, match=r"'layers\.0\.weight' is missing; has: none"):
        head_of_arrays({})


@pytest.mark.parametrize(
    ("notation", "widths", "dropouts"),
    [
        ("linear", (), (0,)),
        ("d0.2", (), (0.2,)),
        ("512", (512,), (0, 0)),
        ("d0.5-480-d0.5", (480,), (0.5, 0.5)),
        ("d.5-480", (480,), (0.5, 0)),
        ("400-d0.2-100-d0.2-20-d0.1", (400, 100, 20), (0, 0.2, 0.2, 0.1)),
    ],
)
def test_notation(notation, widths, dropouts):
    assert parse_head(notation) == HeadShape(widths, dropouts)


@pytest.mark.parametrize(
    ("notation", "problem"),
    [
        ("", "'' is neither"),
        ("512-", "'' is neither"),
        ("0", "'0' is neither a width nor a dropout"),
        ("070", "'070' is neither"),
        ("65537", "'65537' is neither"),
        ("512-relu", "'relu' is neither"),
        ("linear-512", "'linear' is neither"),
        ("d0", "'d0' is neither"),
        ("d0.0", "'d0.0' is neither"),
        ("d1", "'d1' is neither"),
        ("d0.99999999999999999999", "is neither"),
        ("d1.5-3", "'d1.5' is neither"),
        ("dnan", "'dnan' is neither"),
        ("\u0665", "is neither"),
        ("512 - 20", "'512 ' is neither"),
        ("d0.5-d0.2-10", "'d0.2' follows another dropout"),
    ],
)
def test_wrong_notation_teaches(notation, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        parse_head(notation)
    assert "such as 512 or d0.5-480-d0.5; the output layer is implied" in str(caught.value)


PROBABILITIES = st.just(0.0) | st.floats(1e-9, 1, exclude_max=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(PROBABILITIES, st.integers(1, 65_536)), max_size=5), PROBABILITIES)
def test_notation_round_trip(hidden, last):
    shape = HeadShape(tuple(w for _, w in hidden), (*(d for d, _ in hidden), last))
    assert parse_head(str(shape)) == shape
