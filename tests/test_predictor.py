"""A predictor compiles once and answers whoever asks, from any number of threads, with the same numbers."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart.runs.prediction
from headstart import (
    Classifier,
    InputError,
    Predictor,
    Runtime,
    UsageError,
    evaluate,
    fit,
    load_dataset,
    predict,
)

CPU = Runtime(device="cpu")


def files(photos):
    return sorted(str(path) for path in photos.rglob("*.png"))


@pytest.fixture(scope="module")
def predictor(tiny_run):
    with Predictor.load(tiny_run.folder, runtime=CPU) as found:
        yield found


@pytest.fixture
def made(monkeypatch):
    """The engines that are made from here on."""
    engines, make = [], headstart.runs.prediction.make_engine

    def watch(*arguments, **options):
        engines.append(make(*arguments, **options))
        return engines[-1]

    monkeypatch.setattr(headstart.runs.prediction, "make_engine", watch)
    return engines


def test_the_engine_is_made_once(tiny_run, photos, made):
    before = threading.active_count()
    with Predictor.load(tiny_run.folder, runtime=Runtime(device="cpu", workers=2)) as predictor:
        assert len(made) == 1
        for name in files(photos)[:6]:
            (found,) = predictor.predict(name)
            assert found.image == name
        assert len(list(predictor.predict(photos / "test"))) == 9
        open_now = threading.active_count()
        predictor.predict_proba([photos] * 3)
        assert threading.active_count() == open_now
    assert len(made) == 1
    assert threading.active_count() <= before


def test_the_first_image_makes_the_engine_where_nobody_asked_before(tiny_run, photos, made):
    predictor = Predictor(tiny_run, runtime=CPU)
    stream = predictor.predict(files(photos)[:2])
    assert made == []
    assert len(list(stream)) == 2
    predictor.start()
    assert len(made) == 1
    predictor.close()


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_every_way_in_gives_the_same(engine, tiny_run, photos):
    path = photos / "test/plain/50.png"
    pixels = np.asarray(Image.open(path))
    with Predictor(tiny_run, runtime=Runtime(engine=engine, device="cpu")) as predictor:
        (expected,) = predict(tiny_run, path, engine=engine, device="cpu")
        ways = [path, str(path), path.read_bytes(), pixels, Image.open(path)]
        for one in ways:
            (found,) = predictor.predict(one)
            assert (found.top, found.error) == (expected.top, "")
        assert {p.top for p in predictor.predict(ways)} == {expected.top}
        assert {p.top for p in predictor.predict(np.stack([pixels, pixels]))} == {expected.top}
        shares = predictor.predict_proba(ways)
        assert (shares.dtype, shares.shape) == (np.float32, (5, 3))
        named = dict(expected.top)
        assert shares.tolist() == [[named[c] for c in tiny_run.classes]] * 5
        assert np.array_equal(predictor.predict_proba(pixels), shares[:1])


def test_neighbours_change_nothing(predictor, photos):
    names = files(photos)
    whole = predictor.predict_proba(names)
    assert whole.sum(axis=1) == pytest.approx(1, abs=1e-5)
    for row in (0, 1, 7, len(names) - 1):
        assert np.array_equal(predictor.predict_proba(names[row]), whole[row : row + 1])
    assert np.array_equal(predictor.predict_proba(names[::-1]), whole[::-1])


def test_unreadable_images_have_no_probabilities(predictor, photos):
    given = [files(photos)[0], b"text", "missing.png"]
    shares = predictor.predict_proba(given)
    assert np.isnan(shares).all(axis=1).tolist() == [False, True, True]
    found = list(predictor.predict(given))
    assert [p.error for p in found] == ["", "not an image: text", "no such file or directory"]
    assert predictor.predict_proba([]).shape == (0, 3)
    assert list(predictor.predict([])) == []


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_many_threads_ask_at_once(engine, tiny_run, photos, made):
    names = files(photos)
    data = [Path(name).read_bytes() for name in names]
    predictor = Predictor(tiny_run, runtime=Runtime(engine=engine, device="cpu"))
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(predictor.predict_proba, data))
    assert len(made) == 1
    assert np.array_equal(np.concatenate(found), predictor.predict_proba(names))
    predictor.close()


def test_a_stream_that_is_left_frees_the_threads(predictor, photos):
    for _ in range(5):
        stream = predictor.predict([photos] * 3)
        next(stream)
        stream.close()
    assert len(list(predictor.predict(photos / "test"))) == 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.predict("a.png", top=0), "top must be a whole number of at least 1, got 0"),
        (lambda p: p.predict("a.png", top=True), "top must be a whole number of at least 1, got T"),
        (lambda p: p.predict(3), "the image is of type int"),
        (lambda p: p.predict_proba([b"", 3.5]), "image 2 is of type float"),
        (lambda p: p.predict_proba(np.zeros((8, 8), np.uint8)), "the image is an array of uint8"),
    ],
)
def test_arguments_are_checked_when_called(call, message, predictor):
    with pytest.raises(UsageError, match=message):
        call(predictor)


def test_an_empty_folder_is_told_when_called(predictor, tmp_path):
    with pytest.raises(InputError, match="no images in this folder"):
        predictor.predict(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cudo"}, "device 'cudo' is unknown"),
        ({"engine": "x"}, "engine 'x' is unknown"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown"),
        ({"rehash": True}, "'rehash' has no effect on predict"),
    ],
)
def test_a_runtime_that_cannot_be_is_refused_at_once(options, message, tiny_run):
    with pytest.raises(UsageError, match=message):
        Predictor(tiny_run, runtime=Runtime(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rehash": True},
            "option 'rehash' is unknown; known: top, coverage, allow_outside, progress, engine",
        ),
        ({"enigne": "torch"}, r"option 'enigne' is unknown \(nearest: engine\)"),
        ({"max_pixels": "many"}, "max_pixels must be a valid integer.*, got 'many'"),
        ({"workers": 257}, "workers must be less than or equal to 256, got 257"),
    ],
)
def test_wrong_options_of_predict_are_refused(options, message, tiny_run):
    with pytest.raises(UsageError, match=message):
        predict(tiny_run, b"", **options)


def test_a_closed_predictor_says_so(tiny_run, photos):
    predictor = Predictor(tiny_run, runtime=CPU)
    waiting = predictor.predict(photos / "test")
    predictor.close()
    predictor.close()
    for call in (
        lambda: predictor.predict(photos),
        lambda: predictor.predict_proba(photos),
        lambda: next(waiting),
        predictor.start,
    ):
        with pytest.raises(UsageError, match="the predictor is closed; make another"):
            call()


def test_closing_amid_predictions_says_so(tiny_run, photos):
    predictor = Predictor(tiny_run, runtime=CPU)
    answers = predictor.predict([files(photos)[0]] * 50)
    next(answers)
    predictor.close()
    with pytest.raises(UsageError, match="the predictor is closed; make another"):
        list(answers)


def test_one_odd_path_costs_no_other_image_its_answer(tiny_run, photos):
    good, odd = files(photos)[0], "x" * 300
    first, second = predict(tiny_run, [good, odd], device="cpu")
    assert (first.error, second.error) == ("", "file name too long")


def test_the_largest_image_is_bounded(tiny_run):
    with Predictor(tiny_run, runtime=Runtime(device="cpu", max_pixels=80)) as predictor:
        for image in (Image.new("RGB", (9, 9)), np.zeros((9, 9, 3), np.uint8)):
            (found,) = predictor.predict(image)
            assert found.error == "9 x 9 is more than 80 pixels"


def test_precision_is_exact_unless_told(tiny_run, photos):
    name = files(photos)[0]
    exact = predict(tiny_run, name, device="cpu", precision="fp32")
    with Predictor(tiny_run, runtime=CPU) as predictor:
        assert predictor.runtime.precision == "fp32"
        assert list(predictor.predict(name)) == list(exact)
    half = Runtime(device="cpu", engine="torch", precision="bf16")
    assert Predictor(tiny_run, runtime=half).runtime.precision == "bf16"


@pytest.mark.parametrize("how", ["run", "folder", "classifier"])
def test_it_is_made_of_whatever_has_a_classifier(how, tiny_run, photos):
    model = {"run": tiny_run, "folder": tiny_run.folder, "classifier": tiny_run.classifier}[how]
    with Predictor.load(model, runtime=CPU) as predictor:
        assert predictor.model.classes == ("blobs", "plain", "stripes")
        assert repr(predictor) == "Predictor(Classifier(linear-probe on test_vit, 3 classes))"
    with pytest.raises(UsageError, match="model is of type int; give the folder of a run"):
        Predictor.load(3)
    with pytest.raises(InputError, match="no such run"):
        Predictor.load("nowhere")


def test_a_published_network_answers_too(photos):
    with Predictor.load("pretrained:tf_efficientnet_lite0", runtime=CPU) as predictor:
        assert predictor.predict_proba(photos / "test/plain/50.png").shape == (1, 1000)
        (found,) = predictor.predict(photos / "test/plain/50.png")
        assert len(found.names) == 5


def test_a_cache_that_is_named_is_the_only_one(loose, tiny, tmp_path, monkeypatch, cli):
    """A container may have a home that cannot be written."""
    default = tmp_path / "default"
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(default))
    cache = str(tmp_path / "mine")
    folder, image = tmp_path / "run", loose / "plain/00.png"
    given = {**tiny, "strategy": "fine-tune", "epochs": 1, "val": 0.25, "cache_dir": cache}
    run = fit(loose, folder, train_precision="fp32", **given)
    evaluate(folder, loose, device="cpu", cache_dir=cache)
    Classifier.load(folder, cache_dir=cache)
    headstart.Run.load(folder, cache_dir=cache).classifier
    for model in (folder, run):
        assert len(list(predict(model, image, cache_dir=cache, device="cpu"))) == 1
    with Predictor.load(folder, runtime=Runtime(cache_dir=cache)) as predictor:
        predictor.predict_proba(image)
    assert cli("predict", folder, image, "--cache-dir", cache)[0] == 0
    assert cli("evaluate", folder, loose, "--cache-dir", cache)[0] == 0
    assert cli("predict", "pretrained:tf_efficientnet_lite0", image, "--cache-dir", cache)[0] == 0
    assert not default.exists()
    assert (tmp_path / "mine/backbones").is_dir()


def test_data_in_memory_are_no_images(tiny_run, photos):
    with pytest.raises(UsageError, match="of type Dataset"):
        predict(tiny_run, load_dataset(photos))
