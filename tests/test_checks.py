"""What `fit` tells of its data at a glance."""

import shutil

import numpy as np
from PIL import Image

import headstart
from headstart.runs.checks import check_data


def save(path, number, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def told(folder):
    dataset = headstart.split_dataset(headstart.load_dataset(folder), val=0)
    return list(check_data(dataset, 10**6))


def test_clean_data_are_not_told_of(tmp_path):
    for number in range(60):
        part = "train" if number < 40 else "test"
        save(tmp_path / part / "ab"[number % 2] / f"{number}.png", number, (32, 32 + number % 7))
    assert told(tmp_path) == []


def test_a_few_images_of_every_class_are_not_told_of(tmp_path):
    for number in range(6):
        save(tmp_path / "ab"[number % 2] / f"{number}.png", number)
    assert told(tmp_path) == []


def test_test_images_that_are_trained_on(tmp_path):
    for number in range(6):
        save(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", number)
        save(tmp_path / "test" / "ab"[number % 2] / f"{number}.png", 100 + number)
    shutil.copy(tmp_path / "train/a/0.png", tmp_path / "test/b/x.png")
    [line] = told(tmp_path)
    assert line.startswith("1 test image is also among those to train or validate on")
    assert "'test/b/x.png' and 'train/a/0.png'" in line


def test_a_class_that_is_far_smaller_than_the_others(tmp_path):
    for number in range(63):
        save(tmp_path / ("abc"[number % 3] if number < 60 else "d") / f"{number}.png", number)
    [line] = told(tmp_path)
    assert line.startswith("1 class has fewer than 10 training images (first: 'd' with 3)")


def test_a_class_that_the_size_gives_away(tmp_path):
    for number in range(80):
        size = (64, 64) if number % 2 else (30 + number % 5, 30)
        save(tmp_path / "ab"[number % 2] / f"{number}.png", number, size)
    [line] = told(tmp_path)
    assert line.startswith("the size of an image alone tells class 'a' and 1 more from the others")


def test_fit_tells_it_with_the_next_step_and_keeps_it(tmp_path, network):
    for number in range(12):
        save(tmp_path / "data/train" / "ab"[number % 2] / f"{number}.png", number)
        save(tmp_path / "data/test" / "ab"[number % 2] / f"{number}.png", 100 + number)
    shutil.copy(tmp_path / "data/train/a/0.png", tmp_path / "data/test/b/x.png")
    headstart.fit(tmp_path / "data", tmp_path / "run", **network, strategy="linear-probe")
    [line] = [w for w in headstart.Run.load(tmp_path / "run").warnings if "headstart audit" in w]
    assert line.endswith(f"headstart audit {tmp_path}/data lists them")
