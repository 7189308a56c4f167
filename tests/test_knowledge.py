"""What a classifier knows of its limits: prediction sets, and images that are none of its classes."""

import json
import math
import os
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

import headstart
from headstart.problem import softmax
from headstart.runs.knowledge import Knowledge, measure_sets
from headstart.training.conformal import Scores, draw_some, find_sets, score_labels
from headstart.training.novelty import NOVEL, learn_novelty

KINDS = ("blobs", "plain", "stripes")
ODD = np.zeros((40, 48, 3), np.uint8)  # like none of them
ODD[:, :24, 0] = ODD[20:, :, 1] = 255


def draw(images, classes=5, seed=0, groups=1):
    """Labels and probabilities that are right; of `groups` images each that are nearly the same."""
    generator = np.random.default_rng(seed)
    logits = np.repeat(2 * generator.normal(size=(images // groups, classes)), groups, axis=0)
    probabilities = softmax(logits)
    labels = [generator.choice(classes, p=row) for row in probabilities[::groups]]
    return np.repeat(labels, groups), probabilities.astype(np.float32)


def scores_of(labels, probabilities, units=None):
    units = [str(i) for i in range(len(labels))] if units is None else units
    return Scores.of(score_labels(labels, probabilities), units)


class Fixed:
    """A classifier for MAPIE, whose images are rows of probabilities."""

    def __init__(self, classes):
        self.classes_ = np.arange(classes)

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)

    def __sklearn_is_fitted__(self):
        return True


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_sets_are_those_of_mapie(coverage):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapie = pytest.importorskip("mapie.classification")
        from sklearn.base import BaseEstimator, ClassifierMixin

        estimator = type("Ready", (Fixed, ClassifierMixin, BaseEstimator), {})(5)
        labels, probabilities = draw(300)
        _, asked = draw(200, seed=1)
        theirs = mapie.SplitConformalClassifier(
            estimator, confidence_level=coverage, conformity_score="lac", prefit=True
        )
        theirs.conformalize(probabilities.astype(np.float64), labels)
        _, expected = theirs.predict_set(asked.astype(np.float64))
    own = find_sets(scores_of(labels, probabilities), asked, coverage)
    expected = expected[:, :, 0].copy()
    expected[np.arange(len(asked)), asked.argmax(axis=1)] = True
    assert (own == expected).all()


@given(st.integers(9, 60), st.integers(0, 10**6), st.sampled_from([0.5, 0.8, 0.9]))
def test_a_set_is_cut_at_an_order_statistic(images, seed, coverage):
    labels, probabilities = draw(images, seed=seed)
    limit = np.sort(score_labels(labels, probabilities))
    limit = limit[math.ceil((images + 1) * coverage - 1e-9) - 1]
    found = find_sets(scores_of(labels, probabilities), probabilities, coverage)
    expected = -probabilities <= limit
    expected[np.arange(images), probabilities.argmax(axis=1)] = True
    assert (found == expected).all()


@pytest.mark.parametrize("groups", [1, 5])
def test_sets_have_their_coverage(groups):
    """The mean over many draws is at least what was asked for, and little more."""
    covered = []
    for seed in range(150):
        labels, probabilities = draw(20 * groups, 8, seed, groups)
        units = [str(i // groups) for i in range(len(labels))]
        asked, theirs = draw(200, 8, seed + 1000)
        inside = find_sets(scores_of(labels, probabilities, units), theirs, 0.8)
        covered.append(inside[np.arange(200), asked].mean())
    assert 0.785 < np.mean(covered) < 0.87


def test_a_coverage_that_so_few_cannot_support_is_refused():
    labels, probabilities = draw(30)
    known = Knowledge(scores_of(labels, probabilities))
    known.check_coverage(0.96)
    with pytest.raises(
        headstart.UsageError,
        match=r"^coverage 0\.98 takes at least 49 measured images \(or groups of them\), and this "
        r"classifier has 30; ask for 0\.96 at most, or fit with more images$",
    ):
        known.check_coverage(0.98)
    grouped = Knowledge(scores_of(labels, probabilities, [str(i // 10) for i in range(30)]))
    with pytest.raises(headstart.UsageError, match=r"takes at least 9 .* has 3; ask for 0\.75"):
        grouped.check_coverage(0.9)
    for wrong in (0, 1, -1, 1.5, math.nan, math.inf, True, "0.9"):
        with pytest.raises(headstart.UsageError, match="must be a number between 0 and 1"):
            known.check_coverage(wrong)
    with pytest.raises(headstart.UsageError, match="coverage needs a classifier of one label"):
        Knowledge().check_coverage(0.9)


def test_nine_images_support_nine_tenths():
    labels, probabilities = draw(9)
    assert find_sets(scores_of(labels, probabilities), probabilities, 0.9).any(axis=1).all()


def test_unknown_classes_are_not_covered():
    labels, probabilities = draw(50)
    known = Knowledge(scores_of(labels, probabilities))
    asked = np.pad(probabilities[:10], ((0, 0), (0, 3)))
    figures = measure_sets(known, np.array([*labels[:5], *[7] * 5]), asked, 0.9, ())
    assert figures.covered.value <= 0.5
    assert sum(figures.sizes.values()) == 10
    assert figures.size == sum(size * n for size, n in figures.sizes.items()) / 10


def test_p_values_are_shares_of_groups():
    scores = Scores.of(np.array([1, 2, 3, 3.5], np.float32), ["a", "a", "b", "c"])
    asked = np.array([0, 1, 1.5, 2.5, 3.2, 9], np.float32)
    assert scores.p_values(asked) == pytest.approx(np.array([4, 4, 3.5, 3, 2, 1]) / 4)


def test_a_draw_is_by_name():
    names = [f"{i:03}" for i in range(100)]
    some = draw_some(names, 10, 0)
    assert len(some) == 10
    assert sorted(names[i] for i in some) == [names[i] for i in some]
    turned = names[::-1]
    assert {turned[i] for i in draw_some(turned, 10, 0)} == {names[i] for i in some}
    assert draw_some(names, 100, 0).tolist() == list(range(100))


def features(images, seed, centre=0):
    """Positive features near a line of their own."""
    generator = np.random.default_rng(seed)
    values = np.abs(generator.normal(size=(images, 200)) * 0.3)
    values[:, centre : centre + 20] += 2 + generator.normal(size=(images, 1))
    return values.astype(np.float32)


def test_what_is_new_is_told_from_what_is_known():
    names = tuple(map(str, range(400)))
    novelty = learn_novelty(features(400, 0), names, "last", 0)
    usual = novelty.p_values(features(2000, 1))
    assert (usual <= NOVEL).mean() < 0.02
    assert (usual <= 0.2).mean() == pytest.approx(0.2, abs=0.06)
    assert (novelty.p_values(features(200, 2, centre=100)) <= NOVEL).mean() > 0.9
    assert learn_novelty(features(19, 0), names[:19], "last", 0) is None


def test_images_of_a_group_are_left_out_together():
    """Copies of an image must not vouch for each other."""
    once = features(40, 0)
    copies = np.repeat(once, 10, axis=0)
    units = tuple(str(i // 10) for i in range(400))
    grouped = learn_novelty(copies, units, "last", 0)
    apart = learn_novelty(copies, tuple(map(str, range(400))), "last", 0)
    assert grouped.scores.count == 40
    assert grouped.scores.values.mean() > 3 * apart.scores.values.mean()


@pytest.fixture(scope="module")
def many(plant, tmp_path_factory):
    """60 pictures of each of three classes to train on, 20 to test on."""
    root = tmp_path_factory.mktemp("data") / "many"
    plant(root, {f"train/{k}": 60 for k in KINDS})
    return plant(root, {f"test/{k}": 20 for k in KINDS}, first=200)


@pytest.fixture(scope="module")
def known(many, tiny, tmp_path_factory):
    return headstart.fit(many, tmp_path_factory.mktemp("known") / "run", **tiny)


def test_a_prediction_has_its_set_and_novelty(known, many):
    paths = [next((many / "test" / kind).iterdir()) for kind in KINDS]
    for prediction in headstart.predict(known.folder, paths, coverage=0.9):
        assert prediction.set[0] == prediction.top[0]
        assert 1 <= len(prediction.set) <= 3
        assert 0 < prediction.novelty <= 1
        assert prediction.is_known
    [prediction] = headstart.predict(known, ODD)
    assert (prediction.set, prediction.is_known) == (None, False)
    [broken] = headstart.predict(known, b"none", coverage=0.9)
    assert (broken.set, broken.novelty, broken.is_known) == ((), None, True)


def test_a_predictor_refuses_a_coverage_at_once(known, many):
    with (
        headstart.Predictor.load(known.folder) as predictor,
        pytest.raises(headstart.UsageError, match=r"coverage 0\.999 takes at least 999"),
    ):
        predictor.predict(many, coverage=0.999)
    with pytest.raises(headstart.UsageError, match=r"coverage 0\.999 takes"):
        headstart.evaluate(known, many, coverage=0.999)


def test_evaluate_measures_sets_and_alarms(known, many):
    found = headstart.evaluate(known.folder, many, coverage=0.9)
    assert found.sets.coverage == 0.9
    assert found.sets.covered.value > 0.75
    assert sum(found.sets.sizes.values()) == 60
    assert found.novel.value < 0.1
    assert headstart.evaluate(known, many).sets is None


def test_the_command_line_says_what_it_does_not_know(known, many, tmp_path, cli):
    odd = tmp_path / "odd.png"
    Image.fromarray(ODD).save(odd)
    own = next((many / "test" / "blobs").iterdir())
    _, shown, _ = cli("predict", known.folder, odd, own, "--coverage", "0.9")
    assert "none of these" in shown
    assert "0.9 set" in shown
    _, rows, _ = cli("predict", known.folder, odd, own, "--csv", "--coverage", "0.9")
    head, first, second = rows.splitlines()
    assert head == "image,label,probability,top,error,known,novelty,set"
    assert ",no,0.00" in first
    assert ",yes," in second
    _, line, _ = cli("predict", known.folder, odd, "--json", "--coverage", "0.9")
    told = json.loads(line)
    assert (told["known"], told["set"][0][0]) == (False, told["label"])
    _, told, _ = cli("evaluate", known.folder, many, "--coverage", "0.9")
    assert "sets for a coverage of 0.9: " in told
    assert "none of these: " in told
    told = json.loads(cli("evaluate", known.folder, many, "--coverage", "0.9", "--json")[1])
    assert told["sets"]["coverage"] == 0.9
    assert 0 <= told["none_of_these"]["value"] < 0.1


def test_what_it_knows_is_read_back(known):
    loaded = headstart.Classifier.load(known.folder).knowledge
    own = known.classifier.knowledge
    assert loaded.to_bytes() == own.to_bytes()
    assert loaded.novelty.cut == own.novelty.cut == known.classifier.cuts[-1]


def test_a_training_of_the_network_knows_by_what_it_left_alone(many, tiny, tmp_path):
    options = {**tiny, "strategy": "partial-fine-tune", "epochs": 1, "views": 1}
    run = headstart.fit(many, tmp_path / "run", cut="blocks.2", **options)
    novelty = headstart.Classifier.load(run.folder).knowledge.novelty
    assert novelty.cut == "blocks.2"
    assert novelty.scores.count == 180
    [odd] = headstart.predict(run.folder, ODD)
    assert not odd.is_known
    whole = headstart.fit(
        many, tmp_path / "whole", **{**tiny, "strategy": "fine-tune", "epochs": 1}
    )
    assert whole.classifier.knowledge.novelty is None
    [odd] = headstart.predict(whole.folder, ODD)
    assert (odd.novelty, odd.is_known) == (None, True)


def test_an_old_run_knows_nothing_and_predicts(known, many, tmp_path):
    old = shutil.copytree(known.folder, tmp_path / "old")
    (old / "knowledge.safetensors").unlink()
    card = json.loads((old / "headstart.json").read_text())
    for name in ("temperature", "novelty_cut", "knowledge_sha256"):
        del card[name]
    (old / "headstart.json").write_text(json.dumps(card))
    path = next((many / "test" / "blobs").iterdir())
    [was], [now] = headstart.predict(old, path), headstart.predict(known.folder, path)
    assert was.top == now.top
    assert (was.novelty, was.is_known) == (None, True)
    with pytest.raises(headstart.UsageError, match="coverage needs a classifier"):
        headstart.predict(old, path, coverage=0.9)
    assert headstart.evaluate(old, many).novel is None


def rewrite(change):
    """Change the tensors, and record the checksum of what is then there."""

    def apply(folder):
        import hashlib

        path = folder / "knowledge.safetensors"
        arrays = load_file(path)
        change(arrays)
        save_file(arrays, path)
        card = json.loads((folder / "headstart.json").read_text())
        card["knowledge_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "headstart.json").write_text(json.dumps(card))

    return apply


def recard(**fields):
    def apply(folder):
        card = json.loads((folder / "headstart.json").read_text())
        (folder / "headstart.json").write_text(json.dumps({**card, **fields}))

    return apply


HOSTILE = {
    "missing": (lambda f: (f / "knowledge.safetensors").unlink(), "missing, or not a regular file"),
    "cut off": (
        lambda f: (f / "knowledge.safetensors").write_bytes(
            (f / "knowledge.safetensors").read_bytes()[:-1]
        ),
        "damaged .its checksum",
    ),
    "huge": (
        lambda f: os.truncate(f / "knowledge.safetensors", 2**30),
        "larger than headstart writes",
    ),
    "no scores": (rewrite(lambda a: a.pop("novelty.values")), "'novelty.values' is missing"),
    "no units": (rewrite(lambda a: a.pop("sets.units")), "'sets.units' is missing"),
    "of NaN": (
        rewrite(lambda a: a["sets.values"].__setitem__(0, math.nan)),
        "'sets.values' is not float32",
    ),
    "empty": (
        rewrite(
            lambda a: a.update({"sets.values": np.zeros(0, "f4"), "sets.units": np.zeros(0, "i4")})
        ),
        "has 0 values",
    ),
    "a scalar": (rewrite(lambda a: a.update({"sets.values": np.array(1, "f4")})), "sets.values"),
    "too many": (
        rewrite(lambda a: a.update({"sets.values": np.zeros(9999, "f4")})),
        "has 9999 values",
    ),
    "of doubles": (
        rewrite(lambda a: a.update({"novelty.mean": a["novelty.mean"].astype("f8")})),
        "'novelty.mean' is not float32",
    ),
    "too wide": (
        rewrite(lambda a: a.update({"novelty.components": np.zeros((3, 9), "f4")})),
        "'novelty.components' is not float32",
    ),
    "no components": (
        rewrite(lambda a: a.update({"novelty.components": a["novelty.components"][:0]})),
        "0 components",
    ),
    "large components": (
        rewrite(lambda a: a["novelty.components"].__setitem__((0, 0), 1e30)),
        "no directions",
    ),
    "another cut": (recard(novelty_cut="blocks.99"), "field 'novelty_cut'"),
    "a cut of another kind": (recard(novelty_cut=3), "not as headstart writes it"),
    "another checksum": (recard(knowledge_sha256="0"), "its checksum"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_file_is_refused(name, known, tmp_path):
    copy = shutil.copytree(known.folder, tmp_path / "copy")
    damage, told = HOSTILE[name]
    damage(copy)
    with pytest.raises(headstart.InputError, match=told) as caught:
        headstart.Classifier.load(copy)
    assert "\n" not in str(caught.value)
