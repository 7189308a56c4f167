"""Advice on real pictures, and a fit that follows it within its budget."""

import dataclasses
import json
import time

import numpy as np
import pytest

import headstart
from headstart.errors import HeadstartError, InputError, UsageError
from headstart.runs import advising, fitting, refitting
from headstart.runs.budget import OutOfTime
from headstart.runs.sampling import LEAST_A_CLASS, draw_parts
from headstart.training.advice import MATTERS, choose_network
from headstart.training.settings import make_settings
from headstart.training.strategies.table import STRATEGIES


def test_advice_says_what_to_do_what_it_brings_and_why(advice):
    assert advice.case.number in (1, 2)
    assert advice.chosen.strategy in STRATEGIES
    for candidate in (advice.chosen, *advice.others):
        assert 0 <= candidate.low <= candidate.accuracy <= candidate.high <= 1
        assert candidate.bill.seconds >= 0
    assert len(advice.sentences) == len(advice.others)
    assert advice.facts.images == 24
    assert advice.facts.per_class == (8, 8, 8)
    assert advice.budget_s < 300
    json.dumps(advice.to_json(), allow_nan=False)


def test_advice_repeats(advice, loose, network):
    again = headstart.advise(loose, budget="5m", **network)
    assert again.facts == advice.facts
    assert again.case == advice.case


def test_what_was_measured_is_kept_and_another_image_is_measured_anew(
    plant, network, tmp_path, monkeypatch
):
    data = plant(tmp_path / "data", dict.fromkeys(("blobs", "plain"), 6))
    options = {**network, "cache_dir": str(tmp_path / "cache")}
    first = headstart.advise(data, **options)
    real, measured = advising.measure_facts, []
    monkeypatch.setattr(advising, "measure_facts", lambda task: measured.append(1) or real(task))
    assert headstart.advise(data, **options).facts == first.facts
    assert not measured
    plant(data, {"blobs": 1}, first=90)
    assert headstart.advise(data, **options).facts.images == 13
    assert len(measured) == 1
    for path in (tmp_path / "cache").glob("backbones/*/facts-*.json"):
        path.write_text("{}")  # damaged
    headstart.advise(data, **options)
    assert len(measured) == 2


def test_test_images_are_not_looked_at(photos, network, plant, tmp_path, monkeypatch):
    read = []
    real = headstart.data.dataset.Dataset.image
    monkeypatch.setattr(
        headstart.data.dataset.Dataset,
        "image",
        lambda s, row: read.append(s.ids[row]) or real(s, row),
    )
    headstart.advise(photos, **network)
    assert read
    assert not [i for i in read if i.startswith("test/")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "linear-probe"}, "'strategy' has no effect on advise"),
        ({"cut": "blocks.3"}, "'cut' goes with a strategy that is named"),
        ({"backbones": ["a"], "backbone": "b"}, "backbone and backbones are both given"),
        ({"budget": "3"}, "budget must be a time of at least 20s"),
    ],
)
def test_wrong_usage_is_refused(loose, options, message):
    with pytest.raises(UsageError, match=message):
        headstart.advise(loose, **options)


def test_what_is_no_data_is_refused(tmp_path):
    with pytest.raises(InputError):
        headstart.advise(tmp_path / "nowhere")


def test_with_one_image_a_class_a_probe_is_all_there_is(plant, tmp_path, network):
    data = plant(tmp_path / "few", {"blobs": 1, "plain": 1})
    advice = headstart.advise(data, **network)
    assert advice.chosen.strategy == "linear-probe"
    assert advice.case.number == 0
    run = headstart.fit(data, tmp_path / "run", **network)
    assert run.strategy == "linear-probe"
    json.dumps(advice.to_json(), allow_nan=False)


def test_several_networks_are_compared(loose):
    names = ["tf_efficientnet_lite0", "lenet5"]
    with pytest.raises(HeadstartError, match="lenet5"):  # which has no weights
        headstart.advise(loose, backbones=names, device="cpu")


LITE = "tf_efficientnet_lite0"


@pytest.fixture
def two_networks(network, monkeypatch):
    """Have two networks at hand: the built-in one, and one of random weights."""
    real = advising.load_network

    def load(settings, **options):
        random = settings.backbone == network["backbone"]
        return real(make_settings(network) if random else settings, **options)

    monkeypatch.setattr(advising, "list_packaged", lambda: (LITE, network["backbone"]))
    for module in (advising, fitting):
        monkeypatch.setattr(module, "load_network", load)


def test_with_none_named_the_networks_at_hand_are_compared(loose, two_networks, monkeypatch):
    advice = headstart.advise(loose, device="cpu")
    assert [name for name, _ in advice.networks] == [LITE, "test_vit"]
    best = max(advice.networks, key=lambda entry: entry[1].accuracy)
    assert advice.chosen.accuracy >= best[1].accuracy - MATTERS
    monkeypatch.setattr(advising, "COMPARING_SHARE", 0.0)  # no time for a second one
    assert headstart.advise(loose, device="cpu").networks == ()
    named = headstart.advise(loose, backbone=LITE, device="cpu")
    assert named.networks == ()


def test_fit_takes_the_network_that_is_advised(loose, two_networks, tmp_path, monkeypatch):
    choose = advising.choose_network

    def choose_last(advices):
        return dataclasses.replace(advices[-1], networks=choose(advices).networks)

    monkeypatch.setattr(advising, "choose_network", choose_last)
    told = []
    run = headstart.fit(
        loose, tmp_path / "run", device="cpu", report=lambda data, found: told.append(found)
    )
    assert len(told[-1].networks) == 2
    assert run.settings["backbone"] == {"value": "test_vit", "origin": "advised"}
    assert run.classifier.backbone.name == "test_vit"
    assert len(run.decisions.facts["advice"]["networks"]) == 2


def test_a_network_whose_images_cannot_be_read_in_the_time_is_not_taken(advice):
    better = dataclasses.replace(advice.chosen, accuracy=1.0)
    larger = dataclasses.replace(advice, chosen=better, backbone="larger", budget_s=0.0)
    assert choose_network([advice, larger]).backbone == advice.backbone
    assert choose_network([larger, larger]).backbone == "larger"


def test_what_takes_the_place_of_a_training_keeps_what_was_advised(
    loose, two_networks, tmp_path, monkeypatch
):
    follow(monkeypatch, "partial-fine-tune", **TRAINED)
    monkeypatch.setattr(refitting, "expect_gain", lambda *a, **k: -0.1)
    run = headstart.fit(loose, tmp_path / "run", device="cpu")
    assert run.strategy == "linear-probe"
    assert run.settings["backbone"]["origin"] == "advised"


def test_parts_are_stratified_and_together_all(loose):
    dataset = headstart.load_dataset(loose)
    rows = np.arange(len(dataset))
    assert [len(p) for p in draw_parts(dataset, rows, 1, 0)] == [24]
    parts = draw_parts(dataset, rows, 3, 0)
    assert sorted(np.concatenate(parts).tolist()) == rows.tolist()
    assert (np.bincount(dataset.labels[parts[0]]) >= LEAST_A_CLASS).all()


# ---------------------------------------------------------------- following it


def follow(monkeypatch, strategy, **settings):
    """Have the advice name this, whatever is measured."""
    real = fitting.advise_for

    def advise(*args, **options):
        advice = real(*args, **options)
        chosen = headstart.Candidate(
            strategy, settings, 0.9, 0.8, 0.95, advice.chosen.bill, "said so", spread=0.04
        )
        object.__setattr__(advice, "chosen", chosen)
        object.__setattr__(advice, "others", (advice.others or (chosen,)))
        return advice

    monkeypatch.setattr(fitting, "advise_for", advise)


def test_fit_follows_the_advice_and_says_so(loose, network, tmp_path, monkeypatch):
    follow(monkeypatch, "shallow-probe", cut="blocks.1")
    told = []
    run = headstart.fit(
        loose, tmp_path / "run", report=lambda data, found: told.append(found), **network
    )
    assert [type(t).__name__ for t in told] == ["Scan", "Advice"]
    assert run.strategy == "shallow-probe"
    assert run.settings["strategy"] == {"value": "shallow-probe", "origin": "advised"}
    assert run.settings["cut"] == {"value": "blocks.1", "origin": "advised"}
    assert run.decisions.facts["advice"]["chosen"]["strategy"] == "shallow-probe"
    assert headstart.Run.load(tmp_path / "run").settings["cut"]["origin"] == "advised"


def test_what_the_budget_does_not_allow_to_be_read_is_left_out_and_told(
    plant, network, tmp_path, monkeypatch
):
    data = plant(tmp_path / "data", dict.fromkeys(("blobs", "plain", "stripes"), 30))
    monkeypatch.setattr(fitting, "PART", 30)
    monkeypatch.setattr(fitting.Budget, "may_read", lambda self: False)
    run = headstart.fit(data, tmp_path / "run", **network, budget="1m")
    assert 15 <= sum(run.images[part] for part in ("train", "val")) < 60
    assert any("of 90 images are used" in w for w in run.warnings)
    named = headstart.fit(data, tmp_path / "named", strategy="linear-probe", budget="1m", **network)
    assert any("of 90 images are used" in w for w in named.warnings)
    whole = headstart.fit(data, tmp_path / "whole", strategy="linear-probe", **network)
    assert whole.images["train"] == 90


def test_units_are_kept_whole_and_every_class_can_be_cross_validated(plant, tmp_path):
    folder = plant(tmp_path / "data", dict.fromkeys(("blobs", "plain"), 40))
    dataset = headstart.load_dataset(folder, group="(.*)[0-9]\\.png$")  # ten frames a group
    parts = draw_parts(dataset, np.arange(80), 8, 0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(80))
    for part in parts:
        groups = {dataset.groups[row] for row in part}
        assert len(part) == 10 * len(groups)
    first = [dataset.groups[row] for row in parts[0]]
    assert {len({g for g in first if name in g}) for name in ("blobs", "plain")} == {4}


TRAINED = {"cut": "blocks.1", "views": 2, "epochs": 2, "refit": True}


def test_what_is_better_than_the_probe_is_trained_again_on_all_images(
    loose, network, tmp_path, monkeypatch
):
    follow(monkeypatch, "partial-fine-tune", **TRAINED)
    monkeypatch.setattr(refitting, "expect_gain", lambda *a, **k: 0.1)
    run = headstart.fit(loose, tmp_path / "run", **network)
    assert run.strategy == "partial-fine-tune"
    assert run.measured_on == "val"
    assert run.decisions.facts["refit"] == {"images": 24, "epochs": 2}
    assert run.decisions.facts["training"]["best_epoch"] == 2
    assert not (tmp_path / "run" / "whole").exists()


def test_what_is_no_better_than_the_probe_gives_way_to_it(loose, network, tmp_path, monkeypatch):
    follow(monkeypatch, "partial-fine-tune", **TRAINED)
    monkeypatch.setattr(refitting, "expect_gain", lambda *a, **k: -0.1)
    run = headstart.fit(loose, tmp_path / "run", **network)
    assert run.strategy == "linear-probe"
    assert run.measured_on == "cross-validation"
    assert run.images["train"] == 24
    assert any("no better than a linear probe" in w for w in run.warnings)
    again = headstart.Run.load(tmp_path / "run")
    assert again.measured.part == "cross-validation"
    assert len(again.measured) == 24
    assert set(again.members.splits) == {"train"}
    assert any(
        "were trained on" in w for w in headstart.evaluate(again, loose, split="all").warnings
    )


def test_without_time_for_anything_there_is_a_probe(loose, network, tmp_path, monkeypatch):
    follow(monkeypatch, "partial-fine-tune", **TRAINED)
    real = refitting.train

    def train(task):
        if task.settings.strategy == "partial-fine-tune":
            raise OutOfTime
        return real(task)

    monkeypatch.setattr(refitting, "train", train)
    monkeypatch.setattr(fitting, "train", real, raising=False)
    for folds in (None, 3):
        run = headstart.fit(loose, tmp_path / f"{folds}", folds=folds, **network)
        assert run.strategy == "linear-probe"
        [told] = [w for w in run.warnings if "ended before partial-fine-tune had begun" in w]
        assert ("its figures are not of folds" in told) == (folds is not None)
        assert run.measured.folds == ()


def test_an_advised_training_goes_on_where_it_was_interrupted(
    loose, network, tmp_path, monkeypatch
):
    follow(monkeypatch, "partial-fine-tune", **TRAINED)
    monkeypatch.setattr(refitting, "expect_gain", lambda *a, **k: 0.1)
    headstart.fit(
        loose,
        tmp_path / "whole",
        checkpoint_s=0,
        strategy="partial-fine-tune",
        **TRAINED,
        **network,
    )

    def stop(entry):
        if entry["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        headstart.fit(loose, tmp_path / "run", on_epoch=stop, **network)
    monkeypatch.setattr(fitting, "advise_for", None)  # what was advised is not asked for again
    run = headstart.fit(None, tmp_path / "run", resume=True)
    assert run.settings["strategy"]["origin"] == "advised"
    assert run.decisions.facts["advice"]["chosen"]["strategy"] == "partial-fine-tune"
    model = "model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


def test_a_fit_ends_within_its_budget(loose, network, tmp_path, monkeypatch):
    follow(monkeypatch, "partial-fine-tune", **{**TRAINED, "epochs": 10_000})
    began = time.monotonic()
    run = headstart.fit(loose, tmp_path / "run", budget="20s", **network)
    assert time.monotonic() - began < 22
    assert run.metrics


def test_images_that_were_held_out_and_trained_on_flatter(loose, network, tmp_path, monkeypatch):
    monkeypatch.setattr(refitting, "expect_gain", lambda *a, **k: 0.1)
    options = {"strategy": "partial-fine-tune", **TRAINED, **network}
    for refit, told in ((True, True), (False, False)):
        run = headstart.fit(loose, tmp_path / f"{refit}", **{**options, "refit": refit})
        result = headstart.evaluate(run, loose, split="val")
        assert any("were trained on" in w for w in result.warnings) == told


def test_data_with_a_validation_split_are_not_trained_on_as_a_whole(
    photos, plant, network, tmp_path
):
    data = plant(tmp_path / "data", {"train/blobs": 6, "train/plain": 6})
    plant(data, {"val/blobs": 2, "val/plain": 2}, first=50)
    options = {"strategy": "partial-fine-tune", **TRAINED, **network}
    with pytest.raises(UsageError, match="'refit' has no effect on data with a validation split"):
        headstart.fit(data, tmp_path / "run", **options)
    assert headstart.advise(data, **network).facts.images == 12
