"""Takes the probabilities of images that were not trained on, gives the temperature that calibrates them.

Logits divided by one number, the temperature, give probabilities that are as often right as they say (Guo
et al., On Calibration of Modern Neural Networks, ICML 2017); the most probable class stays. Pure functions on
arrays, of images with one label each. Shape letters: N images, C classes.
"""

import math

import numpy as np

from headstart.arrays import FloatN, FloatNC, IntN
from headstart.problem import SINGLE_LABEL

__all__ = [
    "HIGHEST",
    "LOWEST",
    "MEASURABLE",
    "PRIOR",
    "choose_temperature",
    "choose_temperatures_apart",
    "scale_probabilities",
]

LOWEST, HIGHEST = 0.1, 10.0

# Before any image is seen, the logarithm of the temperature is taken to be normal about 0 with this
# deviation. Images of which none is wrong would else say 0.
PRIOR = 0.5

# It stays 1 unless the slope of the loss there is so many times what chance would make of probabilities
# that are right (Rao's score test). The penalty of a linear probe was chosen by the same loss: it has
# little to gain from a temperature, and with few images something to lose.
MEASURABLE = 2.0

STEPS = 60  # of the search at most, every third of which halves the interval


def choose_temperature(
    labels: IntN,
    probabilities: FloatNC,
    units: tuple[str, ...] | None = None,
    *,
    prior: float = PRIOR,
    measurable: float = MEASURABLE,
) -> float:
    """Choose the temperature, in `LOWEST` to `HIGHEST`; 1 without evidence for another.

    It minimises  U * mean log loss of the scaled probabilities  +  log(T)^2 / (2 prior^2) , where U is the
    number of units: the images of one are alike, and say no more than one would.

    Args:
        labels: int (N,), N at least 0.
        probabilities: float (N, C), by a classifier that was trained without the image.
        units: N names; each image is its own by default.
        prior: deviation of log(T); math.inf for the maximum of the likelihood.
        measurable: as `MEASURABLE`; 0 to choose in any case.
    """
    if len(labels) == 0:
        return 1.0
    logits = SINGLE_LABEL.unlink(probabilities)
    true = logits[np.arange(len(labels)), labels]
    count = len(labels) if units is None else len(set(units))
    if abs(_score(logits, true, count)) < measurable:
        return 1.0

    def slope(log_inverse: float) -> float:
        """Of the loss by log(1 / T); it changes its sign once, since the loss is convex in 1 / T."""
        inverse = math.exp(log_inverse)
        expected = np.einsum("nc,nc->n", SINGLE_LABEL.link(inverse * logits), logits)
        return count * inverse * float((expected - true).mean()) + log_inverse / prior**2

    low, high = -math.log(HIGHEST), -math.log(LOWEST)
    at_low, at_high = slope(low), slope(high)
    if at_low >= 0 or at_high <= 0:
        return HIGHEST if at_low >= 0 else LOWEST
    for step in range(STEPS):
        # A secant may creep towards one end, which halving ends.
        share = 0.5 if step % 3 == 2 else at_low / (at_low - at_high)
        middle = low + min(max(share, 1e-3), 1 - 1e-3) * (high - low)
        value = slope(middle)
        if value < 0:
            low, at_low = middle, value
        else:
            high, at_high = middle, value
        if high - low < 1e-7:
            break
    return math.exp(-(low + high) / 2)


def _score(logits: FloatNC, true: FloatN, count: int) -> float:
    """Give the slope of the loss at a temperature of 1 in standard deviations, as of units so many.

    They are those of probabilities that are right, by which the class of each image would be drawn.
    """
    probabilities = SINGLE_LABEL.link(logits)
    mean = np.einsum("nc,nc->n", probabilities, logits)
    variance = np.einsum("nc,nc->n", probabilities, (logits - mean[:, None]) ** 2)
    deviation = math.sqrt(max(float(variance.mean()), np.finfo(np.float64).tiny) / count)
    return float((mean - true).mean()) / deviation


def choose_temperatures_apart(
    labels: IntN, probabilities: FloatNC, units: tuple[str, ...], parts: IntN
) -> FloatN:
    """Give the temperature of each image, float64 (N,), chosen on the images of the other parts.

    Figures with these do not flatter, as those with a temperature that was chosen on the same images would.

    Args:
        parts: (N,), those of a unit in the same.
    """
    result = np.ones(len(labels))
    for part in np.unique(parts):
        inside = parts == part
        others = tuple(unit for unit, own in zip(units, inside, strict=True) if not own)
        result[inside] = choose_temperature(labels[~inside], probabilities[~inside], others)
    return result


def scale_probabilities(probabilities: FloatNC, temperature: float | FloatN) -> FloatNC:
    """Give the probabilities, float32 (N, C), at a temperature: one for all images, or (N,)."""
    divisor = np.asarray(temperature, dtype=np.float64).reshape(-1, 1)
    return SINGLE_LABEL.link(SINGLE_LABEL.unlink(probabilities) / divisor).astype(np.float32)
