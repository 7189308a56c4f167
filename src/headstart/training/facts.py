"""The measured facts that advice is decided on: plain numbers, which a file keeps and a test makes up.

`evidence` measures them, `advice` decides on them; neither networks nor images are known here.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from headstart.training.cuts import Heads, name_cuts

__all__ = ["SIMILAR_CONFIDENCE", "CurvePoint", "Depth", "Facts", "PowerLaw", "fit_power_law"]

# Images are like those of the pre-training where the network's own head is this sure of them.
SIMILAR_CONFIDENCE = 0.45
# By how many standard errors the lowest log loss must be below that of the last features, to read others
# instead: the last features are made for images that are like those of the pre-training, and a dozen
# depths are compared, of which one is lucky.
ERRORS, ERRORS_WHERE_SIMILAR = 1.0, 3.0


@dataclasses.dataclass(frozen=True)
class Depth:
    """A linear probe on the features at some cut points, measured by cross-validation.

    Attributes:
        heads: one on one cut point or on several side by side, or several whose mean is taken.
        accuracy: in [0, 1].
        error: standard error of the accuracy.
        log_loss: nats an image.
        gap: by how much that is above the lowest of all depths.
        gap_error: standard error of the gap, on the same images.
    """

    heads: Heads
    accuracy: float
    error: float
    log_loss: float
    gap: float = 0.0
    gap_error: float = 0.0

    @property
    def cut(self) -> str:
        """It in the notation of the setting `cut`."""
        return name_cuts(self.heads)


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """The accuracy of the probe on the last features with this many images to train on."""

    images: int
    accuracy: float
    error: float


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was measured of data and network.

    Attributes:
        images: to train on, readable and labelled.
        per_class: their number in each class.
        measured: how many of them the probes were measured on.
        depths: of each cut point, from the first to the last, then of several together; empty where a class
            has too few images for cross-validation.
        curve: with a quarter, a half and all of the measured images; empty likewise.
        shift: of each BatchNorm layer, from the first to the last, as `features.shift` measures it; empty
            without such layers.
        confidence: the mean highest probability that the network's own head gives these images; None
            where it has none.
    """

    images: int
    per_class: tuple[int, ...]
    measured: int
    depths: tuple[Depth, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    shift: tuple[float, ...] = ()
    confidence: float | None = None

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.per_class)

    @property
    def best(self) -> Depth:
        """The depth to read: the last where its log loss is about the lowest, else that of the lowest."""
        last = self.singles[-1]
        errors = ERRORS_WHERE_SIMILAR if self.is_known else ERRORS
        is_alike = last.gap <= errors * last.gap_error
        return last if is_alike else min(self.depths, key=lambda d: d.log_loss)

    @property
    def is_known(self) -> bool:
        """Whether the network's own head is sure of the images."""
        return self.confidence is not None and self.confidence >= SIMILAR_CONFIDENCE

    @property
    def singles(self) -> tuple[Depth, ...]:
        """The depths of one cut point each."""
        return tuple(d for d in self.depths if sum(map(len, d.heads)) == 1)

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON, which `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Facts":
        """Read what `to_json` wrote."""
        depths = tuple(
            Depth(**{**d, "heads": tuple(map(tuple, d["heads"]))}) for d in value["depths"]
        )
        curve = tuple(CurvePoint(**p) for p in value["curve"])
        lists = {name: tuple(value[name]) for name in ("per_class", "shift")}
        return cls(**{**value, **lists, "depths": depths, "curve": curve})


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """The error of a classifier by the number of images: error = scale * (images / center) ** -rate.

    Learning curves of classifiers fall like this over decades (Hestness et al., Deep Learning Scaling is
    Predictable, Empirically, 2017).

    Attributes:
        center: images.
        scale, rate: of the law; the rate is at least 0.
        scale_error, rate_error: standard errors of the scale's logarithm, and of the rate.
    """

    center: float
    scale: float
    rate: float
    scale_error: float
    rate_error: float

    def accuracy(self, images: float) -> float:
        """Predict the accuracy with this many images to train on."""
        return 1 - min(1.0, self.scale * math.exp(-self.rate * self._distance(images)))

    def interval(self, images: float) -> tuple[float, float]:
        """Give the 95 % band of that prediction."""
        error = 1 - self.accuracy(images)
        spread = 1.96 * math.hypot(self.scale_error, self.rate_error * self._distance(images))
        return 1 - min(1.0, error * math.exp(spread)), 1 - error * math.exp(-spread)

    def _distance(self, images: float) -> float:
        return math.log(max(images, 1.0) / self.center)


def fit_power_law(curve: Sequence[CurvePoint]) -> PowerLaw | None:
    """Fit a learning curve by weighted least squares of logarithms; None below two points."""
    points = [p for p in curve if p.images > 0 and math.isfinite(p.accuracy)]
    if len({p.images for p in points}) < 2:
        return None
    # Half an image more is wrong, so that no mistakes at all do not count as none ever.
    errors = [1 - p.accuracy + 0.5 / p.images for p in points]
    spreads = [max(p.error, 0.5 / p.images) / e for p, e in zip(points, errors, strict=True)]
    weights = [s**-2 for s in spreads]
    xs, ys = [math.log(p.images) for p in points], [math.log(e) for e in errors]
    total = sum(weights)
    x_mean = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    y_mean = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    across = sum(w * (x - x_mean) ** 2 for w, x in zip(weights, xs, strict=True))
    both = sum(w * (x - x_mean) * (y - y_mean) for w, x, y in zip(weights, xs, ys, strict=True))
    rate = max(0.0, -both / across)
    return PowerLaw(math.exp(x_mean), math.exp(y_mean), rate, total**-0.5, across**-0.5)
