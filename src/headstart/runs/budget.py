"""The time that all of a `fit` may take, by the clock."""

import dataclasses
import time

from headstart.parallel import READING, Progress
from headstart.training.settings import AUTO, Settings, read_budget

__all__ = ["DEFAULT", "Budget", "OutOfTime"]

# What a fit whose strategy is auto may take.
DEFAULT = "5m"

# Seconds, and a share of the whole, that are kept for measuring and writing what was trained.
RESERVE_S, RESERVE_SHARE = 2.0, 0.03
# The share of the time in which images are read for features; those that are not read by then stay out.
READING_SHARE = 0.4


class OutOfTime(Exception):
    """The budget is spent, and what is under way can be given up."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """A bound on the time of a fit.

    Attributes:
        text: as it was given: "10m".
        began: by `time.monotonic()`.
        ends: when a part of it has to end; None for all of it.
    """

    text: str
    began: float
    ends: float | None = None

    @classmethod
    def of(cls, settings: Settings, began: float) -> "Budget | None":
        """The budget that the settings say or imply; None for no bound."""
        text = settings.budget or (DEFAULT if settings.strategy == AUTO else None)
        return None if text is None else cls(text, began)

    @property
    def seconds(self) -> float:
        """All of it."""
        return read_budget(self.text)

    @property
    def deadline(self) -> float:
        """When training has to end, by `time.monotonic()`."""
        if self.ends is not None:
            return self.ends
        return self.began + self.seconds * (1 - RESERVE_SHARE) - RESERVE_S

    def left(self) -> float:
        """Give the seconds that are left for training."""
        return max(0.0, self.deadline - time.monotonic())

    def part(self, share: float) -> "Budget":
        """Give a part that begins now, of a share of what is left."""
        return dataclasses.replace(self, ends=time.monotonic() + share * self.left())

    def may_read(self) -> bool:
        """Whether more images may be read for features."""
        return time.monotonic() < self.began + self.seconds * READING_SHARE

    def guard(self, progress: Progress) -> Progress:
        """Give a progress that ends the reading of images when training has to end: `OutOfTime`."""

        def tell(stage: str, done: int, total: int) -> None:
            progress(stage, done, total)
            if stage == READING and done < total and time.monotonic() > self.deadline:
                raise OutOfTime

        return tell
