"""Settings refuse what they cannot mean, and what would have no effect."""

import re

import pytest

from headstart.errors import UsageError
from headstart.training.decisions import Decisions
from headstart.training.recipes import Recipe
from headstart.training.settings import FIELDS, Settings, make_settings, read_budget
from headstart.training.strategies.table import STRATEGIES, choose_strategy

NAN, INF = float("nan"), float("inf")

OUT_OF_RANGE = [
    *(("penalty", v) for v in (0, -1, NAN, INF, "much", [1])),
    *(("max_bad", v) for v in (-0.1, 1.1, NAN, INF, "few")),
    *(("max_pixels", v) for v in (0, -1, 1.5, "many")),
    *(("workers", v) for v in (0, -1, 257, 1.5, "all")),
    *(("seed", v) for v in (-1, 2**63, 0.5, "x", None)),
    *(("class_weights", v) for v in ("balance", 1, None)),
    *(("strategy", v) for v in ("linear", "", 1, None)),
    *(("budget", v) for v in ("10", "5s", "", "m", "-1m", "1e3s", "10 m", "ten m", "0m", 600)),
    *(("backbone", v) for v in (1, None)),
    *(("val", v) for v in (-0.1, 1, 1.5, NAN, INF, [0.2])),
    ("allow_outside", "perhaps"),
    ("weights", 1),
    ("group", 1),
    ("root", 1),
    ("device", None),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE, ids=lambda v: str(v)[:20])
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(UsageError, match=f"^{name}\\b") as caught:
        choose_strategy(make_settings({name: value}))
    assert caught.value.exit_code == 2
    assert str(value) in str(caught.value) or repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)
    # What is wanted in our words, not in those of a library.
    assert re.search(
        r" (must be (a |of |true|text|[a-z]+, )|is unknown)|^val must be a fraction",
        str(caught.value),
    )
    assert not re.search("(?i)value error|input should|valid|type=", str(caught.value))


@pytest.mark.parametrize("name", list(FIELDS))
def test_every_setting_says_what_it_takes(name):
    with pytest.raises(UsageError, match=rf"^{name} must be [a-z].*, got \[\]$"):
        make_settings({name: []})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": -1}, "penalty must be a number above 0, got -1"),
        (
            {"workers": 300},
            "workers must be a whole number of at least 1 and of at most 256, got 300",
        ),
        ({"layer_decay": 2}, "layer_decay must be a number above 0 and of at most 1, got 2"),
        ({"flip": "maybe"}, "flip must be auto, yes or no, got maybe"),
        (
            {"budget": "5s"},
            "budget must be a time of at least 20s, such as 90s, 10m or 1h, got 5s",
        ),
        (
            {"val": 2.0},
            "val must be a fraction in [0, 1), or the path of a folder or manifest, got 2.0",
        ),
    ],
)
def test_what_is_wanted_is_said_in_plain_words(options, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        make_settings({"strategy": "fine-tune", **options})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("penalti", r"setting 'penalti' is unknown \(nearest: penalty\); known: strategy, "),
        ("zzzzz", r"setting 'zzzzz' is unknown; known: "),
    ],
)
def test_an_unknown_setting_names_the_nearest(name, message):
    with pytest.raises(UsageError, match=message):
        make_settings({name: 1})


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(UsageError, match=r"'linear-prob' is unknown \(nearest: linear-probe\)"):
        choose_strategy(make_settings({"strategy": "linear-prob"}))


@pytest.mark.parametrize(
    ("text", "seconds"), [("20s", 20), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("0.5m", 30)]
)
def test_a_budget_is_a_number_and_a_unit(text, seconds):
    assert make_settings({"budget": text}).budget == text
    assert read_budget(text) == seconds


def test_settings_know_what_the_user_said():
    settings = make_settings({"seed": 0, "val": 0.25})
    assert settings.given() == {"seed": 0, "val": 0.25}
    told = settings.describe(Decisions())
    assert {n for n, entry in told.items() if entry["origin"] == "user"} == {"seed", "val"}
    assert list(told) == list(FIELDS)
    assert make_settings({}) == Settings()
    with pytest.raises(ValueError):
        settings.seed = 3


def test_what_was_decided_stands_where_the_user_left_it_open():
    decisions = Decisions()
    for name, value in (("epochs", 15), ("lr", 0.1), ("flip", "no"), ("cut", "b"), ("views", 2)):
        decisions.settle(name, value, "measured")
    settings = make_settings({"lr": 0.5, "flip": "auto", "views": 8})
    told = settings.describe(decisions)
    assert told["epochs"] == {"value": 15, "origin": "measured"}
    assert told["lr"] == {"value": 0.5, "origin": "user"}
    assert told["flip"] == {"value": "no", "origin": "measured"}
    assert told["cut"] == {"value": "b", "origin": "measured"}
    assert told["views"] == {"value": 8, "origin": "user"}
    assert told["batch"] == {"value": None, "origin": "default"}
    assert told["max_bad"] == {"value": 0.001, "origin": "default"}


def test_parts_of_the_settings_have_what_was_given():
    settings = make_settings({"val": 0.2, "epochs": 3, "device": "cpu", "head": "8"})
    assert settings.data.val == 0.2
    assert settings.recipe.over(Recipe(lr=0.5, epochs=9)) == Recipe(lr=0.5, epochs=3)
    assert settings.runtime.device == "cpu"
    assert settings.head == "8"


def test_every_strategy_says_what_it_uses():
    for name, strategy in STRATEGIES.items():
        assert strategy.name == name
        assert strategy.help
        assert strategy.uses <= set(FIELDS)
        assert strategy.better is None or strategy.better[0] in STRATEGIES
    # Every setting is of use to some strategy, at least with another head.
    assert set().union(*(s.uses for s in STRATEGIES.values())) == set(FIELDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "linear-probe", "epochs": 3},
         r"'epochs' has no effect on linear-probe; it has on partial-fine-tune, fine-tune, scratch, and "
         r"with an MLP head"),
        ({"strategy": "linear-probe", "head": "64", "penalty": 1.0},
         "'penalty' has no effect with an MLP --head"),
        ({"strategy": "scratch", "cut": "blocks.4"}, "'cut' has no effect on scratch; it has on linear-"),
        ({"strategy": "scratch", "batchnorm": "frozen"}, "'batchnorm' has no effect on scratch"),
        ({"strategy": "fine-tune", "views": 4}, "'views' has no effect on fine-tune; it has on partial"),
        ({"strategy": "partial-fine-tune", "cut": "a", "freeze_until": "b"}, "exclude each other"),
        ({"strategy": "fine-tune", "augment": "none", "flip": "yes"}, "no effect without augmentation"),
        ({"strategy": "fine-tune", "augment": "mild"}, r"augment 'mild' is unknown"),
        ({"strategy": "fine-tune", "schedule": "linear"}, "schedule must be cosine, one-cycle or constant"),
        ({"strategy": "linear-probe", "head": "relu"}, "relu"),
        ({"strategy": "fine-tune", "head": "64", "penalty": 1.0}, "'penalty' has no effect with an MLP"),
        ({"strategy": "fine-tune", "schedule": "one-cycle", "warmup": 0.1}, "'warmup' has no effect"),
    ],
    ids=lambda v: str(v)[:40],
)  # fmt: skip
def test_a_setting_without_effect_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        choose_strategy(make_settings(options))


@pytest.mark.parametrize(
    ("options", "fraction"),
    [
        ({"strategy": "linear-probe"}, 0.0),
        ({"strategy": "linear-probe", "val": 0.3}, 0.3),
        ({"strategy": "linear-probe", "head": "64"}, 0.2),
        ({"strategy": "fine-tune"}, 0.2),
        ({"strategy": "fine-tune", "val": 0}, 0.0),
        ({"strategy": "shallow-probe"}, 0.0),
    ],
)
def test_what_is_trained_by_gradient_holds_some_out(options, fraction):
    settings = make_settings(options)
    assert choose_strategy(settings).held_fraction(settings) == fraction
