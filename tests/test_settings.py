"""Settings refuse what they cannot mean, and what would have no effect."""

import re

import pytest

from headstart.errors import UsageError
from headstart.training.settings import HEEDED, Settings, holds_out, make_settings
from headstart.training.strategies import STRATEGIES

NAN, INF = float("nan"), float("inf")

OUT_OF_RANGE = [
    *(("penalty", v) for v in (0, -1, NAN, INF, "much", [1])),
    *(("max_bad", v) for v in (-0.1, 1.1, NAN, INF, "few")),
    *(("max_pixels", v) for v in (0, -1, 1.5, "many")),
    *(("workers", v) for v in (0, -1, 257, 1.5, "all")),
    *(("seed", v) for v in (-1, 2**63, 0.5, "x", None)),
    *(("class_weights", v) for v in ("balance", 1, None)),
    *(("strategy", v) for v in ("linear", "", 1, None)),
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
        make_settings({name: value})
    assert caught.value.exit_code == 2
    assert str(value) in str(caught.value) or repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)
    # What is wanted in our words, not in those of a library.
    assert re.search(
        r" (must be (a |of |true|text|[a-z]+, )|is unknown)|^val must be a fraction",
        str(caught.value),
    )
    assert not re.search("(?i)value error|input should|valid|type=", str(caught.value))


@pytest.mark.parametrize("name", list(Settings.model_fields))
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
        make_settings({"strategy": "linear-prob"})


def test_settings_know_what_the_user_said():
    settings = make_settings({"seed": 0, "val": 0.25})
    origins = settings.origins()
    assert {name for name, origin in origins.items() if origin == "user"} == {"seed", "val"}
    assert set(origins) == set(Settings.model_fields)
    assert make_settings({}) == Settings()
    with pytest.raises(ValueError):
        settings.seed = 3


def test_every_strategy_says_what_it_heeds():
    assert list(HEEDED) == list(STRATEGIES)
    for names in HEEDED.values():
        assert names <= set(Settings.model_fields)
    # Every setting is of use to some strategy, at least with another head.
    assert set().union(*HEEDED.values()) == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, r"'epochs' has no effect on linear-probe; it has on partial-fine-tune, "
         r"fine-tune, scratch, and with an MLP head"),
        ({"head": "64", "penalty": 1.0}, "'penalty' has no effect with an MLP --head"),
        ({"strategy": "scratch", "cut": "blocks.4"}, "'cut' has no effect on scratch; it has on linear-"),
        ({"strategy": "scratch", "batchnorm": "frozen"}, "'batchnorm' has no effect on scratch"),
        ({"strategy": "fine-tune", "views": 4}, "'views' has no effect on fine-tune; it has on partial"),
        ({"strategy": "partial-fine-tune", "cut": "a", "freeze_until": "b"}, "exclude each other"),
        ({"strategy": "fine-tune", "augment": "none", "flip": "yes"}, "no effect without augmentation"),
        ({"strategy": "fine-tune", "augment": "mild"}, r"augment 'mild' is unknown"),
        ({"strategy": "fine-tune", "schedule": "linear"}, "schedule must be cosine, one-cycle or constant"),
        ({"head": "relu"}, "relu"),
        ({"strategy": "fine-tune", "head": "64", "penalty": 1.0}, "'penalty' has no effect with an MLP"),
        ({"strategy": "fine-tune", "schedule": "one-cycle", "warmup": 0.1}, "'warmup' has no effect"),
        ({"strategy": "partial-fine-tune", "cut": "a", "minutes": 2.0},
         "'minutes' has no effect with cut 'a'"),
    ],
    ids=lambda v: str(v)[:40],
)  # fmt: skip
def test_a_setting_without_effect_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        make_settings(options)


@pytest.mark.parametrize(
    ("options", "fraction"),
    [
        ({}, 0.0),
        ({"val": 0.3}, 0.3),
        ({"head": "64"}, 0.2),
        ({"strategy": "fine-tune"}, 0.2),
        ({"strategy": "fine-tune", "val": 0}, 0.0),
        ({"strategy": "shallow-probe"}, 0.0),
    ],
)
def test_what_is_trained_by_gradient_holds_some_out(options, fraction):
    assert holds_out(make_settings(options)) == fraction
