"""Images stream through a network in order, within bounds, and no row is lost or moved."""

import dataclasses
import errno
import hashlib
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

import headstart.features.extraction
import headstart.features.reading
from headstart.data.dataset import Dataset
from headstart.data.decoding import Preprocessing
from headstart.data.images import ImageRef
from headstart.data.loading import load_dataset
from headstart.errors import ResourceError, TooManyBadImagesError
from headstart.features.cache import prune
from headstart.features.extraction import extract
from headstart.features.reading import check_bad_images, run_images
from headstart.features.runtime import Runtime
from headstart.networks.backbones import load_backbone
from headstart.parallel import PREPARING, READING, no_progress

HOW = Preprocessing((16, 16), 1.0, "center", "bilinear", (0, 0, 0), (1, 1, 1))
CUTS = ("blocks.2", "head")


@dataclasses.dataclass
class Means:
    """An engine whose features are the means of the colours, and of their squares."""

    cuts: tuple[str, ...] = CUTS
    micro_batch: int = 4
    batches: list[int] = dataclasses.field(default_factory=list)

    def run(self, pixels):
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (16, 16, 3)
        assert 0 < len(pixels) <= self.micro_batch
        self.batches.append(len(pixels))
        values = pixels.astype(np.float32).mean(axis=(1, 2))
        return {CUTS[0]: np.hstack([values, values**2]), CUTS[1]: values}


@pytest.fixture
def engine():
    return Means()


@pytest.fixture
def look(tiny, engine, tmp_path, monkeypatch):
    """A function (data set, **options) -> Features of `engine`, with a store of the test's own."""
    monkeypatch.setattr(headstart.features.extraction, "make_engine", lambda *_, **__: engine)
    vit = load_backbone(tiny["backbone"], weights=tiny["weights"])
    cuts = [dataclasses.replace(vit.cut(n), channels=c) for n, c in zip(CUTS, (6, 3), strict=True)]
    backbone = dataclasses.replace(vit, preprocessing=HOW, cuts=tuple(cuts))

    def call(dataset, **options):
        usual = {"precision": "fp32", "device": "cpu", "cache_dir": tmp_path / "cache"}
        progress = options.pop("progress", no_progress)
        return extract(dataset, backbone, Runtime(**{**usual, **options}), progress=progress)

    return call


@pytest.fixture
def grey(tmp_path):
    """30 images, number n of the grey n * 8; 0, 5, 6, 7, 8, 9 and 29 are unreadable."""
    for n in range(30):
        path = tmp_path / "photos/grey" / f"{n:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (n * 8,) * 3).save(path)
        if n in BAD:
            path.write_bytes(b"" if n else b"text")
    (tmp_path / "photos/grey/30.png").symlink_to("nowhere")
    return load_dataset(tmp_path / "photos")


BAD = (0, 5, 6, 7, 8, 9, 29)
GOOD = [n for n in range(30) if n not in BAD]


def test_every_image_has_its_row(grey, look):
    steps = []
    found = look(grey, progress=lambda *step: steps.append(step))
    assert found.ids == grey.ids
    assert (set(found.values), found.computed) == (set(CUTS), len(GOOD))
    assert all(matrix.dtype == np.float32 for matrix in found.values.values())
    expected = np.full((31, 3), np.nan, np.float32)
    expected[GOOD] = 8 * np.array(GOOD)[:, None]
    assert np.array_equal(found.values["head"], expected, equal_nan=True)
    assert np.isnan(found.values["blocks.2"]).all(axis=1).tolist() == (~found.good()).tolist()
    assert np.flatnonzero(found.good()).tolist() == GOOD
    assert dict(found.unreadable()) == {
        "grey/00.png": "not an image: text",
        **{f"grey/{n:02}.png": "empty file" for n in BAD[1:]},
        "grey/30.png": "broken link",
    }
    digests = [hashlib.sha256(grey.image(n).read()).hexdigest() for n in range(30)]
    assert found.sha256 == (*digests, "")
    assert [stage for stage, _, _ in steps[:2]] == [PREPARING, READING]
    assert steps[0][1:] == (0, 0)
    counts = [done for _, done, _ in steps]
    assert counts == sorted(counts)
    assert counts[-1] == steps[-1][2] == 31
    part = found.select(np.array([3, 0]))
    assert (part.ids, part.errors) == (("grey/03.png", "grey/00.png"), ("", found.errors[0]))
    assert part.values["head"][0].tolist() == [24] * 3


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_the_number_of_workers_changes_nothing(workers, grey, look, tmp_path):
    usual = look(grey)
    found = look(grey, workers=workers, cache_dir=tmp_path / "other")
    assert (found.ids, found.errors, found.sha256) == (usual.ids, usual.errors, usual.sha256)
    assert found.computed == usual.computed
    for cut in usual.values:
        assert np.array_equal(found.values[cut], usual.values[cut], equal_nan=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_order_and_number_of_images_change_nothing(precision, photos, tiny, tmp_path):
    backbone = load_backbone(tiny["backbone"], weights=tiny["weights"])
    dataset = load_dataset(photos)
    runtime = Runtime(precision=precision, device="cpu", cache_dir=tmp_path)
    whole = extract(dataset, backbone, runtime)
    right = {cut: whole.values[cut].copy() for cut in whole.values}
    order = np.random.default_rng(0).permutation(len(dataset))
    for rows in (order, order[:7], order[:1]):
        prune(tmp_path, max_bytes=0)
        part = extract(dataset.select(rows), backbone, runtime.model_copy(update={"workers": 3}))
        assert part.computed == len(rows)
        for cut in right:
            assert (part.values[cut] == right[cut][rows]).all()


def test_too_many_pixels_are_a_bad_image(grey, look):
    found = look(grey, max_pixels=319)
    assert not found.good().any()
    assert found.errors[1] == "20 x 16 is more than 319 pixels"


def test_nothing_to_do(grey, look, engine):
    found = look(grey.select(np.array([], dtype=np.int64)))
    assert (found.ids, found.errors, found.unreadable(), engine.batches) == ((), (), [], [])
    assert found.values["head"].shape == (0, 3)


def test_a_data_set_of_no_files_is_all_bad(tmp_path, look):
    ids, blank = ("a/1.png", "a/2.png", "a/nul\0.png"), ("",) * 3
    dataset = Dataset(tmp_path, ("a",), ids, np.zeros(3, np.int64), blank, blank, blank)
    found = look(dataset)
    assert found.errors[:2] == ("no such file or directory",) * 2
    assert "null" in found.errors[2]
    assert found.sha256 == blank
    assert np.isnan(found.values["head"]).all()


def test_reading_runs_ahead_within_bounds(grey):
    consumed = 0

    def sources():
        nonlocal consumed
        for _ in range(2000):
            consumed += 1
            yield grey.image(1)

    seen = 0
    stream = run_images(sources(), Means(), HOW, Runtime(workers=3))
    for _ in range(5):
        readings, outputs = next(stream)
        seen += len(readings)
        assert len(readings) == len(outputs["head"]) == 4
        assert consumed <= seen + 4 * 7
    stream.close()


def test_what_must_not_be_read_is_passed_on(grey):
    sources = [grey.image(1), ImageRef("x", error="no class"), grey.image(2), grey.image(0)]
    ((readings, outputs),) = run_images(sources, Means(), HOW)
    assert [r.error for r in readings] == ["", "no class", "", "not an image: text"]
    assert outputs["head"][:, 0].tolist() == [8, 16]


def reading_threads(before):
    return [t for t in threading.enumerate() if t not in before and t.is_alive()]


@pytest.mark.parametrize("how", ["close", "interrupt", "source fails", "out of handles"])
def test_an_interruption_ends_the_reading_threads(how, grey, engine, monkeypatch):
    before = threading.enumerate()
    sources = (grey.image(1) for _ in range(500))
    expected = None
    if how == "interrupt":
        expected = KeyboardInterrupt

        def interrupt(pixels):
            raise KeyboardInterrupt

        engine.run = interrupt
    elif how == "source fails":
        expected = ZeroDivisionError
        sources = (grey.image(1 // (n < 30)) for n in range(500))
    elif how == "out of handles":
        expected = ResourceError

        def refuse(*_, **__):
            raise OSError(errno.EMFILE, "too many open files")

        monkeypatch.setattr(os, "open", refuse)
    stream = run_images(sources, engine, HOW, Runtime(workers=4))
    if expected is None:
        next(stream)
        stream.close()
    else:
        with pytest.raises(expected):
            list(stream)
    deadline = time.monotonic() + 60
    while reading_threads(before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reading_threads(before) == []


def test_an_interrupted_extraction_keeps_what_came_before(grey, look, engine, monkeypatch):
    before, run = threading.enumerate(), engine.run

    def interrupt(pixels):
        if len(engine.batches) == 3:
            raise KeyboardInterrupt
        return run(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            look(grey, workers=1)
    assert reading_threads(before) == []
    found = look(grey)
    assert found.computed == len(GOOD) - sum(engine.batches[:3])
    assert np.flatnonzero(found.good()).tolist() == GOOD


# ---------------------------------------------------------------- how many may be bad


@pytest.mark.parametrize(
    ("bad", "total", "max_bad", "allowed"),
    [
        (0, 10, 0, True),
        (1, 10, 0, True),
        (2, 10, 0, False),
        (1, 1, 0, False),
        (1, 1, 1, False),
        (10, 10, 1, False),
        (9, 10, 1, True),
        (1, 2, 0.001, True),
        (5, 5000, 0.001, True),
        (6, 5000, 0.001, False),
        (29, 100, 0.29, True),
        (30, 100, 0.29, False),
        (0, 0, 0, True),
    ],
)
def test_how_many_unreadable_images_are_allowed(bad, total, max_bad, allowed):
    rows = [(f"{n}.png", "empty file") for n in range(bad)]
    if allowed:
        check_bad_images(rows, total, max_bad)
    else:
        told = "the one image is unreadable" if total == 1 else f"{bad} of {total} images are"
        with pytest.raises(TooManyBadImagesError, match=told) as caught:
            check_bad_images(rows, total, max_bad)
        assert caught.value.exit_code == 4
        assert "0.png: empty file" in str(caught.value)
        if bad < total:
            assert "--max-bad" in str(caught.value)
        else:
            assert "allow" not in str(caught.value)  # no setting allows it
