"""Every parser of bytes from outside, with seeds: for Hypothesis in every run, for `scripts/fuzz` longer.

A target is a file among others that are as they should be, and what reads it. Whatever bytes the file has,
the outcome is a value or a HeadstartError of one line; any other error, or one of memory, is a fault of ours.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import torch
from archive_files import COMPRESS, pack, special, tar, zipped, zstd
from array_files import COLOUR, GREY, LABELS, cifar_files, idx, pickle_as_python_2
from bad_images import seeds_for_mutation
from pyarrow import parquet
from safetensors.torch import save as save_tensors

import headstart
from headstart.data.class_names import read_class_names
from headstart.data.decoding import decode_image, decode_picture, open_image, read_orientation
from headstart.data.loading import load_dataset
from headstart.data.unpickling import read_pickle
from headstart.errors import BadImageError, HeadstartError, ResourceError
from headstart.networks.building import build_network, read_state
from headstart.runs.folder import (
    CARD,
    CONFIG,
    KNOWLEDGE,
    MEMBERS,
    METRICS,
    MODEL,
    PREDICTIONS,
    PROVENANCE,
    READINGS,
    SETTINGS,
)
from headstart.runs.folding import FoldOutcome, read_fold, save_fold
from headstart.runs.readings import list_readings, note_reading

MAX_PIXELS = 2**18  # of an image: the work grows with them, and what reads them does not change
MAX_ROWS = 8  # of a data set that are read
MAX_MESSAGE = 2004  # characters, with three for what is left out


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        place: the file that has the bytes.
        read: reads it.
        seeds: bytes that it reads without an error.
    """

    place: Path
    read: Callable[[], object]
    seeds: tuple[bytes, ...]

    def run(self, data: bytes) -> bool:
        """Whether bytes are read, else refused in one line.

        Raises:
            AssertionError, or whatever else the parser must not raise.
        """
        self.place.write_bytes(data)
        message = ""
        try:
            self.read()
        except ResourceError as exc:
            raise AssertionError("more memory was asked for than there is") from exc
        except HeadstartError as exc:
            message = str(exc)
        assert len(message) < MAX_MESSAGE
        assert message.isprintable()
        return not message


# ---------------------------------------------------------------- data


def read_dataset(source, **options):
    """The first images too; each is bytes, or bad for a reason."""
    dataset = load_dataset(source, **options)
    assert len(set(dataset.ids)) == len(dataset.ids) == len(dataset.errors)
    assert len(set(dataset.classes)) == len(dataset.classes)
    for row in range(min(len(dataset), MAX_ROWS)):
        image = dataset.image(row)
        with contextlib.suppress(BadImageError):
            assert image.read(100) == image.read()[:100]


def plant(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def of_data(name, seeds, files=(), *, source=None, **options):
    """A function (folder) -> the target of a file of a data set, which is read by its name or by `source`."""
    seeds = tuple(seeds)

    def make(folder):
        plant(folder, dict(files))
        given = folder / name if source is None else folder / source
        return Target(
            folder / name, functools.partial(read_dataset, given, **options), tuple(seeds)
        )

    return make


IMAGES = {"a/1.png": b"x", "a/2.png": b"y", "b/1.png": b"z", "b/2.jpg": b"x"}
ROWS = [("a/1.png", "cat", "train", "g"), ("a/2.png", "é", "val", ""), ("b/1", "7", "", "h")]
HEADER = ("path", "label", "split", "group")


def separated(by, *rows):
    return "\n".join(by.join(row) for row in rows).encode()


def list_csv(column="path"):
    header = (column, *HEADER[1:])
    plain = separated(",", header, *ROWS)
    yield from (
        plain,
        plain.decode().encode("utf-16"),
        b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"),
    )
    yield separated(";", header, *ROWS)
    yield separated(",", (*header, "note"), *((*row, '"x,\n""y"""') for row in ROWS))
    yield separated(",", ("Class_ID", column), ("3", "a/1.png"), ("3", "a/2.png"))


def list_jsonl():
    rows = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    yield "\n".join(map(json.dumps, rows)).encode()
    yield json.dumps({"image": "a/1.png", "class": 3, "box": [1.5, None, {"x": True}]}).encode()


def list_parquet():
    columns = dict(zip(HEADER, zip(*ROWS, strict=True), strict=True))
    table = pyarrow.table({name: list(cells) for name, cells in columns.items()})
    for options in (
        {},
        {"compression": "gzip", "use_dictionary": False},
        {"data_page_version": "2.0"},
    ):
        stream = io.BytesIO()
        parquet.write_table(table, stream, **options)
        yield stream.getvalue()
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({"path": ["a/1.png"], "label": [3]}), stream)
    yield stream.getvalue()


SHARD = {"1.jpg": b"x", "1.cls": b"3", "2.png": b"y", "2.json": b'{"label": "a"}', "3.jpg": b"z"}
SHARD |= {"3.txt": b"a", "3.mask.npy": b""}
LINKS = (special("a/l", b"2", "/etc/passwd"), special("a/h", b"1", "a/1.png"), special("a/p", b"6"))


def list_zips():
    yield from (pack(kind, IMAGES) for kind in ("stored.zip", "deflated.zip"))
    yield zipped({"../x": b"evil", **IMAGES, "c/": b"", "a/x.zip": b"PK"})


def list_tars():
    yield from (tar(IMAGES), tar({f"a/{'x' * 200}": b"x", **IMAGES}, *LINKS))


def list_compressed():
    kinds = (kind for kind in COMPRESS if kind != "tar" and (kind != "tar.zst" or zstd is not None))
    yield from (pack(kind, IMAGES) for kind in kinds)


SIGNS = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
TRACKS = "\r\n".join(
    [SIGNS, *(f"0000{n}_00000.ppm;29;30;5;6;24;25;0" for n in range(3)), ""]
).encode()
ANSWERS = "\r\n".join([SIGNS, "00000.ppm;53;54;6;5;48;49;0", ""]).encode()
GTSRB = {
    "Final_Training/Images/00000/GT-00000.csv": TRACKS,
    "Final_Test/Images/00000.ppm": b"x",
    "GT-final_test.csv": ANSWERS,
}


def npy_of(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def list_npz():
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, images=GREY, labels=LABELS)
        yield stream.getvalue()
    stream = io.BytesIO()
    arrays = {"x_train": COLOUR, "y_train": LABELS % 3, "x_test": COLOUR, "y_test": LABELS % 3}
    np.savez(stream, **arrays, classes=["a", "b", "c"])
    yield stream.getvalue()


def list_npy():
    yield from (
        npy_of(array) for array in (GREY, COLOUR / 255, np.asfortranarray(COLOUR), GREY > 128)
    )


def list_pickles():
    signs = {"features": GREY, "labels": LABELS}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps(signs, protocol)
    yield pickle.dumps({"a": list(GREY[:2]), "b": [COLOUR[0]]})


def of_cifar(kind, name):
    files = cifar_files(kind)
    return of_data(name, [files.pop(name)], files, source=".", format="cifar")


# ---------------------------------------------------------------- images, classes, values


def read_image(place):
    data = place.read_bytes()
    picture = decode_picture(data, least_px=8, max_pixels=MAX_PIXELS)
    image = decode_image(data, max_pixels=MAX_PIXELS)
    assert (image.mode, picture.image.mode in ("RGB", "L")) == ("RGB", True)
    assert 1 <= read_orientation(open_image(data, MAX_PIXELS)) <= 8


def of_images(folder):
    place = folder / "x.jpg"
    return Target(place, functools.partial(read_image, place), tuple(seeds_for_mutation().values()))


def of_names(name, *seeds):
    def make(folder):
        return Target(folder / name, functools.partial(read_class_names, folder / name), seeds)

    return make


def of_pickles(folder):
    def read():
        data = (folder / "x").read_bytes()
        read_pickle(io.BytesIO(data), len(data), "x")

    python_2 = pickle_as_python_2({"data": GREY[:, 0], "labels": LABELS.tolist()})
    plain = pickle.dumps([1, 2.5, "x", b"y", None, {3: (4,)}])
    return Target(folder / "x", read, (*list_pickles(), python_2, plain))


# ---------------------------------------------------------------- what `predict` reads


@functools.cache
def make_state():
    torch.manual_seed(0)
    return build_network("test_vit", 5).state_dict()


def of_weights(folder):
    stream = io.BytesIO()
    small = {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int64)}
    torch.save(small, stream)
    legacy = io.BytesIO()
    torch.save(small, legacy, _use_new_zipfile_serialization=False)
    read = functools.partial(read_state, folder / "x.pth")
    return Target(folder / "x.pth", read, (stream.getvalue(), legacy.getvalue()))


def of_safetensors(folder):
    seed = save_tensors({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int64)})
    return Target(
        folder / "x.safetensors", functools.partial(read_state, folder / "x.safetensors"), (seed,)
    )


@functools.cache
def fit(folder):
    """A small run, whose training takes a second."""
    torch.save(make_state(), folder / "test_vit.pth")
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
    options = {"backbone": "test_vit", "weights": str(folder / "test_vit.pth"), "device": "cpu"}
    options |= {"strategy": "linear-probe", "cache_dir": str(folder / "cache")}
    return headstart.fit((images, ["a", "b", "c"] * 8), folder / "run", **options).folder


CHECKSUMS = {MODEL: "model_sha256", KNOWLEDGE: "knowledge_sha256"}  # of files, in the card


def of_run(name):
    """A file of a run; one whose checksum the card has gets it right."""

    def make(folder):
        fit(folder)
        start = (folder / "run" / name).read_bytes()
        card = json.loads((folder / "run" / CARD).read_bytes())

        def read():
            if name in CHECKSUMS:
                digest = hashlib.sha256((folder / "run" / name).read_bytes()).hexdigest()
                (folder / "run" / CARD).write_text(json.dumps({**card, CHECKSUMS[name]: digest}))
            run = headstart.Run.load(folder / "run", cache_dir=folder / "cache")
            run.members, run.measured, run.chosen_by
            if name in (CARD, CONFIG, *CHECKSUMS):
                run.classifier

        return Target(folder / "run" / name, read, (start,))

    return make


def of_readings(folder):
    note_reading(folder, "test", ["a", "b"], "accuracy", 0.5)
    start = (folder / READINGS).read_bytes()
    return Target(folder / READINGS, lambda: list_readings(folder), (start,))


def of_fold(folder):
    path, shape = folder / "1.safetensors", (3, 2)
    outcome = FoldOutcome(
        np.full(shape, 0.5, dtype=np.float32), {"strategy": "linear-probe"}, ["w"]
    )
    save_fold(path, outcome, "same")
    return Target(path, lambda: read_fold(path, "same", shape), (path.read_bytes(),))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "csv": of_data("m.csv", list_csv(), IMAGES),
    "tsv": of_data("m.tsv", [separated("\t", HEADER, *ROWS)], IMAGES),
    "jsonl": of_data("m.jsonl", list_jsonl(), IMAGES),
    "parquet": of_data("m.parquet", list_parquet(), IMAGES),
    "metadata": of_data("metadata.csv", list_csv("file_name"), IMAGES, source=".", format="metadata"),
    "gtsrb": of_data("Final_Training/Images/00000/GT-00000.csv", [TRACKS], GTSRB, source=".", format="gtsrb"),
    "gtsrb answers": of_data("GT-final_test.csv", [ANSWERS], GTSRB, source=".", format="gtsrb"),
    "zip": of_data("x.zip", list_zips()),
    "tar": of_data("x.tar", list_tars()),
    "compressed tar": of_data("x.tar.gz", list_compressed()),
    "webdataset": of_data("x.tar", [tar(SHARD)], format="webdataset"),
    "npz": of_data("x.npz", list_npz(), format="numpy"),
    "npy images": of_data("x.npy", list_npy(), {"y.npy": npy_of(LABELS)}, format="numpy"),
    "npy labels": of_data(
        "y.npy", [npy_of(LABELS), npy_of(LABELS.astype("U3"))], {"x.npy": npy_of(GREY)},
        source="x.npy", format="numpy",
    ),
    "idx images": of_data(
        "images-idx3", [idx(GREY)], {"labels-idx1": idx(LABELS)}, source="images-idx3", format="idx"
    ),
    "idx labels": of_data(
        "labels-idx1", [idx(LABELS)], {"images-idx3": idx(GREY)}, source="images-idx3", format="idx"
    ),
    "cifar pickle": of_cifar("10-python", "data_batch_1"),
    "cifar names": of_cifar("100-python", "meta"),
    "cifar binary": of_cifar("100-binary", "train.bin"),
    "pickled data": of_data("train.p", list_pickles(), format="pickle"),
    "unpickler": of_pickles,
    "class names, text": of_names("n.txt", b"cat\ndog\r\n\xc3\xa9\n", "cat\ndog".encode("utf-16")),
    "class names, table": of_names("n.csv", b"ClassId,SignName\n0,Stop\n1,Yield\n"),
    "class names, json": of_names("n.json", b'["cat", "dog"]', b'{"0": "cat", "7": "dog"}'),
    "image": of_images,
    "weights": of_weights,
    "safetensors": of_safetensors,
    "evaluations": of_readings,
    "fold": of_fold,
    **{f"run: {name}": of_run(name) for name in (
        CARD, CONFIG, MODEL, KNOWLEDGE, SETTINGS, METRICS, MEMBERS, PREDICTIONS, PROVENANCE
    )},
}  # fmt: skip
