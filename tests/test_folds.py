"""Folds measure every strategy on images that had no part in it, and survive what a training does."""

import json
import os
import shutil
import signal
import types

import numpy as np
import pytest
from forks import run_command
from PIL import Image

import headstart
from headstart.errors import InputError, UsageError
from headstart.runs import folding
from headstart.training.strategies.table import STRATEGIES

SHORT = {"epochs": 1, "batch": 8, "train_precision": "fp32"}
CUT = {"cut": "blocks.4", "views": 2, "flip": "no"}
WAYS = {
    "linear-probe": {"cut": "auto"},
    "shallow-probe": {"cut": "blocks.2"},
    "partial-fine-tune": {**SHORT, **CUT},
    "fine-tune": {**SHORT, "flip": "no"},
    "scratch": SHORT,
    "an MLP": {"strategy": "linear-probe", "head": "16", "epochs": 2},
    "a second training": {"strategy": "partial-fine-tune", **SHORT, **CUT, "refit": True},
}


class Death(Exception):
    pass


def options_of(way, tiny):
    options = {**tiny, "strategy": way, **WAYS[way]}
    if options["strategy"] == "scratch":
        options.pop("weights")
    return options


def read_files(folder):
    """The files of a run that do not depend on a clock, and its figures without speeds and times."""
    names = ("model.safetensors", "predictions.safetensors", "split.jsonl", "settings.json")
    told = json.loads((folder / "metrics.json").read_text())
    told["decisions"]["facts"].pop("saved", None)
    for figures in told["decisions"]["facts"].get("training", {}).values():
        if isinstance(figures, dict):
            figures.pop("images_per_s", None)
    return {**{n: (folder / n).read_bytes() for n in names}, "metrics": told}


@pytest.fixture
def look(monkeypatch):
    """The tasks of all trainings: of the whole first, then of each fold."""
    tasks, train = [], folding.train_and_refit

    def watch(task, budget):
        tasks.append(task)
        return train(task, budget)

    monkeypatch.setattr(folding, "train_and_refit", watch)
    return tasks


def test_every_strategy_is_among_these():
    assert set(STRATEGIES) <= set(WAYS)


@pytest.mark.parametrize("way", WAYS)
def test_the_contract(way, loose, tiny, tmp_path, look):
    options = options_of(way, tiny)
    run = headstart.fit(loose, tmp_path / "run", folds=2, **options)
    assert run.measured_on == "cross-validation"
    assert run.measured.ids == run.members.ids
    assert run.measured.folds == run.members.folds
    assert set(run.measured.folds) == {1, 2}
    told = run.decisions.facts["folds"]
    assert (told["count"], told["images"], told["figure"]) == (2, [12, 12], "accuracy")
    assert np.average(told["values"], weights=told["images"]) == pytest.approx(
        run.metrics["accuracy"].value
    )
    assert told["mean"] == pytest.approx(np.mean(told["values"]))
    right = run.measured.probabilities.argmax(axis=1) == run.measured.labels
    for number, value in enumerate(told["values"], 1):
        assert right[np.array(run.measured.folds) == number].mean() == pytest.approx(value)

    # An image is predicted by a training that it has no part in.
    [whole, *folds] = look
    assert len(whole.fold_rows) == 0
    assert len(folds) == 2
    for number, task in enumerate(folds, 1):
        seen = {*task.rows.tolist(), *task.val_rows.tolist()}
        own = np.flatnonzero(np.array(run.measured.folds) == number)
        assert task.fold_rows.tolist() == own.tolist()
        assert seen == set(range(24)) - set(own.tolist())
        assert bool(len(task.val_rows)) == bool(len(whole.val_rows))

    # Folds change the figures and not the classifier.
    plain = headstart.fit(loose, tmp_path / "plain", **options)
    own, other = run.classifier, plain.classifier
    assert all(np.array_equal(own.backbone.state[n], v) for n, v in other.backbone.state.items())
    # But for the temperature, which is chosen by what is measured.
    weights = [c.head.layers[-1][0] * c.temperature for c in (own, other)]
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-3, atol=1e-6)
    assert [h["epoch"] for h in run.history] == [h["epoch"] for h in plain.history]
    assert {n: run.images[n] for n in ("train", "val")} == {
        n: plain.images[n] for n in ("train", "val")
    }
    assert plain.members.folds == ()

    # It is read back as it was, and nothing of the folds is left.
    again = headstart.Run.load(tmp_path / "run")
    assert again.members == run.members
    assert again.measured.folds == run.measured.folds
    assert np.array_equal(again.measured.probabilities, run.measured.probabilities)
    assert again.decisions == run.decisions
    assert not {"folds", "start.json", "plan.json", "checkpoint.safetensors"} & set(
        os.listdir(tmp_path / "run")
    )


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """40 pictures of noise, whose classes are drawn at random: there is nothing to learn but them."""
    folder = tmp_path_factory.mktemp("noise")
    for number in range(40):
        rng = np.random.default_rng(number)
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        picture = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(picture).save(place / f"{number:02}.png")
    return folder


@pytest.mark.parametrize("way", ["linear-probe", "partial-fine-tune", "an MLP"])
def test_what_is_learned_by_heart_is_not_measured(way, noise, tiny, tmp_path):
    """A head with no penalty knows all that it has seen, and of random classes nothing else."""
    learn = {"head": "64", "epochs": 20, "batch": 8, "lr": 3e-2, "monitor": "last"}
    options = {**options_of(way, tiny), **(learn if way == "an MLP" else {"penalty": 1e-7})}
    if way == "partial-fine-tune":
        options |= {"lr": 1e-7, "val": 0}
    if way == "linear-probe":
        options |= {"cut": "all"}
    run = headstart.fit(noise, tmp_path / "run", folds=5, **options)
    seen = headstart.evaluate(run, noise, split="all", device="cpu", precision="fp32")
    assert seen.metrics["accuracy"].value >= 0.8
    assert 0.2 < run.metrics["accuracy"].value < 0.78


def test_groups_and_copies_stay_in_one_fold(plant, tiny, tmp_path):
    data = plant(tmp_path / "data", dict.fromkeys(("blobs", "plain"), 12))
    shutil.copy(data / "plain/11.png", data / "plain/copy.png")
    run = headstart.fit(data, tmp_path / "run", folds=3, group=r"(\d)\.png$", **tiny)
    folds = dict(zip(run.members.ids, run.members.folds, strict=True))
    assert set(folds.values()) == {1, 2, 3}
    for digit in range(10):
        own = [fold for name, fold in folds.items() if name.endswith(f"{digit}.png")]
        assert len(set(own)) == 1, digit
    assert folds["plain/copy.png"] == folds["plain/11.png"]


# ---------------------------------------------------------------- death


@pytest.fixture(scope="module")
def options(tiny):
    return {
        **tiny,
        **WAYS["partial-fine-tune"],
        "strategy": "partial-fine-tune",
        "epochs": 2,
        "checkpoint_s": 0.0,
    }


@pytest.fixture(scope="module")
def uninterrupted(loose, options, tmp_path_factory):
    """What a run that nobody disturbs leaves."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    headstart.fit(loose, folder, folds=3, **options)
    return read_files(folder)


def resume(folder):
    """Go on; the run and the folds whose epochs were trained."""
    epochs = []
    run = headstart.fit(None, folder, resume=True, on_epoch=epochs.append)
    return run, {entry.get("fold", 0) for entry in epochs}


@pytest.mark.parametrize(
    ("fold", "epoch", "again"),
    [(0, 1, {0, 1, 2, 3}), (2, 2, {2, 3}), (3, 0, {3})],
)
def test_it_goes_on_after_death_in_any_fold(
    fold, epoch, again, loose, options, uninterrupted, tmp_path
):
    def die(entry):
        if (entry.get("fold", 0), entry["epoch"]) == (fold, epoch):
            raise Death

    with pytest.raises(Death):
        headstart.fit(loose, tmp_path / "run", folds=3, on_epoch=die, **options)
    with pytest.raises(UsageError, match="holds an interrupted training; headstart fit --resume"):
        headstart.fit(loose, tmp_path / "run", folds=3, **options)
    run, trained = resume(tmp_path / "run")
    assert not run.interrupted
    assert trained <= again
    assert read_files(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("point", ["fold-written@2", "fold-renamed@1"])
def test_killed_while_a_fold_is_kept(point, loose, options, uninterrupted, tmp_path):
    words = [f"--{n.replace('_', '-')}={value}" for n, value in options.items()]
    folder = tmp_path / "run"
    code, _, errors = run_command(
        "fit", loose, "-o", folder, "--folds", "3", *words, HEADSTART_FAIL_AT=point
    )
    assert code == -signal.SIGKILL, errors
    resume(folder)
    assert read_files(folder) == uninterrupted


def test_a_full_disk_is_told(loose, options, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_FAIL_AT", "fold-written:enospc")
    with pytest.raises(headstart.ResourceError, match="No space left on device; free space"):
        headstart.fit(loose, tmp_path / "run", folds=3, **options)


def test_ctrl_c_in_a_fold_keeps_what_there_is(loose, options, uninterrupted, tmp_path):
    def interrupt(entry):
        if (entry.get("fold"), entry["epoch"]) == (2, 1):
            signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "run"
    run = headstart.fit(loose, folder, folds=3, on_epoch=interrupt, **options)
    assert run.interrupted
    assert set(run.measured.folds) == {1}
    assert len(run.measured) == 8
    assert run.decisions.facts["folds"]["images"] == [8]
    [told] = [w for w in run.warnings if "folds" in w]
    assert told == (
        "it was interrupted after 1 of 3 folds, so the figures are of the images in those alone"
    )
    assert next(headstart.predict(folder, [loose / "plain/01.png"])).error == ""
    assert headstart.Run.load(folder).measured.folds == run.measured.folds
    again, trained = resume(folder)
    assert trained <= {2, 3}
    assert read_files(folder) == uninterrupted
    assert not again.interrupted


def test_a_probe_is_interrupted_before_its_first_fold(loose, tiny, tmp_path, cli, monkeypatch):
    train = folding.train_and_refit

    def interrupt(task, budget):
        if len(task.fold_rows):
            raise KeyboardInterrupt
        return train(task, budget)

    monkeypatch.setattr(folding, "train_and_refit", interrupt)
    folder = tmp_path / "run"
    words = [f"--{n}={value}" for n, value in tiny.items()]
    code, _, errors = cli("fit", loose, "-o", folder, "--folds", "3", *words)
    assert code == 130
    assert "it was interrupted before the first of 3 folds was done" in errors
    assert f"headstart fit --resume {folder} goes on" in errors
    assert headstart.Run.load(folder).measured.folds == ()  # the probe's own cross-validation
    monkeypatch.setattr(folding, "train_and_refit", train)
    code, out, errors = cli("fit", "--resume", folder)
    assert code == 0, errors
    assert "measured by cross-validation in 3 folds on 24 training images" in out
    assert "accuracy by fold 1.000 to 1.000, mean 1.000, standard deviation 0.000" in out


def stop_in_fold(loose, options, folder, number):
    def die(entry):
        if entry.get("fold") == number:
            raise Death

    with pytest.raises(Death):
        headstart.fit(loose, folder, folds=3, on_epoch=die, **options)


def test_what_is_kept_of_a_fold_may_be_damaged_or_hostile(loose, plant, options, tmp_path):
    data, folder = plant(tmp_path / "data", dict.fromkeys(("blobs", "plain"), 6)), tmp_path / "run"
    stop_in_fold(data, options, folder, 3)
    kept = folder / "folds/1.safetensors"
    whole = kept.read_bytes()
    for content in (b"", whole[:-1], whole[:50], whole + bytes(2**21), b"x" * 3000):
        kept.write_bytes(content)
        with pytest.raises(
            InputError, match=r"1\.safetensors: damaged; remove it to train without"
        ):
            resume(folder)
    kept.write_bytes(whole)
    # A link leads nowhere.
    outside = tmp_path / "outside"
    (outside / "3").mkdir(parents=True)
    (outside / "3/precious").write_text("")
    shutil.rmtree(folder / "folds")
    (folder / "folds").symlink_to(outside)
    resume(folder)
    assert [p.name for p in outside.rglob("*")] == ["3", "precious"]


def test_other_data_are_refused(plant, options, tmp_path):
    data, folder = plant(tmp_path / "data", dict.fromkeys(("blobs", "plain"), 6)), tmp_path / "run"
    options = {**options, "strategy": "linear-probe"}
    options = {n: options[n] for n in ("strategy", "backbone", "weights", "device")}
    calls = []

    def die(stage, done, total):
        calls.append(stage)
        if stage.startswith("fold 3 of 3"):
            raise Death

    with pytest.raises(Death):
        headstart.fit(data, folder, folds=3, progress=die, **options)
    assert "fold 2 of 3: training" in calls
    shutil.copy(data / "blobs/00.png", data / "plain/07.png")
    with pytest.raises(InputError, match="of other data or settings than these"):
        resume(folder)


# ---------------------------------------------------------------- what they go with


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"folds": 1}, UsageError, "folds must be a whole number of at least 2 and of at most 20"),
        ({"folds": 21}, UsageError, "folds must be a whole number"),
        ({"folds": 3, "val": 0.2}, UsageError, "setting 'val' has no effect with folds"),
        (
            {"folds": 3, "val": 0.2, "strategy": "auto"},
            UsageError,
            "'val' has no effect with folds",
        ),
        (
            {"folds": 9},
            InputError,
            r"loose: 9 folds need .*, and class 'blobs' has 8 images or groups to train on; "
            "choose --folds 8, or add images",
        ),
        (
            {"folds": 3, "group": "(blobs)/"},
            InputError,
            "class 'blobs' has 1 image or group to train on; leave --folds out, or add images",
        ),
    ],
)
def test_what_cannot_be_is_refused(options, error, message, loose, tiny, tmp_path):
    with pytest.raises(error, match=message):
        headstart.fit(loose, tmp_path / "run", **{**tiny, **options})
    assert not (tmp_path / "run").exists()


def test_validation_images_are_measured_on_alone(photos, plant, loose, tiny, tmp_path):
    parts = {f"{split}/{kind}": 4 for split in ("train", "val") for kind in ("blobs", "plain")}
    data = plant(tmp_path / "data", parts)
    for source, options in ((loose, {"val": str(photos / "test")}), (data, {})):
        with pytest.raises(UsageError, match="no effect where there are validation images"):
            headstart.fit(source, tmp_path / "run", folds=3, **options, **tiny)


def test_copies_are_counted_once(plant, tiny, tmp_path):
    data = plant(tmp_path / "data", dict.fromkeys(("blobs", "plain"), 3))
    shutil.copy(data / "plain/00.png", data / "plain/01.png")
    with pytest.raises(
        InputError, match=r"class 'plain' has 2 images or groups .* choose --folds 2"
    ):
        headstart.fit(data, tmp_path / "run", folds=3, **tiny)


def test_nothing_is_held_out_where_nothing_is_to_be(loose, tiny, tmp_path, look):
    run = headstart.fit(
        loose, tmp_path / "run", folds=3, val=0, **{**tiny, **SHORT, "strategy": "fine-tune"}
    )
    assert [len(task.val_rows) for task in look] == [0, 0, 0, 0]
    assert run.images["train"] == 24
    assert len(run.measured) == 24


def test_a_budget_leaves_out_the_folds_that_it_has_no_time_for(loose, tiny, tmp_path, monkeypatch):
    now = [0.0]

    def watch(stage, done, total):
        if stage.startswith("fold 3"):
            now[0] = 1e12

    monkeypatch.setattr(folding, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    run = headstart.fit(loose, tmp_path / "run", folds=4, budget="10m", progress=watch, **tiny)
    assert len(run.decisions.facts["folds"]["values"]) == 2
    assert set(run.measured.folds) == {1, 2}
    assert not run.interrupted
    [told] = [w for w in run.warnings if "folds" in w]
    assert told.startswith("the budget of 10m ended after 2 of 4 folds, so the figures are of")
    assert not (tmp_path / "run/folds").exists()


def test_the_advice_is_followed_and_measured(loose, network, tmp_path):
    run = headstart.fit(loose, tmp_path / "run", folds=3, budget="2m", **network)
    assert run.decisions.facts["folds"]["count"] == 3
    assert len(run.measured) == 24


def test_images_of_several_labels(tiny, plant, tmp_path):
    data = plant(tmp_path / "data", dict.fromkeys(("blobs", "plain", "stripes"), 8))
    lines = ["path,label"]
    for number in range(8):
        lines += [f"blobs/{number:02}.png,blobs", f"stripes/{number:02}.png,lines|stripes"]
        lines += [f"plain/{number:02}.png,{'rare' if number == 3 else ''}"]
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    for strategy in ("linear-probe", "fine-tune"):
        options = {**tiny, **(WAYS[strategy] if strategy == "fine-tune" else {})}
        options["strategy"] = strategy
        run = headstart.fit(
            data / "labels.csv", tmp_path / strategy, folds=4, multi_label=True, **options
        )
        assert run.decisions.facts["folds"]["figure"] == "mean_average_precision"
        assert len(run.measured) == 24
        assert run.per_class["blobs"].average_precision.value > 0.9
        assert headstart.Run.load(tmp_path / strategy).measured.folds == run.measured.folds
    with pytest.raises(InputError, match=r"all classes together have 8 images or groups .*folds 8"):
        headstart.fit(
            data / "labels.csv",
            tmp_path / "none",
            folds=9,
            group=r"(\d)\.png",
            multi_label=True,
            **tiny,
        )


def test_a_run_by_folds_has_a_report(loose, tiny, tmp_path):
    run = headstart.fit(
        loose, tmp_path / "run", folds=3, **{**tiny, **SHORT, "strategy": "fine-tune"}
    )
    page = headstart.report(run).page.read_text(encoding="utf-8")
    assert "each predicted by a classifier that had not seen it" in page
    assert "chosen by the same" not in page
    assert "measured by cross-validation on 24 training images" in run._repr_html_()
    assert run.images["train"] < 24
    plain = headstart.fit(loose, tmp_path / "plain", **{**tiny, **SHORT, "strategy": "fine-tune"})
    page = headstart.report(plain).page.read_text(encoding="utf-8")
    assert "The best epoch was chosen by the same images" in page


def test_a_record_that_names_folds_for_some_images_is_damaged(loose, tiny, tmp_path):
    folder = tmp_path / "run"
    headstart.fit(loose, folder, folds=3, **tiny)
    lines = [json.loads(line) for line in (folder / "split.jsonl").read_text().splitlines()]
    for value, message in (
        (None, "line 1, which is not of"),
        (0, "field 'fold'"),
        ("1", "field 'fold'"),
    ):
        lines[0]["fold"] = value
        (folder / "split.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(InputError, match=message):
            _ = headstart.Run.load(folder).measured
