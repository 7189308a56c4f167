"""The rules of the advice, held against tables of facts, absurd ones among them."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from headstart.training.advice import (
    MATTERS,
    Candidate,
    Limits,
    choose_candidate,
    choose_network,
    expect_ratio,
    find_case,
    give_advice,
    say_time,
)
from headstart.training.costs import PIXELS, Bill, Costs, CutWork
from headstart.training.facts import CurvePoint, Depth, Facts

COSTS = Costs(
    cuts=(
        CutWork(PIXELS, 0.0, 60.0, 56.0, 0.0, 14.0),
        CutWork("a", 0.2, 55.0, 50.0, 0.1, 14.0),
        CutWork("b", 0.1, 30.0, 20.0, 0.5, 13.0),
        CutWork("c", 0.05, 10.0, 8.0, 0.8, 10.0),
    ),
    forward_ms=5.0,
    plain_ms=3.0,
    view_ms=2.0,
    probe_s=0.5,
    threads=2,
)


def make_facts(
    accuracies=(0.3, 0.5, 0.7, 0.8), images=300, classes=3, confidence=0.2, shift=0.3, gaps=0.1
):
    """Facts of a network with the cuts a, b, c and last; `gaps` lie between their log losses."""
    names = ("a", "b", "c", "last")
    best = max(accuracies)
    error = math.sqrt(0.2 / images)
    depths = [
        Depth(((n,),), a, error, 1 - a, gap=best - a, gap_error=gaps)
        for n, a in zip(names, accuracies, strict=True)
    ]
    return Facts(
        images=images,
        per_class=(images // classes,) * classes,
        measured=images,
        depths=tuple(depths),
        curve=(
            CurvePoint(images // 4, accuracies[-1] - 0.15, 2 * error),
            CurvePoint(images // 2, accuracies[-1] - 0.07, 1.4 * error),
            CurvePoint(images, accuracies[-1], error),
        ),
        shift=(0.1, shift),
        confidence=confidence,
    )


def advise(facts, budget_s=280.0, disk_mb=1e5):
    return give_advice(facts, COSTS, Limits(budget_s, disk_mb), backbone="net")


def test_a_validation_split_of_the_data_is_not_trained_on():
    limits = Limits(280.0, 1e5, val_images=100, refit=False)
    advice = give_advice(make_facts((0.3, 0.5, 0.75, 0.7)), COSTS, limits, backbone="net")
    trained = [c for c in (advice.chosen, *advice.others) if "epochs" in c.settings]
    assert trained
    assert not any("refit" in c.settings for c in trained)


@pytest.mark.parametrize(
    ("facts", "number"),
    [
        (make_facts(confidence=0.7, shift=0.05, images=300), 1),
        (make_facts(confidence=0.7, shift=0.05, images=3000), 3),
        (make_facts(confidence=0.1, shift=0.5, images=300), 2),
        (make_facts(confidence=0.1, shift=0.5, images=3000), 4),
        (make_facts(confidence=0.1, shift=0.05, images=300), 1),  # two of three
        (make_facts((0.3, 0.5, 0.9, 0.8), confidence=0.1, shift=0.05), 2),
        (make_facts(confidence=None, shift=0.05), 1),
        (make_facts(images=3000, classes=100), 2),  # 30 of each are few
        (dataclasses.replace(make_facts(), depths=(), curve=()), 0),
    ],
)
def test_the_case_is_told_with_its_figures(facts, number):
    case = find_case(facts)
    assert case.number == number
    assert case.evidence
    if number:
        assert f"{facts.images:,} images" in case.evidence[0]
        assert case.words.split(",")[0] == ("many images" if number in (3, 4) else "few images")


def test_photographs_that_a_probe_knows_are_left_to_it():
    advice = advise(
        make_facts((0.6, 0.8, 0.9, 0.96), images=250, classes=2, confidence=0.72, shift=0.05)
    )
    assert advice.chosen.strategy == "linear-probe"
    assert advice.chosen.settings == {"cut": "last"}
    assert advice.chosen.bill.seconds < 5


def test_images_unlike_those_of_the_network_are_worth_training_it():
    advice = advise(make_facts((0.3, 0.5, 0.75, 0.7)))
    assert advice.chosen.strategy == "partial-fine-tune"
    assert advice.chosen.settings["refit"]
    assert advice.chosen.bill.seconds <= advice.budget_s


def test_earlier_features_are_read_where_they_are_clearly_better():
    facts = make_facts((0.3, 0.5, 0.8, 0.7), gaps=0.01)
    assert facts.best.cut == "c"
    unsure = make_facts((0.3, 0.5, 0.8, 0.7), gaps=0.2)
    assert unsure.best.cut == "last"


def test_where_the_network_knows_the_images_its_last_features_are_left_for_more():
    for gaps, confidence, best in ((0.04, 0.2, "c"), (0.04, 0.8, "last"), (0.03, 0.8, "c")):
        facts = make_facts((0.3, 0.5, 0.8, 0.7), gaps=gaps, confidence=confidence)
        assert facts.best.cut == best
        shallow = [c for c in advise(facts).others if c.strategy == "shallow-probe"]
        assert facts.best.cut == "c" or shallow[0].accuracy <= 0.75


def test_no_mistakes_in_few_images_are_not_none_ever():
    facts = make_facts((1.0, 1.0, 1.0, 1.0), images=20)
    for candidate in (advise(facts).chosen, *advise(facts).others):
        assert candidate.accuracy < 1


@pytest.mark.parametrize("budget_s", [15, 60, 280, 3000])
def test_what_is_advised_fits_the_budget_and_more_time_brings_no_less(budget_s):
    advice = advise(make_facts(), budget_s)
    assert advice.chosen.bill.seconds <= budget_s
    assert advise(make_facts(), 3 * budget_s).chosen.accuracy >= advice.chosen.accuracy - MATTERS


def test_nothing_fits_no_time_and_there_is_still_an_answer():
    advice = advise(make_facts(), 0.0)
    assert advice.chosen.strategy in ("linear-probe", "shallow-probe")


@pytest.mark.parametrize(("disk_mb", "most"), [(0, 0), (16, 1), (1e5, 8)])
def test_what_does_not_fit_the_disk_has_fewer_views_or_is_left_out(disk_mb, most):
    advice = advise(make_facts(), disk_mb=disk_mb)
    listed = (advice.chosen, *advice.others)
    assert max((c.settings["views"] for c in listed if "views" in c.settings), default=0) == most
    assert all(c.bill.disk_mb <= disk_mb for c in listed)


def test_a_busy_or_a_large_task_is_not_sent_to_the_cheapest_cut_for_nothing():
    """10,000 images: epochs are left out before the cut moves up, and what gains nothing is not run."""
    advice = advise(make_facts((0.3, 0.5, 0.78, 0.8), images=10_000), budget_s=600)
    chosen = advice.chosen
    probe = max(c.accuracy for c in (*advice.others, chosen) if c.strategy == "linear-probe")
    assert chosen.strategy == "linear-probe" or chosen.accuracy > probe + MATTERS
    assert chosen.bill.seconds <= 600


def test_every_alternative_has_a_sentence_with_its_figures():
    advice = advise(make_facts())
    assert len(advice.sentences) == len(advice.others) > 3
    for sentence, other in zip(advice.sentences, advice.others, strict=True):
        assert say_time(other.bill.seconds) in sentence
    assert 0.5 <= advice.sure <= 1
    json.dumps(advice.to_json(), allow_nan=False)


def test_what_would_change_the_advice_is_told():
    photos = make_facts((0.4, 0.5, 0.6, 0.7), images=100, confidence=0.5)
    lines = advise(photos, budget_s=30).changes
    assert any("with " in line and "expected" in line for line in lines)


ABSURD = {
    "two images a class": make_facts((0.2, 0.4, 0.5, 0.5), images=6),
    "5,000 classes": make_facts((0.01, 0.02, 0.03, 0.04), images=25_000, classes=5000),
    "all right": make_facts((1.0, 1.0, 1.0, 1.0)),
    "all wrong": make_facts((0.0, 0.0, 0.0, 0.0)),
    "no shift": dataclasses.replace(make_facts(), shift=()),
    "a constant channel": dataclasses.replace(make_facts(), shift=(0.1, math.nan)),
    "infinitely far": dataclasses.replace(make_facts(), shift=(math.inf, math.inf)),
    "no confidence": dataclasses.replace(make_facts(), confidence=None),
    "confidence of NaN": dataclasses.replace(make_facts(), confidence=math.nan),
    "no curve": dataclasses.replace(make_facts(), curve=()),
    "a curve of NaN": dataclasses.replace(
        make_facts(), curve=tuple(CurvePoint(n, math.nan, 0.1) for n in (75, 150, 300))
    ),
    "one cut point": dataclasses.replace(make_facts(), depths=make_facts().depths[-1:]),
    "no error": dataclasses.replace(
        make_facts(), depths=tuple(dataclasses.replace(d, error=0.0) for d in make_facts().depths)
    ),
    "probes of NaN": dataclasses.replace(
        make_facts(),
        depths=tuple(dataclasses.replace(d, accuracy=math.nan) for d in make_facts().depths),
    ),
    "an imbalance": dataclasses.replace(make_facts(), per_class=(298, 1, 1)),
    "nothing measured": dataclasses.replace(make_facts(), depths=(), curve=()),
    "ten million images": dataclasses.replace(
        make_facts(), images=10**7, per_class=(10**7 // 3,) * 3
    ),
}


@pytest.mark.parametrize("facts", ABSURD.values(), ids=ABSURD)
@pytest.mark.parametrize("budget_s", [0.0, 280.0])
def test_absurd_facts_get_advice_that_is_in_bounds(facts, budget_s):
    advice = advise(facts, budget_s)
    for candidate in (advice.chosen, *advice.others):
        assert 0 <= candidate.low <= candidate.high <= 1
        assert (
            math.isnan(candidate.accuracy) or candidate.low <= candidate.accuracy <= candidate.high
        )
        assert candidate.bill.seconds >= 0
    json.dumps(advice.to_json(), allow_nan=False)


def test_a_ratio_is_nearer_to_one_with_fewer_steps_and_less_of_the_network():
    facts, (_, _, b, c) = make_facts(), COSTS.cuts
    few, many = expect_ratio(facts, b, 2)[0], expect_ratio(facts, b, 40)[0]
    assert 1 > few > many > 0
    assert 1 > expect_ratio(facts, c, 40)[0] > many


def candidate(accuracy, seconds, strategy="linear-probe", cut="last"):
    return Candidate(strategy, {"cut": cut}, accuracy, 0.0, 1.0, Bill(seconds, 1.0, 0.0), "")


def test_the_cheapest_of_those_alike_is_taken():
    slow, quick, poor = candidate(0.9, 100), candidate(0.897, 10), candidate(0.8, 1)
    assert choose_candidate([slow, quick, poor], 200) is quick
    assert choose_candidate([slow, quick, poor], 5) is poor
    one, several = candidate(0.9, 1, cut="c"), candidate(0.902, 1, cut="b,c")
    assert choose_candidate([several, one], 5) is one


def test_networks_are_compared_by_what_is_best_with_each():
    first = advise(make_facts((0.3, 0.4, 0.5, 0.6), confidence=0.7))
    second = dataclasses.replace(
        advise(make_facts((0.5, 0.6, 0.7, 0.9), confidence=0.7)), backbone="two"
    )
    chosen = choose_network([first, second])
    assert chosen.backbone == "two"
    assert [name for name, _ in chosen.networks] == ["net", "two"]
    assert choose_network([first]) is first
    nothing = advise(dataclasses.replace(make_facts(), depths=(), curve=()))
    assert choose_network([nothing, nothing]) is nothing


def test_the_rules_need_no_framework():
    code = "import sys, headstart.training.advice; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
