"""Settings refuse what they cannot mean, and every strategy keeps the same contract."""

import numpy as np
import pytest

from headstart.engines import EngineChoice
from headstart.errors import UsageError
from headstart.features import Features, no_progress
from headstart.strategies import STRATEGIES, Settings, Task, make_settings, train

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


ENGINE = EngineChoice("torch", "cpu", "fp32", "0", 4, "as asked for")


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


# ---------------------------------------------------------------- the contract


def make_task(counts, seed=0, **options):
    """Separable features, so many of each class; the cut before the classifier is `last`."""
    labels = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(counts), 12))
    values = {
        cut: (centres[labels] * strength + rng.normal(size=(len(labels), 12))).astype(np.float32)
        for cut, strength in (("first", 0.3), ("last", 2))
    }
    ids = tuple(f"{n:03}.png" for n in range(len(labels)))
    blank = ("",) * len(labels)
    classes = tuple(f"c{k}" for k in range(len(counts)))
    options = make_settings({"seed": seed, **options})
    features = Features(ids, values, blank, blank, ENGINE)
    return Task(features, labels, ids, classes, "last", options, no_progress)


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return request.param


def test_a_strategy_learns(strategy):
    task = make_task([20, 15, 25], strategy=strategy)
    trained = train(task)
    matrix = task.features.values[trained.cut]
    shares = trained.head.predict_proba(matrix)
    assert trained.head.weight.shape == (3, matrix.shape[1])
    assert (trained.head.weight.dtype, trained.head.bias.shape) == (np.float32, (3,))
    for probabilities in (shares, trained.probabilities):
        assert probabilities.shape == (60, 3)
        assert (probabilities >= 0).all()
        assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert (probabilities.argmax(axis=1) == task.labels).mean() > 0.9
    assert set(trained.measured) <= set(Settings.model_fields)


def test_a_strategy_gives_the_same_bytes_for_the_same_seed(strategy):
    first, again = (train(make_task([9, 6], seed=3, strategy=strategy)) for _ in range(2))
    for name in ("weight", "bias"):
        assert getattr(first.head, name).tobytes() == getattr(again.head, name).tobytes()
    assert first.probabilities.tobytes() == again.probabilities.tobytes()
    assert (first.measured, first.evidence) == (again.measured, again.evidence)


@pytest.mark.parametrize("counts", [[1, 1], [1, 20], [2, 2], [1, 1, 1, 1, 1]])
def test_a_strategy_works_on_few_images(strategy, counts):
    task = make_task(counts, strategy=strategy)
    trained = train(task)
    shares = trained.head.predict_proba(task.features.values[trained.cut])
    assert (shares.argmax(axis=1) == task.labels).all()
    assert (trained.probabilities is None) == (min(counts) < 2)


@pytest.mark.parametrize(
    ("counts", "given", "decided"),
    [
        ([30, 10], "auto", "balanced"),
        ([29, 10], "auto", "none"),
        ([10, 30, 11], "auto", "balanced"),
        ([30, 10], "none", None),
        ([10, 10], "balanced", None),
    ],
)
def test_classes_are_balanced_from_three_to_one(strategy, counts, given, decided):
    measured = train(make_task(counts, strategy=strategy, class_weights=given)).measured
    assert measured.get("class_weights") == decided


def test_balancing_helps_the_small_class():
    def share(scheme):
        task = make_task([60, 6], class_weights=scheme, penalty=10.0)
        trained = train(task)
        return trained.head.predict_proba(task.features.values["last"])[60:, 1].mean()

    assert share("balanced") > share("none") + 0.1


def test_a_penalty_that_is_given_is_kept(strategy):
    trained = train(make_task([9, 6], strategy=strategy, penalty=0.5))
    assert "penalty" not in trained.measured
