"""A bound on time: training ends by it with a learning rate that has fallen, and with a classifier."""

import time

import numpy as np
import pytest

from headstart.parallel import READING
from headstart.runs.budget import Budget, OutOfTime
from headstart.training.heads import parse_head
from headstart.training.inputs import MatrixInputs
from headstart.training.loop import Examples, Watch, train_network
from headstart.training.recipes import Recipe
from headstart.training.settings import make_settings
from headstart.training.trainable import new_head


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    inputs = MatrixInputs(rng.normal(size=(120, 6)) + labels[:, None])
    ids = tuple(f"{n}.png" for n in range(120))
    return Examples(inputs, labels, ids, np.arange(90), np.arange(90, 120), np.ones(2))


def train(examples, **watch):
    network = new_head(parse_head("8"), 6, 2, 0)
    recipe = Recipe(epochs=500, batch=16, lr=1e-2, train_precision="fp32")
    return train_network(network, examples, recipe, watch=Watch(**watch)), network


def test_epochs_that_do_not_fit_are_left_out_and_the_rate_still_falls(examples):
    began = time.monotonic()
    outcome, _ = train(examples, deadline=began + 2, on_epoch=lambda entry: time.sleep(0.1))
    assert time.monotonic() - began < 2.5
    assert 5 < outcome.epochs < 25
    assert outcome.epochs == len(outcome.history) - 1
    assert not outcome.interrupted
    rates = [entry["lr"] for entry in outcome.history[1:]]
    assert rates[-1] < 0.2 * max(rates)


def test_without_any_time_the_start_is_kept(examples):
    outcome, network = train(examples, deadline=time.monotonic() - 1)
    assert [entry["epoch"] for entry in outcome.history] == [0]
    assert outcome.best_epoch == 0
    start = new_head(parse_head("8"), 6, 2, 0).state_dict()
    assert all((start[k] == v).all() for k, v in network.state_dict().items())


def test_a_plan_is_never_lengthened():
    watch = Watch(deadline=time.monotonic() + 100)
    assert watch.count_epochs(3, 15, 0.001) == 15
    assert watch.count_epochs(3, 15, 20.0) == 7
    assert watch.count_epochs(3, 15, 1000.0) == 3
    assert Watch().count_epochs(3, 15, 1000.0) == 15


def test_a_budget_ends_the_reading_of_views_and_nothing_else():
    told = []
    budget = Budget("20s", time.monotonic() - 30)
    assert budget.left() == 0
    guarded = budget.guard(lambda *what: told.append(what))
    guarded("training", 1, 5)
    guarded(READING, 5, 5)  # it has just ended
    with pytest.raises(OutOfTime):
        guarded(READING, 4, 5)
    assert len(told) == 3
    Budget("20s", time.monotonic()).guard(lambda *what: None)(READING, 1, 5)


def test_five_minutes_are_the_default_of_what_is_advised_alone():
    assert Budget.of(make_settings({}), 0.0).seconds == 300
    assert Budget.of(make_settings({"strategy": "fine-tune"}), 0.0) is None
    assert (
        Budget.of(make_settings({"strategy": "fine-tune", "budget": "1.5h"}), 0.0).seconds == 5400
    )
