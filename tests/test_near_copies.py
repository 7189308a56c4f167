"""Copies and series are found, and images that are only alike are not, whatever the geometry of the class."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

import headstart
from headstart.features import near_copies
from headstart.features.near_copies import find_near_copies


def names(count):
    return [f"{n}.png" for n in range(count)]


def independent(count, dimensions, seed, width=64):
    """Directions on a curved manifold of so many dimensions in a space of `width`."""
    rng = np.random.default_rng(seed)
    inner = rng.normal(size=(count, dimensions))
    return np.tanh(inner @ rng.normal(size=(dimensions, width)) / 2) + rng.normal(size=width)


def shuffled(count, seed):
    """Names in an order that says nothing."""
    return [f"{n}.png" for n in np.random.default_rng(seed).permutation(count)]


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 10, 40])
def test_independent_images_are_no_copies_in_any_number_of_dimensions(dimensions):
    for seed in range(4):
        features = independent(300, dimensions, seed)
        labels = np.arange(300) % (seed % 3 + 1)
        assert len(find_near_copies(features, labels, names(300), names(300))) == 0


@pytest.mark.parametrize("count", [4, 6, 9, 18])
def test_small_classes_say_nothing_by_chance(count):
    """Forty classes of a few images each, fifteen times."""
    found = []
    for seed in range(15):
        features = independent(40 * count, 12, seed)
        labels = np.arange(40 * count) % 40
        found.append(len(find_near_copies(features, labels, names(40 * count), names(40 * count))))
    assert sum(n > 0 for n in found) <= 1


def test_digits_are_alike_and_no_copies():
    digits = load_digits()
    count = len(digits.target)
    assert len(find_near_copies(digits.data, digits.target, names(count), names(count))) == 0


@pytest.mark.parametrize("dimensions", [8, 20, 40])
@pytest.mark.parametrize("copies", [1, 4])
def test_copies_are_found_under_any_names(dimensions, copies):
    rng = np.random.default_rng(dimensions)
    features = independent(200, dimensions, 0)
    spread = features.std(axis=0).mean()
    sources = rng.permutation(200)[:20]
    extra = np.repeat(features[sources], copies, axis=0)
    extra = extra + rng.normal(size=extra.shape) * spread * 0.03
    both = np.concatenate([features, extra])
    labels = np.zeros(len(both), dtype=np.int64)
    ids = shuffled(len(both), 1)
    found = {tuple(pair) for pair in find_near_copies(both, labels, ids, ids).tolist()}
    wanted = {(int(s), 200 + n) for n, s in enumerate(np.repeat(sources, copies))}
    assert wanted <= found
    assert len(found) == 20 * copies * (copies + 1) // 2  # and the copies of one another, no more


def test_what_is_one_unit_is_no_finding():
    features = independent(200, 20, 0)
    both = np.concatenate([features, features[:20] * 1.0001])
    labels = np.zeros(220, dtype=np.int64)
    ids = names(220)
    assert len(find_near_copies(both, labels, ids, ids)) == 20
    units = ids[:200] + ids[:20]
    assert len(find_near_copies(both, labels, units, ids)) == 0


def test_copies_in_other_classes_are_left_to_the_eye():
    features = independent(100, 20, 0)
    both = np.concatenate([features, features])
    ids = names(200)
    assert len(find_near_copies(both, np.repeat([0, 1], 100), ids, ids)) == 0


def film(seed, films=60, frames=5):
    """Features that drift from frame to frame, no nearer than images of other films often are."""
    rng = np.random.default_rng(seed)
    first = independent(films, 20, seed)
    drift = np.cumsum(rng.normal(size=(films, frames, first.shape[1])) * 0.7, axis=1)
    return (first[:, None] + drift).reshape(films * frames, -1)


def test_frames_of_films_are_found_by_the_order_of_their_names():
    features = film(0)
    labels = np.zeros(300, dtype=np.int64)
    found = find_near_copies(features, labels, names(300), names(300))
    same = found[:, 0] // 5 == found[:, 1] // 5
    assert len(found) >= 120
    assert same.mean() > 0.95
    by_nearness = find_near_copies(features, labels, names(300), shuffled(300, 0))
    assert len(by_nearness) < len(found) / 10
    groups = [f"film {n // 5}" for n in range(300)]
    assert len(find_near_copies(features, labels, groups, names(300))) == 0


def test_a_series_is_found_in_the_one_class_that_has_one():
    features = np.concatenate([film(0), independent(300, 20, 1)])
    labels = np.repeat([0, 1], 300)
    found = find_near_copies(features, labels, names(600), names(600))
    assert len(found) >= 120
    assert found.max() < 300


def test_series_in_many_small_classes_are_found_together():
    """Fifty classes of two films of three frames: none is sure alone."""
    features = film(2, films=100, frames=3)
    found = find_near_copies(features, np.arange(300) // 6, names(300), names(300))
    assert len(found) >= 80


def test_the_order_of_rows_changes_nothing():
    features = np.concatenate([film(0), film(1)])
    features = np.concatenate([features, features[:40] * 1.0001])
    labels = np.concatenate([np.repeat([0, 1], 300), np.zeros(40, dtype=np.int64)])
    ids = [*names(600), *(f"copy {n}" for n in range(40))]
    order = np.random.default_rng(0).permutation(640)
    plain = {frozenset(p) for p in find_near_copies(features, labels, ids, ids).tolist()}
    mixed_ids = [ids[i] for i in order]
    mixed = find_near_copies(features[order], labels[order], mixed_ids, mixed_ids)
    assert {frozenset(order[pair].tolist()) for pair in mixed} == plain


def test_large_classes_are_sampled_and_compared_in_blocks(monkeypatch):
    features = independent(900, 20, 0)
    both = np.concatenate([features, features[:300] * 1.0001])
    ids = shuffled(1200, 0)
    labels = np.zeros(1200, dtype=np.int64)
    whole = {tuple(p) for p in find_near_copies(both, labels, ids, ids).tolist()}
    asked = []
    neighbours = near_copies._neighbours

    def note(directions, of_unit, some):
        asked.append(len(some))
        return neighbours(directions, of_unit, some)

    monkeypatch.setattr(near_copies, "_neighbours", note)
    monkeypatch.setattr(near_copies, "BLOCK_NUMBERS", 5000)
    assert {tuple(p) for p in find_near_copies(both, labels, ids, ids).tolist()} == whole
    monkeypatch.setattr(near_copies, "COMPARED_IMAGES", 200)
    some = {tuple(p) for p in find_near_copies(both, labels, ids, ids).tolist()}
    assert asked == [1200, 200]
    assert some < whole
    assert len(some) > 50


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_few_images_have_no_near_copies(count):
    features = np.ones((count, 8), dtype=np.float32)
    labels = np.zeros(count, dtype=np.int64)
    found = find_near_copies(features, labels, names(count), names(count))
    assert (found.shape, found.dtype) == ((0, 2), np.int64)


def test_features_that_are_all_equal_or_zero_are_no_error():
    for value in (0.0, 1.0):
        features = np.full((40, 8), value, dtype=np.float32)
        find_near_copies(features, np.zeros(40, dtype=np.int64), names(40), shuffled(40, 0))


# ---------------------------------------------------------------- in a fit


def retouch(image, number):
    """Another encoding, a crop, another brightness."""
    if number % 3 == 0:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=70)
        return Image.open(data)
    if number % 3 == 1:
        return image.crop((1, 1, image.width - 1, image.height - 1))
    return ImageEnhance.Brightness(image).enhance(1.1)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes of 40 pictures each with shapes and colours of their own, nothing in common."""
    root = tmp_path_factory.mktemp("photographs")
    for name in ("day", "night"):
        (root / name).mkdir()
        for number in range(40):
            rng = np.random.default_rng([name == "day", number])
            small = rng.integers(0, 256 if name == "day" else 120, (6, 6, 3)).astype(np.uint8)
            Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC).save(
                root / name / f"{number:02}.png"
            )
    return root


def near(run):
    return [w for w in run.warnings if "near copies" in w]


@pytest.mark.parametrize("val", [None, 0.4])
def test_fit_warns_of_copies_across_what_it_measures_on(photographs, tmp_path, val):
    options = {"strategy": "linear-probe", "val": val, "device": "cpu"}
    assert near(headstart.fit(photographs, tmp_path / "plain", **options)) == []
    copied = tmp_path / "copied"
    for name in ("day", "night"):
        (copied / name).mkdir(parents=True)
        for number, path in enumerate(sorted((photographs / name).iterdir())):
            image = Image.open(path)
            image.save(copied / name / f"{(number * 7) % 40:02}a.png")
            if number < 15:
                retouch(image, number).save(copied / name / f"{(number * 7) % 40:02}b.png")
    kept = near(headstart.fit(copied, tmp_path / "kept", **options))
    assert "images that are near copies are kept together" in kept[0]
    [warning] = near(headstart.fit(copied, tmp_path / "run", group="none", **options))
    where = "on both sides of the split" if val else "in different folds of cross-validation"
    assert "of images " in warning
    assert f"near copies {where}, so figures will flatter (first: '" in warning
    assert "--group" in warning
    assert 1 <= int(warning.split()[0]) <= 30
    group = r"([^/]+/[0-9]+)[ab]\.[^/]*$"
    grouped = headstart.fit(copied, tmp_path / "whole", group=group, **options)
    assert near(grouped) == []
