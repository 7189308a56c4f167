"""What training costs on this machine, by arithmetic on measured work: `calibration` measures it.

Work is counted in milliseconds that one thread computes, since other programs that run meanwhile do not
change it; the clock would. Shape letters: K views.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["PIXELS", "Bill", "Costs", "CutWork"]

# The name of the place where a network begins, for a training of all of it.
PIXELS = "pixels"

# The share of a step that more threads do not speed up. Two threads took 0.55 to 0.60 of the time of one
# above every cut of EfficientNet-Lite0.
SERIAL = 0.12

# Validation runs the network forward alone, which is about a third of a step.
FORWARD_SHARE = 0.33

# Seconds of loading PyTorch and building the network; of compiling the frozen part.
START_S, COMPILE_S = 4.0, 2.0
# Seconds of splitting, measuring and writing, which a probe takes too.
PROBE_START_S = 1.0
# Megabytes that the libraries take, and copies of each weight: itself, the best, gradient, two moments.
LIBRARIES_MB, COPIES = 700.0, 5
# Mirroring is measured on so many images at most, each seen twice.
MIRRORED_IMAGES = 1000


@dataclasses.dataclass(frozen=True)
class CutWork:
    """The work of training above a cut point.

    Attributes:
        name: the cut point, or `PIXELS`.
        megabytes: of the activations of one view of an image on disk; 0 for pixels.
        train_ms: of a training step, an image.
        step_mb: memory that a step holds, an image.
        frozen: fraction of the network's work that lies below the cut.
        weights_mb: of what is trained.
    """

    name: str
    megabytes: float
    train_ms: float
    step_mb: float
    frozen: float
    weights_mb: float


@dataclasses.dataclass(frozen=True)
class Bill:
    """What something costs on this machine: seconds by the clock, megabytes of memory and of disk."""

    seconds: float
    memory_mb: float
    disk_mb: float


@dataclasses.dataclass(frozen=True)
class Costs:
    """The work on this machine, with this network and these images.

    Attributes:
        cuts: from the first to the last; `PIXELS` is the first.
        forward_ms: of the whole frozen network, an image.
        plain_ms: of reading an image as it is.
        view_ms: of drawing an augmented view of it.
        probe_s: seconds of fitting the linear probe, its penalty included.
        threads: that compute at once.
    """

    cuts: tuple[CutWork, ...]
    forward_ms: float
    plain_ms: float
    view_ms: float
    probe_s: float
    threads: int

    def seconds(self, work_ms: float) -> float:
        """Give the seconds that work takes by the clock with nothing else to do."""
        return work_ms / 1000 * (SERIAL + (1 - SERIAL) / max(self.threads, 1))

    def extraction_s(self, images: int) -> float:
        """Give the seconds of reading images and running the whole network on them."""
        return images * (self.plain_ms + self.forward_ms) / 1000 / max(self.threads, 1)

    def bill_probe(self) -> Bill:
        """Give the cost of the linear probe on features that are there already."""
        return Bill(PROBE_START_S + self.probe_s, LIBRARIES_MB / 2, 0.0)

    def bill_training(
        self,
        cut: CutWork,
        *,
        images: int,
        val_images: int,
        epochs: int,
        views: int,
        batch: int,
        refit: bool = False,
    ) -> Bill:
        """Give the cost of training above a cut point, beyond that of the features.

        Args:
            images, val_images: to train on, and to validate on after every epoch.
            views: K an image, on disk; without effect where the cut is `PIXELS`.
            refit: whether to train once more, on all of both.
        """
        work = epochs * cut.train_ms * (images + FORWARD_SHARE * val_images)
        if refit:
            work += epochs * cut.train_ms * (images + val_images)
        flip = 2 * min(MIRRORED_IMAGES, images) * (self.plain_ms + self.forward_ms * 2 / 3)
        reading = flip
        disk = 0.0
        if cut.name == PIXELS:
            reading += epochs * (images + refit * (images + val_images)) * self.view_ms
        else:
            frozen_ms = self.forward_ms * cut.frozen
            augmented = images + refit * val_images
            reading += (images + val_images) * (self.plain_ms + frozen_ms)
            reading += augmented * (views - 1) * (self.view_ms + frozen_ms)
            disk = (images + val_images + augmented * (views - 1)) * cut.megabytes
        fixed = START_S + self.probe_s + (0 if cut.name == PIXELS else COMPILE_S)
        seconds = fixed + self.seconds(work) + reading / 1000 / max(self.threads, 1)
        memory = LIBRARIES_MB + batch * cut.step_mb + COPIES * cut.weights_mb
        return Bill(seconds, memory, disk)

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON, which `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Costs":
        """Read what `to_json` wrote."""
        return cls(**{**value, "cuts": tuple(CutWork(**c) for c in value["cuts"])})
