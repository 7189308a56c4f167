"""What a Python program holds is data like any other, or one clear line."""

import numpy as np
import pytest
import sklearn.datasets
import torch
from array_files import COLOUR, GREY, LABELS, NAMES, check, pixels
from PIL import Image

import headstart
from headstart.data.loading import FORMS, load_dataset
from headstart.errors import BadImageError, InputError, UsageError


class Items:
    """A data set as PyTorch's are: a length and items."""

    def __init__(self, images, labels, **more):
        self.images, self.labels, self.read = images, labels, 0
        vars(self).update(more)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        self.read += 1
        return self.images[row], self.labels[row]


PILLOW = [Image.fromarray(image) for image in COLOUR]


@pytest.mark.parametrize(
    "given",
    [
        (COLOUR, LABELS),
        (list(COLOUR), LABELS.tolist()),
        (torch.from_numpy(COLOUR).permute(0, 3, 1, 2), torch.from_numpy(LABELS)),
        (PILLOW, NAMES),
        list(zip(COLOUR, LABELS, strict=True)),
        list(zip(PILLOW, NAMES, strict=True)),
        tuple(zip(COLOUR, LABELS.tolist(), strict=True)),
        {"images": COLOUR, "labels": LABELS},
        Items(PILLOW, LABELS.tolist()),
        Items(COLOUR, torch.from_numpy(LABELS), targets=torch.from_numpy(LABELS)),
        torch.utils.data.TensorDataset(torch.from_numpy(COLOUR), torch.from_numpy(LABELS)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_in_python(given):
    dataset = load_dataset(given)
    check(dataset, COLOUR, NAMES)
    assert dataset.name == "data in memory"


def test_keras_tuples():
    check(
        load_dataset(((GREY, LABELS), (GREY[:1], LABELS[:1]))),
        [GREY[0], *GREY],
        ["0", *NAMES],
        ("train", "test"),
    )
    three = load_dataset(((GREY, LABELS), (GREY[:1], LABELS[:1]), (GREY[:2], LABELS[:2])))
    assert three.ids[:3] == ("test/0", "test/1", "train/0")
    assert "val" in three.splits


def test_bunches():
    digits = sklearn.datasets.load_digits()
    dataset = load_dataset(digits)
    assert len(dataset) == 1797
    assert dataset.classes == tuple("0123456789")
    assert dataset.warnings == ("floating-point pixels from 0 to 16 are taken as 0 to 255",)
    assert np.array_equal(pixels(dataset.select([5]))[0][..., 0], digits.images[5])
    with pytest.raises(
        InputError, match="rows of 4 numbers, of which height and width are not known"
    ):
        load_dataset(sklearn.datasets.load_iris())


def test_images_of_a_data_set_are_read_when_they_are_needed():
    items = Items(PILLOW, LABELS.tolist(), targets=(LABELS % 2).tolist(), classes=["no", "yes"])
    dataset = load_dataset(items)
    assert items.read == 0
    assert dataset.label_names()[:2] == ("no", "yes")
    assert len(dataset.image(3).read()) > 0
    assert items.read == 1
    floats = load_dataset(Items(COLOUR / 255, LABELS.tolist()))
    with pytest.raises(BadImageError, match="an array of float64; have the data set give uint8"):
        floats.image(0).read()


def test_from_arrays_with_splits_and_classes():
    splits = ["train", "val", "test", "", "train", "valid", "train"]
    dataset = headstart.from_arrays(GREY, LABELS % 3, classes=["c", "a", "b"], splits=splits)
    assert dataset.ids == ("0", "test/0", "train/0", "train/1", "train/2", "val/0", "val/1")
    check(
        dataset,
        GREY[[3, 2, 0, 4, 6, 1, 5]],
        [["c", "a", "b"][n] for n in (LABELS % 3)[[3, 2, 0, 4, 6, 1, 5]]],
        ("", "train", "val", "test"),
    )
    assert set(headstart.from_arrays(GREY, LABELS, splits="train").splits) == {"train"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load_dataset(3), UsageError, "the data are of type int; give a path or"),
        (lambda: load_dataset(GREY), UsageError, "the data are of type ndarray"),
        (lambda: load_dataset([("a.jpg", "a")]), UsageError, "images that are paths; write them"),
        (lambda: load_dataset([1, 2]), UsageError, "item 0 is of type int; expected a pair"),
        (
            lambda: load_dataset((GREY, LABELS), group="(x)"),
            UsageError,
            "group applies to the forms ",
        ),
        (
            lambda: load_dataset((GREY, LABELS), format="numpy"),
            UsageError,
            "format 'numpy' takes a .npz",
        ),
        (lambda: load_dataset({"a": GREY}), InputError, "no images with labels among"),
        (lambda: headstart.from_arrays(GREY, LABELS[:2]), InputError, "2 labels for 7 images"),
        (
            lambda: headstart.from_arrays(GREY, LABELS, splits=["train"]),
            UsageError,
            "splits has 1 entries",
        ),
        (
            lambda: headstart.from_arrays(GREY, LABELS, splits="dev"),
            UsageError,
            "split 'dev' is unknown",
        ),
        (
            lambda: headstart.from_arrays(GREY, LABELS, classes=["a"]),
            InputError,
            "there are 1 names",
        ),
        (lambda: headstart.from_arrays(3, LABELS), UsageError, "images of type int"),
        (lambda: headstart.from_arrays([], []), InputError, "no images in it"),
        (
            lambda: headstart.from_arrays(GREY.astype(object), LABELS),
            InputError,
            "Python objects",
        ),
    ],
)
def test_what_is_no_data_in_python(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_forms_are_found_before_folders():
    files = [name for name, form in FORMS.items() if not form.is_object]
    assert files[-4:] == ["folder", "manifest", "webdataset", "archive"]
