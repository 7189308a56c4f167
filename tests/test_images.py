"""Every kind of image file ends as the right RGB pixels or as one clear reason."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm.data
from bad_images import BOMBS, CASES, NOISE, encode, mutate, png, seeds_for_mutation
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headstart.datasets import load_dataset
from headstart.errors import BadImageError, ResourceError
from headstart.images import (
    Preprocessing,
    decode_image,
    prepare_image,
    read_image_bytes,
    scan_images,
)

# The filter that the library sets on import, which pytest replaces with its own.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_file_has_its_outcome(name, tmp_path):
    case = CASES[name]
    path = tmp_path / case.file_name
    path.write_bytes(case.data)
    data = read_image_bytes(path)
    assert data == case.data
    if case.pixels is None:
        with pytest.raises(BadImageError) as caught:
            decode_image(data)
        assert case.reason in str(caught.value)
        assert str(caught.value).isprintable()
    else:
        image = decode_image(data)
        assert (image.mode, *image.size) == ("RGB", *case.pixels.shape[1::-1])
        assert np.abs(np.asarray(image) - case.pixels.astype(float)).max() <= case.tolerance


def assert_rgb_or_refused(data):
    try:
        image, reason = decode_image(data, max_pixels=1_000_000), ""
    except BadImageError as exc:
        reason = str(exc)
    else:
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= 1_000_000
    assert reason.isprintable()


@pytest.mark.parametrize("count", [22, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", seeds_for_mutation())
def test_mutated_files_are_rgb_or_refused(name, count):
    data = seeds_for_mutation()[name]
    assert decode_image(data).mode == "RGB"
    rng = np.random.default_rng([count, *name.encode()])
    for _ in range(count):
        assert_rgb_or_refused(mutate(data, rng))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"", b"P3 ", b"P6\n", b"BM", b"II*\0", b"GIF89a"]), st.binary(max_size=200))
def test_arbitrary_bytes_are_rgb_or_refused(start, body):
    assert_rgb_or_refused(start + body)


@pytest.mark.parametrize(
    ("data", "limit", "reason"),
    [
        pytest.param(encode(NOISE, "PNG"), 1599, "40 x 40 is more than 1,599 pixels", id="low"),
        pytest.param(png(9500, 9500, bits=1, colour=0), 100_000_000, "damaged PNG", id="high"),
    ],
)
def test_pixel_limit_is_the_callers(data, limit, reason):
    with pytest.raises(BadImageError, match=f"^{reason}"):
        decode_image(data, max_pixels=limit)
    assert decode_image(encode(NOISE, "PNG"), max_pixels=1600).size == (40, 40)


def run_python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, **options)


def test_plain_ppm_takes_no_longer_than_its_size_warrants():
    code = """if True:
        import sys, time, headstart.errors, headstart.images
        start = time.process_time()
        try:
            headstart.images.decode_image(sys.stdin.buffer.read())
        except headstart.errors.BadImageError:
            pass
        print(time.process_time() - start)
    """
    run = run_python(code, input=b"P3 10 10 255\n" + b"#\n1 " * 200_000, check=True)
    assert float(run.stdout) < 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_bombs_and_strips_stay_small_in_memory():
    code = """if True:
        import sys
        sys.path.insert(0, sys.argv[1])
        from bad_images import BOMBS, CASES
        from headstart.errors import BadImageError
        from headstart.images import Preprocessing, decode_image, prepare_image
        def peak_kb():
            return next(int(x.split()[1]) for x in open("/proc/self/status") if x[:5] == "VmHWM")
        how = Preprocessing((224, 224), 0.875, "center", "bicubic", (0, 0, 0), (1, 1, 1))
        for name in ("1 x 10000", "10000 x 1", *BOMBS):
            before = peak_kb()
            try:
                assert prepare_image(decode_image(CASES[name].data), how).shape == (224, 224, 3)
            except BadImageError:
                assert name in BOMBS
            if peak_kb() - before > 100_000:
                print(name, peak_kb() - before)
        print("done")
    """
    assert run_python(code, Path(__file__).parent, check=True).stdout == b"done\n"


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p.mkdir(), "is a directory"),
        (lambda p: os.mkfifo(p), "not a regular file"),
        (lambda p: None, "no such file or directory"),
        (lambda p: p.symlink_to("nowhere"), "no such file or directory"),
        (lambda p: p.symlink_to(p.name), "too many levels of symbolic links"),
        (lambda p: p.symlink_to("/dev/zero"), "not a regular file"),
        (lambda p: p.write_bytes(b"") or os.truncate(p, 2**29 + 1), "larger than 512 MiB"),
        (lambda p: p / "\0", "embedded null byte"),
        (lambda p: p / "\ud800", "surrogates not allowed"),
        (lambda p: p.with_name("a" * 300), "file name too long"),
        (lambda p: p.write_bytes(b"") or p / "y.jpg", "not a directory"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the system's own words")
def test_what_is_no_regular_file_is_refused_at_once(make, reason, tmp_path):
    path = tmp_path / "x.jpg"
    path = make(path) or path
    handles = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(BadImageError, match=reason) as caught:
        read_image_bytes(path)
    assert str(caught.value).isprintable()
    assert len(list(Path("/proc/self/fd").iterdir())) == handles


@pytest.mark.parametrize(
    ("number", "error"),
    [(n, BadImageError) for n in (errno.EACCES, errno.EIO)]
    + [(n, ResourceError) for n in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)],
)
def test_a_fault_of_the_system_is_no_fault_of_the_image(number, error, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError if number == errno.ENOMEM else OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(error):
            read_image_bytes(tmp_path / "a.jpg")
    if number == errno.ENOMEM:
        monkeypatch.setattr(Image, "open", refuse)
        with pytest.raises(ResourceError, match="out of memory"):
            decode_image(encode(NOISE, "PNG"))


# ---------------------------------------------------------------- resize and crop


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, 8 * n))),
    st.booleans(),
    st.sampled_from([(224, 224), (32, 32), (37, 37), (48, 32), (32, 57)]),
    st.sampled_from([0.8, 0.875, 0.9, 0.95, 1.0]),
    st.sampled_from(["center", "squash"]),
    st.sampled_from(["bicubic", "bilinear", "lanczos", "nearest"]),
)
def test_prepared_pixels_equal_timms(size, tall, target, crop_pct, mode, interpolation):
    image = Image.fromarray(np.resize(NOISE, (*(size[::-1] if tall else size), 3)))
    mine = prepare_image(image, Preprocessing(target, crop_pct, mode, interpolation, *IMAGENET))
    assert (mine.dtype, mine.shape) == (np.uint8, (*target, 3))
    how = {"interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": mode}
    transform = timm.data.create_transform((3, *target), **how, normalize=False)
    assert (mine == transform(image).permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
def test_a_longer_image_is_cut_to_its_middle(axes):
    strip = np.zeros((4, 1000, 3), np.uint8)
    strip[:, 484:516] = np.resize(NOISE, (4, 32, 3))
    how = Preprocessing((32, 32), 0.875, "center", "bicubic", *IMAGENET)
    pair = [part.transpose(*axes, 2).copy() for part in (strip, strip[:, 484:516])]
    whole, cut = (prepare_image(Image.fromarray(part), how) for part in pair)
    assert whole.shape == (32, 32, 3)
    assert (whole == cut).all()


# ---------------------------------------------------------------- the scan


@pytest.fixture
def photos(tmp_path):
    for name in ("train/cat/0", "train/cat/1", "train/cat/2", "train/dog/0", "val/cat/0"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.resize(NOISE, (10 + int(name[-1]), 20, 3)), "PNG"))
    return tmp_path


def test_scan_counts_what_is_there(photos):
    scan = scan_images(load_dataset(photos))
    assert dataclasses.asdict(scan) == {
        "images": 5,
        "counts": {"train": {"cat": 3, "dog": 1}, "val": {"cat": 1}},
        "probed": 5,
        "width_px": (20, 20, 20),
        "height_px": (10, 10, 12),
        "formats": {"PNG": 5},
        "unreadable": (),
    }


def test_scan_names_unreadable_images(photos):
    (photos / "train/cat/0.png").write_bytes(b"")
    (photos / "train/cat/1.png").write_bytes(BOMBS["bomb: PNG of 64 megapixels"].data)
    (photos / "train/cat/broken.png").symlink_to("nowhere")
    dataset = load_dataset(photos)
    (photos / "val/cat/0.png").unlink()
    scan = scan_images(dataset)
    assert (scan.images, scan.formats) == (6, {"PNG": 2})
    assert scan.unreadable == (
        ("train/cat/0.png", "empty file"),
        ("train/cat/1.png", "8000 x 8000 is more than 50,000,000 pixels"),
        ("train/cat/broken.png", "broken link"),
        ("val/cat/0.png", "no such file or directory"),
    )


def test_scan_probes_no_more_than_asked_and_always_the_same(photos):
    dataset = load_dataset(photos)
    scan = scan_images(dataset, probes=3)
    assert (scan.images, scan.probed) == (5, 3)
    assert scan == scan_images(dataset, probes=3)
    assert len(scan_images(dataset, max_pixels=10).unreadable) == 5
