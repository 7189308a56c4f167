"""Shards of WebDataset, clean and odd: samples with their labels, or bad images and one clear line."""

import pickle
import tarfile

import pytest
from archive_files import TARS, pack, special, tar, write

from headstart.data.loading import load_dataset
from headstart.errors import InputError

SHARD = {
    "001.jpg": b"one", "001.cls": b"3", "002.PNG": b"two", "002.cls": b" 12\n", "003.jpg": b"three",
    "003.cls": b"3",
}  # fmt: skip


def labels(dataset):
    return dict(zip(dataset.ids, dataset.label_names(), strict=True))


@pytest.mark.parametrize("kind", TARS)
def test_a_shard(kind, tmp_path):
    dataset = load_dataset(write(tmp_path / "x.tar", pack(kind, SHARD)))
    assert labels(dataset) == {"001.jpg": "3", "002.PNG": "12", "003.jpg": "3"}
    assert dataset.classes == ("3", "12")
    assert [dataset.image(i).read() for i in range(3)] == [b"one", b"two", b"three"]
    assert pickle.loads(pickle.dumps(dataset)).image(1).read() == b"two"


@pytest.mark.parametrize(
    ("name", "data", "label"),
    [
        ("1.cls", b"7", "7"),
        ("1.cls", b"chat perdu", "chat perdu"),
        ("1.json", b'{"label": "cat", "url": "x"}', "cat"),
        ("1.json", b'{"class": 4}', "4"),
        ("1.json", b'{"cls": 4, "ClassName": "cat"}', "cat"),
        ("1.json", b'{"y": 0, "Category_Id": 7}', "7"),
        ("1.json", b'"dog"', "dog"),
        ("1.txt", b"\xef\xbb\xbfcat\n", "cat"),
        ("1.txt", "e\u0301".encode(), "é"),
    ],
)
def test_labels(name, data, label, tmp_path):
    dataset = load_dataset(write(tmp_path / "x", tar({"1.jpg": b"x", name: data})))
    assert labels(dataset) == {"1.jpg": label}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("1.cls", b"", "1.cls: names no class"),
        ("1.cls", b"\xff", "1.cls: neither text nor JSON"),
        ("1.json", b"{", "1.json: neither text nor JSON"),
        ("1.json", b"[" * 50_000, "1.json: neither text nor JSON"),
        ("1.json", b'{"x": 1}', "1.json: names no class"),
        ("1.json", b'{"label": true}', "1.json: names no class"),
        ("1.json", b'{"label": 1.5}', "1.json: names no class"),
        ("1.json", b'{"label": "\\ud800"}', "1.json: the label '\\ud800' is not valid Unicode"),
        ("1.txt", b"a cat " * 50, "1.txt: a text of 299 characters, which names no class"),
        ("1.npy", b"", "no label: neither KEY.cls, nor KEY.json, nor KEY.txt is there"),
    ],
)
def test_a_bad_label_is_a_bad_image(name, data, reason, tmp_path):
    files = {"0.jpg": b"x", "0.cls": b"a", "1.jpg": b"y", name: data}
    dataset = load_dataset(write(tmp_path / "x", tar(files)))
    assert labels(dataset) == {"0.jpg": "a", "1.jpg": ""}
    assert dataset.errors[1].startswith(reason)
    with pytest.raises(InputError, match=r"no labelled images in the shards|expected a WebDataset"):
        load_dataset(write(tmp_path / "y", tar({"1.jpg": b"y", name: data})), format="webdataset")


def test_shards(tmp_path):
    for number in range(3):
        write(tmp_path / f"shard-{number:04}.tar", tar(SHARD))
    write(tmp_path / "sizes.json", b"{}")
    for data in (tmp_path, sorted(tmp_path.glob("*.tar"))):
        dataset = load_dataset(data)
        assert len(dataset) == 9
        assert dataset.ids[3] == "shard-0001/001.jpg"
        assert set(dataset.splits) == {""}
        assert dataset.image(4).read() == b"two"
    write(tmp_path / "shard-0001.tar", tar(SHARD)[:1300])
    with pytest.raises(InputError, match=r"shard-0001\.tar: damaged or cut short"):
        load_dataset(tmp_path)


def test_shards_of_splits(tmp_path):
    for name in ("flowers-train-0", "flowers-train-1", "flowers-val-0", "flowers-test"):
        write(tmp_path / f"{name}.tar", tar(SHARD))
    dataset = load_dataset(tmp_path)
    found = dict(zip(dataset.ids, dataset.splits, strict=True))
    assert found["flowers-train-1/001.jpg"] == "train"
    assert found["flowers-val-0/001.jpg"] == "val"
    assert found["flowers-test/001.jpg"] == "test"


def test_class_folders_with_texts_beside_are_no_shard(tmp_path):
    files = {"a/1.jpg": b"x", "a/1.txt": b"0 0.5 0.5", "b/1.jpg": b"y", "b/1.txt": b"1 0.5 0.5"}
    assert load_dataset(write(tmp_path / "x", tar(files))).classes == ("a", "b")
    files = {"a/1.jpg": b"x", "a/1.cls": b"0", "b/1.jpg": b"y", "b/1.cls": b"1"}
    dataset = load_dataset(write(tmp_path / "x", tar(files)))
    assert labels(dataset) == {"a/1.jpg": "0", "b/1.jpg": "1"}


def test_samples_in_shards_that_are_odd(tmp_path):
    files = {
        **SHARD, "004.left.jpg": b"l", "004.right.jpg": b"r", "004.cls": b"3", "005.cls": b"1",
        "006.mask.npy": b"", ".hidden.jpg": b"", "../7.jpg": b"", "../7.cls": b"",
    }  # fmt: skip
    link = special("008.jpg", tarfile.SYMTYPE, "/etc/passwd")
    label = tarfile.TarInfo("008.cls")
    dataset = load_dataset(write(tmp_path / "x", tar({**files}, link, label)))
    assert dataset.ids[3:] == ("004.left.jpg", "008.jpg")
    assert dataset.ignored == {
        ".mask.npy": 1, "label without an image": 1, "right.jpg": 1, "hidden": 1,
    }  # fmt: skip
    assert dataset.errors[4] == "a link, which is not followed in an archive"
    assert "passed over 2 members whose names lead out" in dataset.warnings[0]
