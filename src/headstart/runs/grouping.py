"""Takes data without groups, finds by measurement whether images belong together, and says so.

Frames of a track that lie on both sides of a split make a classifier look better than it is, and have its
training stopped at the wrong epoch.
"""

import dataclasses

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.groupings import name_groups, suggest_groupings
from headstart.features.extraction import extract
from headstart.features.runtime import Runtime
from headstart.networks.backbones import Backbone
from headstart.parallel import Progress
from headstart.problem import SINGLE_LABEL
from headstart.runs.sampling import SAMPLE, draw_parts
from headstart.runs.sources import load_network
from headstart.training.grouping import GroupingScore, choose_grouping, measure_groupings
from headstart.training.settings import AUTO, Settings, make_settings
from headstart.training.strategies.table import choose_strategy

__all__ = ["find_groups"]


def find_groups(
    dataset: Dataset, settings: Settings, progress: Progress
) -> tuple[Dataset, tuple[GroupingScore, ...]]:
    """Group the images of a data set by their names, where a probe shows that this matters.

    Args:
        dataset: its test images are named by the same rule, and not looked at.
        settings: name the network whose last features are probed; where it starts from random weights, the
            usual one is.

    Returns:
        (the data set, with groups and a warning where some matter; what was measured).

    Raises:
        InputError, VerificationError, ResourceError: as `extract` says.
    """
    is_given = any(dataset.groups) or settings.data.group is not None
    if is_given or dataset.problem.name != SINGLE_LABEL.name:
        return dataset, ()
    of_train = np.array([split in ("train", "") for split in dataset.splits], dtype=bool)
    pool = dataset.select(np.flatnonzero(of_train & dataset.labelled()))
    suggested = suggest_groupings(pool.ids, pool.labels)
    if not suggested:
        return dataset, ()
    if settings.strategy != AUTO and choose_strategy(settings).random_weights:
        settings = make_settings(
            {n: v for n, v in settings.given().items() if n in Runtime.model_fields}
        )
    progress("loading the network", 0, 0)
    scores = _measure(pool, suggested, load_network(settings), settings, progress)
    chosen = choose_grouping(scores)
    if chosen is not None:
        groups = name_groups(dataset.ids)[chosen.name]
        warnings = (*dataset.warnings, _say(chosen))
        dataset = dataclasses.replace(dataset, groups=groups, warnings=warnings)
    return dataset, scores


def _measure(
    pool: Dataset,
    suggested: dict[str, tuple[str, ...]],
    backbone: Backbone,
    settings: Settings,
    progress: Progress,
) -> tuple[GroupingScore, ...]:
    """Measure groupings on a sample of whole groups."""
    coarsest = tuple(suggested.values())[-1]
    rows = np.arange(len(pool))
    together = dataclasses.replace(pool, groups=coarsest)
    rows = np.sort(draw_parts(together, rows, len(pool) // SAMPLE, settings.seed)[0])
    features = extract(pool.select(rows), backbone, settings.runtime, progress=progress)
    good = np.flatnonzero(features.good())
    rows = rows[good]
    return measure_groupings(
        features.select(good).values[backbone.cuts[-1].name],
        pool.labels[rows],
        {what: [names[row] for row in rows] for what, names in suggested.items()},
        len(pool.classes),
        seed=settings.seed,
        progress=progress,
    )


def _say(score: GroupingScore) -> str:
    return (
        f"images are kept together by {score.name}, in {score.groups:,} groups: a probe is right on "
        f"{score.together:.2f} of the images of groups it has not seen, and on {score.apart:.2f} where "
        "groups are torn apart, which flatters; --group none tears them apart"
    )
