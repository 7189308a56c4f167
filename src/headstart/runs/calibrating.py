"""Takes a trained head and its probabilities on images that it has not seen, gives it calibrated.

Shape letters: N measured images, C classes.
"""

import dataclasses

import numpy as np

from headstart.arrays import FloatNC, IntN, Targets
from headstart.label_metrics import THRESHOLD
from headstart.problem import MULTI_LABEL, SINGLE_LABEL, Problem, multi_label
from headstart.runs.documents import Measured
from headstart.training.conformal import MAX_SCORES, Scores, draw_some, score_labels
from headstart.training.heads import Head, assign_folds, scale_head
from headstart.training.novelty import MAX_KNOWN, Novelty, learn_novelty
from headstart.training.probes import units_of
from headstart.training.rules import MAX_FOLDS
from headstart.training.task import Folds, HeadTask, Trained
from headstart.training.temperature import (
    choose_temperature,
    choose_temperatures_apart,
    scale_probabilities,
)
from headstart.training.thresholds import choose_thresholds, choose_thresholds_apart

__all__ = ["Calibrated", "calibrate", "find_measured", "know_images", "settle_thresholds"]


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated:
    """A head whose probabilities are calibrated, as far as there was anything to measure.

    Attributes:
        head: with its logits divided by the temperature.
        temperature: 1 where nothing was measured, or images may have several labels.
        measured: each image at a temperature that was chosen without it; None where nothing was measured.
        sets: by which prediction sets are made; None likewise.
    """

    head: Head
    temperature: float
    measured: Measured | None
    sets: Scores | None = None


def calibrate(task: HeadTask, head: Head, measured: Measured | None) -> Calibrated:
    """Calibrate a head, and record with what effect.

    Heads against the rest, for images of several labels, are left as they are: each is fitted to be right as
    often as it says, and no smoothing is used there.

    Args:
        measured: its probabilities, as `find_measured` gives them.
    """
    if measured is None or task.dataset.problem.name != SINGLE_LABEL.name:
        return Calibrated(head, 1.0, measured)
    labels, probabilities = measured.labels, measured.probabilities
    units, parts = _part(task, labels)
    temperature = choose_temperature(labels, probabilities, units)
    apart = choose_temperatures_apart(labels, probabilities, units, parts)
    scaled = scale_probabilities(probabilities, apart)
    losses = [float(SINGLE_LABEL.losses(labels, p).mean()) for p in (probabilities, scaled)]
    task.decisions.record(
        "temperature",
        {
            "value": temperature,
            "images": len(labels),
            "log_loss": {"before": losses[0], "after": losses[1]},
        },
    )
    calibrated = dataclasses.replace(measured, probabilities=scaled)
    some = draw_some(measured.ids, MAX_SCORES, task.settings.seed)
    sets = Scores.of(score_labels(labels, scaled)[some], [units[row] for row in some])
    return Calibrated(scale_head(head, temperature), temperature, calibrated, sets)


def settle_thresholds(
    task: HeadTask, measured: Measured | None
) -> tuple[Problem, tuple[float, ...]]:
    """Choose from which probability on each label is given: (the problem to measure with, the thresholds).

    The figures are of thresholds that were chosen without the image that is measured.
    """
    classes = task.dataset.classes
    if measured is None:
        return MULTI_LABEL, (THRESHOLD,) * len(classes)
    targets, probabilities = measured.labels, measured.probabilities
    thresholds = choose_thresholds(targets, probabilities)
    images = (targets > 0).sum(axis=0).tolist()
    chosen = {
        name: {"value": value, "images": count}
        for name, value, count in zip(classes, thresholds.tolist(), images, strict=True)
    }
    task.decisions.record("thresholds", chosen)
    apart = choose_thresholds_apart(targets, probabilities, _part(task, targets)[1])
    return multi_label(apart), tuple(thresholds.tolist())


def know_images(task: HeadTask, trained: Trained) -> Novelty | None:
    """Learn what the task's images have in common; None where they are few, or the whole network was trained.

    The features are those below what was trained, which are at hand: no image passes through the network
    again, and none of them was learned by heart.
    """
    if not trained.frozen:
        return None
    rows = np.sort(np.concatenate([task.rows, task.val_rows]))
    ids = [task.dataset.ids[row] for row in rows]
    some = rows[draw_some(ids, MAX_KNOWN, task.settings.seed)]
    features = task.features.values[trained.frozen][some]
    return learn_novelty(features, units_of(task, some), trained.frozen, task.settings.seed)


def find_measured(
    task: HeadTask, probabilities: FloatNC | None, folds: Folds | None = None
) -> Measured | None:
    """Give the predictions on the validation images, else those out of fold on the training images.

    Args:
        probabilities, folds: as in `Trained`.
    """
    if probabilities is None:
        return None
    part, rows = "val" if len(task.val_rows) else "cross-validation", _list_rows(task)
    used = task.dataset
    return Measured(
        probabilities=np.asarray(probabilities, dtype=np.float32),
        labels=used.targets[rows],
        ids=tuple(used.ids[row] for row in rows),
        part=part,
        classes=used.classes,
        groups=tuple(used.groups[row] for row in rows),
        folds=() if folds is None else tuple(folds.numbers.tolist()),
    )


def _list_rows(task: HeadTask) -> IntN:
    """List the images that are measured: the validation images, else those trained on, out of fold."""
    return task.val_rows if len(task.val_rows) else task.rows


def _part(task: HeadTask, targets: Targets) -> tuple[tuple[str, ...], IntN]:
    """Give (the unit of each measured image, its part, (N,)), whose images have no say in what it is measured
    with."""
    units = units_of(task, _list_rows(task))
    settings, problem = task.settings, task.dataset.problem
    return units, assign_folds(targets, units, MAX_FOLDS, settings.seed, problem=problem)
