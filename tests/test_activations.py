"""Activations on disk equal those of a live run bit for bit, in every view, and are computed once."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import headstart.features.drawing
import headstart.features.extraction
import headstart.features.file_hashes
from headstart.data.decoding import (
    decode_and_prepare,
    decode_image,
    decode_picture,
    needed_px,
    prepare_image,
)
from headstart.data.loading import load_dataset
from headstart.data.views import AUGMENTATIONS, Augmentation, Views, augment_image
from headstart.errors import InputError, ResourceError, UsageError, VerificationError
from headstart.features.activations import activations_bytes, extract_activations
from headstart.features.cache import prune
from headstart.features.drawing import Drawing
from headstart.features.engines import start_engine
from headstart.features.extraction import extract
from headstart.features.pixels import ViewReader, check_images
from headstart.features.runtime import Runtime
from headstart.networks.backbones import load_backbone

CUT = "blocks.2"
FAST = {"engine": "openvino", "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def vit(tiny):
    return load_backbone(tiny["backbone"], weights=tiny["weights"])


@pytest.fixture(scope="module")
def live(vit):
    """The engine, unpooled."""
    return start_engine(vit, Runtime(**FAST), cuts=(CUT,), pooled=False)[0]


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
    made = headstart.features.extraction.make_engine

    def make(*facts, pooled, **options):
        return made(*facts, pooled=pooled, **options) if pooled else live

    monkeypatch.setattr(headstart.features.extraction, "make_engine", make)

    def call(dataset, *, views=1, augmentation=None, seed=0, **options):
        usual = {**FAST, "cache_dir": tmp_path / "cache"}
        own = {n: options.pop(n) for n in list(options) if n in Runtime.model_fields}
        cut, drawn = options.pop("cut", CUT), Views(views, augmentation or Augmentation(), seed)
        runtime = Runtime(**{**usual, **own})
        return extract_activations(dataset, vit, cut, runtime, views=drawn, **options)

    return call


def run_by_hand(dataset, vit, live, row, view, seed=0, style=None):
    image = decode_image(dataset.image(row).read())
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
def test_an_interrupted_extraction_goes_on(
    workers, dataset, vit, live, look, tmp_path, monkeypatch
):
    right = look(dataset, views=2, cache_dir=tmp_path / "right")
    plain = prepare_image(decode_image(dataset.image(4).read()), vit.preprocessing)
    run = live.run

    def interrupted(pixels):
        if (pixels[0] == plain).all():
            raise KeyboardInterrupt
        return run(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(live, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            look(dataset, views=2, workers=workers)
    found = look(dataset, views=2)
    assert 0 < found.computed < right.computed == 15
    assert found.errors == right.errors
    for view in range(2):
        assert (found.read(GOOD, view) == right.read(GOOD, view)).all()


def test_the_mean_of_activations_is_the_feature(dataset, vit, look, tmp_path):
    found = look(dataset, dtype="float16").read(GOOD, 0).astype(np.float32)
    point = vit.cut(CUT)
    others = tuple(a for a in range(1, found.ndim) if a != point.axis)
    features = extract(dataset, vit, Runtime(cache_dir=tmp_path / "other", **FAST)).values[CUT][
        GOOD
    ]
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
    # So that hashes of files written just now are remembered.
    monkeypatch.setattr(headstart.features.file_hashes, "CLOCK_RESOLUTION_NS", 0)
    each = activations_bytes(dataset, vit, CUT, 3) / 27
    assert each == 101 * 64 * 2

    def refuse(*_, **__):
        raise AssertionError("work was begun")

    def leave(count):
        free = int(count * each / 0.95) + 1
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    with monkeypatch.context() as patch:
        patch.setattr(headstart.features.extraction, "make_engine", refuse)
        patch.setattr(headstart.features.drawing, "decode_picture", refuse)
        for _ in range(2):  # with unknown hashes, and with known ones
            leave(25)  # 9 images in 3 views, one plain view twice
            with pytest.raises(ResourceError, match=r"at blocks.2 take 0.0 GB more .* a later cut"):
                look(dataset, views=3)
    leave(26)
    assert look(dataset, views=3).computed == 23  # the fourth is unreadable
    leave(8)
    with pytest.raises(ResourceError, match="fewer views"):
        look(dataset, views=4)  # the fourth counts until it is known not to be
    leave(9)
    assert look(dataset, views=4).computed == 8
    # What is stored needs no room, whether its hash is remembered or not.
    leave(0)
    assert look(dataset, views=4).computed == 0
    shutil.rmtree(tmp_path / "cache/files")
    monkeypatch.setattr(headstart.features.extraction, "make_engine", refuse)
    assert look(dataset, views=4).computed == 0


def test_only_missing_views_are_computed(dataset, vit, live, look, tmp_path):
    assert look(dataset, views=1).computed == 7  # of 8 good images, two the same
    assert look(dataset, views=2, seed=3).computed == 8
    more = look(dataset, views=4, seed=3)
    assert more.computed == 16
    assert look(dataset, views=4, seed=4).computed == 24
    assert look(dataset, views=2, seed=3, augmentation=AUGMENTATIONS["strong"]).computed == 8
    plain = look(dataset, views=5, augmentation=AUGMENTATIONS["none"])
    assert plain.computed == 0
    fresh = look(dataset, views=4, seed=3, cache_dir=tmp_path / "other")
    assert fresh.computed == 31
    assert fresh.errors == more.errors == plain.errors
    for view in range(4):
        assert (more.read(GOOD, view) == fresh.read(GOOD, view)).all()
        assert (plain.read(GOOD, view) == fresh.read(GOOD, 0)).all()
    right = run_by_hand(dataset, vit, live, 2, 3, seed=3)
    assert torch.equal(more.read_tensor(np.array([2]), 3)[0], right.to(torch.bfloat16))


def test_each_row_may_be_read_in_a_view_of_its_own(dataset, look):
    found = look(dataset, views=3)
    assert found.good().tolist() == [e == "" for e in found.errors]
    rows, views = np.array([8, 0, 4, 0]), np.array([2, 1, 0, 2])
    batch = found.read(rows, views)
    assert batch.shape == (4, *found.shape)
    for values, row, view in zip(batch, rows, views, strict=True):
        assert (values == found.read(np.array([row]), int(view))[0]).all()
    assert found.read(np.array([], dtype=np.int64), 0).shape[0] == 0
    for bad in (3, -1, np.array([0, 0, 3, 0])):
        with pytest.raises(UsageError, match=r"view (3|-1) is not one of 0 to 2"):
            found.read(rows, bad)
    with pytest.raises(UsageError, match=r"4 rows need as many views, or one for all"):
        found.read(rows, np.array([0, 1]))


def test_micro_batches_are_filled_from_several_images(dataset, live, look, monkeypatch):
    sizes, run = [], live.run
    monkeypatch.setattr(live, "run", lambda pixels: sizes.append(len(pixels)) or run(pixels))
    look(dataset, workers=1)
    assert sorted(sizes) == [3, 4]
    sizes.clear()
    look(dataset, views=3, workers=1)
    assert sum(sizes) == 16
    assert len(sizes) <= 6


def test_rehash_reads_every_file_again(dataset, look, monkeypatch):
    monkeypatch.setattr(headstart.features.file_hashes, "CLOCK_RESOLUTION_NS", 0)
    right, opened = look(dataset), []
    read = headstart.features.extraction.read_image
    monkeypatch.setattr(
        headstart.features.extraction,
        "read_image",
        lambda image, *_: opened.append(image.id) or read(image, *_),
    )
    look(dataset)
    assert opened == []
    found = look(dataset, rehash=True)
    assert sorted(opened) == sorted(dataset.ids)
    assert (found.computed, found.errors) == (0, right.errors)


def test_reading_starts_before_the_engine_and_is_interrupted_at_once(
    dataset, live, look, monkeypatch
):
    made, sent, read = threading.Event(), [], headstart.features.extraction.read_image

    def make(*_, **__):
        assert made.wait(300)
        return live

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    def note(image, *options):
        if image == dataset.image(0):
            threading.Timer(0.2, interrupt).start()
        return read(image, *options)

    with monkeypatch.context() as patch:
        patch.setattr(headstart.features.extraction, "make_engine", make)
        patch.setattr(headstart.features.extraction, "read_image", note)
        with pytest.raises(KeyboardInterrupt):
            look(dataset, views=2)
        assert time.monotonic() - sent[0] < 5
        made.set()
    assert look(dataset, views=2).computed == 15


ENGINE = """
import sys
import headstart, headstart.features.extraction

class Begun(BaseException):
    pass

def begin(*_):
    raise Begun("torchvision.transforms.v2.functional" in sys.modules)

headstart.features.extraction.StartingEngine = begin
data, weights, cache = sys.argv[1:]
backbone = headstart.load_backbone("test_vit", weights=weights, cache_dir=cache)
try:
    headstart.extract_activations(
        headstart.load_dataset(data), backbone, "blocks.2",
        headstart.Runtime(device="cpu", cache_dir=cache), views=2,
    )
except Begun as exc:
    print(exc)
"""


def test_operations_are_imported_before_there_are_threads(loose, tiny, tmp_path):
    """One that imports timm and one that imports torchvision would each be given half of the latter."""
    command = [sys.executable, "-c", ENGINE, loose, tiny["weights"], tmp_path]
    done = subprocess.run(command, check=True, text=True, capture_output=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize("name", ["light", "strong"])
def test_in_bf16_large_jpegs_are_decoded_at_a_fraction(name, vit, live, look, tmp_path):
    folder, style = tmp_path / "large/a", AUGMENTATIONS[name]
    folder.mkdir(parents=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((1600, 1200)).save(folder / f"{number}.jpg")
    dataset = load_dataset(tmp_path / "large")
    # The engine stays the same, so that pixels alone differ.
    found = look(dataset, views=3, precision="bf16", augmentation=style)
    for row, view in ((0, 0), (1, 0), (0, 2), (1, 1)):
        data = dataset.image(row).read()
        least = needed_px(vit.preprocessing, style.least_crop if view else 1.0)
        picture = decode_picture(data, least_px=least)
        assert picture.image.width < 1600
        pixels = augment_image(
            picture, vit.preprocessing, style, seed=0, image_id=dataset.ids[row], view=view
        )
        if view == 0:
            assert (pixels == decode_and_prepare(data, vit.preprocessing, exact=False)).all()
        right = torch.from_numpy(live.run(pixels[None])[CUT][0]).to(torch.bfloat16)
        assert torch.equal(found.read_tensor(np.array([row]), view)[0], right)


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
    assert extract(dataset, vit, Runtime(cache_dir=cache, **FAST)).computed == 7
    assert look(dataset).computed == 0
    assert look(dataset, dtype="float16").computed > 0
    assert prune(cache, backbone="test_vit")[0] == 3


def test_auto_falls_back_where_openvino_cannot(dataset, tiny, tmp_path, monkeypatch):
    import openvino

    def refuse(*_, **__):
        raise RuntimeError("no such operation: twirl")

    monkeypatch.setattr(openvino.frontend.FrontEnd, "convert", refuse)
    vit = load_backbone(tiny["backbone"], weights=tiny["weights"], cache_dir=tmp_path)
    found = extract_activations(dataset, vit, CUT, Runtime(device="cpu", cache_dir=tmp_path))
    assert found.engine.library == "torch"
    assert "no such operation: twirl" in found.engine.reason


# ---------------------------------------------------------------- views as pixels


ORDER = [
    (np.array([8, 0, 4]), np.array([1, 1, 2])),
    (np.array([5, 6, 7, 2, 1]), 3),
    (np.array([], dtype=np.int64), 0),
    (np.array([0]), 0),
    (np.array([0, 8, 4]), np.array([0, 0, 3])),
]


@pytest.mark.parametrize("name", ["none", "medium"])
@pytest.mark.parametrize(("workers", "memory"), [(1, 0), (5, 0), (3, 10_000), (3, 2**30)])
def test_views_are_read_in_order_and_equal_single_ones(workers, memory, name, dataset, vit):
    style = AUGMENTATIONS[name]
    reader = ViewReader(
        dataset,
        Drawing(vit.preprocessing, style, seed=5),
        runtime=Runtime(workers=workers),
        memory_bytes=memory,
    )
    for _ in range(2):
        batches = list(reader.read(iter(ORDER)))
        assert [len(b) for b in batches] == [3, 5, 0, 1, 3]
        for batch, (rows, views) in zip(batches, ORDER, strict=True):
            assert (batch.dtype, batch.shape[1:]) == (np.uint8, (160, 160, 3))
            for pixels, row, view in zip(
                batch, rows, np.broadcast_to(views, rows.shape), strict=True
            ):
                right = augment_image(
                    decode_image(dataset.image(row).read()),
                    vit.preprocessing,
                    style,
                    seed=5,
                    image_id=dataset.ids[row],
                    view=int(view),
                )
                assert (pixels == right).all()


@pytest.mark.parametrize(
    ("memory", "style", "counts"),
    [
        (2**30, "medium", [8, 0, 0]),
        (0, "medium", [8, 8, 8]),
        (3 * 4 * 40 * 48 + 100, "medium", [8, 5, 5]),
        (2**30, "none", [8, 0, 0]),
        (5 * 160 * 160 * 3, "none", [8, 3, 3]),
    ],
)
def test_what_fits_memory_is_decoded_once(memory, style, counts, dataset, vit, monkeypatch):
    decoded, decode = [], headstart.features.drawing.decode_picture
    monkeypatch.setattr(
        headstart.features.drawing,
        "decode_picture",
        lambda *a, **k: decoded.append(1) or decode(*a, **k),
    )
    reader = ViewReader(
        dataset, Drawing(vit.preprocessing, AUGMENTATIONS[style]), memory_bytes=memory
    )
    found = []
    for epoch in range(1, 4):
        list(reader.read([(GOOD, epoch)]))
        found.append(len(decoded))
        decoded.clear()
    assert found == counts


def test_large_jpegs_are_read_at_a_fraction_where_that_is_allowed(vit, tmp_path):
    (tmp_path / "a").mkdir()
    Image.effect_noise((1600, 1200), 90).convert("RGB").save(tmp_path / "a/0.jpg")
    dataset, how = load_dataset(tmp_path), vit.preprocessing
    reader = ViewReader(dataset, Drawing(how, exact=False))
    batch = next(reader.read([(np.array([0, 0]), np.array([0, 1]))]))
    data = dataset.image(0).read()
    assert (batch[0] == decode_and_prepare(data, how, exact=False)).all()
    picture = decode_picture(data, least_px=needed_px(how, Augmentation().least_crop))
    assert picture.image.size < (1600, 1200)
    right = augment_image(picture, how, Augmentation(), seed=0, image_id="a/0.jpg", view=1)
    assert (batch[1] == right).all()


def test_no_more_than_two_batches_are_read_ahead(dataset, vit):
    taken = []

    def order():
        for number in range(50):
            taken.append(number)
            yield GOOD, number

    before = threading.active_count()
    stream = ViewReader(dataset, Drawing(vit.preprocessing), runtime=Runtime(workers=3)).read(
        order()
    )
    for number in range(3):
        next(stream)
        assert len(taken) <= number + 4
    stream.close()
    assert threading.active_count() == before
    assert len(taken) < 8


def replace(path):
    shutil.copy(path.with_name("04.png"), path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), r"'blobs/01.png' can no longer be read: no such file"),
        (lambda path: path.write_bytes(b""), r"'blobs/01.png' has changed since it was first read"),
        (replace, r"'blobs/01.png' has changed since it was first read; put it back"),
    ],
)
@pytest.mark.parametrize("known", ["by its hash", "by an earlier reading"])
def test_a_file_that_changes_while_training_is_named(change, reason, known, dataset, vit):
    digests = check_images(dataset)[1] if known == "by its hash" else None
    reader = ViewReader(dataset, Drawing(vit.preprocessing), sha256=digests, memory_bytes=0)
    if digests is None:
        list(reader.read([(GOOD, 1)]))
    change(dataset.root / dataset.ids[1])
    with pytest.raises(InputError, match=reason):
        list(reader.read([(GOOD, 1)]))


def test_what_is_in_memory_needs_no_file(dataset, vit):
    reader = ViewReader(dataset, Drawing(vit.preprocessing))
    first = next(reader.read([(GOOD, 1)]))
    (dataset.root / dataset.ids[1]).unlink()
    assert (next(reader.read([(GOOD, 1)])) == first).all()


def test_rows_that_cannot_be_read_are_refused(dataset, vit):
    reader = ViewReader(dataset, Drawing(vit.preprocessing))
    with pytest.raises(InputError, match=r"'blobs/03.png' can no longer be read: not an image"):
        list(reader.read([(np.array([3]), 0)]))
    known = dataclasses.replace(dataset, errors=(*("",) * 3, "broken link", *("",) * 5))
    with pytest.raises(UsageError, match=r"'blobs/03.png' is unreadable: broken link"):
        list(ViewReader(known, Drawing(vit.preprocessing)).read([(np.array([3]), 0)]))
    with pytest.raises(UsageError, match=r"8 rows need as many views, or one for all"):
        list(reader.read([(GOOD, np.array([1, 2]))]))


def test_checked_images_have_the_errors_and_hashes_of_features(dataset, vit, tmp_path):
    (dataset.root / "blobs/02.png").unlink()
    features = extract(dataset, vit, Runtime(cache_dir=tmp_path / "cache", **FAST))
    seen = []
    errors, sha256 = check_images(dataset, progress=lambda *facts: seen.append(facts))
    assert (errors, sha256) == (features.errors, features.sha256)
    assert [bool(e) for e in errors] == [False, False, True, True, *[False] * 5]
    assert (seen[0][1:], seen[-1][1:]) == ((0, 9), (9, 9))
    known = dataclasses.replace(dataset, errors=("broken link", *dataset.errors[1:]))
    assert check_images(known, Runtime(workers=1))[0] == ("broken link", *errors[1:])
    assert check_images(dataset, Runtime(max_pixels=100))[0][0] == "48 x 40 is more than 100 pixels"
