"""Takes the name of a loss, gives it in PyTorch, with what else of a `Problem` the training loop needs.

Shape letters: B images a batch, C classes.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["OBJECTIVES", "Objective"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised, and how outputs are read.

    Attributes:
        spread: targets (B, …) and C -> float32 (B, C), which can be mixed.
        read: logits or spread targets (B, C) -> the targets (B, …) that they say.
        loss: logits, spread targets, weights (C,) of the classes, label smoothing -> the mean over the
            images, to be minimised.
        held_loss: logits, targets, weights (C,) of the classes or None -> the mean over images that are
            validated on, by their weights.
        link: logits -> probabilities, as `Problem.link`.
    """

    spread: Callable[[torch.Tensor, int], torch.Tensor]
    read: Callable[[torch.Tensor], torch.Tensor]
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
    held_loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    link: Callable[[torch.Tensor], torch.Tensor]


def _one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return nn.functional.one_hot(labels, classes).float()


def _soft_cross_entropy(
    logits: torch.Tensor, shares: torch.Tensor, weights: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """-sum_c w_c t_c log p_c."""
    return nn.functional.cross_entropy(logits, shares, weight=weights, label_smoothing=smoothing)


def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, labels, weight=weights)


# By `Problem.loss`.
OBJECTIVES = {
    "cross-entropy": Objective(
        spread=_one_hot,
        read=lambda logits: logits.argmax(dim=1),
        loss=_soft_cross_entropy,
        held_loss=_cross_entropy,
        link=lambda logits: logits.softmax(dim=1),
    )
}
