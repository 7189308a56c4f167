"""What training costs, by arithmetic on measured work."""

import dataclasses
import json

import pytest

from headstart.training.costs import PIXELS, Costs, CutWork

WHOLE = CutWork(PIXELS, 0.0, 60.0, 56.0, 0.0, 14.0)
UPPER = CutWork("b", 0.05, 20.0, 10.0, 0.6, 10.0)
COSTS = Costs((WHOLE, UPPER), forward_ms=5.0, plain_ms=3.0, view_ms=2.0, probe_s=0.5, threads=2)
TASK = {"images": 800, "val_images": 200, "epochs": 10, "views": 4, "batch": 32}


def test_costs_survive_a_file():
    assert Costs.from_json(json.loads(json.dumps(COSTS.to_json()))) == COSTS


def test_work_takes_less_time_with_more_threads_but_not_half_as_long_with_two():
    alone = dataclasses.replace(COSTS, threads=1)
    assert alone.seconds(1000) == pytest.approx(1)
    assert 0.5 < COSTS.seconds(1000) < 0.62


def test_training_costs_its_steps_and_its_views():
    bill = COSTS.bill_training(UPPER, **TASK)
    steps = COSTS.seconds(10 * 20.0 * (800 + 200 / 3))
    assert steps < bill.seconds < steps + 25
    longer = COSTS.bill_training(UPPER, **{**TASK, "epochs": 20})
    assert longer.seconds - bill.seconds == pytest.approx(steps, rel=0.02)
    assert bill.disk_mb == pytest.approx((800 * 4 + 200) * 0.05)
    assert bill.memory_mb > 32 * 10


def test_training_from_pixels_keeps_nothing_on_disk():
    bill = COSTS.bill_training(WHOLE, **TASK)
    assert bill.disk_mb == 0
    assert bill.seconds > COSTS.bill_training(UPPER, **TASK).seconds


def test_training_again_on_all_images_costs_more_than_the_first_time():
    once, twice = (COSTS.bill_training(UPPER, **TASK, refit=refit) for refit in (False, True))
    assert 1.9 < twice.seconds / once.seconds < 2.4
