"""Temperatures: against scikit-learn, honest figures, and the weights they go into."""

import json
import shutil
import warnings

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import headstart
from headstart.data.decoding import decode_and_prepare
from headstart.metrics import image_losses
from headstart.problem import softmax
from headstart.training.heads import LinearHead, MlpHead, scale_head
from headstart.training.temperature import (
    HIGHEST,
    LOWEST,
    choose_temperature,
    choose_temperatures_apart,
    scale_probabilities,
)


def draw(images, classes=4, sharpness=2.0, true=1.0, seed=0):
    """Labels, and probabilities at logits that are `true` times too large."""
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(images, classes))
    labels = np.array([generator.choice(classes, p=row) for row in softmax(logits)])
    return labels, softmax(true * logits).astype(np.float32)


@pytest.mark.parametrize("true", [0.4, 0.8, 1.5, 3.0])
def test_the_likelihood_has_its_maximum_where_scipy_finds_it(true):
    labels, probabilities = draw(500, true=true)
    found = choose_temperature(labels, probabilities, prior=np.inf, measurable=0)

    def loss(log_temperature):
        return image_losses(
            labels, scale_probabilities(probabilities, np.exp(log_temperature))
        ).mean()

    best = minimize_scalar(loss, bounds=(-2, 2), method="bounded", options={"xatol": 1e-8})
    assert np.log(found) == pytest.approx(best.x, abs=1e-3)
    assert found == pytest.approx(true, rel=0.25)


def test_scikit_learn_finds_the_same():
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(900, 6)), generator.integers(0, 3, 900)
    x[np.arange(900), y] += 1.2
    model = LogisticRegression(C=100).fit(3 * x[:60], y[:60])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature")
        theirs.fit(3 * x[60:500], y[60:500])
    own = model.predict_proba(3 * x[60:500]).astype(np.float32)
    temperature = choose_temperature(y[60:500], own, prior=np.inf, measurable=0)
    after = scale_probabilities(model.predict_proba(3 * x[500:]).astype(np.float32), temperature)
    assert temperature > 1.2
    assert after == pytest.approx(theirs.predict_proba(3 * x[500:]), abs=2e-3)


@pytest.mark.parametrize("images", [0, 3, 20, 40])
def test_few_images_without_a_mistake_say_nothing(images):
    labels = np.arange(images) % 2
    probabilities = np.where(np.eye(2)[labels] > 0, 0.95, 0.05).astype(np.float32)
    assert choose_temperature(labels, probabilities) == 1


def test_many_images_without_a_mistake_do_not_say_nought():
    labels = np.arange(400) % 2
    probabilities = np.where(np.eye(2)[labels] > 0, 0.9, 0.1).astype(np.float32)
    assert 0.3 < choose_temperature(labels, probabilities) < 0.9
    assert choose_temperature(labels, probabilities, prior=np.inf) == LOWEST
    wrong = 1 - probabilities
    assert choose_temperature(labels, wrong, prior=np.inf) == HIGHEST


def test_what_is_right_stays_as_it_is():
    chosen = [choose_temperature(*draw(200, seed=seed)) for seed in range(40)]
    assert sum(t == 1 for t in chosen) >= 34
    assert 0.7 < min(chosen) <= max(chosen) < 1.4


def test_images_of_a_group_count_once():
    labels, probabilities = draw(30, true=2.0, seed=3)
    units = tuple(map(str, range(30)))
    once = choose_temperature(labels, probabilities, units, measurable=0)
    copied = choose_temperature(
        np.tile(labels, 9), np.tile(probabilities, (9, 1)), 9 * units, measurable=0
    )
    assert copied == pytest.approx(once, abs=1e-6)
    assert (
        choose_temperature(np.tile(labels, 9), np.tile(probabilities, (9, 1)), measurable=0)
        > once + 0.05
    )


def test_a_temperature_apart_has_not_seen_the_image():
    labels, probabilities = draw(300, true=2.5)
    parts, units = np.arange(300) % 3, tuple(map(str, range(300)))
    apart = choose_temperatures_apart(labels, probabilities, units, parts)
    assert len(np.unique(apart)) == 3
    other = labels.copy()
    other[parts == 1] = 0
    changed = choose_temperatures_apart(other, probabilities, units, parts)
    assert (changed[parts == 1] == apart[parts == 1]).all()
    assert (changed[parts != 1] != apart[parts != 1]).all()


@given(st.integers(0, 1000), st.floats(0.1, 10), st.integers(2, 9))
def test_a_temperature_keeps_the_order(seed, temperature, classes):
    _, probabilities = draw(20, classes, seed=seed)
    scaled = scale_probabilities(probabilities, temperature)
    assert scaled.sum(axis=1) == pytest.approx(1, abs=1e-5)
    top = np.take_along_axis(scaled, probabilities.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert (top == scaled.max(axis=1)).all()


def test_heads_are_scaled_in_their_last_layer():
    generator = np.random.default_rng(0)

    def layer(out, width):
        return (
            generator.normal(size=(out, width)).astype(np.float32),
            generator.normal(size=out).astype(np.float32),
        )

    x = generator.normal(size=(7, 5)).astype(np.float32)
    for head in (LinearHead(*layer(3, 5)), MlpHead((layer(4, 5), layer(3, 4)))):
        scaled = scale_head(head, 1.7)
        expected = scale_probabilities(head.predict_proba(x), 1.7)
        assert scaled.predict_proba(x) == pytest.approx(expected, abs=1e-6)
        assert scale_head(head, 1.0) is head


@pytest.fixture(scope="module")
def pictures(plant, tmp_path_factory):
    """40 pictures of each of three classes."""
    kinds = ("blobs", "plain", "stripes")
    return plant(tmp_path_factory.mktemp("data") / "pictures", dict.fromkeys(kinds, 40))


@pytest.fixture(scope="module")
def smooth(pictures, tiny, tmp_path_factory):
    """A run whose training smooths labels so much that its probabilities are far too low."""
    options = {**tiny, "strategy": "partial-fine-tune", "epochs": 4, "label_smoothing": 0.4}
    folder = tmp_path_factory.mktemp("smooth") / "run"
    return headstart.fit(
        pictures, folder, val=0.5, lr=1e-4, augment="none", monitor="last", **options
    )


def test_a_run_is_calibrated_in_its_weights(smooth, pictures):
    classifier = headstart.Classifier.load(smooth.folder)
    assert classifier.temperature == smooth.classifier.temperature < 1
    fact = smooth.decisions.facts["temperature"]
    assert fact["value"] == classifier.temperature
    assert fact["images"] == len(smooth.measured)
    assert fact["log_loss"]["after"] < fact["log_loss"]["before"]
    assert smooth.metrics["log_loss"].value == pytest.approx(fact["log_loss"]["after"])
    again = headstart.evaluate(smooth.folder, pictures, split="val", coverage=0.9)
    assert again.metrics["log_loss"].value == pytest.approx(fact["log_loss"]["after"], rel=0.2)
    # Unlike those of the run, these figures are of images that have chosen it.
    told = (
        "60 of these 60 images have chosen parts of the model (the temperature, the sets), so the figures "
        "flatter it a little"
    )
    assert told in again.warnings


def test_timm_gives_the_calibrated_probabilities(smooth, pictures):
    model = timm.create_model(f"local-dir:{smooth.folder}", pretrained=True).eval()
    path = next((pictures / "blobs").iterdir())
    [prediction] = headstart.predict(smooth.folder, path)
    how = smooth.classifier.backbone.preprocessing
    pixels = decode_and_prepare(path.read_bytes(), how).astype(np.float32) / 255
    pixels = (pixels - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels.transpose(2, 0, 1))[None]).double()
    ranked = sorted(torch.softmax(logits, 1)[0].tolist(), reverse=True)
    assert [p for _, p in prediction.top] == pytest.approx(ranked, abs=1e-4)


def test_a_card_without_a_temperature_is_one(smooth, tmp_path):
    old = shutil.copytree(smooth.folder, tmp_path / "old")
    card = json.loads((old / "headstart.json").read_text())
    del card["temperature"]
    (old / "headstart.json").write_text(json.dumps(card))
    assert headstart.Classifier.load(old).temperature == 1
    for wrong in (0, -1, 1e9, "high", None):
        (old / "headstart.json").write_text(json.dumps({**card, "temperature": wrong}))
        with pytest.raises(headstart.InputError, match=r"headstart\.json: not as headstart writes"):
            headstart.Classifier.load(old)
