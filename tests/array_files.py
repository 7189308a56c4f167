"""Images in arrays, in files byte for byte in the layout of the originals, and what they must give."""

import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image

from headstart.data.decoding import decode_image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (7, 6, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 10, 0, 1, 2], dtype=np.uint8)
NAMES = ["0", "1", "2", "10", "0", "1", "2"]
SMALL = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)  # as in CIFAR


def pixels(dataset):
    """N arrays of uint8 (H, W, 3), as they are decoded."""
    return [np.asarray(decode_image(dataset.image(i).read())) for i in range(len(dataset))]


def as_rgb(images):
    """(N, H, W) or (N, H, W, C) as Pillow makes RGB of it, through a PNG."""
    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        found.append(np.asarray(decode_image(file.getvalue())))
    return found


def check(dataset, images, names, splits=""):
    assert list(dataset.label_names()) == list(names)
    assert set(dataset.splits) == ({splits} if isinstance(splits, str) else set(splits))
    for found, expected in zip(pixels(dataset), as_rgb(images), strict=True):
        assert np.array_equal(found, expected)
    for row in range(len(dataset)):
        image = dataset.image(row)
        assert image.read(20) == image.read()[:20]


def npy(shape, descr="|u1", data=b"", fortran=False):
    header = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + data


def write_npz(path, how=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def pickle_as_python_2(batch):
    """Protocol 2 as Python 2 wrote it: text and the bytes of arrays as BINSTRING, keys too."""
    out = [b"\x80\x02"]

    def text(value):
        value = value if isinstance(value, bytes) else value.encode()
        short = len(value) < 256
        out.append(
            (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
        )

    out.append(b"}(")
    for key, value in batch.items():
        text(key)
        if isinstance(value, np.ndarray):
            out.append(
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
            )
            out.extend(b"M" + struct.pack("<H", n) for n in value.shape)
            out.append({2: b"\x86", 1: b"\x85"}[value.ndim])
            out.append(
                b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            )
            text(value.tobytes())
            out.append(b"tb")
        elif isinstance(value, list):
            out.append(b"](")
            for item in value:
                if isinstance(item, int):
                    out.append(b"K" + bytes([item]))
                else:
                    text(item)
            out.append(b"e")
        else:
            text(value)
    out.append(b"u.")
    return b"".join(out)


TEN = ["airplane", "automobile", "bird"]


def cifar_files(kind):
    """{name: bytes} of four images in each file, byte for byte in the layout of the original."""
    flat = SMALL.reshape(4, 3072)
    if kind == "10-python":
        batch = {
            "batch_label": "training batch 1 of 5",
            "labels": [0, 1, 2, 1],
            "data": flat,
            "filenames": list("abcd"),
        }
        files = {f"data_batch_{n}": batch for n in range(1, 6)} | {"test_batch": batch}
        files["batches.meta"] = {"num_cases_per_batch": "x", "label_names": TEN, "num_vis": "3072"}
        return {name: pickle_as_python_2(value) for name, value in files.items()}
    if kind == "100-python":
        batch = {
            "filenames": list("abcd"),
            "fine_labels": [0, 1, 2, 1],
            "coarse_labels": [0] * 4,
            "data": flat,
        }
        meta = {"fine_label_names": TEN, "coarse_label_names": ["x"]}
        files = {"meta": meta, "test": batch, "train": batch}
        return {name: pickle_as_python_2(value) for name, value in files.items()} | {
            "file.txt~": b""
        }
    names = "\n".join([*TEN, ""]).encode()
    if kind == "10-binary":
        data = b"".join(
            bytes([label]) + row.tobytes() for label, row in zip([0, 1, 2, 1], flat, strict=True)
        )
        files = {f"data_batch_{n}.bin": data for n in range(1, 6)} | {"test_batch.bin": data}
        return files | {"batches.meta.txt": names + b"\n", "readme.html": b"<html>"}
    data = b"".join(
        bytes([9, label]) + row.tobytes() for label, row in zip([0, 1, 2, 1], flat, strict=True)
    )
    return {
        "train.bin": data,
        "test.bin": data,
        "fine_label_names.txt": names,
        "coarse_label_names.txt": b"x\n",
    }


FOLDERS = {
    "10-python": "cifar-10-batches-py",
    "100-python": "cifar-100-python",
    "10-binary": "cifar-10-batches-bin",
    "100-binary": "cifar-100-binary",
}


def write_cifar(tmp_path, kind, how, change=None):
    files = {**cifar_files(kind), **(change or {})}
    if how == "folder":
        folder = tmp_path / "cifar"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return folder
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        top = tarfile.TarInfo(FOLDERS[kind])
        top.type = tarfile.DIRTYPE
        archive.addfile(top)
        for name, data in files.items():
            member = tarfile.TarInfo(f"{FOLDERS[kind]}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def idx(array, type=8):
    return (
        bytes([0, 0, type, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_idx(
    folder,
    packed,
    images=GREY,
    labels=LABELS,
    names=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
):
    for name, array in zip(names, (images, labels), strict=True):
        data = array if isinstance(array, bytes) else idx(array)
        (folder / f"{name}.gz" if packed else folder / name).write_bytes(
            gzip.compress(data) if packed else data
        )
    return folder / (f"{names[0]}.gz" if packed else names[0])
