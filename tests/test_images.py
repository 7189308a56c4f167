"""Every kind of image file ends as the right RGB pixels or as one clear reason."""

import dataclasses
import errno
import io
import json
import os
import resource
import subprocess
import sys
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm.data
from bad_images import BOMBS, CASES, COSTLY, NOISE, encode, mutate, png, seeds_for_mutation
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headstart.data.decoding import (
    Picture,
    PillowSource,
    Preprocessing,
    convert_image,
    decode_image,
    decode_picture,
    needed_px,
    prepare_image,
)
from headstart.data.images import ImageRef, MemorySource, read_image_bytes
from headstart.data.loading import load_dataset
from headstart.data.scan import scan_images
from headstart.data.views import AUGMENTATIONS, OPERATIONS, Augmentation, augment_image
from headstart.errors import BadImageError, ResourceError, UsageError

# The filter that the library sets on import, which pytest replaces with its own.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

MUTATIONS = int(os.environ.get("HEADSTART_TEST_MUTATIONS", "22"))

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


@pytest.mark.parametrize("name", seeds_for_mutation())
def test_mutated_files_are_rgb_or_refused_in_little_time_and_memory(name):
    data = seeds_for_mutation()[name]
    assert decode_image(data).mode == "RGB"
    rng = np.random.default_rng([MUTATIONS, *name.encode()])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(MUTATIONS):
        changed, start = mutate(data, rng), time.thread_time()
        assert_rgb_or_refused(changed)
        assert time.thread_time() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


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
    return subprocess.run(command, capture_output=True, timeout=300, **options)


MEASURE = """if True:
    import ctypes, json, sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from bad_images import BOMBS, CASES, COSTLY
    from headstart.errors import BadImageError
    from headstart.data.decoding import Preprocessing, decode_image, prepare_image
    def peak_kb():
        return next(int(x.split()[1]) for x in open("/proc/self/status") if x[:5] == "VmHWM")
    def forget_peak():
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return peak_kb()
    how = Preprocessing((224, 224), 0.875, "center", "bicubic", (0, 0, 0), (1, 1, 1))
    cases = {n: CASES[n].data for n in ("1 x 10000", "10000 x 1", *BOMBS)}
    cases |= {name: costly.make for name, costly in COSTLY.items()}
    found = {}
    for name, data in cases.items():
        data = data if isinstance(data, bytes) else data()
        before, start = forget_peak(), time.thread_time()
        try:
            image = decode_image(data)
            outcome = image.size
            assert prepare_image(image, how).shape == (224, 224, 3)
        except BadImageError as exc:
            outcome = str(exc)
        found[name] = outcome, time.thread_time() - start, peak_kb() - before
        image = None
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def measured():
    """{name: (size or reason, seconds of the processor, kB)} of decoding, in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("reads memory from /proc")
    return json.loads(run_python(MEASURE, Path(__file__).parent, check=True).stdout)


@pytest.mark.parametrize("name", ["1 x 10000", "10000 x 1", *BOMBS])
def test_bombs_and_strips_stay_small_in_memory(name, measured):
    outcome, _, memory_kb = measured[name]
    assert isinstance(outcome, str) == (name in BOMBS)
    assert memory_kb < 100_000


@pytest.mark.parametrize("name", COSTLY)
def test_every_image_is_read_or_refused_in_little_time_and_memory(name, measured):
    outcome, seconds, memory_kb = measured[name]
    if COSTLY[name].size is None:
        assert COSTLY[name].reason in outcome
    else:
        assert tuple(outcome) == COSTLY[name].size
    assert seconds < 5  # of a slow machine; each takes at most 1.3 on a quick one
    assert memory_kb < COSTLY[name].most_kb


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


# ---------------------------------------------------------------- augmented views

SMALL = Preprocessing((64, 48), 0.875, "center", "bicubic", *IMAGENET)
STILL = AUGMENTATIONS["none"]
PHOTO = Image.fromarray(np.resize(NOISE, (150, 200, 3)))


def take(image, augmentation, view=1, image_id="cat/a.jpg", seed=0, how=SMALL):
    return augment_image(image, how, augmentation, seed=seed, image_id=image_id, view=view)


@pytest.mark.parametrize("size", [(200, 150), (30, 20), (1, 1), (1000, 4)], ids=str)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_view_is_a_pure_function_of_seed_id_and_view(name, size):
    style, image = AUGMENTATIONS[name], Image.fromarray(np.resize(NOISE, (*size[::-1], 3)))
    before = image.tobytes()
    jobs = [(v, i, s) for v in range(3) for i in ("a", "b") for s in (0, 1)]
    views = [take(image, style, *job) for job in jobs]
    assert {(v.shape, v.dtype.name) for v in views} == {((64, 48, 3), "uint8")}
    with ThreadPoolExecutor(8) as pool:
        others = list(pool.map(lambda job: take(image, style, *job), reversed(jobs)))
    assert all((a == b).all() for a, b in zip(views, reversed(others), strict=True))
    assert image.tobytes() == before
    plain = prepare_image(image, SMALL)
    assert all((v == plain).all() for v in views[:4])
    if size == (200, 150):
        different = {v.tobytes() for v in views}
        assert len(different) == (1 if name == "none" else 9)


def test_the_plain_view_needs_no_torch():
    code = """if True:
        import sys
        from PIL import Image
        from headstart.data.decoding import Preprocessing
        from headstart.data.views import AUGMENTATIONS, augment_image
        how = Preprocessing((8, 8), 0.875, "center", "bicubic", (0,) * 3, (1,) * 3)
        for style, view in ((AUGMENTATIONS["strong"], 0), (AUGMENTATIONS["none"], 3)):
            augment_image(Image.new("RGB", (9, 9)), how, style, seed=0, image_id="a", view=view)
        sys.exit("torch" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_id_from_a_mac_draws_the_same():
    forms = [unicodedata.normalize(form, "Zoë/1.jpg") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    first, second = (take(PHOTO, Augmentation(), image_id=form) for form in forms)
    assert (first == second).all()


def test_presets_grow_stronger_and_medium_is_the_default():
    assert list(AUGMENTATIONS) == ["none", "light", "medium", "strong"]
    assert AUGMENTATIONS["medium"] == Augmentation()
    photo = Image.fromarray(
        np.resize(np.linspace(0, 255, 200), (150, 200, 1)).repeat(3, 2).astype("u1")
    )
    plain = prepare_image(photo, SMALL).astype(float)
    distances = [
        np.mean([np.abs(take(photo, style.without_flip(), v) - plain).mean() for v in range(1, 60)])
        for style in AUGMENTATIONS.values()
    ]
    assert distances[0] == 0
    assert distances == sorted(set(distances))


def test_crops_keep_to_their_shares_and_shapes():
    y, x = np.mgrid[:150, :200]
    image = Image.fromarray(np.stack([x, y, x], axis=-1).astype(np.uint8))
    how = dataclasses.replace(SMALL, input_px=(100, 100), interpolation="nearest")
    shares, ratios = [], []
    for view in range(1, 300):
        style = dataclasses.replace(STILL, crop=(0.3, 0.6), ratio=(0.8, 1.25))
        found = take(image, style, view, how=how).astype(int)
        width = (found[0, -1, 0] - found[0, 0, 0]) * 100 / 99
        height = (found[-1, 0, 1] - found[0, 0, 1]) * 100 / 99
        shares.append(width * height / (150 * 200))
        ratios.append(width / height)
    assert 0.28 < min(shares) < 0.33
    assert 0.57 < max(shares) < 0.62
    assert 0.77 < min(ratios) < 0.83
    assert 1.2 < max(ratios) < 1.29


def test_flips_are_as_frequent_as_asked_for():
    ramp = Image.fromarray(np.resize(np.arange(200), (150, 200, 1)).repeat(3, 2).astype("u1"))

    def count(style):
        views = [take(ramp, style, view) for view in range(1, 401)]
        return sum(int(v[0, 0, 0] > v[0, -1, 0]) for v in views)

    assert 165 < count(dataclasses.replace(STILL, flip=0.5)) < 235
    assert 70 < count(dataclasses.replace(Augmentation(), flip=0.25)) < 130
    assert count(dataclasses.replace(STILL, flip=1.0)) == 400
    assert count(Augmentation().without_flip()) == 0


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("brightness", lambda v: v[:, :, 1].mean() / 100),
        ("contrast", lambda v: (v[0, 0, 1] - v[-1, -1, 1]) / 40),
        ("saturation", lambda v: (v[0, 0, 2] - v[0, 0, 1]) / 60),
    ],
)
def test_colours_change_within_their_range(name, measure):
    pixels = np.full((64, 48, 3), (100, 120, 180), dtype=np.uint8)
    pixels[32:] = (60, 80, 140)
    style = dataclasses.replace(STILL, **{name: 0.3})
    how = dataclasses.replace(SMALL, crop_pct=1.0)
    found = [
        measure(take(Image.fromarray(pixels), style, v, how=how).astype(int)) for v in range(1, 200)
    ]
    assert 0.66 < min(found) < 0.75
    assert 1.25 < max(found) < 1.34


def test_hue_and_rotation_and_erasing_do_what_they_say():
    red = Image.new("RGB", (64, 64), (250, 10, 10))
    hues = [take(red, dataclasses.replace(STILL, hue=0.1), v)[0, 0] for v in range(1, 50)]
    assert max(h[1] for h in hues) > 100
    assert max(h[2] for h in hues) > 100
    assert min(h[0] for h in hues) > 240  # never as far as to green
    turned = take(red, dataclasses.replace(STILL, rotate_degrees=40.0))
    fill = [round(255 * m) for m in SMALL.mean]
    assert turned[0, 0].tolist() == fill
    assert turned[32, 24].tolist() == [250, 10, 10]
    style = dataclasses.replace(STILL, erase=0.5)
    shares = [(take(red, style, v) == fill).all(axis=2).mean() for v in range(1, 300)]
    assert 0.4 < np.mean([s == 0 for s in shares]) < 0.6
    assert 0.01 < min(s for s in shares if s) < 0.04
    assert 0.16 < max(shares) < 0.21


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_random_operation_keeps_the_size_and_its_strength(name):
    from torchvision.transforms.v2 import functional

    image = Image.fromarray(np.resize(60 + NOISE // 2, (30, 20, 3)))
    for strength in (-1.0, -0.3, 0.0, 0.3, 0.999):
        found = OPERATIONS[name](functional, image, strength, [1, 2, 3])
        assert (found.mode, found.size) == ("RGB", (20, 30))
        always = name in ("autocontrast", "equalize")
        changed = np.abs(np.asarray(found).astype(int) - np.asarray(image)).max() > 1
        assert changed == (name != "identity" and (strength != 0 or always))


def test_every_random_operation_is_drawn():
    how = dataclasses.replace(SMALL, crop_pct=1.0, input_px=(30, 40))
    image = Image.fromarray(np.resize(NOISE, (30, 40, 3)))
    style = dataclasses.replace(STILL, random_ops=1)
    found = {take(image, style, v, how=how).tobytes() for v in range(1, 151)}
    # Identity, autocontrast, equalise and the steps of posterise come again; the others never do.
    assert 90 < len(found) < 140


def test_what_is_enlarged_is_changed_before():
    tiny = Image.fromarray(np.resize(NOISE, (20, 16, 3)))
    style = dataclasses.replace(STILL, rotate_degrees=30.0, flip=1.0, brightness=0.5)
    how = dataclasses.replace(SMALL, crop_pct=1.0)
    plain, found = prepare_image(tiny, how), take(tiny, style, how=how)
    small = dataclasses.replace(how, input_px=(20, 16))
    before = Image.fromarray(take(tiny, style, how=small))
    assert (found == prepare_image(before, how)).all()
    assert (found != plain).any()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"flip": 1.5}, "flip must be from 0 to 1, got 1.5"),
        ({"hue": 0.6}, "hue must be from 0 to 0.5, got 0.6"),
        ({"erase": float("nan")}, "erase must be from 0 to 1, got nan"),
        ({"random_ops": -1}, "random_ops must be from 0 to 10, got -1"),
        (
            {"crop": (0.0, 1.0)},
            r"crop must be two shares of the area in \(0, 1\], got \(0.0, 1.0\)",
        ),
        ({"crop": (0.9, 0.5)}, "crop must be two shares"),
        ({"ratio": (0.0, 1.0)}, "ratio must be two positive numbers"),
    ],
)
def test_numbers_out_of_range_are_refused(options, reason):
    with pytest.raises(UsageError, match=reason):
        Augmentation(**options)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_views_of_a_scaled_decoding_are_near_the_exact(name, orientation):
    y, x = np.mgrid[:1201, :1599]
    waves = [128 + 100 * np.sin(x / a) * np.cos(y / b) for a, b in ((60, 90), (150, 70), (90, 90))]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif)
    style = AUGMENTATIONS[name]
    least = needed_px(SMALL, style.least_crop)
    exact, scaled = (decode_picture(file.getvalue(), least_px=px) for px in (None, least))
    assert exact.size == scaled.size
    assert scaled.image.width * scaled.image.height < 0.1 * 1201 * 1599
    for view in range(6):
        first, second = (take(p, style, view).astype(int) for p in (exact, scaled))
        if name != "strong":  # whose operations make little differences large
            assert np.abs(first - second).mean() < 1.5
        if orientation == 1:
            assert (take(exact.image, style, view) == first).all()
    # The smallest crop still fills the input.
    least = min(scaled.image.size) * (style.crop[0] if style.crop else 1) ** 0.5
    assert least >= max(SMALL.input_px)


def test_a_picture_of_another_kind_is_decoded_whole():
    data = encode(np.resize(NOISE, (400, 300, 3)), "PNG")
    picture = decode_picture(data, least_px=needed_px(SMALL))
    assert isinstance(picture, Picture)
    assert (picture.image.size, picture.size) == ((300, 400), (300, 400))
    assert (take(picture, Augmentation()) == take(decode_image(data), Augmentation())).all()


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


# ---------------------------------------------------------------- where images are


def test_an_image_is_read_whole_or_to_a_length_wherever_it_is(tmp_path):
    path, data = tmp_path / "x" / "a.png", encode(NOISE, "PNG")
    path.parent.mkdir()
    path.write_bytes(data)
    file, memory = load_dataset(tmp_path).image(0), ImageRef("a", MemorySource(data))
    assert (file.id, file.error, file.read()) == ("x/a.png", "", memory.read())
    assert file.read(9) == memory.read(9) == data[:9]
    info = path.stat()
    assert file.stamp() == (info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    path.unlink()
    assert file.stamp() is memory.stamp() is None
    with pytest.raises(BadImageError, match="no such file"):
        file.read()
    for image in (ImageRef("b", error="no class"), dataclasses.replace(memory, error="no class")):
        with pytest.raises(BadImageError, match="no class"):
            image.read()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16", "F", "CMYK", "P", "1"])
def test_pixels_of_pillow_are_read_as_they_are(mode):
    image = Image.fromarray(NOISE).convert("L").convert("I;16") if mode == "I;16" else None
    image = image or Image.fromarray(NOISE).convert(mode)
    source = PillowSource(image)
    assert np.array_equal(decode_image(source.read()), convert_image(image))
    assert source.read(2) == b"P6"
    with pytest.raises(BadImageError, match="is more than 5 pixels"):
        PillowSource(image, max_pixels=5).read()
