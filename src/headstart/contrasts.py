"""Takes which test images classifiers get right, gives differences with tests, ranks, and what would tell.

A contender is one way of training, with a run for each of its seeds, all measured on the same images. Pure
functions on arrays. Shape letters: S runs of a contender, N images, U units: an image, or the images of a
group, which are not independent of each other.

The test. Were two contenders alike, the difference of a unit would be as likely to have the other sign. So
the sum of the differences is compared with that under all choices of signs, exactly. For two runs and images
without groups that is McNemar's exact test (McNemar 1947). It takes the runs as given. Where there are
several seeds, what seeds do beyond single images is estimated too, and a t test with both variances has to
find a difference as well: the larger of the two values of p counts.

The variances. That which the choice of units makes: of the differences over units. That of seeds: of the
runs' accuracies, less what chance in single units contributes to it, as in an analysis of variance with
images and seeds crossed; between trainings that end alike little is left (Jordan, Calibrated Chaos, 2023).
The degrees of freedom of their sum are Satterthwaite's (1946).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from headstart.arrays import BoolSN, FloatN, IntN
from headstart.metrics import Z95, Estimate, wilson_interval

__all__ = [
    "LEVEL",
    "Contrast",
    "adjust_holm",
    "contrast_runs",
    "count_more_images",
    "estimate_accuracy",
    "permute_signs",
    "rank_with_ties",
]

# Of a false alarm, over all differences that are looked at; and the chance to see a difference that is there.
LEVEL, POWER = 0.05, 0.8
# The Fourier transform that sums signs is exact to about this.
SMALLEST_P = 1e-12
# Nobody has more test images than these.
MOST_IMAGES = 10**7
BOOTSTRAP_DRAWS = 2000
# Degrees of freedom that are as good as endless.
ENDLESS = 1e9


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The difference between two contenders on the same images.

    Attributes:
        difference: accuracy of the first less that of the second, with its 95 % interval.
        p: how probable a difference of this size is between contenders that are alike.
        only_first, only_second: images that only the one gets right, in the mean over pairs of runs.
        of_images: the variance of the difference that the choice of test images makes.
        of_seeds: the variance that seeds make beyond that; 0 where there is one seed.
        images: N.
    """

    difference: Estimate
    p: float
    only_first: float
    only_second: float
    of_images: float
    of_seeds: float
    images: int


def estimate_accuracy(right: BoolSN, units: IntN) -> Estimate:
    """Estimate the accuracy of a contender on images like these with seeds like these.

    Args:
        right: (S, N), which images each run gets right.
        units: int64 (N,), the unit of each image, from 0 on.

    Returns:
        The mean over runs and images, with Wilson's 95 % interval for the number of images that gives
        a proportion the same variance. For one run on images without groups that is `metrics.measure`'s.
    """
    sums, sizes = _sum_units(right, units)
    images, count = int(sizes.sum()), len(sizes)
    mean = sums.sum() / (len(right) * images)
    grouped = count < images
    sampling = _vary_over_units(sums.mean(axis=0), sizes)
    seeds, freedom = _vary_over_seeds(sums, sizes)
    total = sampling + seeds
    if total == 0:
        return wilson_interval(mean * count, count)
    own = [(sampling, count - 1 if grouped else ENDLESS), (seeds, freedom)]
    # Student's quantile in the place of the normal one, as a larger variance.
    total *= (_quantile(_pool_freedom(own)) / Z95) ** 2
    effective = mean * (1 - mean) / total
    return wilson_interval(mean * effective, effective)


def contrast_runs(first: BoolSN, second: BoolSN, units: IntN, *, seed: int = 0) -> Contrast:
    """Compare two contenders on the same images.

    Args:
        first, second: (S, N), which images each run gets right; S may differ.
        units: int64 (N,), the unit of each image, from 0 on.
        seed: of the bootstrap, which draws whole units.
    """
    (ours, sizes), (theirs, _) = _sum_units(first, units), _sum_units(second, units)
    images, count = int(sizes.sum()), len(sizes)
    differences = ours.mean(axis=0) - theirs.mean(axis=0)
    mean = float(differences.sum() / images)
    # As if runs differed on one more image, by halves to both sides (Agresti and Min 2005): else those that
    # never differ would be certain to be equal. One unit alone tells nothing.
    one_more = (1 / len(first) + 1 / len(second)) / 2 / images**2
    sampling = (_vary_over_units(differences, sizes) + one_more) * count / max(count - 1, 1e-9)
    parts = [_vary_over_seeds(ours, sizes), _vary_over_seeds(theirs, sizes)]
    seeds = parts[0][0] + parts[1][0]
    error = math.sqrt(sampling + seeds)
    freedom = _pool_freedom([(sampling, max(count - 1, 1)), *parts])
    # Whole numbers, so that sums of signs can be counted.
    common = math.gcd(len(first), len(second))
    whole = ours.sum(axis=0) * (len(second) // common) - theirs.sum(axis=0) * (len(first) // common)
    p = permute_signs(np.rint(whole).astype(np.int64))
    if max(len(first), len(second)) > 1:
        p = max(p, float(2 * special.stdtr(freedom, -abs(mean) / error)))
    quantile = _quantile(freedom)
    reach = _bootstrap(differences, sizes, seed) * quantile / Z95 * error / math.sqrt(sampling)
    low = min(mean + reach[0], mean - quantile * error)
    high = max(mean + reach[1], mean + quantile * error)
    chances = first.mean(axis=0), second.mean(axis=0)
    return Contrast(
        difference=Estimate(mean, max(-1.0, float(low)), min(1.0, float(high))),
        p=p,
        only_first=float((chances[0] * (1 - chances[1])).sum()),
        only_second=float((chances[1] * (1 - chances[0])).sum()),
        of_images=sampling,
        of_seeds=seeds,
        images=images,
    )


def permute_signs(differences: IntN) -> float:
    """Give the probability that random signs make a sum at least as far from 0; exact.

    Args:
        differences: int64 (U,). With values of -1, 0 and 1 this is McNemar's exact test.

    Returns:
        At least 1e-12, the precision of what is computed.
    """
    sizes, counts = np.unique(abs(differences[differences != 0]), return_counts=True)
    reach = int(sizes @ counts)
    # The distribution of the sum is the Fourier transform of its characteristic function, the product of
    # cos(size * angle) over the units, on the whole numbers from -reach to reach.
    angles = 2 * np.pi / (2 * reach + 1) * np.arange(2 * reach + 1)
    transform = np.ones(2 * reach + 1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        transform *= np.cos(size * angles) ** count
    chances = np.fft.fftshift(np.fft.fft(transform).real) / len(angles)
    far = abs(np.arange(-reach, reach + 1)) >= abs(int(differences.sum()))
    return float(np.clip(chances[far].sum(), SMALLEST_P, 1.0))


def adjust_holm(values: Sequence[float]) -> list[float]:
    """Adjust values of p so that below 0.05 there is a false alarm among all in 5 % of cases (Holm 1979)."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted, highest = [0.0] * len(values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, values[i] * (len(values) - place)))
        adjusted[i] = highest
    return adjusted


def count_more_images(contrast: Contrast, *, level: float = LEVEL) -> int | None:
    """Count the test images that are lacking to tell a difference as large as the one seen, if it is real.

    For a chance of 0.8 to find it at this level. None where ten million would not do: next to nothing was
    seen, or seeds differ by more.
    """
    z = float(special.ndtri(1 - level / 2) + special.ndtri(POWER))
    room = (contrast.difference.value / z) ** 2 - contrast.of_seeds
    if room <= 0:
        return None
    more = max(1.0, contrast.images * (contrast.of_images / room - 1))
    return math.ceil(more) if more <= MOST_IMAGES else None


def rank_with_ties(count: int, better: Sequence[tuple[int, int]]) -> list[int]:
    """Rank contenders: 1 and one more for each that is distinguishably better.

    Args:
        count: of contenders.
        better: (the better one, the worse one) of each pair that can be told apart.
    """
    ranks = [1] * count
    for _, worse in better:
        ranks[worse] += 1
    return ranks


def _sum_units(right: BoolSN, units: IntN) -> tuple[FloatN, IntN]:
    """Count the right images of each unit by run, (S, U), and its images, (U,)."""
    sizes = np.bincount(units).astype(np.int64)
    sums = np.array([np.bincount(units, run, len(sizes)) for run in right], dtype=np.float64)
    return sums, sizes


def _vary_over_units(sums: FloatN, sizes: IntN) -> float:
    """Give the variance of sum / images that comes from the choice of units, from sums (U,)."""
    images = sizes.sum()
    deviations = sums - sums.sum() / images * sizes
    return float((deviations**2).sum() / images**2)


def _vary_over_seeds(sums: FloatN, sizes: IntN) -> tuple[float, float]:
    """Give the variance of the mean accuracy that seeds make beyond chance in single units, and its degrees
    of freedom, from sums (S, U)."""
    runs, count = sums.shape
    if runs < 2 or count < 2:
        return 0.0, 1.0
    images = sizes.sum()
    accuracies = sums.sum(axis=1) / images
    rest = sums - sums.mean(axis=0) - (accuracies - accuracies.mean())[:, None] * sizes
    chance = count * (rest**2).sum() / ((runs - 1) * (count - 1)) / images**2
    # Of few seeds the variance is mostly seen too small: take what is as often too large as too small.
    freedom = runs - 1.0
    variance = accuracies.var(ddof=1) * freedom / special.chdtri(freedom, 0.5)
    return max(0.0, float(variance - chance)) / runs, freedom


def _pool_freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Give the degrees of freedom of a sum of variances, each given with its own (Satterthwaite 1946)."""
    total = sum(variance for variance, _ in parts)
    if not math.isfinite(total) or total == 0:
        return 1.0
    return min(ENDLESS, total**2 / sum(v**2 / freedom for v, freedom in parts))


def _quantile(freedom: float) -> float:
    """Student's 97.5 % quantile."""
    return float(special.stdtrit(freedom, 0.975))


def _bootstrap(differences: FloatN, sizes: IntN, seed: int) -> FloatN:
    """Draw units with replacement; give how far the 2.5 % and 97.5 % quantiles of the mean are from it."""
    kinds, counts = np.unique(np.stack([differences, sizes]), axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(sizes), counts / counts.sum(), BOOTSTRAP_DRAWS)
    means = (drawn @ kinds[0]) / (drawn @ kinds[1])
    middle = differences.sum() / sizes.sum()
    return np.asarray(np.quantile(means, [0.025, 0.975]) - middle)
