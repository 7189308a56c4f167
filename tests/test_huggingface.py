"""Data sets of Hugging Face's library, of which images are read when they are wanted."""

import dataclasses
import io
import sys

import pytest
from PIL import Image
from table_files import refused, rows, write

import headstart
import headstart.data.parquet
from headstart.data.loading import load_dataset
from headstart.errors import BadImageError, UsageError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and odd names")


def paint(number):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclasses.dataclass
class Value:
    dtype: str = "string"


@dataclasses.dataclass
class ClassLabel:
    names: list


@dataclasses.dataclass
class HubImage:
    mode: str | None = None
    decode: bool = True
    id: str | None = None


HubImage.__name__ = "Image"


class Table:
    """Offers what `datasets.Dataset` of datasets 5.2 does, as far as it is used; counts rows."""

    def __init__(self, columns, features):
        self.columns, self.features, self.read = columns, features, []

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def with_format(self, kind):
        assert kind is None
        return self

    def select_columns(self, names):
        return Table({n: self.columns[n] for n in names}, {n: self.features[n] for n in names})

    def cast_column(self, name, feature):
        assert not feature.decode
        return Table(self.columns, {**self.features, name: feature})

    def __getitem__(self, key):
        if isinstance(key, slice):
            return {name: values[key] for name, values in self.columns.items()}
        self.read.append(key)
        assert not self.features["image"].decode
        return {name: values[key] for name, values in self.columns.items()}


def table(count=3, labels=None, **more):
    images = [{"bytes": paint(n), "path": None} for n in range(count)]
    labels = [n % 2 for n in range(count)] if labels is None else labels
    features = {"image": HubImage(), "label": ClassLabel(["cat", "dog"])}
    columns = {"image": images, "label": labels}
    return Table(columns | more, features | dict.fromkeys(more, Value()))


def test_a_dataset_of_hugging_face():
    source = table(12)
    dataset = load_dataset(source)
    assert dataset.ids[:2] == ("00", "01")
    assert rows(dataset)["11"] == "dog"
    assert dataset.image(7).read() == paint(7)
    assert dataset.image(7).read(4) == paint(7)[:4]
    assert dataset.image(7).stamp() is None
    assert (dataset.warnings, dataset.name) == ((), "datasets.Dataset")


def test_splits_of_hugging_face():
    found = {"train": table(2), "validation": table(1, patient=["p"]), "test": table(1, [-1])}
    dataset = load_dataset(found)
    expected = {"train/0": "cat / train", "train/1": "dog / train", "validation/0": "cat / val @ p"}
    assert rows(dataset) == expected
    assert dataset.warnings == (
        "columns by their usual names: the group from 'patient'",
        "datasets.Dataset of test: left out, since none of its images has a label",
    )
    assert dataset.image(2).read() == paint(0)


def test_images_of_hugging_face_on_disk(tmp_path):
    source = table(4)
    write(tmp_path / "1.png", paint(9))
    source.columns["image"] = [
        {"bytes": None, "path": str(tmp_path / "1.png")},
        {"bytes": None, "path": str(tmp_path / "none.png")},
        {"bytes": None, "path": None},
        None,
    ]
    dataset = load_dataset(source)
    assert dataset.image(0).read() == paint(9)
    for row, reason in (
        (1, "no such file"),
        (2, "no image in this row"),
        (3, "no image in this row"),
    ):
        with pytest.raises(BadImageError, match=reason):
            dataset.image(row).read()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (table(), {"root": "x"}, "root applies to"),
        (
            table(),
            {"path_column": "label"},
            "no column 'label' of images; those of images: ['image']",
        ),
        (table(), {"label_column": "x"}, "no column 'x', which --label-column names"),
        (table(2, [0, -1]), {}, "row 1: the image '1' has no label"),
        (table(2, [0, 2]), {}, "a label 2, and there are 2 names"),
        (table(2, [-1, -1]), {}, "no labelled images"),
        (
            {"train": table(), "extra": table()},
            {},
            "split 'extra' is unknown; give train, val and test",
        ),
        (
            Table({"label": [0]}, {"label": ClassLabel(["a"])}),
            {},
            "no columns of images []; cast one to",
        ),
        (3, {}, "the data are of type int; give a path or a datasets.Dataset"),
        ({}, {}, "no images with labels among"),
    ],
)
def test_bad_datasets_of_hugging_face(source, options, message):
    assert message in refused(source, **options)


def test_labels_of_hugging_face_that_are_not_sure():
    source = table(2)
    source.columns |= {"fine": source.columns.pop("label"), "coarse": [1, 1]}
    source.features |= {"fine": source.features.pop("label"), "coarse": ClassLabel(["a", "b"])}
    assert "the columns 'fine' and 'coarse' may both be the label" in refused(source)
    assert load_dataset(source, label_column="coarse").classes == ("b",)


def test_a_run_on_a_dataset_of_hugging_face(loose, tiny, tmp_path, cli):
    paths = sorted(loose.rglob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    kinds = sorted({path.parent.name for path in paths})
    labels = [kinds.index(path.parent.name) for path in paths]
    features = {"image": HubImage(), "label": ClassLabel(kinds)}
    source = Table({"image": images, "label": labels}, features)
    run = headstart.fit(source, tmp_path / "run", **tiny)
    assert run.classes == tuple(kinds)
    assert run.data is None
    result = headstart.evaluate(run, {"test": source}, device="cpu")
    assert (result.split, result.images["evaluated"]) == ("test", 24)
    with pytest.raises(UsageError, match="the data are of type int"):
        headstart.fit(3, tmp_path / "two", **tiny)
