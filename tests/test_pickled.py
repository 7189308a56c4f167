"""Pickles of arrays give their values, and run nothing whatever they ask for."""

import collections
import contextlib
import io
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from array_files import (
    COLOUR,
    GREY,
    LABELS,
    NAMES,
    RNG,
    as_rgb,
    check,
    pixels,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headstart.data import unpickling
from headstart.data.loading import load_dataset
from headstart.data.unpickling import read_pickle
from headstart.errors import InputError


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_traffic_signs(tmp_path, protocol):
    signs = {
        "features": COLOUR,
        "labels": LABELS,
        "sizes": np.ones((7, 2), np.int64),
        "coords": np.ones((7, 4)),
    }
    for name in ("train.p", "valid.p", "test.p"):
        (tmp_path / name).write_bytes(pickle.dumps(signs, protocol))
    dataset = load_dataset(tmp_path)
    check(dataset, np.concatenate([COLOUR] * 3), NAMES * 3, ("train", "val", "test"))
    assert dataset.ids[0] == "test/0"
    assert dataset.warnings == ("arrays left out: sizes, coords",)
    check(load_dataset(tmp_path / "train.p"), COLOUR, NAMES, "train")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_entry_a_class(tmp_path, protocol):
    folk = collections.defaultdict(list, man=list(COLOUR[:3]), woman=[COLOUR[3], GREY[4]])
    (tmp_path / "folk.pkl").write_bytes(pickle.dumps(folk, protocol))
    dataset = load_dataset(tmp_path / "folk.pkl")
    assert dataset.ids == ("man/0", "man/1", "man/2", "woman/0", "woman/1")
    assert dataset.label_names() == ("man",) * 3 + ("woman",) * 2
    for found, image in zip(pixels(dataset), [*COLOUR[:4], GREY[4]], strict=True):
        assert np.array_equal(found, as_rgb([image])[0])
    (tmp_path / "folk.pkl").write_bytes(pickle.dumps({b"a": GREY, 7: GREY[:2]}, protocol))
    assert load_dataset(tmp_path / "folk.pkl").classes == ("7", "a")


class Reducer:
    """What runs when Python's own reader meets it."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_runs_anything(tmp_path, protocol):
    canary = tmp_path / "canary"
    evil = Reducer(Path.touch, (canary,))
    for value in (
        evil,
        {"features": evil, "labels": LABELS},
        {"features": COLOUR, "labels": [evil]},
    ):
        (tmp_path / "train.p").write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(InputError, match=r"train.p: asks for [\w.]*(getattr|pathlib|touch)"):
            load_dataset(tmp_path / "train.p")
        assert not canary.exists()
    assert pickle.loads((tmp_path / "train.p").read_bytes())
    assert canary.exists()


def read(data):
    return read_pickle(io.BytesIO(data), len(data), "x")


MAKE_ARRAY = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "asks for os.system, which could run anything"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "asks for os.system"),
        (b"\x80\x02cnumpy\nload\n.", "asks for numpy.load"),
        (b"\x80\x02c__builtin__\neval\n.", "asks for __builtin__.eval"),
        (b"(ios\nsystem\n.", "asks for the instruction INST"),
        (b"\x80\x02]X\x01\0\0\0aQ.", "asks for the instruction BINPERSID"),
        (b"\x80\x02\x82\x01.", "asks for the instruction EXT1"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "asks for the instruction NEWOBJ"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "asks for the state of an object"),
        (b"\x80\x02]}b.", "asks for the state of an object"),
        (b"\x80\x02K\x01)R.", "calls what is nothing to call"),
        (b"\x80\x02]r\xff\xff\xff\xff.", None),  # a memo of four billion places
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"x.", "damaged"),
        (b"\x80\x04\x96" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"].", None),  # a frame, which says nothing
        (b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.", "a key of type tuple"),
        (b"\x80\x02c\\u\n\\q\n.", "asks for .u..q"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02(t", "damaged"),
        (b"\x80\x02\x86.", "damaged"),
        (b"\x80\x02}(K\x01u.", "damaged"),
        (b"\x80\x02K\x01K\x02a.", "adds to what is no list"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"", "damaged"),
        (MAKE_ARRAY + b"(cnumpy\nndarray\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftU\x01dtR.", "without numbers"),
        (MAKE_ARRAY + b")R(K\x01(J\xff\xff\xff\x7ftcnumpy\ndtype\nU\x02u1\x85R\x89U\x01xtb.", "damaged"),
        (MAKE_ARRAY + b")R(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8\x85R\x89]tb.", "an array of Python objects"),
        (MAKE_ARRAY + b")R(K\x01K\x01\x85cnumpy\ndtype\nU\x02U1\x85R(K\x03U\x01<NNNtb\x89U\x04" + b"\xff" * 4
         + b"tb.", "text that is not valid Unicode"),
        (MAKE_ARRAY + b")R(K\x01K\x01\x85cnumpy\ndtype\nU\x02V8\x85R\x89U\x01xtb.", "of type 'V8'"),
        (b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x03\0\0\0zip\x86R.", "in an encoding that Python does"),
    ],
)  # fmt: skip
def test_hostile_pickles(data, message):
    tracemalloc.start()
    if message is None:
        assert read(data) == []
    else:
        with pytest.raises(InputError, match=message) as caught:
            read(data)
        assert "\n" not in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("code", [b"\x8d", b"\x8e", b"\x96", b"T", b"B", b"X"])
def test_a_length_that_is_stated_gets_no_memory(tmp_path, code):
    """Of a file on disk, for which Python makes room before it reads."""
    size = struct.pack("<Q", 2**45) if code in b"\x8d\x8e\x96" else struct.pack("<i", 2**31 - 1)
    path = tmp_path / "x.p"
    path.write_bytes(b"\x80\x04" + code + size + b"x.")
    tracemalloc.start()
    with open(path, "rb") as file, pytest.raises(InputError, match="damaged"):
        read_pickle(file, path.stat().st_size, "x")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_pickles_of_too_many_objects(monkeypatch):
    monkeypatch.setattr(unpickling, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(InputError, match="x: more than 1,000 objects; save arrays"):
        read(b"\x80\x02" + b"]" * 1001 + b".")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL))
@example([np.float64(2.5)], 2)
def test_plain_values_come_back(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["u1", "<i8", ">f4", "?", "S3", "<U2", "<f2"]),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from("CF"),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_arrays_come_back(dtype, shape, order, protocol):
    array = np.asarray(RNG.integers(0, 2, shape).astype(dtype), order=order)
    found = read(pickle.dumps({"x": array, "y": [array, array]}, protocol))
    for one in (found["x"], *found["y"]):
        assert one.dtype == array.dtype
        assert np.array_equal(one, array)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_changed_pickles_end_in_a_value_or_an_error(data):
    value = {"features": COLOUR[:2], "labels": LABELS[:2].tolist(), "x": [{"y": b"z"}]}
    content = bytearray(pickle.dumps(value, data.draw(st.integers(2, pickle.HIGHEST_PROTOCOL))))
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 200))
        content[place] = data.draw(
            st.integers(0, 255) | st.sampled_from([ord(c) for c in pickletools.code2op])
        )
    with contextlib.suppress(InputError):
        read(bytes(content))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "a pickle of a list; expected a dict"),
        ({}, "expected a dict"),
        ({"features": COLOUR}, "features, which has no labels|no images with labels"),
        ({"features": COLOUR, "labels": LABELS[:3]}, "3 labels for 7 images"),
        (
            {"features": COLOUR.tolist(), "labels": LABELS},
            "no array of images, and no list of them",
        ),
        ({"features": COLOUR.astype(object), "labels": LABELS}, "an array of Python objects"),
        ({"features": 3, "labels": LABELS}, "no array of images"),
        ({"a": GREY, b"a": GREY}, None),
        ({"a": GREY, "b": []}, "no images with labels"),
    ],
)
def test_pickles_of_something_else(tmp_path, value, message):
    (tmp_path / "train.p").write_bytes(pickle.dumps(value))
    if message is None:
        assert load_dataset(tmp_path / "train.p").classes == ("a",)
        return
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "train.p")
