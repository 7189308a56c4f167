"""Takes data without groups, finds which images belong together, by measurement, and says so.

Frames of a track that lie on both sides of a split make a classifier look better than it is, and have its
training stopped at the wrong epoch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.groupings import LARGEST, name_bursts, name_groups, suggest_groupings
from headstart.data.shots import read_shots
from headstart.data.splits import join_units
from headstart.features.clusters import find_clusters
from headstart.features.duplicates import group_copies
from headstart.features.extraction import extract
from headstart.features.near_copies import find_near_copies
from headstart.features.runtime import Runtime
from headstart.parallel import Progress
from headstart.problem import SINGLE_LABEL
from headstart.runs.sampling import SAMPLE, draw_parts
from headstart.runs.sources import load_network
from headstart.training.grouping import GroupingScore, choose_grouping, measure_groupings
from headstart.training.settings import AUTO, Settings, make_settings
from headstart.training.strategies.table import choose_strategy

__all__ = ["find_groups", "name_alike"]


def find_groups(
    dataset: Dataset, settings: Settings, progress: Progress
) -> tuple[Dataset, tuple[GroupingScore, ...]]:
    """Group the images of a data set, where a probe shows that this matters, and their near copies.

    Groupings are suggested by names, by the camera and the time, and, where all images are looked at, by
    clusters of their features. Near copies are kept together whatever the probe says.

    Args:
        dataset: its test images are named by the same rule, and not looked at.
        settings: name the network whose last features are probed; where it starts from random weights, the
            usual one is.

    Returns:
        (the data set, with groups and warnings where there are some; what was measured).

    Raises:
        InputError, VerificationError, ResourceError: as `extract` says.
    """
    is_given = any(dataset.groups) or settings.data.group is not None
    if is_given or dataset.problem.name != SINGLE_LABEL.name:
        return dataset, ()
    of_train = np.array([split in ("train", "") for split in dataset.splits], dtype=bool)
    rows = np.flatnonzero(of_train & dataset.labelled())
    pool = dataset.select(rows)
    progress("reading the images' headers", 0, 0)
    shots = read_shots(pool, max_pixels=settings.runtime.max_pixels)
    groupings = {**name_groups(pool.ids), **name_bursts(pool.ids, shots)}
    suggested = suggest_groupings(groupings, pool.labels)
    parts = len(pool) // SAMPLE
    if not suggested and parts > 1:
        return dataset, ()
    look = _Look(pool, suggested, settings, progress)
    scores = look.measure(suggested)
    if choose_grouping(scores) is None and parts < 2:  # in a sample, few would have their company
        clusters = look.suggest_clusters()
        suggested, scores = {**suggested, **clusters}, (*scores, *look.measure(clusters))
    chosen, warnings, groups = choose_grouping(scores), list(dataset.warnings), [""] * len(dataset)
    if chosen is not None:
        warnings.append(_say(chosen))
        named = name_groups(dataset.ids).get(chosen.name)
        for place, row in enumerate(rows.tolist()):
            groups[row] = suggested[chosen.name][place]
        groups = list(named or groups)
    if parts < 2:
        copies = look.find_copies([groups[row] or dataset.ids[row] for row in rows])
        for place, name in copies.items():
            groups[rows[place]] = name
        if copies:
            warnings.append(_say_copies(len(copies), len(set(copies.values()))))
    return dataclasses.replace(dataset, groups=tuple(groups), warnings=tuple(warnings)), scores


def name_alike(facts: Mapping[str, Any], ids: Sequence[str]) -> tuple[str, ...]:
    """Name groups of other images by the rule that a run's own were grouped by: N names.

    Args:
        facts: of the run's decisions, which may come from anywhere; what is not as `find_groups` gives it
            says nothing.

    Returns:
        () where there is no rule, where it does not go by names, or where each image would be its own group.
    """
    try:
        chosen = choose_grouping([GroupingScore(**score) for score in facts["groupings"]])
        names = () if chosen is None else name_groups(ids).get(chosen.name, ())
    except (KeyError, TypeError):
        return ()
    return names if len(set(names)) < len(names) else ()


class _Look:
    """The features of images without groups, or of a sample of them, whole groups of what is suggested.

    Attributes:
        rows: those of the pool that can be read, of the sample.
        values: float (len(rows), D), the last features.
        sha256: len(rows) hashes of the images' bytes.
    """

    def __init__(
        self,
        pool: Dataset,
        suggested: dict[str, tuple[str, ...]],
        settings: Settings,
        progress: Progress,
    ) -> None:
        self.pool, self.settings, self.progress = pool, settings, progress
        if settings.strategy != AUTO and choose_strategy(settings).random_weights:
            settings = make_settings(
                {n: v for n, v in settings.given().items() if n in Runtime.model_fields}
            )
        progress("loading the network", 0, 0)
        backbone = load_network(settings)
        coarsest = next(reversed(suggested.values()), pool.groups)
        together = dataclasses.replace(pool, groups=coarsest)
        rows = draw_parts(together, np.arange(len(pool)), len(pool) // SAMPLE, settings.seed)[0]
        rows = np.sort(rows)
        features = extract(pool.select(rows), backbone, settings.runtime, progress=progress)
        good = np.flatnonzero(features.good())
        self.rows = rows[good]
        self.values = features.select(good).values[backbone.cuts[-1].name]
        self.sha256 = features.select(good).sha256

    def measure(self, groupings: dict[str, tuple[str, ...]]) -> tuple[GroupingScore, ...]:
        return measure_groupings(
            self.values,
            self.pool.labels[self.rows],
            {what: [names[row] for row in self.rows] for what, names in groupings.items()},
            len(self.pool.classes),
            seed=self.settings.seed,
            progress=self.progress,
        )

    def suggest_clusters(self) -> dict[str, tuple[str, ...]]:
        """Suggest clusters of the features, the finest first."""
        ids, clusters = self.pool.ids, dict[str, tuple[str, ...]]()
        for fineness, first in zip(("closest", "close"), find_clusters(self.values), strict=False):
            names = list(ids)
            for row, other in zip(self.rows.tolist(), first, strict=True):
                names[row] = ids[self.rows[other]]
            clusters[f"likeness, {fineness}"] = tuple(names)
        return suggest_groupings(clusters, self.pool.labels)

    def find_copies(self, units: list[str]) -> dict[int, str]:
        """Find near copies in different units: {place in the pool: the name of its joined unit}.

        Units that would be most of a class together are left apart, or nothing could be held out.
        """
        # Those of the same bytes stay together in any case.
        own = join_units([units[row] for row in self.rows], self.sha256)
        labels = self.pool.labels[self.rows]
        ids = [self.pool.ids[row] for row in self.rows]
        pairs = find_near_copies(
            self.values, labels, own, ids, series=False, seed=self.settings.seed
        )
        numbers = {unit: number for number, unit in enumerate(dict.fromkeys(own))}
        of_row = np.array([numbers[unit] for unit in own], dtype=np.int64)
        joined, names, counts = dict[int, str](), list(numbers), np.bincount(labels)
        for group in group_copies(of_row[pairs], len(numbers)):
            places = np.flatnonzero(np.isin(of_row, group))
            together = np.bincount(labels[places], minlength=len(counts))
            if (together <= LARGEST * counts).all():
                joined |= {int(self.rows[place]): names[group[0]] for place in places}
        return joined


def _say(score: GroupingScore) -> str:
    return (
        f"images are kept together by {score.name}, in {score.groups:,} groups: a probe is right on "
        f"{score.together:.2f} of the images of groups it has not seen, and on {score.apart:.2f} where "
        "groups are torn apart, which flatters; --group none tears them apart"
    )


def _say_copies(images: int, groups: int) -> str:
    return (
        f"{images:,} images that are near copies are kept together, in {groups:,} "
        f"group{'s' if groups > 1 else ''}, as a copy on either side of a split flatters; --group none tears "
        "them apart"
    )
