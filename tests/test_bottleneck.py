"""Files of bottleneck features: read as courses hand them out, refused if hostile, written and read back."""

import base64
import contextlib
import io
import json
import os
import pickle
import pickletools
import re
import shlex
import shutil
import signal
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

import headstart
from headstart.cli.app import app
from headstart.errors import HeadstartError, InputError, ResourceError, UsageError
from headstart.features.bottleneck import name_bottleneck, read_bottleneck, write_bottleneck
from headstart.networks.architectures import find_network
from headstart.runs.sampling import draw_per_class

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(0, 2, (3, 24)).astype(np.float32)
KINDS = ("blobs", "plain", "stripes")
LAB = (Path(__file__).parent.parent / "docs" / "lab.md").read_text(encoding="utf-8")


def sample(count, seed, places=()):
    """Features (count, *places, 24) of three classes that can be told apart, and int64 (count,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    shape = (count, *(places or ()), 24)
    noise = rng.normal(0, 1, shape).astype(np.float32)
    return noise + CENTRES[labels].reshape(count, *(1,) * len(places), 24), labels


def save(path, features, labels, protocol=2):
    path.write_bytes(pickle.dumps({"features": features, "labels": labels}, protocol))
    return path


def pickle_as_python_2(arrays):
    """Protocol 2 as Python 2 and its NumPy wrote it: keys, codes and the bytes of arrays as BINSTRING."""

    def text(data):
        data = data.encode() if isinstance(data, str) else data
        if len(data) < 256:
            return b"U" + bytes([len(data)]) + data
        return b"T" + struct.pack("<i", len(data)) + data

    def number(n):
        return b"K" + bytes([n]) if n < 256 else b"M" + struct.pack("<H", n)

    out = b"\x80\x02}("
    for name, array in arrays.items():
        shape = b"".join(map(number, array.shape))
        end = {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(array.ndim)
        shape = b"(" + shape + b"t" if end is None else shape + end
        code, order = array.dtype.str[1:], array.dtype.str[:1]
        out += (
            text(name)
            + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        )
        out += (
            b"(K\x01"
            + shape
            + b"cnumpy\ndtype\n("
            + text(code)
            + b"K\x00K\x01tR(K\x03"
            + text(order)
        )
        out += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(array.tobytes()) + b"tb"
    return out + b"u."


# As cPickle of Python 2.7 with NumPy 1.13 wrote it, in protocol 2.
PYTHON_2 = base64.b64decode(
    b"gAJ9cQEoVQZsYWJlbHNxAmNudW1weS5jb3JlLm11bHRpYXJyYXkKX3JlY29uc3RydWN0CnEDY251bXB5Cm5kYXJyYXkKcQRL"
    b"AIVVAWKHUnEFKEsBSwKFY251bXB5CmR0eXBlCnEGVQJ1MUsASwGHUnEHKEsDVQF8Tk5OSv////9K/////0sAdGKJVQID+nRi"
    b"VQhmZWF0dXJlc3EIaANoBEsAhVUBYodScQkoSwEoSwJLAUsBSwR0aAZVAmY0SwBLAYdScQooSwNVATxOTk5K/////0r/////"
    b"SwB0YolVIAAAwL8AAAAA5rFhf8IWAQDNzMw9zcxMvgAA4EAAAH9DdGJ1Lg=="
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(train, validation) as ResNet50 gives them."""
    folder = tmp_path_factory.mktemp("lab")
    train, val = sample(60, 1, (1, 1)), sample(30, 2, (1, 1))
    return (
        save(folder / "resnet_x_100_bottleneck_features_train.p", *train),
        save(folder / "resnet_x_bottleneck_features_validation.p", *val),
    )


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("write", ["python2", *range(pickle.HIGHEST_PROTOCOL + 1), "npz", "packed"])
@pytest.mark.parametrize(
    ("shape", "labels"),
    [
        ((9, 1, 1, 2048), np.arange(9) % 3),
        ((9, 4, 4, 512), (np.arange(9) % 3)[:, None].astype(np.uint8)),
        ((9, 7), np.arange(9) % 3),
    ],
    ids=["resnet", "vgg", "flat"],
)
def test_the_layouts_of_the_original(tmp_path, write, shape, labels):
    features = RNG.normal(size=shape).astype(np.float32)
    path = tmp_path / "x.p"
    if write in ("npz", "packed"):
        with open(path, "wb") as file:
            pack = np.savez if write == "npz" else np.savez_compressed
            pack(file, features=features, labels=labels)
    elif write == "python2":
        path.write_bytes(pickle_as_python_2({"features": features, "labels": labels}))
        assert np.array_equal(
            pickle.loads(path.read_bytes(), encoding="latin-1")["features"], features
        )
    else:
        save(path, features, labels, write)
    found = read_bottleneck(path)
    assert (found.features.dtype, found.features.shape) == (np.float32, (9, shape[-1]))
    assert found.shape == shape[1:]
    assert found.labels == tuple(str(n % 3) for n in range(9))
    wanted = features if len(shape) == 2 else features.mean(axis=(1, 2))
    assert np.allclose(found.features, wanted, atol=1e-6)


def test_a_file_of_python_2(tmp_path):
    (tmp_path / "x.p").write_bytes(PYTHON_2)
    found = read_bottleneck(tmp_path / "x.p")
    rows = [[-1.5, 0, 3e38, 1e-40], [0.1, -0.2, 7, 255]]
    assert np.array_equal(found.features, np.array(rows, np.float32))
    assert (found.labels, found.shape) == (("3", "250"), (1, 1, 4))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    st.integers(1, 9),
    st.sampled_from(["<f2", "<f4", ">f4", "<f8", ">f8"]),
    st.sampled_from("CF"),
    st.sampled_from(["numbers", "column", "floats", "names", "bytes"]),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_any_shape_and_type(tmp_path_factory, count, places, width, dtype, order, kind, protocol):
    shape = (count, *(places or ()), width)
    features = np.asarray(RNG.normal(size=shape).astype(dtype), order=order)
    numbers = RNG.integers(0, 12, count)
    labels = {
        "numbers": numbers,
        "column": numbers[:, None],
        "floats": numbers.astype(np.float64),
        "names": [str(n) for n in numbers],
        "bytes": np.array([str(n) for n in numbers], "S2"),
    }[kind]
    path = save(tmp_path_factory.mktemp("x") / "x.p", features, labels, protocol)
    found = read_bottleneck(path)
    wanted = features.astype(np.float64)
    assert np.allclose(
        found.features, wanted if places is None else wanted.mean(axis=(1, 2)), atol=1e-5
    )
    assert found.labels == tuple(map(str, numbers.tolist()))


def bad(features=None, labels=None):
    good = sample(6, 1)
    return {
        "features": good[0] if features is None else features,
        "labels": good[1] if labels is None else labels,
    }


def holed(value):
    features = sample(6, 1)[0].astype(np.float64)
    features[4, 2] = value
    return features


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (bad(holed(np.nan)), r"x\.p, features: row 4 has features that are NaN or infinite"),
        (bad(holed(-np.inf)), "row 4 has features that are NaN or infinite"),
        (bad(holed(1e300)), "row 4 has features that are NaN or infinite as float32"),
        (bad(np.zeros((6, 2, 5), np.float32)), "of shape 6 x 2 x 5; expected an array of images x features"),
        (bad(np.zeros(6, np.float32)), "of shape 6; expected"),
        (bad(np.zeros((6, 8, 8, 3), np.uint8)), "of type uint8.*may be images, which headstart fit FILE"),
        (bad(np.zeros((6, 8), np.int64)), "of type int64, and features are floats; save floats"),
        (bad([[1.0, 2.0]]), "of type list; expected an array"),
        (bad(np.zeros((1, 100_001), np.float32), [1]), "100,001 features an image, and 100,000 are allowed"),
        (bad(labels=[0, 1, 2]), r"x\.p, labels: 3 labels for 6 images"),
        (bad(labels=[0.5] * 6), "labels that are no whole numbers"),
        (bad(labels=np.array([0, -1] * 3)), "label -1 of row 1"),
        (bad(labels=[{}] * 6), "of more than one kind"),
        (bad(labels=np.eye(6)[:, :2] + np.eye(6)[::-1, :2]), "labels: several labels an image, and a"),
        (bad(np.array([[object()]] * 6)), "asks for __builtin__.object"),
        (bad(np.array([["a"], [3]] * 3, object)), "an array of Python objects"),
        ({"features": sample(6, 1)[0]}, "no labels in it; it has features, and needs a dict of"),
        ({"x": 1, "y": 2}, "no features in it; it has x, y"),
        ({}, "no features in it; it has nothing"),
        ([1, 2], "a pickle of a list; expected a dict with features and labels"),
    ],
)  # fmt: skip
def test_what_is_no_features_is_refused(tmp_path, value, message):
    (tmp_path / "x.p").write_bytes(pickle.dumps(value, 2))
    with pytest.raises(InputError, match=message) as caught:
        headstart.fit_features(tmp_path / "x.p", tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


class Reducer:
    """What runs when Python's own reader meets it."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_file_runs_anything(tmp_path, files, protocol):
    canary, path = tmp_path / "canary", tmp_path / "x.p"
    evil = Reducer(Path.touch, (canary,))
    for value in (evil, bad(evil), bad(labels=[evil] * 6), {**bad(), "x": evil}):
        path.write_bytes(pickle.dumps(value, protocol))
        for pair in ((path, files[1]), (files[0], path)):
            with pytest.raises(InputError, match=r"x\.p: asks for [\w.]*(getattr|pathlib|touch)"):
                headstart.fit_features(pair[0], tmp_path / "run", validation=pair[1])
        assert not canary.exists()
    assert pickle.loads(path.read_bytes())
    assert canary.exists()


def test_hostile_files(tmp_path):
    """Bombs, pipes, cut and missing ones: a line, and no memory."""
    npy = b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"

    def member(shape):
        return (npy % shape).ljust(127) + b"\n"

    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", member(b"100000, 100000"))
        archive.writestr("labels.npy", member(b"100000,"))
    with zipfile.ZipFile(tmp_path / "claim.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", member(b"50000, 10000"))
        archive.writestr("labels.npy", member(b"50000,"))
    os.mkfifo(tmp_path / "pipe.p")
    (tmp_path / "empty.p").write_bytes(b"")
    whole = save(tmp_path / "whole.p", *sample(30, 1)).read_bytes()
    (tmp_path / "cut.p").write_bytes(whole[: len(whole) // 2])
    wanted = {
        "bomb.npz": "GiB of memory once unpacked",
        "claim.npz": "claims 2,000,000,000 bytes",
        "pipe.p": "not a regular file",
        "empty.p": "no pickle of arrays, or damaged",
        "cut.p": "no pickle of arrays, or damaged",
        "nowhere.p": "no such file",
    }
    for name, message in wanted.items():
        tracemalloc.start()
        with pytest.raises(InputError, match=f"{name}.*{message}") as caught:
            read_bottleneck(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
        tracemalloc.stop()
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is a directory"):
        read_bottleneck(tmp_path)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_changed_bytes_end_in_features_or_an_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("x") / "x.p"
    content = bytearray(pickle.dumps(bad(), data.draw(st.integers(2, pickle.HIGHEST_PROTOCOL))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 150))
        codes = st.sampled_from([ord(c) for c in pickletools.code2op])
        content[place] = data.draw(st.integers(0, 255) | codes)
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        found = read_bottleneck(path)
        assert np.isfinite(found.features).all()
        assert len(found.features) == len(found.labels)


# ---------------------------------------------------------------- what is written


def test_what_is_written_is_read_by_everybody(tmp_path):
    features, labels = sample(300, 3)
    path = tmp_path / "x.p"
    write_bottleneck(path, features, labels)
    content = path.read_bytes()
    value = pickle.loads(content)
    assert list(value) == ["features", "labels"]
    assert (value["features"].dtype, value["features"].shape) == (np.float32, (300, 1, 1, 24))
    assert np.array_equal(value["features"][:, 0, 0], features)
    assert value["labels"].dtype == np.int64
    assert np.array_equal(value["labels"], labels)
    value["features"][0] = 1  # its own memory
    assert max(op.proto for op, _, _ in pickletools.genops(io.BytesIO(content))) == 2
    named = {argument for op, argument, _ in pickletools.genops(content) if op.name == "GLOBAL"}
    assert named == {
        "numpy.core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
        "_codecs encode",
    }
    found = read_bottleneck(path)
    assert np.array_equal(found.features, features)
    assert found.labels == tuple(map(str, labels.tolist()))


def test_names_of_files():
    assert name_bottleneck("vgg16", "cifar10", 100) == (
        "vgg16_cifar10_100_bottleneck_features_train.p",
        "vgg16_cifar10_bottleneck_features_validation.p",
    )
    assert name_bottleneck("vgg16", "x", None)[0] == "vgg16_x_bottleneck_features_train.p"


def test_what_is_too_large_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.features.bottleneck.MAX_PICKLE_BYTES", 1000)
    with pytest.raises(InputError, match="could take more than 0 GiB; take fewer with --per-class"):
        write_bottleneck(tmp_path / "x.p", *sample(300, 3))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- a head on files


def test_a_linear_head_is_measured_by_cross_validation(files, tmp_path):
    run = headstart.fit_features(files[0], tmp_path / "run")
    assert (run.measured_on, run.images) == (
        "cross-validation",
        {"train": 60, "val": 0, "unreadable": 0},
    )
    assert run.metrics["accuracy"].value > 0.95
    assert run.settings["penalty"]["origin"] == "measured"
    assert run.settings["strategy"] == {"value": "linear-probe", "origin": "default"}
    assert "backbone" not in run.settings
    again = headstart.Run.load(tmp_path / "run")
    assert again.metrics == run.metrics
    assert (again.data, again.classes) == (files[0], ("0", "1", "2"))
    assert np.array_equal(again.measured.probabilities, run.measured.probabilities)
    head, classes = headstart.load_head(tmp_path / "run")
    features, labels = sample(90, 7)
    assert classes == ("0", "1", "2")
    assert (head.predict_proba(features).argmax(axis=1) == labels).mean() > 0.95


def test_an_mlp_head_is_measured_on_the_validation_file(files, tmp_path):
    epochs = []
    options = {
        "head": "d0.5-48-d0.5",
        "epochs": 5,
        "batch": 16,
        "class_names": tmp_path / "names.txt",
    }
    (tmp_path / "names.txt").write_text("cat\ndog\nfrog\n")
    run = headstart.fit_features(
        files[0], tmp_path / "run", validation=files[1], on_epoch=epochs.append, **options
    )
    assert (run.measured_on, run.images["val"]) == ("val", 30)
    assert run.classes == ("cat", "dog", "frog")
    assert run.metrics["accuracy"].value > 0.8
    assert [entry["epoch"] for entry in epochs] == list(range(6))
    assert [entry["epoch"] for entry in headstart.Run.load(tmp_path / "run").history] == list(
        range(6)
    )
    head, _ = headstart.load_head(tmp_path / "run")
    assert [weight.shape for weight, _ in head.layers] == [(48, 24), (3, 48)]
    found = head.predict_proba(read_bottleneck(files[1]).features)
    # What is measured is at temperatures that were chosen without the image.
    assert np.allclose(found, run.measured.probabilities, atol=0.1)
    assert (found.argmax(axis=1) == run.measured.probabilities.argmax(axis=1)).all()
    same = headstart.fit_features(files[0], tmp_path / "b", validation=files[1], **options)
    assert (same.folder / "head.safetensors").read_bytes() == (
        tmp_path / "run/head.safetensors"
    ).read_bytes()


def test_an_interruption_keeps_the_best_head_so_far(files, tmp_path, cli, monkeypatch):
    def stop(entry):
        if entry["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)

    options = {"head": "8", "epochs": 50}
    run = headstart.fit_features(
        files[0], tmp_path / "run", validation=files[1], on_epoch=stop, **options
    )
    assert run.interrupted
    assert headstart.load_head(tmp_path / "run")[0].width == 24
    monkeypatch.setattr("headstart.cli.commands.epoch_printer", lambda: stop)
    words = ("fit", "--features", files[0], "--validation", files[1], "--head", "8")
    code, out, err = cli(*words, "-o", tmp_path / "b")
    assert code == 130
    assert "saved to" in out
    assert "interrupted; the best head so far is kept" in err


def test_equal_rows_are_never_in_two_folds(tmp_path):
    """Copies of one row would be recognised; that others are not learned shows that they are not."""
    features = RNG.normal(size=(12, 200)).astype(np.float32)
    labels = np.arange(12) % 2
    save(tmp_path / "x.p", np.repeat(features, 4, axis=0), np.repeat(labels, 4))
    run = headstart.fit_features(tmp_path / "x.p", tmp_path / "run")
    assert run.metrics["accuracy"].value < 0.9
    save(tmp_path / "y.p", features[:4], labels[:4])
    run = headstart.fit_features(tmp_path / "x.p", tmp_path / "b", validation=tmp_path / "y.p")
    assert any(
        "4 sets of identical images in the training and in the val" in w for w in run.warnings
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategy": "fine-tune"}, UsageError, "strategy fine-tune needs images"),
        (
            {"workers": 2},
            UsageError,
            "'workers' has no effect on a linear head on features from a file",
        ),
        ({"backbone": "vgg16"}, UsageError, "'backbone' has no effect"),
        ({"val": 0.2}, UsageError, "'val' has no effect"),
        ({"per_class": 5}, UsageError, "'per_class' has no effect"),
        ({"budget": "5m"}, UsageError, "'budget' has no effect"),
        ({"epochs": 3}, UsageError, "'epochs' has no effect on a linear head"),
        (
            {"head": "8", "checkpoint_s": 1},
            UsageError,
            "'checkpoint_s' has no effect on an MLP head",
        ),
        ({"head": "8", "penalty": 1}, UsageError, "'penalty' has no effect with an MLP"),
        ({"head": "8", "cutmix": 1}, UsageError, "'cutmix' has no effect"),
        ({"head": "x"}, UsageError, "head 'x': 'x' is neither a width nor a dropout"),
        ({"class_names": "nowhere.txt"}, InputError, "nowhere.txt"),
        ({"penaltie": 1}, UsageError, "nearest: penalty"),
    ],
)
def test_settings_without_effect_are_refused(files, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        headstart.fit_features(files[0], tmp_path / "run", validation=files[1], **options)
    assert list(tmp_path.iterdir()) == []


def test_files_that_do_not_go_together(files, tmp_path):
    train = files[0]
    narrow = save(tmp_path / "narrow.p", np.zeros((3, 9), np.float32), [0, 1, 2])
    strange = save(tmp_path / "strange.p", np.zeros((3, 24), np.float32), [0, 1, 7])
    single = save(tmp_path / "single.p", np.zeros((3, 24), np.float32), [0, 0, 0])
    for val, message in (
        (
            narrow,
            r"narrow.p: 9 features an image, and .*train.p has 24; both must come from one network",
        ),
        (
            strange,
            r"strange.p: class '7' is not one of .*train.p; both must be of the same classes",
        ),
        (train, "the validation features are the training features; name others"),
    ):
        with pytest.raises(HeadstartError, match=message):
            headstart.fit_features(train, tmp_path / "run", validation=val)
    with pytest.raises(InputError, match=r"single.p: at least two classes are needed, found '0'"):
        headstart.fit_features(single, tmp_path / "run")
    with pytest.raises(
        UsageError, match="an MLP head needs features to validate on; add --validation"
    ):
        headstart.fit_features(train, tmp_path / "run", head="8")
    assert not (tmp_path / "run").exists()


def test_places_are_averaged_and_told(tmp_path):
    save(tmp_path / "x.p", *sample(30, 1, (4, 4)))
    run = headstart.fit_features(tmp_path / "x.p", tmp_path / "run")
    assert run.warnings[0] == (
        "features of x.p are 4 x 4 x 24, of which the mean over 4 x 4 is taken"
    )


def test_folders_are_guarded(files, tmp_path, photos, tiny_run):
    run = headstart.fit_features(files[0], tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already"):
        headstart.fit_features(files[0], tmp_path / "run")
    tiny_run.classifier.save(tmp_path / "run")
    assert not (tmp_path / "run/head.safetensors").exists()
    with pytest.raises(
        InputError, match="a classifier of images; headstart fit --features FILE makes"
    ):
        headstart.load_head(tmp_path / "run")
    headstart.fit_features(files[0], tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run/model.safetensors").exists()
    assert headstart.load_head(tmp_path / "run")[0].width == 24
    with pytest.raises(InputError, match="a head on features from a file, without the network"):
        _ = run.classifier
    for call in (
        lambda: headstart.evaluate(tmp_path / "run", photos),
        lambda: headstart.Predictor.load(tmp_path / "run"),
        lambda: headstart.predict(tmp_path / "run", photos),
        lambda: headstart.Classifier.load(tmp_path / "run"),
        lambda: headstart.Run.load(tmp_path / "run").classifier,
    ):
        with pytest.raises(InputError, match="headstart fit IMAGES makes a classifier of images"):
            call()


@pytest.mark.parametrize("damage", ["cut", "swapped", "missing", "other"])
def test_a_damaged_head_is_refused(files, tmp_path, damage):
    headstart.fit_features(files[0], tmp_path / "run")
    path = tmp_path / "run/head.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        changed = {"cut": content[:50], "swapped": content[::-1], "other": content + b"x"}
        path.write_bytes(changed[damage])
    with pytest.raises(InputError, match=r"head\.safetensors: (damaged|missing)"):
        headstart.load_head(tmp_path / "run")


# ---------------------------------------------------------------- images to files, and back


@pytest.fixture(scope="module")
def tested(plant, tmp_path_factory):
    """train with 10 and val with 4 pictures of each of three classes."""
    root = plant(tmp_path_factory.mktemp("data") / "kinds", {f"train/{k}": 10 for k in KINDS})
    return plant(root, {f"val/{k}": 4 for k in KINDS}, first=50)


def test_a_file_gives_the_head_that_its_images_give(tested, tiny, tmp_path):
    network = {n: v for n, v in tiny.items() if n != "strategy"}
    cut = "blocks.3"
    found = headstart.extract_bottleneck(tested, tmp_path / "lab", cut=cut, **network)
    assert (found.train.name, found.validation.name) == name_bottleneck("test_vit", "kinds", None)
    assert found.images == {"train": 30, "val": 12, "unreadable": 0}
    assert json.loads(found.class_names.read_text()) == list(KINDS)
    assert len(list((tmp_path / "lab").iterdir())) == 3
    of_images = headstart.fit(tested, tmp_path / "images", cut=cut, penalty=0.1, **tiny)
    of_files = headstart.fit_features(
        found.train,
        tmp_path / "files",
        validation=found.validation,
        penalty=0.1,
        class_names=found.class_names,
    )
    assert of_files.classes == of_images.classes
    head, _ = headstart.load_head(tmp_path / "files")
    assert np.allclose(head.weight, of_images.classifier.head.weight, atol=1e-5)
    assert np.allclose(of_files.measured.probabilities, of_images.measured.probabilities, atol=1e-5)
    assert of_files.metrics["accuracy"] == of_images.metrics["accuracy"]


def test_a_fifth_is_held_out_with_groups_whole(plant, tiny, tmp_path):
    data = plant(tmp_path / "photos", dict.fromkeys(KINDS, 20))
    network = {n: v for n, v in tiny.items() if n != "strategy"}
    options = {"group": r"([^/]+/\d)\d", "per_class": 8, **network}
    found = headstart.extract_bottleneck(data, tmp_path / "lab", **options)
    assert found.train.name == "test_vit_photos_8_bottleneck_features_train.p"
    assert (found.images["train"], found.images["val"]) == (24, 30)  # one of two groups a class
    again = headstart.extract_bottleneck(data, tmp_path / "b", **options)
    assert found.train.read_bytes() == again.train.read_bytes()
    other = headstart.extract_bottleneck(data, tmp_path / "c", seed=5, **options)
    assert found.train.read_bytes() != other.train.read_bytes()
    parts = [
        {row.tobytes() for row in read_bottleneck(path).features}
        for path in (found.train, found.validation)
    ]
    assert not parts[0] & parts[1]


def test_an_unreadable_image_is_counted_and_left_out(plant, tiny, tmp_path, monkeypatch):
    data = plant(tmp_path / "kinds", {f"train/{k}": 4 for k in KINDS})
    plant(data, {f"val/{k}": 2 for k in KINDS}, first=50)
    (data / "train/plain/01.png").write_bytes(b"no image")
    network = {n: v for n, v in tiny.items() if n != "strategy"}
    found = headstart.extract_bottleneck(data, tmp_path / "lab", **network)
    assert found.images == {"train": 11, "val": 6, "unreadable": 1}
    assert "1 unreadable left out: train/plain/01.png" in found.warnings[-1]
    assert read_bottleneck(found.train).labels.count("1") == 3
    before = found.train.read_bytes()
    monkeypatch.setenv("HEADSTART_FAIL_AT", "file-written:enospc")
    with pytest.raises(ResourceError, match=r"lab: No space left.*; free space, or choose another"):
        headstart.extract_bottleneck(data, tmp_path / "lab", per_class=None, **network)
    assert found.train.read_bytes() == before
    assert not list((tmp_path / "lab").glob(".*"))


def test_another_folder_is_the_validation_part(plant, tiny, tmp_path, cli):
    plant(tmp_path / "kinds", {f"train/{k}": 6 for k in KINDS})
    plant(tmp_path / "kinds", {f"test/{k}": 3 for k in KINDS}, first=50)
    words = [w for n in ("backbone", "weights", "device") for w in (f"--{n}", tiny[n])]
    train, val = (tmp_path / "kinds" / split for split in ("train", "test"))
    code, out, err = cli(
        "extract", train, "--val", val, "--per-class", "5", "--bottleneck", tmp_path / "lab", *words
    )
    assert code == 0, err
    assert "test_vit_kinds_5_bottleneck_features_train.p: 15 images, 64 features at" in out
    assert "test_vit_kinds_bottleneck_features_validation.p: 9 images, 64 features at" in out
    command = err.strip().splitlines()[-1]
    code, out, err = cli(*shlex.split(command)[1:], "-o", tmp_path / "run")
    assert code == 0, err
    assert "measured on 9 validation images" in out
    assert "balanced accuracy" in out
    assert f"saved to {tmp_path / 'run'}" in out
    code, _, err = cli("predict", tmp_path / "run", train)
    assert (code, err.count("\n")) == (3, 1)
    code, out, err = cli(
        "extract", train, "--val", val, "--bottleneck", tmp_path / "b", *words, "--json"
    )
    assert (code, json.loads(out)["images"]["val"]) == (0, 9)


def test_what_extract_refuses(photos, network, tmp_path, cli):
    for words, message in (
        (["--val", "0.2"], "--val goes with --bottleneck FOLDER"),
        (["--cut", "last"], "--cut goes with --bottleneck FOLDER"),
        (["--bottleneck", "x", "--export", "y.npz"], "--bottleneck excludes --export"),
        (["--bottleneck", "x", "--val", "0"], "val 0 leaves no image"),
        (["--bottleneck", "x", "--cut", "nope"], "cut point 'nope' is not one of"),
    ):
        code, _, err = cli("extract", photos, *words)
        assert code == 2
        assert message in err
    assert not Path("x").exists()
    with pytest.raises(UsageError, match="'head' has no effect on extracting bottleneck features"):
        headstart.extract_bottleneck(photos, tmp_path / "x", head="8", **network)
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_a_file_or_images(files, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, val = files
    code, out, _ = cli("fit", "--features", train, "--json")
    assert code == 0
    assert json.loads(out)["run"] == f"runs/{train.stem}-1"
    for words, message in (
        ((train,), "headstart fit --features FILE takes bottleneck features"),
        (("--validation", val), "--validation goes with --features"),
        (("photos", "--features", train), "--features takes the place of images"),
        (("--resume", "run", "--features", train), "--features takes the place of images"),
        (("--features", train, "--overwrite"), "--overwrite goes with -o"),
    ):
        code, _, err = cli("fit", *words)
        assert code in (2, 3)
        assert message in err
        assert err.count("\n") == 1


# ---------------------------------------------------------------- so many images a class


def test_images_are_drawn_class_by_class(plant, tmp_path):
    data = headstart.load_dataset(
        plant(tmp_path, {"train/blobs": 9, "train/plain": 4, "val/blobs": 3, "val/plain": 2})
    )
    some = draw_per_class(data, 5, 0)
    assert [some.splits.count(s) for s in ("train", "val")] == [9, 5]
    assert [some.label_names().count(k) for k in ("blobs", "plain")] == [5 + 3, 4 + 2]
    assert some.warnings[-1] == (
        "1 of 2 classes have fewer than 5 images to train on, of which all are used (fewest: 'plain' with 4)"
    )
    assert draw_per_class(data, 5, 0).ids == some.ids
    assert any(draw_per_class(data, 5, seed).ids != some.ids for seed in range(1, 4))
    # Fewer are some of them; another class changes nothing.
    assert set(draw_per_class(data, 3, 0).ids) < set(some.ids)
    alone = data.select(np.flatnonzero(np.array(data.label_names()) == "blobs"))
    assert set(draw_per_class(alone, 5, 0).ids) == {i for i in some.ids if "blobs" in i}
    assert draw_per_class(data, None, 0) is data


def test_fit_and_advise_use_so_many(loose, tiny, network, tmp_path, cli, monkeypatch):
    run = headstart.fit(loose, tmp_path / "run", per_class=5, **tiny)
    assert run.images["train"] == 15
    assert run.settings["per_class"] == {"value": 5, "origin": "user"}
    assert headstart.Run.load(tmp_path / "run").settings == run.settings
    assert len(run.members) == 15
    with monkeypatch.context() as patch:
        patch.setattr("headstart.runs.advising.compare_networks", lambda data, *_, **__: data)
        assert len(headstart.advise(loose, per_class=5, **network)) == 15
    code, out, _ = cli("extract", loose, "--per-class", "2", "--json", "--device", "cpu")
    assert (code, json.loads(out)["images"]) == (0, 6)
    with pytest.raises(UsageError, match="per_class must be a whole number of at least 1"):
        headstart.fit(loose, tmp_path / "b", per_class=0, **tiny)


# ---------------------------------------------------------------- the page


def find_commands(text):
    return re.findall(r"^    (headstart .*)$", text, re.MULTILINE)


def test_the_page_runs_as_it_stands_with_the_built_in_network(plant, tmp_path, monkeypatch, cli):
    """On pictures that stand in for the data sets that it names."""
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10-100", "gtsrb-small"):
        plant(tmp_path / name, {f"train/{k}": 6 for k in KINDS})
        plant(tmp_path / name, {f"test/{k}": 3 for k in KINDS}, first=50)
    run = [c for c in find_commands(LAB) if "tf_efficientnet_lite0" in c]
    assert len(run) == 6
    for command in run:
        code, out, err = cli(*shlex.split(command)[1:])
        assert code == 0, err
        assert out
    shutil.rmtree(tmp_path / "lab")


@pytest.mark.parametrize("command", find_commands(LAB))
def test_the_commands_of_the_page_are_known(command):
    group = typer.main.get_command(app)
    words = shlex.split(command)[1:]
    context = group.commands[words[0]].make_context(words[0], words[1:])
    for name in context.params.get("backbone") or ():
        find_network(name)
