"""From a folder or manifest to a run and its figures: what is written, refused and warned of."""

import csv
import errno
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart
import headstart.data.splits
import headstart.runs.fitting
import headstart.runs.sources
from headstart import Classifier, InputError, ResourceError, UsageError, evaluate, fit, load_dataset
from headstart.errors import TooManyBadImagesError

KINDS = ("blobs", "plain", "stripes")
FILES = (
    "config.json headstart.json knowledge.safetensors metrics.json model.safetensors "
    "predictions.safetensors run.json settings.json"
).split()


def read(run, name):
    return json.loads((run.folder / name).read_text())


def members(run):
    """{image id: row} of split.jsonl."""
    lines = (run.folder / "split.jsonl").read_text().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def parts(run):
    """{image id: split}."""
    return {name: row["split"] for name, row in members(run).items()}


# ---------------------------------------------------------------- what a run is


@pytest.mark.parametrize("name", ["run", "tiny_run"])
def test_a_run_holds_what_it_did(name, request, photos):
    run = request.getfixturevalue(name)
    assert sorted(p.name for p in run.folder.iterdir()) == sorted([*FILES, "split.jsonl"])
    assert read(run, "headstart.json")["status"] == "complete"
    assert (run.measured_on, run.images) == (
        "cross-validation",
        {"train": 24, "val": 0, "unreadable": 0},
    )
    assert run.metrics["accuracy"].value > 0.9
    assert read(run, "metrics.json")["metrics"]["accuracy"]["value"] > 0.9
    assert list(run.recall) == list(read(run, "metrics.json")["per_class"]) == list(KINDS)
    assert set(parts(run).values()) == {"train"}
    assert len(parts(run)) == 24
    settings = read(run, "settings.json")
    assert settings == run.settings
    assert settings["seed"] == {"value": 0, "origin": "default"}
    assert settings["penalty"]["origin"] == settings["class_weights"]["origin"] == "measured"
    assert settings["device"] == {"value": "cpu", "origin": "user"}
    assert run.warnings == ()


@pytest.mark.parametrize("name", ["run", "tiny_run"])
def test_a_run_is_right_about_fresh_pictures(name, request, photos):
    run = request.getfixturevalue(name)
    result = evaluate(run.folder, photos, device="cpu")
    assert (result.split, result.images) == ("test", {"evaluated": 9, "unreadable": 0})
    assert result.metrics["accuracy"].value >= 8 / 9
    assert (result.unreadable, result.warnings) == ((), ())


def test_the_same_seed_gives_the_same_bytes(photos, tiny, tmp_path):
    models = []
    for name, options in {"a": {}, "b": {}, "c": {"workers": 7}, "d": {"workers": 1}}.items():
        run = fit(photos, tmp_path / name, seed=3, val=0.3, **tiny, **options)
        models.append(((run.folder / "model.safetensors").read_bytes(), parts(run)))
    assert models[1:] == models[:1] * 3


def test_a_data_set_in_memory_serves(photos, tiny, tiny_run, tmp_path):
    run = fit(load_dataset(photos), tmp_path / "run", **tiny)
    assert (run.folder / "model.safetensors").read_bytes() == (
        tiny_run.folder / "model.safetensors"
    ).read_bytes()
    result = evaluate(run.classifier, load_dataset(photos), device="cpu")
    assert result.metrics == evaluate(run.folder, photos, device="cpu").metrics


# ---------------------------------------------------------------- what to measure on


def test_a_fraction_is_held_out(loose, tiny, tmp_path):
    run = fit(loose, tmp_path / "run", val=0.3, **tiny)
    assert run.measured_on == "val"
    assert run.images["train"] + run.images["val"] == 24
    assert 3 <= run.images["val"] <= 15
    counts = [list(parts(run).values()).count(s) for s in ("train", "val")]
    assert counts == [run.images["train"], run.images["val"]]
    again = evaluate(run.folder, loose, device="cpu")
    assert (again.split, again.warnings) == ("val", ())
    assert again.metrics["accuracy"].value == run.metrics["accuracy"].value
    flattered = evaluate(run.folder, loose, split="train", device="cpu")
    assert flattered.images["evaluated"] == run.images["train"]
    assert "were trained on" in flattered.warnings[0]


@pytest.mark.parametrize("options", [{}, {"val": 0}, {"val": 0.0}])
def test_without_a_split_cross_validation_measures(options, loose, tiny, tmp_path):
    run = fit(loose, tmp_path / "run", **options, **tiny)
    assert (run.measured_on, run.images["train"]) == ("cross-validation", 24)


def test_a_folder_is_measured_on(loose, plant, tiny, tmp_path):
    more = plant(tmp_path / "more", {"plain": 2, "blobs": 3}, first=70)
    run = fit(loose, tmp_path / "run", val=str(more), **tiny)
    assert (run.measured_on, run.images) == ("val", {"train": 24, "val": 5, "unreadable": 0})
    assert np.isnan(run.recall["stripes"].value)
    assert sum(split == "val" for split in parts(run).values()) == 5


def test_the_datas_own_validation_images_are_measured_on(plant, tiny, tmp_path):
    data = plant(tmp_path / "data", {"train/plain": 4, "train/blobs": 4})
    plant(data, {"valid/plain": 2, "valid/blobs": 2}, first=30)
    run = fit(data, tmp_path / "run", **tiny)
    assert (run.measured_on, run.images) == ("val", {"train": 8, "val": 4, "unreadable": 0})
    with pytest.raises(UsageError, match=r"val 0\.2 would have no effect: the data have a valid"):
        fit(data, tmp_path / "again", val=0.2, **tiny)
    with pytest.raises(UsageError, match="the data already have a validation split"):
        fit(data, tmp_path / "again", val=str(data), **tiny)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cut": "nowhere"}, UsageError, "cut point 'nowhere' is not one of test_vit"),
        (
            {"strategy": "shallow-probe", "cut": "head"},
            UsageError,
            "cut 'head' is not before the last",
        ),
        ({"strategy": "partial-fine-tune", "cut": "blocks.77"}, UsageError, "'blocks.77' is not"),
        (
            {"strategy": "partial-fine-tune", "freeze_until": "x"},
            UsageError,
            "layer 'x' does not exist",
        ),
        ({"val": 1.5}, UsageError, "val"),
        ({"val": "nowhere"}, InputError, "nowhere: no such file or folder"),
        ({"device": "cudo"}, UsageError, "device 'cudo' is unknown"),
        ({"backbone": "resnet5O"}, UsageError, "nearest: resnet50"),
        ({"weights": "nowhere.pth"}, InputError, "nowhere.pth: no such weights file"),
        ({"group": "("}, UsageError, "is not a regular expression"),
        (
            {"root": "."},
            UsageError,
            "root applies to the form manifest, and the data are",
        ),
        ({"penaltie": 1}, UsageError, "nearest: penalty"),
    ],
)
def test_wrong_settings_leave_nothing_behind(options, error, message, loose, tiny, tmp_path):
    def report(dataset, scan):
        raise AssertionError("images were read before this was told")

    with pytest.raises(error, match=message):
        fit(loose, tmp_path / "run", report=report, **{**tiny, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told_before_any_work(
    loose, tiny, tiny_run, tmp_path, monkeypatch, cli
):
    (tmp_path / "file").write_text("")
    cache = {"cache_dir": str(tmp_path / "file")}

    def load(*_args, **_options):
        raise AssertionError("work began")

    monkeypatch.setattr(headstart.runs.sources, "load_backbone", load)
    monkeypatch.setattr(headstart.runs.sources, "load_dataset", load)
    monkeypatch.setattr(headstart, "load_dataset", load)
    with pytest.raises(ResourceError, match=r"file: .*[^e]; name another place with --ca"):
        fit(loose, tmp_path / "run", **tiny, **cache)
    with pytest.raises(ResourceError, match="name another place"):
        evaluate(tiny_run.folder, loose, **cache)
    code, _, err = cli("extract", loose, "--cache-dir", tmp_path / "file")
    assert (code, err.count("\n")) == (5, 1)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- manifests and groups


def write_manifest(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_manifest_with_split_and_group(loose, tiny, tmp_path):
    rows = [("path", "label", "split", "group")]
    for kind in ("plain", "blobs"):
        for n in range(8):
            split = "train" if n < 5 else "val" if n < 7 else "test"
            rows.append((f"{kind}/{n:02}.png", f"a {kind} one", split, f"{kind}{n // 2}"))
    manifest = write_manifest(tmp_path / "m.csv", rows)
    run = fit(manifest, tmp_path / "run", root=str(loose), **tiny)
    assert run.classifier.classes == ("a blobs one", "a plain one")
    assert (run.measured_on, run.images) == ("val", {"train": 10, "val": 4, "unreadable": 0})
    row = members(run)["plain/05.png"]
    assert (row["split"], row["label"], row["group"]) == ("val", "a plain one", "plain2")
    assert any("groups have images in more than one split" in w for w in run.warnings)
    result = evaluate(run.folder, manifest, root=loose, device="cpu")
    assert (result.split, result.images["evaluated"]) == ("test", 2)


@pytest.mark.parametrize("how", ["pattern", "column"])
def test_groups_are_never_split(how, loose, tiny, tmp_path):
    options = {"val": 0.4, **tiny}
    if how == "pattern":
        data, options["group"] = loose, r"(/0[0-9])"
    else:
        rows = [(f"{k}/{n:02}.png", k, n // 2) for k in ("blobs", "plain") for n in range(8)]
        data = write_manifest(tmp_path / "m.csv", [("path", "label", "group"), *rows])
        options["root"] = str(loose)
    run = fit(data, tmp_path / "run", **options)
    sides = {}
    for row in members(run).values():
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"train", "val"}


# ---------------------------------------------------------------- awkward data


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ({"plain": 4}, InputError, "at least two classes are needed, found 'plain'"),
        ({}, InputError, "no images in class folders"),
        (
            {"train/plain": 3, "train/blobs": 3, "test/stripes": 2},
            InputError,
            "class 'stripes' has",
        ),
    ],
)
def test_data_that_cannot_be_learned(counts, error, message, plant, tiny, tmp_path):
    data = plant(tmp_path / "data", counts)
    data.mkdir(exist_ok=True)
    with pytest.raises(error, match=message):
        fit(data, tmp_path / "run", **tiny)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("counts", [(1, 1, 1), (6, 6, 1)])
def test_a_class_of_one_image_cannot_be_measured_and_is_learned(counts, plant, tiny, tmp_path):
    kinds = ("blobs", "plain", "stripes")
    data = plant(tmp_path / "data", dict(zip(kinds, counts, strict=True)))
    run = fit(data, tmp_path / "run", **tiny)
    assert (run.metrics, run.measured_on) == ({}, "")
    assert any("too few images a class to measure" in w for w in run.warnings)
    result = evaluate(run.folder, data, device="cpu")
    assert result.metrics["accuracy"].value == 1
    held = fit(data, tmp_path / "held", val=0.3, **tiny)
    assert held.images["train"] >= 3


@pytest.mark.parametrize(("broken", "max_bad"), [(1, 0.001), (2, 0.1), (2, 0.001)])
def test_unreadable_images_are_counted(broken, max_bad, loose, tiny, tmp_path):
    data = shutil.copytree(loose, tmp_path / "data")
    for n in range(broken):
        (data / f"plain/0{n}.png").write_bytes(b"")
    if broken == 2 and max_bad < 0.01:
        with pytest.raises(TooManyBadImagesError, match=r"2 of 24 images.*plain/00\.png: empty"):
            fit(data, tmp_path / "run", max_bad=max_bad, **tiny)
        with pytest.raises(InputError, match="incomplete"):
            Classifier.load(tmp_path / "run")
        (data / "plain/00.png").unlink()
    run = fit(data, tmp_path / "run", max_bad=max_bad, **tiny)
    assert run.images["unreadable"] == (broken if max_bad > 0.01 else 1)
    bad = {i: row for i, row in members(run).items() if row["error"]}
    assert "plain/01.png" in bad or broken == 1
    assert all(row["error"] == "empty file" for row in bad.values())


def test_a_class_that_is_unreadable_is_named(loose, plant, tiny, tmp_path):
    data = plant(shutil.copytree(loose, tmp_path / "data"), {"zebra": 0})
    (data / "zebra").mkdir(exist_ok=True)
    (data / "zebra/1.png").write_bytes(b"")
    with pytest.raises(InputError, match="class 'zebra' has no readable training images"):
        fit(data, tmp_path / "run", **tiny)


def test_duplicates_are_warned_of(loose, tiny, tmp_path):
    data = shutil.copytree(loose, tmp_path / "data")
    shutil.copy(data / "plain/00.png", data / "blobs/copy.png")
    run = fit(data, tmp_path / "run", **tiny)
    (warning,) = run.warnings
    assert "1 set of identical" in warning
    assert "different labels" in warning
    assert "'blobs/copy.png' and 'plain/00.png'" in warning
    split = tmp_path / "split"
    shutil.copytree(loose, split / "train")
    for kind in ("plain", "blobs", "stripes"):
        (split / "val" / kind).mkdir(parents=True)
        shutil.copy(loose / kind / "00.png", split / "val" / kind / "again.png")
    (warning,) = fit(split, tmp_path / "leak", **tiny).warnings
    assert "3 sets of identical" in warning
    assert "in the training and in the validation part" in warning


def test_the_report_comes_before_the_work(loose, tiny, tmp_path):
    def stop(dataset, scan):
        assert (scan.images, len(dataset)) == (24, 24)
        assert not (tmp_path / "run").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(loose, tmp_path / "run", report=stop, **tiny)


def test_a_single_colour_says_nothing_and_breaks_nothing(tiny, tmp_path):
    for kind in ("a", "b"):
        for n in range(3):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (n, n, n)).save(tmp_path / f"data/{kind}/{n}.png")
    run = fit(tmp_path / "data", tmp_path / "run", **tiny)
    assert 0 <= run.metrics["accuracy"].value <= 0.9
    assert any("different labels" in w for w in run.warnings)


# ---------------------------------------------------------------- the output folder


def test_an_output_that_is_taken_is_left_alone(loose, tiny, tiny_run, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("mine")
    old = shutil.copytree(tiny_run.folder, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in old.iterdir()}
    for name, message in (
        ("file", "a file of this name exists"),
        ("folder", "holds other files; choose an empty or new folder"),
        ("run", "holds a run already; choose another, or --overwrite"),
    ):
        with pytest.raises(UsageError, match=message):
            fit(loose, tmp_path / name, **tiny)
    with pytest.raises(UsageError, match="holds other files"):
        fit(loose, tmp_path / "folder", overwrite=True, **tiny)
    assert (tmp_path / "folder/file").read_text() == (tmp_path / "file").read_text() == "mine"
    assert {p.name: p.read_bytes() for p in old.iterdir()} == before
    run = fit(loose, old, overwrite=True, seed=9, **tiny)
    assert Classifier.load(old).seed == run.classifier.seed == 9
    (tmp_path / "empty").mkdir()
    fit(loose, tmp_path / "empty", **tiny)
    fit(loose, tmp_path / "made/for/it", **tiny)


def test_a_run_tells_its_recipe_and_leaves_nothing_of_the_one_before(loose, tiny, tmp_path):
    options = {**tiny, "strategy": "fine-tune", "epochs": 1, "train_precision": "fp32"}
    run = fit(loose, tmp_path / "run", augment="none", **options)
    assert run.settings["epochs"] == {"value": 1, "origin": "user"}
    assert run.settings["optimizer"] == {"value": "adamw", "origin": "default"}
    assert run.settings["lr"]["value"] > 0
    assert (run.folder / "history.jsonl").exists()
    (run.folder / ".checkpoint.safetensors.1.2.partial").write_bytes(b"of a fit that was killed")
    fit(loose, run.folder, overwrite=True, **tiny)
    assert not (run.folder / "history.jsonl").exists()
    assert not list(run.folder.glob(".*.partial"))


def test_what_goes_by_validation_images_needs_some(loose, tiny, tmp_path):
    options = {**tiny, "strategy": "fine-tune", "val": 0, "epochs": 1, "augment": "none"}
    for name, value in (("patience", 3), ("wise_ft", True), ("monitor", "loss")):
        with pytest.raises(UsageError, match=f"'{name}' has no effect without validation images"):
            fit(loose, tmp_path / "run", **{name: value}, **options)
    assert not (tmp_path / "run").exists()


def test_an_output_below_a_file_is_refused(loose, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((UsageError, ResourceError), match="file"):
        fit(loose, tmp_path / "file/run", **tiny)


class Died(BaseException):
    """The process ends here."""


@pytest.mark.parametrize(
    "error", [Died(), OSError(errno.ENOSPC, "No space left on device")], ids=repr
)
def test_a_crash_at_any_step_leaves_an_incomplete_run_or_a_whole_one(
    error, loose, tiny, tmp_path, monkeypatch
):
    replace, tiny = os.replace, {**tiny, "penalty": 1.0}
    fit(loose, tmp_path / "first", **tiny)  # writes what is kept of images and network
    outcomes = []
    for last in range(30):
        folder, steps = tmp_path / str(last), iter(range(30))

        def fail(source, target, last=last, steps=steps, folder=folder):
            # Not what is kept of new files, which has its moment when they have grown old enough.
            if Path(target).is_relative_to(folder) and next(steps) >= last:
                raise error
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            try:
                run = fit(loose, folder, **tiny)
                break
            except (Died, ResourceError) as exc:
                outcome = exc
        assert isinstance(outcome, Died) == isinstance(error, Died)
        assert isinstance(error, Died) or "No space left on device" in str(outcome)
        try:
            assert len(Classifier.load(folder).classes) == 3
            outcomes.append("whole")
            kept = {*FILES, "split.jsonl"} - {"predictions.safetensors"}  # nothing is measured
        except InputError as exc:
            outcomes.append("incomplete" if "incomplete" in str(exc) else "nothing")
            kept = {"headstart.json"} if last else set()
            kept |= {".next"} if last and isinstance(error, Died) else set()
        assert {p.name for p in folder.iterdir()} == kept
        if isinstance(error, Died) and outcomes[-1] != "whole":
            fit(loose, folder, **tiny)
            assert Classifier.load(folder)
    # The card, eight files and their record, and as many moves.
    assert outcomes == ["nothing", *["incomplete"] * 9, *["whole"] * 8]
    assert Classifier.load(run.folder)


def test_a_full_disk_says_so(loose, tiny, tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ResourceError, match="No space left on device; free space, or ch") as caught:
        fit(loose, tmp_path / "run", **tiny)
    assert caught.value.exit_code == 5
    assert list(tmp_path.rglob("*.partial")) == []


# ---------------------------------------------------------------- evaluate


def test_classes_are_matched_by_name(tiny_run, plant, photos, tmp_path):
    data = plant(tmp_path / "fewer", {"stripes": 3, "plain": 4}, first=80)
    result = evaluate(tiny_run.folder, data, device="cpu")
    assert (result.split, result.classes) == ("all", ("blobs", "plain", "stripes"))
    assert result.confusion.sum(axis=1).tolist() == [0, 4, 3]
    assert result.metrics["accuracy"].value >= 6 / 7
    assert np.isnan(result.recall["blobs"].value)
    assert result.warnings == ("no image of class 'blobs' here",)
    lines = [{"path": f"test/{k}/50.png", "label": k} for k in ("stripes", "blobs", "plain")]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    other = evaluate(tiny_run.folder, manifest, root=photos, device="cpu")
    assert other.confusion.sum(axis=1).tolist() == [1, 1, 1]


def test_unknown_classes_count_as_wrong_or_are_left_out(tiny_run, plant, tmp_path, cli):
    data = plant(tmp_path / "data", {"plain": 4, "blobs": 2}, first=80)
    (data / "plain").rename(data / "zebra")
    known = evaluate(tiny_run.folder, plant(tmp_path / "known", {"blobs": 2}, first=80))
    skipped = evaluate(tiny_run.folder, data, unknown_classes="skip")
    assert skipped.images["evaluated"] == 2
    assert skipped.metrics == known.metrics
    assert (skipped.unknown, skipped.classes) == (4, KINDS)
    assert "4 images of classes that the model does not know ('zebra') left out" in skipped.warnings
    wrong = evaluate(tiny_run, data, unknown_classes="wrong")
    assert (wrong.unknown, wrong.images["evaluated"]) == (4, 6)
    assert wrong.classes == (*KINDS, "zebra")
    assert wrong.metrics["accuracy"].value == known.metrics["accuracy"].value * 2 / 6
    assert wrong.recall["zebra"].value == 0
    assert wrong.confusion.sum(axis=1).tolist() == [2, 0, 0, 4]
    assert wrong.confusion[:, 3].sum() == 0
    lost = 2 * known.metrics["log_loss"].value + 4 * -np.log(1e-12)
    assert wrong.metrics["log_loss"].value == pytest.approx(lost / 6)
    (told,) = [w for w in wrong.warnings if "does not know" in w]
    assert told.startswith("4 images")
    assert told.endswith("counted as wrong")
    (data / "blobs").rename(data / "gnu")
    with pytest.raises(InputError, match="no readable labelled images to evaluate"):
        evaluate(tiny_run.folder, data, unknown_classes="skip")
    with pytest.raises(UsageError, match=r"unknown_classes 'rong' is unknown \(nearest: wrong\)"):
        evaluate(tiny_run.folder, data, unknown_classes="rong")
    code, out, _ = cli("evaluate", tiny_run.folder, data, "--unknown-classes", "wrong", "--json")
    found = json.loads(out)
    assert (code, found["unknown"], found["per_class"]["gnu"]["recall"]["value"]) == (0, 6, 0)


def test_an_unknown_class_is_refused(tiny_run, plant, tmp_path):
    data = plant(tmp_path / "data", {"plain": 1})
    (data / "plain").rename(data / "plane")
    with pytest.raises(
        InputError,
        match=r"class 'plane' is not one that the model knows \(nearest.*or pass --unknown-classes wrong",
    ):
        evaluate(tiny_run.folder, data, device="cpu")


def test_images_that_were_trained_on_are_warned_of(tiny_run, photos, tmp_path):
    data = tmp_path / "data/plain"
    data.mkdir(parents=True)
    for n, name in enumerate(("train/plain/00", "train/plain/01", "test/plain/50")):
        shutil.copy(photos / f"{name}.png", data / f"renamed{n}.png")
    warnings = evaluate(tiny_run.folder, data.parent, device="cpu").warnings
    assert any(w.startswith("2 of these 3 images were trained on") for w in warnings)


@pytest.mark.parametrize(
    ("split", "count"),
    [(None, 9), ("test", 9), ("train", 24), ("all", 33), ("val", 0), ("tset", 0)],
)
def test_the_split_can_be_chosen(split, count, tiny_run, photos):
    if count:
        result = evaluate(tiny_run.folder, photos, split=split, device="cpu")
        assert (result.split, result.images["evaluated"]) == (split or "test", count)
        assert bool(result.warnings) == (count > 9)
    else:
        near = r" \(nearest: test\)" if split == "tset" else ""
        with pytest.raises(
            UsageError, match=f"split '{split}' is not in the data{near}; there are"
        ):
            evaluate(tiny_run.folder, photos, split=split, device="cpu")


def test_damage_that_shows_late_is_told(plant, tiny, tmp_path):
    data = plant(tmp_path / "data", {"blobs": 12, "plain": 12})
    file = data / "blobs/03.png"
    file.write_bytes(file.read_bytes()[:-60])
    run = fit(data, tmp_path / "run", **tiny)
    (told,) = (w for w in run.warnings if "unreadable" in w)
    assert told.startswith("1 unreadable image was left out: blobs/03.png: damaged")


def test_what_headers_show_to_be_too_much_stops_early(plant, tiny, tmp_path, monkeypatch):
    data = plant(tmp_path / "data", {"blobs": 12, "plain": 12})
    for name in ("01.png", "02.png"):
        (data / "blobs" / name).write_bytes(b"no image")

    def read(*_args, **_options):
        raise AssertionError("images were read")

    monkeypatch.setattr(headstart.runs.fitting, "extract", read)
    with pytest.raises(TooManyBadImagesError, match="2 of 24 images are unreadable"):
        fit(data, tmp_path / "run", report=lambda dataset, scan: None, **tiny)


def test_a_manifest_whose_files_are_elsewhere_is_told(loose, tiny, tmp_path):
    files = [file.relative_to(loose) for file in sorted(loose.rglob("*.png"))]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label", *(f"{f.as_posix()},{f.parent.name}" for f in files)]))
    with pytest.raises(TooManyBadImagesError, match="paths start at its folder, or at --root"):
        fit(table, tmp_path / "run", **tiny)


def test_a_run_that_held_nothing_out_says_so(loose, tiny, tmp_path):
    run = fit(loose, tmp_path / "run", **tiny)
    with pytest.raises(UsageError, match=r"held no images out, which fit --val 0\.2 does"):
        evaluate(run, loose, split="val", device="cpu")
    with pytest.raises(UsageError, match="its training is complete; there is nothing to resume"):
        fit(None, run.folder, resume=True)


def test_the_own_parts_of_a_run_win(tiny, photos, plant, tmp_path):
    """Also where the data have a folder train, of which some was held out; not on other images alone."""
    run = headstart.fit(photos, tmp_path / "run", val=0.25, **tiny)
    counts = {part: run.members.splits.count(part) for part in ("train", "val")}
    for part, count in counts.items():
        assert evaluate(run, photos, split=part, device="cpu").images["evaluated"] == count
    other = shutil.copytree(photos, tmp_path / "other")
    for file in other.rglob("*.png"):
        with Image.open(file) as image:
            image.transpose(Image.Transpose.ROTATE_180).save(file)
    total = sum(counts.values())
    assert evaluate(run, other, split="train", device="cpu").images["evaluated"] == total


def test_unreadable_images_are_reported(tiny_run, photos, tmp_path):
    data = shutil.copytree(photos / "test", tmp_path / "data")
    (data / "plain/50.png").write_bytes(b"")
    result = evaluate(tiny_run.folder, data, device="cpu")
    assert result.images == {"evaluated": 8, "unreadable": 1}
    assert result.unreadable == (("plain/50.png", "empty file"),)
    (data / "plain/51.png").write_bytes(b"")
    with pytest.raises(TooManyBadImagesError):
        evaluate(tiny_run.folder, data, device="cpu")
    assert evaluate(tiny_run.folder, data, device="cpu", max_bad=0.5).images["evaluated"] == 7


@pytest.mark.parametrize("content", ["", "nonsense\n", "[]\n", '{"id": 1}\n', "\xff"])
def test_a_damaged_list_of_members_is_named(content, tiny_run, photos, tmp_path):
    copy = shutil.copytree(tiny_run.folder, tmp_path / "run")
    (copy / "split.jsonl").write_bytes(content.encode("latin-1"))
    if content:
        with pytest.raises(InputError, match=r"split\.jsonl: damaged"):
            evaluate(copy, photos, device="cpu")
    else:
        (copy / "split.jsonl").unlink()
        assert evaluate(copy, photos, device="cpu").split == "test"


def test_predict_takes_folders_and_files(tiny_run, photos):
    found = list(headstart.predict(tiny_run.folder, [photos / "test"], device="cpu"))
    assert len(found) == 9
    assert sum(p.label in p.image for p in found) >= 8
    with pytest.raises(InputError, match="no such run"):
        headstart.predict(photos / "nowhere", [photos])


def test_evaluate_takes_the_precision_of_the_fit(photos, tiny, tmp_path):
    headstart.fit(photos, tmp_path / "run", **{**tiny, "precision": "fp32"})
    found = headstart.evaluate(tmp_path / "run", photos)
    assert found.engine.precision == "fp32"
    other = headstart.evaluate(tmp_path / "run", photos, precision="auto")
    assert other.engine.precision in ("bf16", "fp32")


def test_a_setting_without_effect_on_a_dataset_is_refused(loose, tiny, tmp_path):
    dataset = headstart.load_dataset(loose)
    with pytest.raises(UsageError, match="group has no effect on a Dataset"):
        headstart.fit(dataset, tmp_path / "run", **{**tiny, "group": "(x)"})


@pytest.mark.parametrize("value", [None, 3, ["a", 3], [np.zeros(3)]], ids=repr)
def test_what_is_no_data_or_no_run_is_refused_in_one_line(value, tiny, tiny_run, loose, tmp_path):
    if value is not None:
        with pytest.raises(
            UsageError, match=r"the data are of type int; give a path|item 0 is of type (str|nda)"
        ):
            fit(value, tmp_path / "run", **tiny)
    with pytest.raises(UsageError, match=r"the data are of type|item 0 is of type"):
        evaluate(tiny_run.folder, value)
    with pytest.raises(
        UsageError, match=r"run is of type .*; give the folder of a run, a Run or a"
    ):
        evaluate(value, loose)
    with pytest.raises(
        UsageError, match=r"model is of type .*; give the folder of a run, a Run or a"
    ):
        headstart.predict(value, loose)


def test_what_is_shown_is_one_short_line(tiny_run, loose, photos, tiny):
    dataset = load_dataset(photos)
    backbone = headstart.load_backbone(tiny["backbone"], weights=tiny["weights"])
    features = headstart.extract(dataset, backbone, headstart.Runtime(device="cpu"))
    activations = headstart.extract_activations(
        dataset, backbone, "blocks.4", headstart.Runtime(device="cpu")
    )
    result = evaluate(tiny_run, photos)
    for value, words in (
        (tiny_run, ("linear-probe", "test_vit", "3 classes", "accuracy", "tiny")),
        (tiny_run.classifier, ("linear-probe", "test_vit", "3 classes")),
        (dataset, ("photos", "33 images", "24 train", "9 test", "3 classes")),
        (backbone, ("test_vit", "cut points", ".pth")),
        (features, ("33 images", "blocks.4")),
        (activations, ("33 images", "blocks.4", "1 view")),
        (result, ("9 images of test", "accuracy")),
    ):
        text = repr(value)
        assert len(text) < 300
        assert "\n" not in text
        assert [w for w in words if w not in text] == []


def test_features_say_what_they_are_of(photos, tiny):
    dataset = load_dataset(photos)
    backbone = headstart.load_backbone(tiny["backbone"], weights=tiny["weights"])
    features = headstart.extract(dataset, backbone, headstart.Runtime(device="cpu"))
    assert (features.targets == dataset.targets).all()
    assert (features.splits, features.classes) == (dataset.splits, dataset.classes)
    part = features.select(np.array([5, 30]))
    assert part.targets.tolist() == dataset.targets[[5, 30]].tolist()
    assert part.splits == (dataset.splits[5], dataset.splits[30])
    assert part.values["head"].shape[0] == 2


def test_nothing_is_read_before_what_can_be_told_without(loose, tiny, tiny_run, monkeypatch):
    monkeypatch.setattr(headstart.data.images, "read_image_bytes", None)
    for folder, message in (("new", "cut point 'nowhere'"), (tiny_run.folder, "holds a run")):
        with pytest.raises(UsageError, match=message):
            fit(loose, folder, val=0.2, cut="nowhere", **tiny)


def test_events_of_a_run_that_was_replaced_go_with_it(loose, tiny, tmp_path):
    for events in (True, False):
        fit(loose, tmp_path, head="8", epochs=1, tensorboard=events, overwrite=True, **tiny)
        assert (tmp_path / "tensorboard").exists() == events
        assert (tmp_path / "history.jsonl").exists()
    assert not [t for t in threading.enumerate() if "AsyncWriter" in type(t).__name__]
