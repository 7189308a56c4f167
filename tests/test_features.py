"""Images stream through a network in order, within bounds, and no row is lost or moved."""

import dataclasses
import errno
import hashlib
import os
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from headstart.datasets import Dataset, load_dataset
from headstart.errors import ResourceError, TooManyBadImagesError
from headstart.features import check_bad_images, extract, run_images, write_atomically
from headstart.images import Preprocessing

HOW = Preprocessing((16, 16), 1.0, "center", "bilinear", (0, 0, 0), (1, 1, 1))


@dataclasses.dataclass
class Means:
    """An engine whose features are the means of the colours, and of their squares."""

    name: str = "means"
    cuts: tuple[str, ...] = ("square", "mean")
    micro_batch: int = 4
    batches: list[int] = dataclasses.field(default_factory=list)

    def run(self, pixels):
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (16, 16, 3)
        assert 0 < len(pixels) <= self.micro_batch
        self.batches.append(len(pixels))
        values = pixels.astype(np.float32).mean(axis=(1, 2))
        return {"square": np.hstack([values, values**2]), "mean": values}


@pytest.fixture
def grey(tmp_path):
    """30 images, number n of the grey n * 8; 0, 5, 6, 7, 8, 9 and 29 are unreadable."""
    for n in range(30):
        path = tmp_path / "grey" / f"{n:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), (n * 8,) * 3).save(path)
        if n in BAD:
            path.write_bytes(b"" if n else b"text")
    (tmp_path / "grey/30.png").symlink_to("nowhere")
    return load_dataset(tmp_path)


BAD = (0, 5, 6, 7, 8, 9, 29)
GOOD = [n for n in range(30) if n not in BAD]


def test_every_image_has_its_row(grey):
    steps = []
    found = extract(grey, Means(), HOW, progress=lambda *step: steps.append(step))
    assert found.ids == grey.ids
    assert set(found.values) == {"square", "mean"}
    assert all(matrix.dtype == np.float32 for matrix in found.values.values())
    expected = np.full((31, 3), np.nan, np.float32)
    expected[GOOD] = 8 * np.array(GOOD)[:, None]
    assert np.array_equal(found.values["mean"], expected, equal_nan=True)
    assert np.isnan(found.values["square"]).all(axis=1).tolist() == (~found.good()).tolist()
    assert np.flatnonzero(found.good()).tolist() == GOOD
    assert dict(found.bad()) == {
        "grey/00.png": "not an image: text",
        **{f"grey/{n:02}.png": "empty file" for n in BAD[1:]},
        "grey/30.png": "broken link",
    }
    digests = [hashlib.sha256(grey.path(n).read_bytes()).hexdigest() for n in range(30)]
    assert found.sha256 == (*digests, "")
    assert {stage for stage, _, _ in steps} == {"features"}
    counts = [done for _, done, _ in steps]
    assert (counts[0], counts[-1]) == (0, 31)
    assert counts == sorted(counts)
    part = found.select(np.array([3, 0]))
    assert (part.ids, part.errors) == (("grey/03.png", "grey/00.png"), ("", found.errors[0]))
    assert part.values["mean"][0].tolist() == [24] * 3


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_the_number_of_workers_changes_nothing(grey, workers):
    found, usual = extract(grey, Means(), HOW, workers=workers), extract(grey, Means(), HOW)
    assert (found.ids, found.errors, found.sha256) == (usual.ids, usual.errors, usual.sha256)
    for cut in usual.values:
        assert np.array_equal(found.values[cut], usual.values[cut], equal_nan=True)


def test_order_and_number_of_images_change_nothing(photos, tiny):
    from headstart.backbones import load_backbone
    from headstart.engines import make_engine

    backbone = load_backbone(tiny["backbone"], weights=tiny["weights"])
    engine = make_engine(backbone, device="cpu")
    dataset = load_dataset(photos)
    whole = extract(dataset, engine, backbone.preprocessing)
    order = np.random.default_rng(0).permutation(len(dataset))
    for rows in (order, order[:7], order[:1]):
        part = extract(dataset.select(rows), engine, backbone.preprocessing, workers=3)
        for cut in engine.cuts:
            assert (part.values[cut] == whole.values[cut][rows]).all()


def test_batches_are_full_whatever_is_unreadable(grey):
    engine = Means()
    extract(grey, engine, HOW)
    assert engine.batches == [4] * 5 + [3]


def test_too_many_pixels_are_a_bad_image(grey):
    found = extract(grey, Means(), HOW, max_pixels=319)
    assert not found.good().any()
    assert found.errors[1] == "20 x 16 is more than 319 pixels"


def test_nothing_to_do(grey):
    found = extract(grey.select(np.array([], dtype=np.int64)), Means(), HOW)
    assert (found.ids, found.errors, found.bad()) == ((), (), [])


def test_reading_runs_ahead_within_bounds(grey):
    consumed = 0

    def sources():
        nonlocal consumed
        for _ in range(2000):
            consumed += 1
            yield grey.path(1)

    seen = []
    stream = run_images(sources(), Means(), HOW, workers=3)
    for _ in range(5):
        rows, read, outputs = next(stream)
        seen += rows
        assert len(rows) == len(read) == len(outputs["mean"]) == 4
        assert consumed <= len(seen) + 20
    assert seen == list(range(20))
    stream.close()


def reading_threads(before):
    return [t for t in threading.enumerate() if t not in before and t.is_alive()]


@pytest.mark.parametrize("how", ["close", "interrupt", "source fails", "out of handles"])
def test_an_interruption_ends_the_reading_threads(grey, how, monkeypatch):
    before = threading.enumerate()
    engine = Means()
    sources = (grey.path(1) for _ in range(500))
    expected = None
    if how == "interrupt":
        expected = KeyboardInterrupt

        def interrupt(pixels):
            raise KeyboardInterrupt

        engine.run = interrupt
    elif how == "source fails":
        expected = ZeroDivisionError
        sources = (grey.path(1 // (n < 30)) for n in range(500))
    elif how == "out of handles":
        expected = ResourceError

        def refuse(*_, **__):
            raise OSError(errno.EMFILE, "too many open files")

        monkeypatch.setattr(os, "open", refuse)
    stream = run_images(sources, engine, HOW, workers=4)
    if expected is None:
        next(stream)
        stream.close()
    else:
        with pytest.raises(expected):
            list(stream)
    deadline = time.monotonic() + 5
    while reading_threads(before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reading_threads(before) == []


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
        with pytest.raises(TooManyBadImagesError, match=f"{bad} of {total} images") as caught:
            check_bad_images(rows, total, max_bad)
        assert caught.value.exit_code == 4
        assert "0.png: empty file" in str(caught.value)
        if bad < total:
            assert "--max-bad" in str(caught.value)
        else:
            assert "allow" not in str(caught.value)  # no setting allows it


# ---------------------------------------------------------------- files


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"old", b"", b"new" * 1000):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "interrupt"])
def test_a_failed_write_leaves_the_old_content(step, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    error = KeyboardInterrupt if step == "interrupt" else OSError

    def refuse(*_):
        raise error(errno.ENOSPC, "No space left on device")

    if step == "write":
        resource = pytest.importorskip("resource")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    else:
        monkeypatch.setattr(os, "replace" if step == "replace" else "fsync", refuse)
    try:
        with pytest.raises(error):
            write_atomically(path, b"new" * 100_000)
    finally:
        if step == "write":
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="a folder has no handle there")
def test_file_and_folder_are_synced_in_order(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("sync") or sync(handle))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("replace") or replace(*paths))
    write_atomically(tmp_path / "a", b"new")
    assert done == ["sync", "replace", "sync"]


def test_a_long_name_can_be_written(tmp_path):
    path = tmp_path / ("a" * 200)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_data_set_of_no_files_is_all_bad(tmp_path):
    ids = ("a/1.png", "a/2.png")
    blank = ("", "")
    dataset = Dataset(tmp_path, ("a",), ids, np.zeros(2, np.int64), blank, blank, blank)
    found = extract(dataset, Means(), HOW)
    assert found.errors == ("no such file or directory",) * 2
    assert found.sha256 == blank
