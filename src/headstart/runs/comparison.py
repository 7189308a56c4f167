"""The outcome of a comparison: contenders in their order, the differences between them, and both as JSON."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from headstart.cards import make_card, make_table, paint_bar, say_interval
from headstart.contrasts import (
    LEVEL,
    Contrast,
    adjust_holm,
    count_more_images,
    rank_with_ties,
)
from headstart.frames import make_frame
from headstart.metrics import Estimate
from headstart.runs.documents import to_json
from headstart.runs.record import Run

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Comparison", "Contender", "Pair", "judge", "mark_undominated"]


@dataclasses.dataclass(frozen=True, eq=False)
class Contender:
    """One way of training, with a run for each of its seeds.

    Attributes:
        name: as people know it.
        runs: one a seed.
        accuracy: the mean over runs and images, with a 95 % interval for images like these and seeds like
            these.
        log_loss: the mean over runs.
        minutes: of the run that took longest, as a rule the first one, since features that are in the
            store already take no time.
        megabytes: of the saved model, the mean over runs.
        images_per_s: that the network takes in on one thread of this machine.
        rank: 1 and one more for each contender that is distinguishably better.
        undominated: whether no other is at least as good in accuracy, minutes, megabytes and images a second,
            and better in one.
    """

    name: str
    runs: tuple[Run, ...] = dataclasses.field(repr=False)
    accuracy: Estimate
    log_loss: float
    minutes: float
    megabytes: float
    images_per_s: float
    rank: int = 0
    undominated: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its runs; 0 where a run does not say."""
        given = (run.settings.get("seed", {}).get("value") for run in self.runs)
        return tuple(int(seed) if isinstance(seed, int | float) else 0 for seed in given)

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON, its runs as folders."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        first = self.runs[0]
        own = {"strategy": first.strategy, "backbone": first.backbone, "seeds": self.seeds}
        value: dict[str, Any] = to_json(
            {**fields, **own, "runs": [str(r.folder) for r in self.runs]}
        )
        return value


@dataclasses.dataclass(frozen=True)
class Pair:
    """The difference between two contenders, the better one first.

    Attributes:
        first, second: their names.
        contrast: the difference and its test.
        adjusted: the value of p by Holm's correction over all pairs.
        more_images: about how many more test images would tell a difference of this size; None where it is
            told already, or where no number would do.
        seeds: of the one that has fewer runs.
    """

    first: str
    second: str
    contrast: Contrast
    adjusted: float
    more_images: int | None
    seeds: int

    @property
    def distinguishable(self) -> bool:
        """Whether the two can be told apart at the 5 % level."""
        return self.adjusted < LEVEL

    @property
    def verdict(self) -> str:
        """What the test says, in words."""
        if self.distinguishable:
            return f"{self.first} is better{'' if self.seeds > 1 else ', with this seed'}"
        words = "not distinguishable with this test set"
        if self.more_images is not None:
            return f"{words}; about {_round(self.more_images):,} more images would tell"
        if self.contrast.of_seeds > 0 and self.contrast.difference.value != 0:
            return f"{words}; more seeds would tell rather than more images"
        return f"{words}; there is next to no difference"

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON."""
        own = {"distinguishable": self.distinguishable, "verdict": self.verdict}
        value: dict[str, Any] = to_json({**dataclasses.asdict(self), **own})
        return value


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Contenders measured on the same images.

    Attributes:
        contenders: the most accurate first.
        pairs: of all contenders, in their order.
        images: how many all were measured on.
        units: how many of these are independent: images, or groups of images.
        part: "test", or "val" or "cross-validation" where runs were compared on what they kept.
        warnings: one line each, for people.
    """

    contenders: tuple[Contender, ...]
    pairs: tuple[Pair, ...]
    images: int
    units: int
    part: str
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        best = self.contenders[0]
        e = best.accuracy
        return (
            f"Comparison({len(self.contenders)} contenders on {self.images:,} images of {self.part}, best "
            f"{best.name!r} with accuracy {e.value:.3f} ({e.low:.3f} to {e.high:.3f}))"
        )

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        ways = [
            [f"{c.rank}. {c.name}", f"{c.accuracy.value:.3f}", say_interval(c.accuracy),
             paint_bar(c.accuracy), f"{c.minutes:.2f}", f"{c.megabytes:.1f}", f"{c.images_per_s:,.0f}"]
            for c in self.contenders
        ]  # fmt: skip
        pairs = [
            [f"{p.first} against {p.second}", f"{p.contrast.difference.value:+.3f}",
             f"{p.contrast.difference.low:+.3f} to {p.contrast.difference.high:+.3f}", p.verdict]
            for p in self.pairs
        ]  # fmt: skip
        lines = [self.conclude(), *(f"warning: {warning}" for warning in self.warnings)]
        heads = ("", "accuracy", "95 % interval", "", "minutes", "MB", "images/s")
        parts = [make_table(heads, ways)]
        if pairs:
            parts.append(make_table(("", "difference", "95 % interval", ""), pairs))
        title = f"{len(ways)} ways on {self.images:,} images of {self.part}"
        return make_card(title, lines, parts)

    def to_frame(self) -> "DataFrame":
        """Give a table with a row for each contender, the most accurate first.

        Raises:
            UsageError: pandas is not installed.
        """
        ways = self.contenders
        return make_frame(
            {
                "rank": [c.rank for c in ways],
                "contender": [c.name for c in ways],
                "strategy": [c.runs[0].strategy for c in ways],
                "backbone": [c.runs[0].backbone for c in ways],
                "seeds": [c.seeds for c in ways],
                "accuracy": [c.accuracy.value for c in ways],
                "low": [c.accuracy.low for c in ways],
                "high": [c.accuracy.high for c in ways],
                "log_loss": [c.log_loss for c in ways],
                "minutes": [c.minutes for c in ways],
                "megabytes": [c.megabytes for c in ways],
                "images_per_s": [c.images_per_s for c in ways],
                "undominated": [c.undominated for c in ways],
            }
        )

    def conclude(self) -> str:
        """Say in a sentence or two which to take."""
        best, *others = self.contenders
        tied = [c for c in others if not self.find(best.name, c.name).distinguishable]
        if not tied:
            return f"{best.name} is better than all others."
        equal = ", ".join(c.name for c in tied)
        text = f"{best.name} cannot be told from {equal} with these test images"
        cheapest = min((best, *tied), key=lambda c: (c.minutes, c.megabytes))
        return f"{text}; {cheapest.name} takes the least time."

    def find(self, first: str, second: str) -> Pair:
        """Find the pair of two contenders, by their names in any order."""
        wanted = {first, second}
        return next(pair for pair in self.pairs if {pair.first, pair.second} == wanted)

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON."""
        return {
            "contenders": [contender.to_json() for contender in self.contenders],
            "pairs": [pair.to_json() for pair in self.pairs],
            "images": self.images,
            "units": self.units,
            "part": self.part,
            "conclusion": self.conclude(),
            "warnings": list(self.warnings),
        }


def judge(
    contenders: Sequence[Contender], contrasts: Sequence[Contrast]
) -> tuple[tuple[Contender, ...], tuple[Pair, ...]]:
    """Rank contenders by the differences between them.

    Args:
        contenders: the most accurate first.
        contrasts: of every pair, in the order of `itertools.combinations`.
    """
    places = list(itertools.combinations(range(len(contenders)), 2))
    adjusted = adjust_holm([contrast.p for contrast in contrasts])
    untold = sum(p >= LEVEL for p in adjusted)
    pairs = []
    for (i, j), contrast, p in zip(places, contrasts, adjusted, strict=True):
        # Holm's correction is as strict as this with the next that would be told.
        more = count_more_images(contrast, level=LEVEL / untold) if p >= LEVEL else None
        first, second = contenders[i], contenders[j]
        seeds = min(len(first.runs), len(second.runs))
        pairs.append(Pair(first.name, second.name, contrast, p, more, seeds))
    told = [place for place, pair in zip(places, pairs, strict=True) if pair.distinguishable]
    ranks = rank_with_ties(len(contenders), told)
    ranked = (dataclasses.replace(c, rank=r) for c, r in zip(contenders, ranks, strict=True))
    return tuple(mark_undominated(tuple(ranked))), tuple(pairs)


def mark_undominated(contenders: Sequence[Contender]) -> Iterator[Contender]:
    """Mark those that no other is at least as good as in every respect, and better in one."""

    def score(c: Contender) -> tuple[float, ...]:
        return c.accuracy.value, -c.minutes, -c.megabytes, c.images_per_s

    for own in contenders:
        mine = score(own)
        beaten = any(
            score(other) != mine and all(x >= y for x, y in zip(score(other), mine, strict=True))
            for other in contenders
        )
        yield dataclasses.replace(own, undominated=not beaten)


def _round(number: int) -> int:
    """Two digits, since more would pretend to know."""
    unit = int(10 ** max(0, math.floor(math.log10(number)) - 1))
    return math.ceil(number / unit) * unit
