"""Ways of training and runs are compared on the same images; what is there is not trained again."""

import csv
import dataclasses
import json
import re
import shlex
import shutil
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest

import headstart
from headstart.contrasts import Contrast
from headstart.errors import InputError, UsageError
from headstart.metrics import Estimate
from headstart.publish.charts import write_charts
from headstart.publish.comparisons import draw_costs, draw_curves, write_comparison
from headstart.runs import comparing
from headstart.runs.comparison import Comparison, Contender, judge, mark_undominated
from headstart.runs.grid import list_entries

WAYS = ["linear-probe", "linear-probe:head=8:epochs=2", "linear-probe:cut=all"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("compared") / "here"


@pytest.fixture(scope="module")
def found(photos, network, place):
    """Three ways with two seeds each."""
    return headstart.compare(photos, place, strategies=WAYS, seeds=2, **network)


@pytest.fixture(autouse=True)
def _known_speed(monkeypatch):
    """Only what `found` needs is measured."""
    monkeypatch.setattr(comparing, "measure_rate", lambda *args, **options: 50.0)


def folders(place):
    return sorted(path.name for path in (place / "runs").iterdir())


def never(*args, **options):
    pytest.fail("trained again")


def test_all_ways_are_trained_and_measured_on_the_test_split(found, place, photos):
    assert {c.name for c in found.contenders} == set(WAYS)
    assert (found.images, found.units, found.part) == (9, 9, "test")
    assert len(found.pairs) == 3
    assert len(folders(place)) == 6
    for contender in found.contenders:
        assert contender.seeds == (0, 1)
        assert 0 <= contender.accuracy.low <= contender.accuracy.value <= contender.accuracy.high
        right = [
            headstart.evaluate(run.folder, photos, split="test").metrics["accuracy"].value
            for run in contender.runs
        ]
        assert contender.accuracy.value == pytest.approx(np.mean(right))
        assert min(contender.minutes, contender.megabytes, contender.images_per_s) > 0
        assert not [i for run in contender.runs for i in run.members.ids if i.startswith("test/")]
    values = [c.accuracy.value for c in found.contenders]
    assert values == sorted(values, reverse=True)
    assert any(c.undominated for c in found.contenders)
    assert "Comparison(3 contenders on 9 images of test, best" in repr(found)
    assert found.find(WAYS[0], WAYS[1]) is found.find(WAYS[1], WAYS[0])


def test_what_is_there_is_not_trained_again(found, photos, network, place, monkeypatch):
    monkeypatch.setattr(comparing, "fit", never)
    again = headstart.compare(photos, place, strategies=WAYS, seeds=2, **network)
    # Another order and fewer seeds are of the same runs.
    ways = WAYS[:1:-1] + WAYS[:1]
    headstart.compare(photos, place, strategies=ways, seeds=1, workers=1, **network)

    def strip(comparison):  # the speed is measured anew
        value = comparison.to_json()
        for contender in value["contenders"]:
            del contender["images_per_s"], contender["undominated"]
        return value

    assert strip(again) == strip(found)


def test_another_seed_setting_or_image_is_trained(
    found, photos, network, place, tmp_path, plant, monkeypatch
):
    data, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, data)
    real, trained = comparing.fit, []
    monkeypatch.setattr(
        comparing, "fit", lambda *args, **options: trained.append(1) or real(*args, **options)
    )
    options = {"strategies": WAYS[::2], "seeds": 1, **network}
    headstart.compare(data, out, **options)
    assert len(trained) == 2
    headstart.compare(data, out, class_weights="balanced", **options)
    assert len(trained) == 4
    plant(data, {"train/blobs": 1}, first=90)
    headstart.compare(data, out, **options)
    assert len(trained) == 6


def test_an_interrupted_comparison_goes_on(photos, network, tmp_path, monkeypatch):
    """What was killed before it could be resumed begins anew, what has a state goes on, the rest is kept."""
    ways = ["linear-probe", "linear-probe:head=8:epochs=3:checkpoint_s=0"]
    whole = headstart.compare(photos, tmp_path / "whole", strategies=ways, seeds=1, **network)
    real, out = comparing.fit, tmp_path / "out"

    def stop(entry):
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    def interrupted(data, folder, **options):
        return real(data, folder, on_epoch=stop, **options)

    monkeypatch.setattr(comparing, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        headstart.compare(photos, out, strategies=ways, seeds=1, **network)
    resumed = []

    def fit(data, folder, **options):
        resumed.append(options.get("resume", False))
        return real(data, folder, **options)

    monkeypatch.setattr(comparing, "fit", fit)
    again = headstart.compare(photos, out, strategies=ways, seeds=1, **network)
    assert resumed == [True]
    for one, other in zip(whole.contenders, again.contenders, strict=True):
        assert one.accuracy == other.accuracy
    [kept] = out.glob("runs/linear-probe-seed-*")
    (kept / "headstart.json").write_text('{"format": 1, "status": "incomplete"}')
    headstart.compare(photos, out, strategies=ways, seeds=1, **network)
    assert resumed == [True, False]


def test_the_progress_says_which_run_it_is_and_the_time_left(photos, network, tmp_path):
    told = []
    headstart.compare(
        photos, tmp_path, strategies=WAYS[::2], seeds=2,
        progress=lambda stage, done, total: told.append(stage), **network,
    )  # fmt: skip
    assert any(s.startswith("run 1 of 4: linear-probe, seed 0: ") for s in told)
    assert any(s.startswith("run 4 of 4, 1 min left: linear-probe:cut=all, seed 1: ") for s in told)
    assert any(s.startswith("testing run 4 of 4: ") for s in told)
    # Until a run of each way is done, nobody knows how long the others take.
    assert not [s for s in told if s.startswith(("run 1 of 4, ", "run 2 of 4, "))]


def test_images_are_held_out_where_there_is_no_test_split(loose, plant, network, tmp_path):
    options = {"strategies": WAYS[::2], "seeds": 1, **network}
    found = headstart.compare(loose, tmp_path / "loose", test=0.25, **options)
    assert found.images == 6
    assert "6 images are held out to test on" in found.warnings[0]
    for contender in found.contenders:
        assert len(contender.runs[0].members) == 18
    data = plant(tmp_path / "data", {f"train/{k}": 4 for k in ("blobs", "plain")})
    plant(data, {f"val/{k}": 3 for k in ("blobs", "plain")}, first=50)
    found = headstart.compare(data, tmp_path / "val", **options)
    assert found.images == 6
    assert "the validation images are tested on" in found.warnings[0]
    for contender in found.contenders:
        assert {i.split("/")[0] for i in contender.runs[0].members.ids} == {"train"}


def test_images_of_a_group_are_held_out_and_counted_together(plant, network, tmp_path):
    data = plant(tmp_path / "data", dict.fromkeys(("blobs", "plain"), 20))
    found = headstart.compare(
        data, tmp_path / "out", strategies=WAYS[::2], seeds=1, test=0.3,
        group=r"(\w+/\d)\d\.png", **network,
    )  # fmt: skip
    assert (found.images, found.units) == (20, 2)


def test_other_images_may_be_tested_on(photos, plant, network, found, place, tmp_path):
    data = plant(tmp_path / "others", dict.fromkeys(("blobs", "plain", "stripes"), 4), first=70)
    options = {"strategies": WAYS, "seeds": 2, **network}
    trained = headstart.compare(photos, place, test=data, **options)
    assert trained.images == 12
    folders = [c.runs[0].folder for c in trained.contenders]
    runs = headstart.compare(folders, test=data, device="cpu")
    assert runs.images == 12
    assert {c.name for c in runs.contenders} == set(map(str, folders))


def test_runs_are_compared_on_what_they_kept(found):
    runs = [run for contender in found.contenders[:2] for run in contender.runs]
    compared = headstart.compare(runs, device="cpu")
    assert len(compared.contenders) == 2
    assert all(len(c.runs) == 2 and c.name.endswith(" and 1 more") for c in compared.contenders)
    assert "by which the best epochs were chosen" in compared.warnings[0]


def test_runs_on_other_images_are_compared_on_the_common_ones(photos, network, tmp_path):
    options = {**network, "strategy": "linear-probe", "val": 0.5}
    first = headstart.fit(photos, tmp_path / "a", **options)
    second = headstart.fit(photos, tmp_path / "b", **options, seed=1, penalty=1.0)
    common = set(first.measured.ids) & set(second.measured.ids)
    assert 0 < len(common) < 12
    found = headstart.compare([first, second], device="cpu")
    assert found.images == len(common)
    assert any(f"compared on the {len(common)} images that all" in w for w in found.warnings)


def test_an_image_of_the_same_name_and_other_bytes_is_another(plant, network, tmp_path):
    options = {**network, "strategy": "linear-probe"}
    runs = []
    for first in (0, 40):
        data = plant(tmp_path / str(first), dict.fromkeys(("blobs", "plain"), 8), first)
        for path in sorted(data.glob("*/*")):
            path.rename(path.with_name(f"{int(path.stem) - first}.png"))
        folder = tmp_path / f"run-{first}"
        runs.append(headstart.fit(data, folder, **options, val=0.5, penalty=1.0 + first))
    with pytest.raises(InputError, match="were measured on different images; name images"):
        headstart.compare(runs, device="cpu")


def test_runs_of_other_classes_are_refused(plant, network, tmp_path):
    options = {**network, "strategy": "linear-probe"}
    runs = []
    for kinds in (("blobs", "plain"), ("blobs", "stripes")):
        data = plant(tmp_path / kinds[1], dict.fromkeys(kinds, 6))
        runs.append(headstart.fit(data, tmp_path / f"run-{kinds[1]}", **options))
    with pytest.raises(InputError, match="have different classes: 'plain' is of one alone"):
        headstart.compare(runs, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategies": ["linear-probe"]}, "only 'linear-probe' is given; name at least two"),
        ({"strategies": ["linear-prob", "scratch"]}, "'linear-prob' is unknown .nearest: linear-"),
        ({"strategies": ["fine-tune:lr", "scratch"]}, "'lr' where a setting NAME=VALUE should be"),
        ({"strategies": ["fine-tune:lr=x", "scratch"]}, "lr must be a number above 0, got x"),
        ({"strategies": ["fine-tune:seed=1", "scratch"]}, "'seed=1' where a setting"),
        ({"strategies": ["fine-tune:lr=1:lr=2", "scratch"]}, "the setting 'lr' twice"),
        ({"strategies": ["linear-probe:ema=0.9", "scratch"]}, "'ema' has no effect on linear-pro"),
        ({"strategies": ["scratch", "scratch"]}, "are the same; leave one out"),
        (
            {"strategies": ["linear-probe", "shallow-probe"], "ema": 0.9},
            "'ema' has no effect on any",
        ),
        ({"backbones": ["a", "b"], "backbone": "c"}, "backbone and backbones are both given"),
        ({"seeds": 0}, "seeds must be a whole number from 1 to 500"),
        ({"seeds": 10**9}, "seeds must be a whole number from 1 to 500"),
        ({"test": 0.5}, "the data have a test split; leave it out"),
        ({"colour": 1}, "setting 'colour' is unknown"),
    ],
)
def test_wrong_usage_is_refused_before_any_work(photos, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(comparing, "fit", never)
    with pytest.raises(UsageError, match=message):
        headstart.compare(photos, tmp_path / "out", **{"device": "cpu", **options})
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_tampered_with_is_told_in_a_line_or_compared(found, tmp_path, cli):
    """No field of its files ends in a traceback."""
    runs = [str(c.runs[0].folder) for c in found.contenders[:2]]
    for number, (name, change) in enumerate(
        (
            ("settings.json", lambda v: v.pop("seed")),
            ("settings.json", lambda v: v["seed"].update(value="x")),
            ("metrics.json", lambda v: v["decisions"]["facts"].update(groupings=5)),
            ("metrics.json", lambda v: v.update(warnings=5)),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(runs[0], folder)
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))
        code, _, err = cli("compare", folder, runs[1], "--json", "--device", "cpu")
        assert code in (0, 3), err
        assert err.count("\n") <= 1


def test_runs_take_no_settings_of_training(found, photos, tmp_path):
    first, second = found.contenders[0].runs
    other = found.contenders[1].runs[0]
    for named, options, message in (
        ([first, other], {"strategies": ["scratch"]}, "strategies has no effect on runs"),
        ([first, other], {"seeds": 2}, "seeds has no effect on runs"),
        ([first, other], {"lr": 0.1}, "setting 'lr' has no effect on runs"),
        ([first, other], {"out": tmp_path}, "out has no effect on runs"),
        ([first, other], {"test": 0.2}, "a fraction to test on has no effect on runs"),
        ([first, other], {"group": "none"}, "'group' has no effect without images"),
        ([first, other, first], {}, "is named twice"),
        ([first, second], {}, "differ by nothing but their seeds"),
        ([first, photos], {}, "photos is no run and others are"),
    ):
        with pytest.raises(UsageError, match=message):
            headstart.compare(named, **options)
    with pytest.raises(UsageError, match="lies in the data"):
        headstart.compare(photos, photos / "out")


def test_a_common_setting_goes_where_it_has_an_effect():
    entries = list_entries(
        ["scratch", "linear-probe", "fine-tune:batchnorm=adapt:lr=1e-4"],
        ["resnet50", "vgg16"],
        {"epochs": 20, "val": 0.3, "lr": 0.01},
    )
    assert [e.name for e in entries[::2]] == [
        "scratch on resnet50",
        "linear-probe on resnet50",
        "fine-tune:batchnorm=adapt:lr=1e-4 on resnet50",
    ]
    assert entries[0].options["epochs"] == 20
    assert "epochs" not in entries[2].options
    assert float(entries[4].options["lr"]) == 1e-4
    assert all(e.options["val"] == 0.3 for e in entries)


DOCUMENTS = Path(__file__).parent.parent / "docs"
COMMANDS = [
    command
    for page in sorted(DOCUMENTS.rglob("*.md"))
    for command in re.findall(
        r"^    (headstart compare .*)$", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    if "[OPTIONS]" not in command
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_is_accepted(monkeypatch, cli, command):
    """Its options are known and heeded by a strategy; nothing is trained."""
    taken = []

    def compare(what, out, *, strategies, backbones, seeds, test, progress, **options):
        common = {n: v for n, v in options.items() if n != "seed"}
        taken.append(list_entries(strategies, backbones, common))
        raise UsageError("far enough")

    monkeypatch.setattr(headstart, "compare", compare)
    code, _, err = cli(*shlex.split(command)[1:])
    if "run-a" in command:
        return
    assert (code, "far enough" in err) == (2, True), err
    assert len(taken[0]) >= 2


def test_every_kind_of_command_is_documented():
    assert len(COMMANDS) >= 4
    assert any("fine-tune:batchnorm=adapt" in command for command in COMMANDS)


def make(name, accuracy, minutes=1.0, megabytes=1.0, rate=1.0):
    runs = (None, None)  # which are not looked at
    return Contender(name, runs, Estimate(accuracy, 0, 1), 0.0, minutes, megabytes, rate)


def test_what_nothing_dominates_is_marked():
    marked = mark_undominated(
        [
            make("best", 0.9, minutes=5),
            make("worse and no quicker", 0.8, minutes=5),
            make("quick", 0.8, minutes=1),
            make("the same", 0.8, minutes=1),
            make("small", 0.7, minutes=5, megabytes=0.5),
        ]
    )
    assert [c.name for c in marked if c.undominated] == ["best", "quick", "the same", "small"]


def test_a_verdict_says_what_would_tell():
    def say(difference, p, of_seeds=0.0):
        contrast = Contrast(Estimate(difference, -1, 1), p, 0, 0, 1e-4, of_seeds, 1000)
        _, [pair] = judge([make("a", 0.9), make("b", 0.8)], [contrast])
        return pair

    pair = say(0.05, 1e-6)
    assert pair.verdict == "a is better"
    assert dataclasses.replace(pair, seeds=1).verdict == "a is better, with this seed"
    words = "not distinguishable with this test set"
    assert say(0.01, 0.2).verdict == f"{words}; about 6,900 more images would tell"
    seeds = say(0.01, 0.2, of_seeds=1e-3)
    assert seeds.verdict == f"{words}; more seeds would tell rather than more images"
    assert say(0.0, 1.0).verdict == f"{words}; there is next to no difference"


def test_ranks_and_the_conclusion_follow_the_differences():
    def contrast(difference, p):
        return Contrast(Estimate(difference, -1, 1), p, 0, 0, 1e-4, 0.0, 1000)

    three = [make("a", 0.9, minutes=9), make("b", 0.89, minutes=1), make("c", 0.5)]
    told = [contrast(0.01, 0.3), contrast(0.4, 1e-9), contrast(0.39, 0.03)]
    ranked, pairs = judge(three, told)
    assert [c.rank for c in ranked] == [1, 1, 2]  # b and c differ by 0.06 after the correction
    assert [round(p.adjusted, 3) for p in pairs] == [0.3, 0.0, 0.06]
    found = Comparison(ranked, pairs, 1000, 1000, "test", ())
    assert found.conclude() == (
        "a cannot be told from b with these test images; b takes the least time."
    )
    alone = judge(three[1:], told[2:])
    assert Comparison(*alone, 1000, 1000, "test", ()).conclude() == "b is better than all others."


def test_everything_is_written_down(found, tmp_path):
    paths = write_comparison(found, tmp_path / "out")
    names = ["comparison.json", "contenders.csv", "pairs.csv", "costs.svg", "curves.svg"]
    assert [p.name for p in paths] == names
    value = json.loads(paths[0].read_text())
    assert value == json.loads(json.dumps(found.to_json(), allow_nan=False))
    for path, count in zip(paths[1:3], (3, 3), strict=True):
        assert len(list(csv.DictReader(path.read_text().splitlines()))) == count
    costs, curves = (p.read_text() for p in paths[3:])
    for text in (costs, curves):
        assert xml.etree.ElementTree.fromstring(text).tag.endswith("svg")
        assert all(way in text for way in WAYS)
    again = write_comparison(found, tmp_path / "again")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]


def test_a_name_in_any_letters_is_drawn(found, tmp_path):
    name = "\u9678\x1b[31m $x_1$ " * 4
    named = [dataclasses.replace(c, name=f"{name}{n}") for n, c in enumerate(found.contenders)]
    renamed = dataclasses.replace(found, contenders=tuple(named))
    figures = {"costs": draw_costs(renamed), "curves": draw_curves(renamed)}
    for path in write_charts(tmp_path, {}, figures):
        text = path.read_text(encoding="utf-8")
        assert "\x1b" not in text
        assert "\u9678" in text
        assert "$x_1$" in text


def words_of(network):
    return [word for name, value in network.items() for word in (f"--{name}", value)]


def test_the_command_shows_the_table_and_the_verdicts(found, photos, network, place, cli):
    ways = ["--strategies", ",".join(WAYS), "--seeds", 2]
    code, out, err = cli("compare", photos, "-o", place, *ways, *words_of(network))
    assert code == 0, err
    assert "9 images of test, 95 % intervals" in out
    assert "not distinguishable with this test set" in out
    assert all(way in out for way in WAYS)
    assert "written: " in err
    assert (place / "costs.svg").exists()
    runs = [str(c.runs[0].folder) for c in found.contenders]
    code, out, err = cli("compare", *runs, "--json", "--device", "cpu")
    assert code == 0
    assert len(json.loads(out)["contenders"]) == 3
    assert not err
    code, _, err = cli("compare", runs[0], photos)
    assert code == 2
    assert "is no run and others are" in err


def test_the_command_has_a_folder_of_its_own(photos, network, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ways = ["--strategies", ",".join(WAYS[::2]), "--seeds", 1]
    assert cli("compare", photos, "-q", *ways, *words_of(network))[0] == 0
    assert (tmp_path / "comparisons" / "photos" / "comparison.json").exists()
