"""The same pictures in every form of data give the same features, and the same model where their ids are."""

import csv
import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import KINDS
from PIL import Image

import headstart
from headstart.data.loading import FORMS
from headstart.networks.backbones import load_backbone

EACH = 8
LABELS = np.repeat(np.arange(3), EACH)
NAMES = [KINDS[label] for label in LABELS]
IDS = [f"{kind}/{number:02}.png" for kind in KINDS for number in range(EACH)]


@pytest.fixture(scope="module")
def grey(paint):
    """uint8 (24, 32, 32), of the size of CIFAR's images and, as in MNIST, without colour."""
    return np.stack([paint(k, n)[:32, :32, 0] for k in KINDS for n in range(EACH)])


@pytest.fixture(scope="module")
def files(grey):
    """{id: bytes of its PNG}."""
    found = {}
    for image_id, image in zip(IDS, grey, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        found[image_id] = stream.getvalue()
    return found


def write_files(folder, files):
    for name, data in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return folder


def write_csv(path, column):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([(column, "label"), *zip(IDS, NAMES, strict=True)])
    return path


def in_folder(place, files, grey):
    return write_files(place, files)


def in_csv(place, files, grey):
    return write_csv(write_files(place, files) / "m.csv", "path")


def in_jsonl(place, files, grey):
    rows = [{"path": i, "label": name} for i, name in zip(IDS, NAMES, strict=True)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return write_files(place, {**files, "m.jsonl": text.encode()}) / "m.jsonl"


def in_parquet(place, files, grey):
    table = pyarrow.table({"path": IDS, "label": NAMES})
    pyarrow.parquet.write_table(table, write_files(place, files) / "m.parquet")
    return place / "m.parquet"


def in_metadata(place, files, grey):
    write_csv(write_files(place, files) / "metadata.csv", "file_name")
    return place


def in_zip(place, files, grey):
    with zipfile.ZipFile(place / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return place / "photos.zip"


def write_tar(path, mode, files):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def in_tar(place, files, grey):
    return write_tar(place / "photos.tar", "w", files)


def in_tar_gz(place, files, grey):
    return write_tar(place / "photos.tar.gz", "w:gz", files)


def in_archives(place, files, grey):
    own = {
        kind: {i.split("/")[1]: d for i, d in files.items() if i[: len(kind)] == kind}
        for kind in KINDS
    }
    return [write_tar(place / f"{kind}.tar", "w", own[kind]) for kind in KINDS]


def in_webdataset(place, files, grey):
    labels = {f"{i[:-4]}.cls": name.encode() for i, name in zip(IDS, NAMES, strict=True)}
    return write_tar(place / "shard.tar", "w", dict(sorted({**files, **labels}.items())))


def in_npz(place, files, grey):
    np.savez(place / "photos.npz", images=grey, labels=NAMES)
    return place / "photos.npz"


def in_npz_compressed(place, files, grey):
    np.savez_compressed(place / "photos.npz", images=grey / 255, labels=NAMES)
    return place / "photos.npz"


def in_npy(place, files, grey):
    np.save(place / "images.npy", np.repeat(grey[..., None], 3, axis=3))
    np.save(place / "labels.npy", NAMES)
    return place


def in_idx(place, files, grey):
    names = {"images-idx3": grey, "labels-idx1": LABELS.astype(np.uint8)}
    for name, array in names.items():
        head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        data = gzip.compress(head + array.tobytes())
        (place / f"train-{name}-ubyte.gz").write_bytes(data)
    return place


def as_records(grey):
    return np.repeat(grey.reshape(len(grey), 1, -1), 3, axis=1).reshape(len(grey), -1)


def in_cifar(place, files, grey):
    batch = {b"data": as_records(grey), b"labels": LABELS.tolist()}
    (place / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    (place / "batches.meta").write_bytes(pickle.dumps({b"label_names": list(KINDS)}, protocol=2))
    return place


def in_cifar_binary(place, files, grey):
    records = np.concatenate([LABELS[:, None].astype(np.uint8), as_records(grey)], axis=1)
    data = {"data_batch_1.bin": records.tobytes(), "batches.meta.txt": "\n".join(KINDS).encode()}
    place /= "cifar-10-binary.tar.gz"
    return write_tar(place, "w:gz", {f"cifar-10-batches-bin/{n}": d for n, d in data.items()})


def in_pickle(place, files, grey):
    (place / "photos.p").write_bytes(pickle.dumps({"features": grey, "labels": NAMES}))
    return place / "photos.p"


def in_arrays(place, files, grey):
    return grey, NAMES


def in_pairs(place, files, grey):
    return [(Image.fromarray(image), name) for image, name in zip(grey, NAMES, strict=True)]


# How it is written -> the form that it is found to be, and what its ids are alike with.
WRITERS = {
    in_folder: ("folder", "files"),
    in_csv: ("manifest", "files"),
    in_jsonl: ("manifest", "files"),
    in_parquet: ("manifest", "files"),
    in_metadata: ("metadata", "files"),
    in_zip: ("archive", "files"),
    in_tar: ("archive", "files"),
    in_tar_gz: ("archive", "files"),
    in_archives: ("archive", "files"),
    in_webdataset: ("webdataset", "files"),
    in_npz: ("numpy", "rows"),
    in_npz_compressed: ("numpy", "rows"),
    in_npy: ("numpy", "rows"),
    in_pickle: ("pickle", "rows"),
    in_arrays: ("memory", "rows"),
    in_pairs: ("memory", "rows"),
    in_idx: ("idx", "training rows"),
    in_cifar: ("cifar", "training rows"),
    in_cifar_binary: ("cifar", "training rows"),
}


def test_every_form_but_those_of_others_is_compared():
    """GTSRB is a folder with tables, and Hugging Face has a library: both have tests of their own."""
    assert {form for form, _ in WRITERS.values()} == FORMS.keys() - {"gtsrb", "huggingface"}


@pytest.fixture(scope="module")
def compared(files, grey, tiny, tmp_path_factory):
    """A function (writer) -> (data set, its features, bytes of the model that it trains)."""
    backbone = load_backbone(tiny["backbone"], weights=tiny["weights"])
    found = {}

    def compare(write):
        if write not in found:
            place = tmp_path_factory.mktemp("forms")
            (place / "names.txt").write_text("\n".join(KINDS))
            (place / "data").mkdir()
            source = write(place / "data", files, grey)
            options = {"class_names": str(place / "names.txt")} if write is in_idx else {}
            dataset = headstart.load_dataset(source, format=WRITERS[write][0], **options)
            assert headstart.load_dataset(source, **options).ids == dataset.ids
            features = headstart.extract(dataset, backbone)
            run = headstart.fit(source, place / "run", **tiny, **options)
            model = {path.name: path.read_bytes() for path in run.folder.glob("*.safetensors")}
            found[write] = dataset, features, model
        return found[write]

    return compare


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_form_gives_the_same_features_and_model(write, compared):
    expected, features, _ = compared(in_folder)
    dataset, own, model = compared(write)
    assert dataset.classes == expected.classes == KINDS
    assert dataset.label_names() == expected.label_names()
    assert not any(own.errors)
    assert own.values.keys() == features.values.keys()
    for cut, values in features.values.items():
        assert np.array_equal(own.values[cut], values)
    first = next(w for w, (_, ids) in WRITERS.items() if ids == WRITERS[write][1])
    assert dataset.ids == compared(first)[0].ids
    assert model
    assert model == compared(first)[2]
