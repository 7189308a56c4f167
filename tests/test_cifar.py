"""CIFAR as distributed, in its four layouts, in a folder or packed; torn ones are one clear line."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from array_files import FOLDERS, SMALL, check, cifar_files, pickle_as_python_2, write_cifar

from headstart.data.loading import load_dataset
from headstart.errors import InputError


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("how", ["folder", "archive"])
def test_cifar(tmp_path, kind, how):
    path = write_cifar(tmp_path, kind, how)
    if "python" in kind:  # the same as Python's own reader makes of it
        for data in cifar_files(kind).values():
            assert not data or pickle.loads(data, encoding="latin-1")
    dataset = load_dataset(path)
    assert load_dataset(path, format="cifar").ids == dataset.ids
    batches = 5 if kind.startswith("10-") else 1
    images = SMALL.transpose(0, 2, 3, 1)
    names = ["airplane", "automobile", "bird", "automobile"]
    check(
        dataset, np.concatenate([images] * (batches + 1)), names * (batches + 1), ("train", "test")
    )
    assert dataset.ids[-1] == ("train/19" if batches == 5 else "train/3")
    assert not [w for w in dataset.warnings if "one group" not in w]  # of classes with one image


@pytest.mark.parametrize("how", ["folder", "archive"])
@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("10-python", lambda f: {"data_batch_2": f["data_batch_2"][:-900]}, "no pickle of arrays, or"),
        ("10-python", lambda f: {"batches.meta": pickle_as_python_2({"label_names": ["a"]})}, "label 2 of"),
        ("10-python", lambda f: {"batches.meta": pickle_as_python_2({})}, "no list of names"),
        ("10-python", lambda f: {"test_batch": pickle_as_python_2({"labels": [1]})}, "no batch of CIFAR"),
        ("10-python", lambda f: {"test_batch": pickle.dumps([1])}, "which is a dict"),
        ("100-python", lambda f: {"test": pickle_as_python_2({"data": SMALL[:, 0, 0]})}, "not uint8"),
        ("10-binary", lambda f: {"data_batch_3.bin": f["data_batch_3.bin"][:-1]}, "12,291 bytes are not"),
        ("10-binary", lambda f: {"data_batch_3.bin": b""}, "0 bytes are not whole images"),
        ("100-binary", lambda f: {"fine_label_names.txt": b"a\na\nb\n"}, "'a' stands twice"),
    ],
)  # fmt: skip
def test_damaged_cifar(tmp_path, how, kind, change, message):
    path = write_cifar(tmp_path, kind, how, change(cifar_files(kind)))
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)


def test_a_folder_of_the_archive_alone(tmp_path):
    path = write_cifar(tmp_path, "10-python", "archive")
    (tmp_path / "sums.txt").write_text("x")
    assert load_dataset(tmp_path).ids == load_dataset(path).ids


def test_cifar_in_part(tmp_path):
    path = write_cifar(tmp_path, "10-binary", "folder")
    (path / "data_batch_4.bin").unlink()
    (path / "batches.meta.txt").unlink()
    dataset = load_dataset(path)
    assert dataset.classes == ("0", "1", "2")
    assert dataset.warnings == ("missing, and done without: data_batch_4.bin, batches.meta.txt",)


def test_damaged_archives_of_cifar(tmp_path):
    whole = write_cifar(tmp_path, "10-python", "archive").read_bytes()
    for cut in (len(whole) - 700, len(whole) - 300):
        (tmp_path / "cut.tar.gz").write_bytes(whole[:cut])
        with pytest.raises(InputError, match="damaged archive: it is cut short"):
            load_dataset(tmp_path / "cut.tar.gz", format="cifar")
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-py/x"))
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = 80 * 2**20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(InputError, match="inflates to more than 200 times its size"):
        load_dataset(tmp_path / "bomb.tar.gz")
    sparse = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    sparse.pax_headers = {
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": str(2**40),
        "GNU.sparse.name": sparse.name,
    }
    sparse.size = 1
    with tarfile.open(tmp_path / "holes.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(sparse, io.BytesIO(b"x"))
    with pytest.raises(InputError, match="data_batch_1: a sparse file"):
        load_dataset(tmp_path / "holes.tar.gz")
    with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(InputError, match="data_batch_1: a link, which is not followed"):
        load_dataset(tmp_path / "link.tar.gz")


def test_what_is_remembered_of_a_row_goes_by_all_files(tmp_path):
    """The number and range of others decide what a row is: the cache must not take it for the same."""
    path = write_cifar(tmp_path, "10-binary", "folder")
    before = load_dataset(path)
    stamp = before.image(before.ids.index("train/04")).stamp()
    assert stamp == before.image(0).stamp()
    whole = (path / "data_batch_1.bin").read_bytes()
    (path / "data_batch_1.bin").write_bytes(whole[3073:])
    after = load_dataset(path)
    assert after.image(after.ids.index("train/04")).stamp() != stamp
