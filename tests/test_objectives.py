"""What the training loop minimises, against NumPy; what it says of outputs, against the problem."""

import numpy as np
import pytest
import torch

from headstart.problem import PROBLEMS, SINGLE_LABEL, softmax
from headstart.training.objectives import OBJECTIVES

LOGITS = np.array([[0.0, 3.0, 1.0], [2.0, 0.0, 0.5]], dtype=np.float32)
LABELS, WEIGHTS = np.array([1, 2]), np.array([1.0, 2.0, 4.0], dtype=np.float32)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_has_an_objective_that_reads_alike(name):
    problem = PROBLEMS[name]
    objective = OBJECTIVES[problem.loss]
    logits = torch.from_numpy(LOGITS)
    linked = problem.link(LOGITS)
    assert objective.link(logits).numpy() == pytest.approx(linked, abs=1e-6)
    confusion = problem.confuse(objective.read(logits).numpy(), linked)
    assert np.trace(confusion) == confusion.sum() > 0
    assert objective.right(logits, objective.read(logits)).tolist() == [1, 1]
    soft = objective.soften(objective.read(logits), 3)
    assert soft.dtype == torch.float32
    assert (objective.read(soft) == objective.read(logits)).all()


def test_cross_entropy():
    objective = OBJECTIVES[SINGLE_LABEL.loss]
    logits, labels = torch.from_numpy(LOGITS), torch.from_numpy(LABELS)
    losses = -np.log(softmax(LOGITS))
    of_label = losses[[0, 1], LABELS]
    assert float(objective.val_loss(logits, labels, None)) == pytest.approx(of_label.mean())
    weighted = np.average(of_label, weights=WEIGHTS[LABELS])
    weights = torch.from_numpy(WEIGHTS)
    assert float(objective.val_loss(logits, labels, weights)) == pytest.approx(weighted)
    targets = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=np.float32)
    smooth = targets * 0.9 + 0.1 / 3
    expected = (WEIGHTS * smooth * losses).sum(axis=1).mean()
    found = objective.loss(logits, torch.from_numpy(targets), weights, 0.1)
    assert float(found) == pytest.approx(expected)
