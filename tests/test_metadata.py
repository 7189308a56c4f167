"""Images with a metadata file beside them, in one folder or in those of splits."""

import json
import re
import sys

import pytest
from table_files import plant_numbers, refused, rows, save, write

from headstart.data.loading import load_dataset

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and odd names")


def plant_metadata(root):
    """The layout of https://huggingface.co/docs/datasets/image_dataset, with a table in each split."""
    for name in ("0001.png", "0002.png", "deep/0003.png", "0004.png"):
        write(root / "train" / name, "x")
    write(root / "test/0001.png", "x")
    lines = ["file_name,label,additional_feature", "0001.png,cat,a", "0002.png,dog,b"]
    lines += ["deep/0003.png,cat,", "0004.png,dog,"]
    write(root / "train/metadata.csv", "\n".join(lines))
    write(root / "test/metadata.jsonl", '{"file_name": "0001.png", "label": "dog"}\n')
    return root


def test_metadata_of_each_split(tmp_path):
    dataset = load_dataset(plant_metadata(tmp_path))
    assert rows(dataset) == {
        "test/0001.png": "dog / test",
        "train/0001.png": "cat / train",
        "train/0002.png": "dog / train",
        "train/0004.png": "dog / train",
        "train/deep/0003.png": "cat / train",
    }
    assert dataset.warnings == ()
    assert dataset.image(1).read() == b"x"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_above_the_splits(suffix, tmp_path):
    names, labels = ["train/1.png", "test/1.png", "2.png"], [1, 0, 1]
    lines = [json.dumps({"file_name": n, "label": c}) for n, c in zip(names, labels, strict=True)]
    path = tmp_path / f"metadata.{suffix}"
    if suffix == "parquet":
        save(path, {"file_name": names, "label": labels})
    elif suffix == "csv":
        rows_of = [f"{n},{c}" for n, c in zip(names, labels, strict=True)]
        write(path, "\n".join(["file_name,label", *rows_of]))
    else:
        write(path, "\n".join(lines))
    expected = {"2.png": "1", "test/1.png": "0 / test", "train/1.png": "1 / train"}
    assert rows(load_dataset(tmp_path)) == expected


def test_other_metadata_do_not_hide_the_class_folders(tmp_path):
    plant_numbers(tmp_path, "cat", "dog")
    for text in ("image,label\na,b\n", "", b"\xff", "file_name,label,label\n"):
        write(tmp_path / "metadata.csv", text)
        assert load_dataset(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train/metadata.csv", "file_name,text\n1.png,x\n", "no column 'label'"),
        ("train/metadata.csv", "file_name,label\n../1.png,x\n", "line 2: 'train/../1.png' leads outside of"),
        ("train/metadata.csv", "file_name,label\n/etc/passwd,x\n", "line 2: '/etc/passwd' leads outside of"),
        ("train/metadata.csv", "file_name,label\n", "train/metadata.csv name no images"),
        ("metadata.csv", "file_name,label\ntrain/a,x\ntrain/a,y\n", "line 3: 'train/a' stands already at"),
    ],
)  # fmt: skip
def test_bad_metadata(name, text, message, tmp_path):
    write(tmp_path / name, text)
    write(tmp_path / "train/1.png", "x")
    assert message in refused(tmp_path)


def test_metadata_that_contradict_each_other(tmp_path):
    plant_metadata(tmp_path)
    write(tmp_path / "metadata.csv", "file_name,label\ntrain/0001.png,dog\n")
    message = refused(tmp_path)
    assert re.search(
        r"train/metadata.csv, line 2: '0001.png' stands already at .*/metadata.csv, line 2 ",
        message,
    )
    (tmp_path / "metadata.csv").unlink()
    write(tmp_path / "train/metadata.jsonl", '{"file_name": "1", "label": "x"}')
    message = "train/metadata.csv and train/metadata.jsonl stand in one folder; keep one"
    assert message in refused(tmp_path)


def test_metadata_behind_a_link_are_not_read(tmp_path):
    write(tmp_path / "out/metadata.csv", "file_name,label\n1.png,x\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to("../out")
    assert "is a link that leads outside of" in refused(tmp_path / "data")
