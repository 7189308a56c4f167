"""Activations on disk equal those of a live run bit for bit, in every view, and are computed once."""

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import headstart.activations
import headstart.store
from headstart.activations import activations_bytes, extract_activations
from headstart.backbones import load_backbone
from headstart.datasets import load_dataset
from headstart.engines import choose_engine, make_engine
from headstart.errors import ResourceError, UsageError, VerificationError
from headstart.features import extract
from headstart.images import AUGMENTATIONS, Augmentation, augment_image, decode_image
from headstart.store import prune

CUT = "blocks.2"
FAST = {"engine": "openvino", "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def vit(tiny):
    return load_backbone(tiny["backbone"], weights=tiny["weights"])


@pytest.fixture(scope="module")
def live(vit):
    """The engine, unpooled."""
    choice = choose_engine(vit, **FAST)
    return make_engine(vit, choice, cuts=(CUT,), pooled=False)


@pytest.fixture
def dataset(plant, tmp_path):
    """9 images, the fourth unreadable and the last a copy of the first."""
    root = plant(tmp_path / "photos", {"blobs": 5, "plain": 3})
    (root / "blobs/03.png").write_bytes(b"text")
    shutil.copy(root / "blobs/00.png", root / "plain/zz.png")
    return load_dataset(root)


GOOD = np.array([0, 1, 2, 4, 5, 6, 7, 8])


@pytest.fixture
def look(vit, live, tmp_path, monkeypatch):
    """A function (data set, **options) -> Activations, with a store of the test's own."""
    monkeypatch.setattr(headstart.activations, "make_engine", lambda *_, **__: live)

    def call(dataset, **options):
        usual = {**FAST, "cut": CUT, "cache_dir": tmp_path / "cache"}
        return extract_activations(dataset, vit, **{**usual, **options})

    return call


def run_by_hand(dataset, vit, live, row, view, seed=0, style=None):
    image = decode_image(dataset.path(row).read_bytes())
    pixels = augment_image(
        image,
        vit.preprocessing,
        style or Augmentation(),
        seed=seed,
        image_id=dataset.ids[row],
        view=view,
    )
    return torch.from_numpy(live.run(pixels[None])[CUT][0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cached_equals_live_bit_for_bit(dtype, dataset, vit, live, look):
    found = look(dataset, views=6, dtype=dtype)
    assert (found.ids, found.views, found.dtype) == (dataset.ids, 6, dtype)
    assert found.shape == vit.cut(CUT).shape
    assert np.flatnonzero([not e for e in found.errors]).tolist() == GOOD.tolist()
    again = look(dataset, views=6, dtype=dtype)
    assert (again.computed, again.errors) == (0, found.errors)
    for view in range(6):
        fresh, kept = found.read_tensor(GOOD, view), again.read_tensor(GOOD[::-1].copy(), view)
        assert fresh.dtype == getattr(torch, dtype)
        assert torch.equal(fresh, kept.flip(0))
        for tensor, row in zip(fresh, GOOD, strict=True):
            right = run_by_hand(dataset, vit, live, row, view)
            assert torch.equal(tensor, right.to(getattr(torch, dtype)))
    with pytest.raises(UsageError, match=r"'blobs/03.png' has no activations: not an image: text"):
        found.read(np.array([0, 3]), 0)


def test_a_view_is_a_function_of_seed_id_and_view(dataset, vit, live, look):
    found = look(dataset, views=3, seed=7)
    part = look(dataset.select(np.array([8, 2])), views=3, seed=7, workers=1)
    assert part.computed == 0
    for view in range(3):
        assert (part.read(np.array([0, 1]), view) == found.read(np.array([8, 2]), view)).all()
    row = np.array([2])
    views = [found.read(row, view).tobytes() for view in range(3)]
    other = look(dataset, views=3, seed=8)
    assert len({*views, *(other.read(row, view).tobytes() for view in range(3))}) == 5
    assert other.read(row, 0).tobytes() == views[0]
    # The copy of an image has the same plain view and others of its own.
    same = [
        (found.read(np.array([0]), view) == found.read(np.array([8]), view)).all()
        for view in range(3)
    ]
    assert same == [True, False, False]
    style = dataclasses.replace(AUGMENTATIONS["none"], flip=1.0)
    plain = look(dataset, views=2, seed=7, augmentation=style)
    right = run_by_hand(dataset, vit, live, 2, 1, seed=7, style=style)
    assert torch.equal(plain.read_tensor(row, 1)[0], right.to(torch.bfloat16))


@pytest.mark.parametrize("workers", [1, 5])
def test_an_interrupted_extraction_goes_on(workers, dataset, live, look, tmp_path, monkeypatch):
    right = look(dataset, views=2, cache_dir=tmp_path / "right")
    calls, run = [], live.run

    def interrupted(pixels):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return run(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(live, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            look(dataset, views=2, workers=workers)
    found = look(dataset, views=2)
    assert 0 < found.computed < right.computed == 16
    assert found.errors == right.errors
    for view in range(2):
        assert (found.read(GOOD, view) == right.read(GOOD, view)).all()


def test_the_mean_of_activations_is_the_feature(dataset, vit, look, tmp_path):
    found = look(dataset, dtype="float16").read(GOOD, 0).astype(np.float32)
    point = vit.cut(CUT)
    others = tuple(a for a in range(1, found.ndim) if a != point.axis)
    features = extract(dataset, vit, cache_dir=tmp_path / "other", **FAST).values[CUT][GOOD]
    assert np.abs(found.mean(axis=others) - features).max() < 2e-3 * np.abs(features).max()


@pytest.mark.parametrize("value", [70_000, -70_000, np.nan, np.inf])
def test_what_float16_cannot_hold_is_refused(value, dataset, live, look, monkeypatch):
    run = live.run

    def large(pixels):
        found = run(pixels)
        found[CUT].flat[5] = value
        return found

    monkeypatch.setattr(live, "run", large)
    reason = "does not fit float16; use bfloat16" if np.isfinite(value) else "NaN or infinite"
    with pytest.raises(VerificationError, match=reason):
        look(dataset, dtype="float16")
    if np.isfinite(value):
        found = look(dataset, dtype="bfloat16").read_tensor(GOOD[:1], 0).flatten()[5]
        assert found == torch.tensor(float(value)).to(torch.bfloat16)


def test_a_short_disk_is_said_before_any_work(dataset, vit, look, monkeypatch, tmp_path):
    size = activations_bytes(dataset, vit, CUT, 3)
    assert size == 9 * 3 * 101 * 64 * 2

    def refuse(*_, **__):
        raise AssertionError("work was begun")

    with monkeypatch.context() as patch:
        patch.setattr(headstart.activations, "make_engine", refuse)
        patch.setattr(headstart.activations, "read_image", refuse)
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
        with pytest.raises(ResourceError, match=r"at blocks.2 take 0.0 GB .*; choose a later cut"):
            look(dataset, views=3)
    # So that hashes of files written just now are remembered.
    monkeypatch.setattr(headstart.store, "CLOCK_RESOLUTION_NS", 0)
    look(dataset, views=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    monkeypatch.setattr(headstart.activations, "make_engine", refuse)
    select = dataset.select(GOOD)
    assert look(select, views=3).computed == 0  # what is stored needs no room


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"views": 0}, "views must be at least 1, got 0"),
        ({"dtype": "float32"}, "dtype 'float32' is unknown.*known: bfloat16, float16"),
        ({"cut": "blocks.9"}, "cut point 'blocks.9' is not one of test_vit"),
    ],
)
def test_options_out_of_range_are_refused(options, reason, dataset, look):
    with pytest.raises(UsageError, match=reason):
        look(dataset, **options)


def test_features_and_activations_do_not_mix(dataset, vit, look, tmp_path):
    cache = tmp_path / "cache"
    look(dataset)
    assert extract(dataset, vit, cache_dir=cache, **FAST).computed == 7
    assert look(dataset).computed == 0
    assert look(dataset, dtype="float16").computed > 0
    assert prune(cache, backbone="test_vit")[0] == 3


def test_auto_falls_back_where_openvino_cannot(dataset, tiny, tmp_path, monkeypatch):
    import openvino

    def refuse(*_, **__):
        raise RuntimeError("no such operation: twirl")

    monkeypatch.setattr(openvino, "convert_model", refuse)
    vit = load_backbone(tiny["backbone"], weights=tiny["weights"], cache_dir=tmp_path)
    found = extract_activations(dataset, vit, CUT, device="cpu", cache_dir=tmp_path)
    assert found.engine.library == "torch"
    assert "no such operation: twirl" in found.engine.reason
