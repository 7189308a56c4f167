"""Takes the name of a loss, gives it in PyTorch, with the rest of a `Problem` that the training loop needs.

Shape letters: B images a batch, C classes.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["OBJECTIVES", "Objective"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss that is minimised, and how outputs are read.

    Attributes:
        soften: targets (B, …) and C -> soft targets float32 (B, C), which can be mixed.
        read: logits or soft targets (B, C) -> the targets (B, …) that weigh most in them.
        right: logits and targets (B, …) -> how right each image is, (B,), as `Problem.right`.
        loss: logits, soft targets, weights (C,) of the classes, label smoothing -> the mean over the
            images, to be minimised.
        val_loss: logits, targets, weights (C,) of the classes or None -> the weighted mean over the
            validation images.
        link: logits -> probabilities, as `Problem.link`.
    """

    soften: Callable[[torch.Tensor, int], torch.Tensor]
    read: Callable[[torch.Tensor], torch.Tensor]
    right: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
    val_loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    link: Callable[[torch.Tensor], torch.Tensor]


def _one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return nn.functional.one_hot(labels, classes).float()


def _soft_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """-sum_c w_c t_c log p_c."""
    return nn.functional.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)


def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, labels, weight=weights)


def _soft_binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """-sum_c w_c (t_c log p_c + (1 - t_c) log(1 - p_c)); smoothing moves every target towards one half."""
    smooth = targets * (1 - smoothing) + smoothing / 2
    return _sum_up(logits, smooth, weights)


def _binary_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    return _sum_up(logits, labels.float(), weights)


def _sum_up(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """The sum over the labels of an image, as `Problem.losses` has it; the mean over the images."""
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, targets, weight=weights, reduction="none"
    )
    return losses.sum(dim=1).mean()


def _overlap(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    given, true = logits > 0, labels > 0
    either = (given | true).sum(dim=1)
    return torch.where(either > 0, (given & true).sum(dim=1) / either.clamp(min=1), 1.0)


# By `Problem.loss`.
OBJECTIVES = {
    "cross-entropy": Objective(
        soften=_one_hot,
        read=lambda logits: logits.argmax(dim=1),
        right=lambda logits, labels: logits.argmax(dim=1) == labels,
        loss=_soft_cross_entropy,
        val_loss=_cross_entropy,
        link=lambda logits: logits.softmax(dim=1),
    ),
    "binary-cross-entropy": Objective(
        soften=lambda labels, classes: labels.float(),
        read=lambda logits: (logits > 0).long(),
        right=_overlap,
        loss=_soft_binary_cross_entropy,
        val_loss=_binary_cross_entropy,
        link=torch.sigmoid,
    ),
}
