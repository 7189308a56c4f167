"""Arrays of every layout and type give what files of the same pixels give."""

import re

import numpy as np
import pytest
from array_files import COLOUR, GREY, LABELS, NAMES, check
from PIL import Image

import headstart
from headstart.data.array_names import find_pairs, name_labels
from headstart.data.loading import load_dataset
from headstart.errors import BadImageError, InputError

# ---------------------------------------------------------------- layouts and values


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (GREY, GREY),
        (GREY[..., None], GREY),
        (GREY[:, None], GREY),
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (np.concatenate([COLOUR, COLOUR[..., :1]], axis=3), ...),
        (GREY.astype(np.int64), GREY),
        (GREY.astype(">u2"), GREY),
        (GREY > 99, (GREY > 99) * np.uint8(255)),
        (GREY / 255, GREY),
        ((GREY / 255).astype(np.float32), GREY),
        ((GREY / 255).astype(np.float16), GREY),
        (GREY.astype(np.float64), GREY),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
@pytest.mark.parametrize("packed", [False, True])
def test_layouts_and_types(tmp_path, given, meant, packed):
    path = tmp_path / "x.npz"
    (np.savez_compressed if packed else np.savez)(path, images=given, labels=LABELS)
    dataset = load_dataset(path)
    check(dataset, given if meant is ... else meant, NAMES)
    assert dataset.classes == ("0", "1", "2", "10")
    assert dataset.ids == tuple(map(str, range(7)))
    assert dataset.source == path
    taken = [w for w in dataset.warnings if "floating-point" in w]
    assert len(taken) == (given.dtype.kind == "f")
    assert (dataset.image(0).stamp() is None) == packed
    same = headstart.from_arrays(given, LABELS)
    assert [same.image(i).read() for i in range(7)] == [dataset.image(i).read() for i in range(7)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((7, 3, 9, 3), np.uint8), "3 x 9 x 3, where the channels may be first or last"),
        (np.zeros((7, 9, 9, 2), np.uint8), "9 x 9 x 2; expected 1, 3 or 4 channels"),
        (
            np.zeros((7, 64), np.uint8),
            "rows of 64 numbers, of which height and width are not known",
        ),
        (np.zeros((7, 0, 5), np.uint8), "images of shape 0 x 5; expected"),
        (np.zeros((7, 9, 9, 3, 1), np.uint8), "9 x 9 x 3 x 1; expected"),
        (np.zeros(7, np.uint8), "images of shape none; expected"),
        (GREY.astype(np.int16) - 1, "numbers from -1 to 2..; expected 0 to 255"),
        (GREY.astype(np.uint16) * 3, "numbers from .* to .*; expected 0 to 255"),
        (GREY / 127.5 - 1, "numbers from -1 to "),
        (GREY.astype(complex), "an array of complex128; save the images as uint8"),
        (GREY[:6], "7 labels for 6 images; each image needs one"),
        (np.zeros((0, 9, 9), np.uint8), "7 labels for 0 images"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, given, message):
    np.savez(tmp_path / "x.npz", images=given, labels=LABELS)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)
    assert re.match(f"{tmp_path}/x.npz, (images|labels): ", str(caught.value))


def test_scale_goes_by_all_arrays(tmp_path):
    dark = (GREY // 255).astype(np.float32)
    np.savez(
        tmp_path / "x.npz",
        x_train=GREY.astype(np.float32),
        y_train=LABELS,
        x_test=dark,
        y_test=LABELS,
    )
    dataset = load_dataset(tmp_path / "x.npz")
    check(dataset.select(dataset.rows("test")), dark.astype(np.uint8), NAMES, "test")
    assert "are taken as 0 to 255" in dataset.warnings[0]


def test_numbers_that_are_not_finite_are_bad_images():
    images = GREY / 255.0
    images[2, 0, 0], images[5] = np.nan, np.inf
    dataset = headstart.from_arrays(images, LABELS)
    assert [i for i, e in zip(dataset.ids, dataset.errors, strict=True) if e] == ["2", "5"]
    with pytest.raises(BadImageError, match="pixels that are NaN or infinite"):
        dataset.image(2).read()


# ---------------------------------------------------------------- labels and names


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([0, 10, 2], ["0", "10", "2"]),
        (np.array([[0], [1]]), ["0", "1"]),
        (np.array([1.0, 2.0]), ["1", "2"]),
        (np.eye(3)[[2, 0]], ["2", "0"]),
        (np.array([True, False]), ["1", "0"]),
        (np.array(["a ", "b"]), ["a", "b"]),
        ([b"a", b"b"], ["a", "b"]),
        ([], []),
    ],
)
def test_labels(given, names):
    assert name_labels("y", given, len(given)) == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, -1], "label -1 of row 1; expected 0 and above"),
        ([0.5], "no whole numbers"),
        ([np.nan, 1], "no whole numbers"),
        ([1e300], "no whole numbers"),
        ([0, "a"], "of more than one kind"),
        ([None], "of more than one kind"),
        ([[0], 1], "of more than one kind"),
        (np.array([{}], object), "labels that are Python objects"),
        (np.full((3, 2), 2), "3 x 2, which are not all 0 and 1"),
        (np.zeros((3, 2, 2)), "labels of 3 dimensions"),
        (["a", ""], "name of a class is empty"),
        (["a", "\ud800"], "not valid Unicode"),
        ([b"\xff"], "not valid Unicode"),
        ([10**30], "labels that are Python objects"),
    ],
)
def test_what_is_no_label_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        name_labels("y", given, len(given))


def test_numbers_without_a_name():
    assert name_labels("y", [1, 0], 2, ["cat", "dog"]) == ["dog", "cat"]
    with pytest.raises(InputError, match="y: label 2 of row 1, and there are 2 names"):
        name_labels("y", [1, 2], 2, ["cat", "dog"])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("x_train y_train x_test y_test", "train=x_train+y_train test=x_test+y_test"),
        ("train_images train_labels val_images val_labels test_images test_labels",
         "train=train_images+train_labels val=val_images+val_labels test=test_images+test_labels"),
        ("images labels", "=images+labels"),
        ("data target images target_names DESCR", "=images+target"),
        ("features labels sizes coords", "=features+labels"),
        ("X Y", "=X+Y"),
        ("XTrain YTrain x_val y_val", "train=XTrain+YTrain val=x_val+y_val"),
    ],
)  # fmt: skip
def test_names_of_arrays(names, found):
    pairs, _ = find_pairs("x", names.split())
    assert " ".join(f"{p.split}={p.images}+{p.labels}" for p in pairs) == found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("arr_0 arr_1", r"no images with labels among its arrays \(arr_0, arr_1\); name them"),
        ("", r"\(none\)"),
        ("x_train y_train x_test", "x_test has no labels"),
        ("x_train y_train x y", "x_train and x are both there"),
        ("x_val y_val x_valid y_valid", "x_val and x_valid both mean the split 'val'"),
    ],
)
def test_names_that_do_not_fit(names, message):
    with pytest.raises(InputError, match=message):
        find_pairs("x", names.split())


# ---------------------------------------------------------------- the same as files


@pytest.mark.parametrize("channels", [1, 4])
def test_arrays_train_the_model_that_files_of_their_pixels_train(tmp_path, paint, channels):
    colours = np.stack([paint(kind, n) for n in range(8) for kind in ("blobs", "plain", "stripes")])
    images = {1: colours[..., 0], 3: colours, 4: np.concatenate([colours, colours[..., :1]], 3)}[
        channels
    ]
    labels = np.tile(np.arange(3), 8)
    np.savez(
        tmp_path / "x.npz",
        x_train=images[:15],
        y_train=labels[:15],
        x_val=images[15:],
        y_val=labels[15:],
    )
    dataset = load_dataset(tmp_path / "x.npz")
    lines = ["path,label,split"]
    for split, first, last in (("train", 0, 15), ("val", 15, 24)):
        (tmp_path / "files" / split).mkdir(parents=True)
        for row in range(first, last):
            image_id = f"{split}/{row - first:0{len(str(last - first - 1))}}"
            Image.fromarray(images[row]).save(tmp_path / "files" / image_id, "PNG")
            lines.append(f"{image_id},{labels[row]},{split}")
    (tmp_path / "files" / "files.csv").write_text("\n".join(lines))
    places = {"arrays": tmp_path / "x.npz", "pngs": tmp_path / "files" / "files.csv"}
    assert load_dataset(places["pngs"]).ids == dataset.ids
    runs = {
        name: headstart.fit(
            place,
            tmp_path / name,
            strategy="linear-probe",
            device="cpu",
            cache_dir=tmp_path / f"c-{name}",
        )
        for name, place in places.items()
    }
    assert runs["arrays"].metrics == runs["pngs"].metrics
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in places]
    assert weights[0] == weights[1]
    assert headstart.Run.load(tmp_path / "arrays").data == tmp_path / "x.npz"


def test_fit_and_evaluate_take_what_python_has(tmp_path, paint):
    images = np.stack([paint(kind, n) for n in range(8) for kind in ("blobs", "plain")])
    labels = np.tile([0, 1], 8)
    run = headstart.fit((images, labels), tmp_path / "run", strategy="linear-probe", device="cpu")
    assert run.data is None
    assert headstart.evaluate(tmp_path / "run", (images, labels)).metrics["accuracy"].value > 0.9
