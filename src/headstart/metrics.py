"""Takes labels and probabilities, gives figures with 95 % intervals; pure functions on arrays.

Shape letters: N images, C classes, U units: an image, or the images of a group, which are not independent of
each other.

Intervals. A proportion (accuracy, recall, precision) has Wilson's score interval (Wilson 1927), mended near
0 and 1; F1 = 2 J / (1 + J), where J is the proportion of true positives among all that are or were said to
be of the class, has its ends from J's. Balanced accuracy has that of Price and Bonett (2004). For all
others what each image moves the figure by (its influence; of ROC areas as DeLong, DeLong and Clarke-Pearson
1988) is summed over its unit, which gives the variance. From that macro F1, and proportions where there are
groups, have Wilson's interval for as many images as give a proportion the same variance (Dean and Pagano,
J. Surv. Stat. Methodol. 2015); areas under curves a normal one of their log odds (Pepe 2003); losses that
of a count. docs/figures.md explains each figure; benchmarks/coverage.py measures how often the intervals
hold the truth.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from headstart.arrays import BoolN, FloatN, FloatNC, IntCC, IntN

__all__ = [
    "IN_FULL",
    "UNDEFINED",
    "ClassFigures",
    "Detection",
    "Estimate",
    "bound_share",
    "calibration_error",
    "confusion_matrix",
    "image_losses",
    "mean_loss",
    "measure",
    "measure_class",
    "measure_each",
    "measure_means",
    "number_units",
    "wilson_interval",
]

Z95 = 1.959963984540054
STUDENT95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646)
# Of 1, 2 and 3: half the 5 % quantiles of chi-square with 2, 4 and 6 degrees of freedom.
POISSON95 = (0.051293, 0.355362, 0.817691)
SMALLEST_PROBABILITY = 1e-12
# What is left to metrics.json, --json and the report where there is little room.
IN_FULL = ("brier", "roc_auc", "average_precision")
BINS = 15  # of the calibration error, as in Guo et al. 2017, but of equal mass
LEAST_UNITS = 1.5  # of fewer no variance is seen
# An image tells no more of an area under a curve than so many would of a proportion.
MOST_WORTH = 8.0
BISECTIONS, LARGEST_STRETCH = 30, 2.0**20


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """How well one class, or label, is told from all others; NaN where a figure is not defined.

    Attributes:
        images: that are of it.
        precision: the fraction that is of it, of images that were said to be.
        recall: the fraction that was said to be of it, of its images.
        f1: the harmonic mean of both.
        roc_auc: the chance that an image of it has a higher probability of it than one that is not.
        average_precision: the area under the curve of precision by recall, as a sum over thresholds.
        threshold: from which probability on an image is said to be of it, where an image may have several
            labels; NaN where it is the most probable class, or differs from image to image.
    """

    images: int
    precision: Estimate
    recall: Estimate
    f1: Estimate
    roc_auc: Estimate
    average_precision: Estimate
    threshold: float = math.nan


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """One class against all others.

    Attributes:
        true: bool (N,), which images are of it.
        given: bool (N,), which were said to be of it.
        scores: float (N,), their probabilities of it.
    """

    true: BoolN
    given: BoolN
    scores: FloatN


def measure(
    labels: IntN,
    probabilities: FloatNC,
    classes: tuple[str, ...],
    *,
    groups: Sequence[str] = (),
) -> dict[str, Estimate]:
    """Measure a classifier on labelled images.

    Args:
        labels: int array (N,), N at least 1, indices into `classes`.
        probabilities: float array (N, C), rows sum to one.
        groups: N names, "" for an image that is its own group; () where there are none. The images of a
            group count as drawn together.

    Returns:
        accuracy; balanced_accuracy and macro_f1, over the classes that occur in `labels`; top_K_accuracy,
        K the largest of 5, 3 and 2 that is at most half of the classes, where one is; log_loss, in nats;
        calibration_error; brier, the squared errors summed over classes, 0 to 2; roc_auc, the mean over the
        classes that some images are of and some are not, and average_precision, over those that occur.
    """
    units = number_units(groups)
    right = probabilities.argmax(axis=1) == labels
    means = measure_means(_detect(labels, probabilities), units)
    result = {
        "accuracy": bound_share(right, units=units),
        "balanced_accuracy": _bound_balanced(labels, right, units),
        "macro_f1": means["macro_f1"],
    }
    most = next((k for k in (5, 3, 2) if 2 * k <= len(classes)), 0)
    if most:
        near = _rank_true(labels, probabilities) < most
        result[f"top_{most}_accuracy"] = bound_share(near, units=units)
    return result | {
        "log_loss": _bound_log_loss(labels, probabilities, units),
        "calibration_error": calibration_error(probabilities.max(axis=1), right, units),
        "brier": _bound_brier(labels, probabilities, units),
        "roc_auc": means["roc_auc"],
        "average_precision": means["average_precision"],
    }


def measure_each(
    labels: IntN,
    probabilities: FloatNC,
    classes: tuple[str, ...],
    *,
    groups: Sequence[str] = (),
) -> dict[str, ClassFigures]:
    """{class: its figures}; arguments as in `measure`."""
    units = number_units(groups)
    detections = _detect(labels, probabilities)
    return {n: measure_class(d, units) for n, d in zip(classes, detections, strict=True)}


def measure_class(
    detection: Detection, units: IntN | None = None, threshold: float = math.nan
) -> ClassFigures:
    """Measure one class against all others; `units` as `number_units` gives them."""
    true, given = detection.true, detection.given
    both = true & given
    ranking = _rank(detection)
    areas = [
        _bound_area(area, _sum_units(influence, ranking.share, units))
        for area, influence in (ranking.roc, ranking.precision)
    ]
    overlap = bound_share(both, true | given, units)
    f1 = (2 * j / (1 + j) for j in (overlap.value, overlap.low, overlap.high))
    return ClassFigures(
        images=int(true.sum()),
        precision=bound_share(both, given, units),
        recall=bound_share(both, true, units),
        f1=Estimate(*f1) if true.any() else UNDEFINED,
        roc_auc=areas[0],
        average_precision=areas[1],
        threshold=threshold,
    )


def measure_means(
    detections: Iterable[Detection], units: IntN | None = None
) -> dict[str, Estimate]:
    """Measure the means over the classes that occur: of F1 (macro_f1), of average_precision, and, over those
    that not all images are of, of roc_auc."""
    means = {
        "macro_f1": _Mean(_bound, units),
        "roc_auc": _Mean(_bound_area, units),
        "average_precision": _Mean(_bound_area, units),
    }
    for detection in detections:
        true, given = detection.true, detection.given
        images, said = int(true.sum()), int(given.sum())
        if not images:
            continue
        both = true & given
        f1 = 2 * int(both.sum()) / (images + said)
        moved = (2 * both - f1 * true - f1 * given) / (images + said)
        means["macro_f1"].add(f1, moved, true / images)
        ranking = _rank(detection)
        means["average_precision"].add(*ranking.precision, ranking.share)
        if images < len(true):
            means["roc_auc"].add(*ranking.roc, ranking.share)
    return {name: mean.estimate() for name, mean in means.items()}


class _Mean:
    """The mean of a figure over classes, and what each image moves it."""

    def __init__(self, bound: "Callable[[float, _Units], Estimate]", units: IntN | None) -> None:
        self._bound, self._units, self._count, self._total = bound, units, 0, 0.0
        self._influence, self._share, self._unseen = np.zeros(1), np.zeros(1), 0

    def add(self, value: float, influence: FloatN, share: FloatN) -> None:
        self._count += 1
        self._total += value
        self._influence = self._influence + influence
        if _sum_units(influence, share, self._units).count < LEAST_UNITS:
            self._unseen += 1
        else:
            self._share = self._share + share

    def estimate(self) -> Estimate:
        if not self._count:
            return UNDEFINED
        share = np.broadcast_to(self._share, self._influence.shape)
        moved = _sum_units(self._influence / self._count, share, self._units)
        e = self._bound(self._total / self._count, moved)
        # Of a class in one unit nothing is seen: it may vary as much as what is between 0 and 1 can. Both
        # parts of the interval are added as Zou and Donner (2008) add those of a sum.
        half = Z95 * math.sqrt(self._unseen) / 2 / self._count
        low, high = math.hypot(e.value - e.low, half), math.hypot(e.high - e.value, half)
        return Estimate(e.value, max(0.0, e.value - low), min(1.0, e.value + high))


def number_units(groups: Sequence[str]) -> IntN | None:
    """Number the units that groups make, from 0 on, int64 (N,); None where each image is one.

    Args:
        groups: N names, "" for an image that is its own group; or ().
    """
    numbers: dict[str, int] = {}
    units = [numbers.setdefault(g, len(numbers)) if g else -1 for g in groups]
    if len(numbers) + units.count(-1) == len(units):
        return None
    fresh = itertools.count(len(numbers))
    return np.array([next(fresh) if unit < 0 else unit for unit in units], dtype=np.int64)


def confusion_matrix(labels: IntN, predicted: IntN, classes: int) -> IntCC:
    """Count images, (C, C): row true class, column predicted class."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def wilson_interval(successes: float, total: float) -> Estimate:
    """A proportion with Wilson's 95 % interval; NaN for a total of 0.

    Near 0 and 1 its far end leaves out too much: of 60 images of which 2 are wrong it ends at 0.991, though a
    chance of 0.992 makes as many wrong, or more, in 8 % of samples. Of 1 to 3 that are wrong (or right) it
    is the end that a Poisson distribution gives (Brown, Cai and DasGupta, Statistical Science 2001, 4.1.1).
    """
    if total <= 0:
        return UNDEFINED
    p = successes / total
    z2 = Z95 * Z95 / total
    centre = (p + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * math.sqrt(max(0.0, p * (1 - p)) / total + z2 / (4 * total))
    low, high = centre - half, centre + half
    if few := _find_few(successes, total):
        low = few / total
    if few := _find_few(total - successes, total):
        high = 1 - few / total
    # Rounding must not push the interval off the estimate at 0 and 1.
    return Estimate(float(p), float(max(0.0, min(low, p))), float(min(1.0, max(high, p))))


def _find_few(count: float, total: float) -> float:
    """Of how many expected ones a Poisson distribution gives this count or more in 5 % of samples; 0 for a
    count that is not small, or none of whole images."""
    whole = round(count)
    is_whole = abs(count - whole) < 1e-6 and abs(total - round(total)) < 1e-6
    most = 2 if total <= 50 else 3
    return POISSON95[whole - 1] if is_whole and 0 < whole <= most else 0.0


def bound_share(
    hits: BoolN | FloatN | IntN,
    totals: BoolN | FloatN | IntN | None = None,
    units: IntN | None = None,
) -> Estimate:
    """Give sum(hits) / sum(totals) with its interval; NaN where that total is 0.

    Args:
        hits: (N,), 0 to `totals`.
        totals: (N,), what each image counts; by default 1.
        units: int64 (N,) from 0 on, None where each image is one.
    """
    of = np.ones(len(hits)) if totals is None else np.asarray(totals, dtype=np.float64)
    total = float(of.sum())
    if units is None and of.max(initial=0) <= 1:
        return wilson_interval(float(hits.sum()), total)
    if total == 0:
        return UNDEFINED
    value = float(hits.sum()) / total
    moved = _sum_units((hits - value * of) / total, of / total, units)
    return _bound(value, moved)


def image_losses(labels: IntN, probabilities: FloatNC) -> FloatN:
    """Give -log(probability of the true class) of each image, in nats, float64 (N,)."""
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return np.asarray(-np.log(np.maximum(true, SMALLEST_PROBABILITY)))


def mean_loss(
    losses: FloatN,
    units: IntN | None = None,
    *,
    expected: tuple[FloatN, FloatN] | None = None,
    most: float = math.inf,
) -> Estimate:
    """Mean of the losses of N images, each from 0 to `most`; `units` as in `bound_share`.

    Args:
        expected: the mean of each image's loss, and of its square, float (N,), if the classifier's
            probabilities are true. A sample without one of the rare large losses that these announce shows
            too little variance.
    """
    mean = float(losses.mean())
    count = len(losses)
    of = _sum_units((losses - mean) / count, np.full(count, 1 / count), units)
    if of.count < LEAST_UNITS:
        return Estimate(mean, math.nan, math.nan)
    stretch = 1 + of.largest if expected is None or of.grouped else 1.0
    if expected is not None and of.variance > 0:
        announced = float(expected[1].mean() - expected[0].mean() ** 2)
        stretch = max(stretch, announced / float(losses.var()))
    # As the score interval of a count, whose variance grows with it: of the larger mean, that seen or that
    # announced, or where hardly any loss was seen there would be no end to it.
    square = _student_quantile(of.count - 1) ** 2 * of.variance * stretch
    level = mean if expected is None else max(mean, float(expected[0].mean()))
    shift = square / (2 * level) if level > 0 else 0.0
    half = math.sqrt(square + shift**2)
    return Estimate(mean, max(0.0, min(mean + shift - half, mean)), min(most, mean + shift + half))


def calibration_error(confidence: FloatN, right: BoolN, units: IntN | None = None) -> Estimate:
    """Give the expected calibration error: how far off stated probabilities are, on average.

    The images are cut into 15 bins of as many images each (those of one probability stay together) by their
    probability; the error is the mean over images of how far their bin's mean probability is from the
    fraction of it that is right. Of few images it is seen too large, since chance alone moves that fraction.
    Its interval is free of that: it holds the errors e that would make one as seen, neither too large nor too
    small for 2.5 % of samples. For e, the bins' deviations are those seen, all stretched alike.

    Args:
        confidence: float (N,), the probabilities that were stated.
        right: bool (N,), what came true.
        units: as in `bound_share`.
    """
    stated = np.asarray(confidence, dtype=np.float64)
    edges = np.percentile(stated, np.linspace(0, 100, BINS + 1)[1:-1])
    _, place = np.unique(np.searchsorted(edges, stated), return_inverse=True)
    images = np.bincount(place).astype(np.float64)
    mean, hits = np.bincount(place, stated) / images, np.bincount(place, right)
    deviations = hits / images - mean
    share = images / len(stated)
    value = float(share @ abs(deviations))
    within, between = _find_clustering(right - stated - deviations[place], deviations, place, units)
    # The variance of a bin's fraction: of its images as many as promised are right, and one more.
    likely = (hits + mean) / (images + 1) - mean

    def reach(stretch: float) -> tuple[float, float, float]:
        """The true error, and the mean and deviation of what is seen, of deviations that are stretched."""
        true = np.clip(mean + stretch * deviations, 0, 1) - mean
        chance = np.clip(mean + stretch * likely, 0, 1)
        noise = within * chance * (1 - chance) / images
        seen = _fold_normal(true, noise)
        spread = between / within * float(share**2 @ np.maximum(true**2 + noise - seen**2, 0))
        return float(share @ abs(true)), float(share @ seen), math.sqrt(spread)

    low, high = (_solve(reach, value, side * Z95) for side in (1, -1))
    # No error is smaller than that of all images together.
    every, promised = bound_share(right, units=units), float(stated.mean())
    high = max(high, value, promised - every.low, every.high - promised)
    return Estimate(value, min(low, value), min(1.0, high))


def _find_clustering(
    noise: FloatN, deviations: FloatN, place: IntN, units: IntN | None
) -> tuple[float, float]:
    """By how much units make the variance of a bin, and that of the calibration error, larger than as many
    single images do; noise: (N,), deviations of images from their bin's mean."""
    single = float((noise**2).sum())
    if units is None or single == 0:
        return 1.0, 1.0
    within = np.bincount(units * BINS + place, noise)
    signed = np.bincount(units, np.where(deviations[place] < 0, -noise, noise))
    stretch = (_student_quantile(len(signed) - 1) / Z95) ** 2
    return (
        max(1.0, float((within**2).sum()) / single),
        max(1.0, stretch * float((signed**2).sum()) / single),
    )


def _fold_normal(mean: FloatN, variance: FloatN) -> FloatN:
    """The mean of |x|, x normal."""
    deviation = np.sqrt(np.maximum(variance, 1e-300))
    ratio = abs(mean) / deviation
    inner = np.array([math.erf(r / math.sqrt(2)) for r in ratio.tolist()])
    return np.asarray(
        math.sqrt(2 / math.pi) * deviation * np.exp(-(ratio**2) / 2) + abs(mean) * inner
    )


def _solve(
    reach: Callable[[float], tuple[float, float, float]], value: float, quantile: float
) -> float:
    """Find the true error of which what is seen, `value`, is this quantile; 0 where none is so small."""

    def is_beyond(stretch: float) -> bool:
        _, seen, deviation = reach(stretch)
        return value > seen + quantile * deviation

    low, high = 0.0, 1.0
    if not is_beyond(low):
        return 0.0
    while is_beyond(high) and high < LARGEST_STRETCH:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_beyond(middle) else (low, middle)
    return reach(low)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class _Ranking:
    """Areas under the curves of one class, each with the influence of every image on it.

    Attributes:
        roc, precision: (area, influence float64 (N,)); NaN where it is not defined.
        share: float64 (N,), of each image in the rarer kind.
    """

    roc: tuple[float, FloatN]
    precision: tuple[float, FloatN]
    share: FloatN


def _rank(detection: Detection) -> _Ranking:
    count = len(detection.true)
    order = np.argsort(-detection.scores)
    true = detection.true[order]
    scores = detection.scores[order]
    # Images of one score are one step of the curves.
    is_last = np.append(scores[1:] != scores[:-1], True)
    step = np.cumsum(is_last) - is_last
    ends = np.flatnonzero(is_last)
    hits, others = np.cumsum(true)[ends], np.cumsum(~true)[ends]
    positives, negatives = int(hits[-1]), int(others[-1])
    gains, losses = np.diff(hits, prepend=0), np.diff(others, prepend=0)
    nowhere = np.zeros(count)
    roc: tuple[float, FloatN] = (math.nan, nowhere)
    precisions = roc
    if positives and negatives:
        # The share of the other kind that an image is ranked rightly against.
        below = (negatives - others + losses / 2) / negatives
        above = (hits - gains / 2) / positives
        area = float(gains @ below) / positives
        moved = np.where(true, (below[step] - area) / positives, (above[step] - area) / negatives)
        roc = (area, _put(order, moved))
    if positives:
        precision = hits / (hits + others)
        area = float(gains @ precision) / positives
        # What an image adds to the precision at each true image ranked no higher.
        later = gains / (hits + others)
        as_true = np.cumsum((later * (1 - precision))[::-1])[::-1]
        as_false = -np.cumsum((later * precision)[::-1])[::-1]
        moved = np.where(true, (precision - area + as_true)[step], as_false[step]) / positives
        precisions = (area, _put(order, moved))
    rarer = ~detection.true if 0 < negatives < positives else detection.true
    return _Ranking(roc, precisions, rarer / max(1, rarer.sum()))


def _put(order: IntN, values: FloatN) -> FloatN:
    result = np.empty(len(values))
    result[order] = values
    return result


def _detect(labels: IntN, probabilities: FloatNC) -> Iterator[Detection]:
    predicted = probabilities.argmax(axis=1)
    for c in range(probabilities.shape[1]):
        yield Detection(labels == c, predicted == c, probabilities[:, c])


def _rank_true(labels: IntN, probabilities: FloatNC) -> IntN:
    """How many classes are more probable than the true one, (N,); of equal ones the first comes first."""
    own = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    return np.asarray(((probabilities > own) | ((probabilities == own) & earlier)).sum(axis=1))


def _bound_log_loss(labels: IntN, probabilities: FloatNC, units: IntN | None) -> Estimate:
    each = -np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    first = np.einsum("nc,nc->n", probabilities, each, dtype=np.float64)
    second = np.einsum("nc,nc,nc->n", probabilities, each, each, dtype=np.float64)
    return mean_loss(image_losses(labels, probabilities), units, expected=(first, second))


def _bound_brier(labels: IntN, probabilities: FloatNC, units: IntN | None) -> Estimate:
    """The sum over classes of (probability - 1 where it is the true class, else 0)^2."""
    p = probabilities
    squares = np.einsum("nc,nc->n", p, p, dtype=np.float64)
    cubes = np.einsum("nc,nc,nc->n", p, p, p, dtype=np.float64)
    losses = squares - 2 * p[np.arange(len(labels)), labels].astype(np.float64) + 1
    # If class c is the true one it is squares + 1 - 2 p_c.
    second = (squares + 1) ** 2 - 4 * (squares + 1) * squares + 4 * cubes
    expected = (1 - squares, second)
    return mean_loss(np.maximum(losses, 0), units, expected=expected, most=2.0)


@dataclasses.dataclass(frozen=True)
class _Units:
    """What each unit moves a figure, (U,), and its share in what the figure is of, (U,).

    Of figures that are means over classes the shares are those in single classes, so they sum to more than 1.
    """

    influence: FloatN
    share: FloatN
    grouped: bool

    @property
    def count(self) -> float:
        """As many units of equal weight would weigh what these do."""
        return float(self.share.sum() ** 2 / max((self.share**2).sum(), 1e-300))

    @property
    def largest(self) -> float:
        """The share of one of the units that make up the variance in it, from 1 / U to 1."""
        squares = self.influence**2
        return float((squares**2).sum()) / max(float(squares.sum()) ** 2, 1e-300)

    @property
    def variance(self) -> float:
        """Of the figure: of units that weigh much, less is seen, since they pull it along (Bell and McCaffrey
        2002)."""
        rest = 1 - np.minimum(self.share, 1 - 1e-9)
        return float((self.influence**2 / rest).sum())


def _sum_units(influence: FloatN, share: FloatN, units: IntN | None) -> _Units:
    """
    Args:
        influence: (N,), by how much the figure grows as an image counts more; its sum is 0.
        share: (N,), how much each image counts.
    """
    if units is None:
        return _Units(influence, share, grouped=False)
    influence, share = (np.bincount(units, v).astype(np.float64) for v in (influence, share))
    return _Units(influence, share, grouped=True)


def _bound(value: float, of: _Units) -> Estimate:
    """Wilson's interval for as many images as give a proportion the same variance.

    Of one unit alone nothing is known.
    """
    if of.count < LEAST_UNITS:
        return Estimate(value, 0.0, 1.0)
    effective, variance = of.count, of.variance
    if variance > 0:
        # Of few groups, or where few units move the figure, the variance is not well known.
        quantile = _student_quantile(of.count - 1) if of.grouped else Z95
        variance *= (quantile / Z95) ** 2 * (1 + of.largest)
        effective = max(0.0, value * (1 - value)) / variance
    return wilson_interval(value * effective, effective)


def _bound_area(value: float, of: _Units) -> Estimate:
    """The interval of an area under a curve: a normal one of its log odds (Pepe 2003, 5.3); NaN of none."""
    if math.isnan(value):
        return UNDEFINED
    chance = value * (1 - value)
    if of.count < LEAST_UNITS or of.variance == 0 or chance <= 0:
        return _bound(value, of)
    quantile = _student_quantile(of.count - 1) if of.grouped else Z95
    factor = math.exp(min(quantile * math.sqrt(of.variance) / chance, 700.0))
    low, high = (value * by / (value * by + 1 - value) for by in (1 / factor, factor))
    # Where next to nothing is misplaced, the few that are say little of how much there might be.
    sure = wilson_interval(value * MOST_WORTH * of.count, MOST_WORTH * of.count)
    return Estimate(value, min(low, sure.low, value), max(high, sure.high, value))


def _bound_balanced(labels: IntN, right: BoolN, units: IntN | None) -> Estimate:
    """The mean over classes of the fraction that is right, with the interval of Price and Bonett (2004): four
    pseudo-units, half of them right, are spread over the classes."""
    present, place = np.unique(labels, return_inverse=True)
    of = np.arange(len(labels)) if units is None else units
    images, hits = np.bincount(place), np.bincount(place, right)
    # The images of a class in each of its units.
    pairs, sizes = np.unique(of * len(present) + place, return_counts=True)
    weight = np.bincount(pairs % len(present), sizes**2) / images  # of a unit, in images
    more = 4 / len(present) * weight
    total = images + more
    shares = (hits + more / 2) / total
    moved = np.bincount(of, (right - shares[place]) / total[place])
    pseudo = (shares**2 + (1 - shares) ** 2) * more / 2 * weight / total**2
    count = len(present) ** 2 / float((weight / images).sum())
    quantile = Z95 if units is None else _student_quantile(count - 1)
    half = quantile * math.sqrt(float((moved**2).sum() + pseudo.sum())) / len(present)
    value, middle = float((hits / images).mean()), float(shares.mean())
    return Estimate(value, max(0.0, min(middle - half, value)), min(1.0, max(middle + half, value)))


def _student_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, within 0.001: by table, then by Cornish and Fisher's series.

    scipy has it too, but takes 0.3 s to import, a good part of a fit on known features. Between whole numbers
    the lower one is taken.
    """
    n = max(1, math.floor(freedom + 1e-6))
    if n <= len(STUDENT95):
        return STUDENT95[n - 1]
    # Abramowitz and Stegun, 26.7.5.
    z = Z95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
