"""Takes what a classifier knows of its own limits, writes it as a file of the run's folder, reads it back."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from headstart.arrays import BoolNC, FloatNC, FloatND, IntN
from headstart.errors import InputError, UsageError
from headstart.files import read_bounded
from headstart.metrics import Estimate, bound_share, number_units
from headstart.training.conformal import MAX_SCORES, Scores, check_coverage, find_sets
from headstart.training.novelty import COMPONENTS, MAX_KNOWN, NOVEL, Novelty

__all__ = [
    "NO_KNOWLEDGE",
    "Knowledge",
    "SetFigures",
    "measure_novel",
    "measure_sets",
    "read_knowledge",
]

# The file: scores of sets and of novelty, 8 bytes each, the mean and the components, and its header.
TOLERANCE = 1e-3  # of unit lengths
MAX_WIDTH = 2**16
MAX_BYTES = 8 * (MAX_SCORES + MAX_KNOWN) + 4 * MAX_WIDTH * (COMPONENTS + 1) + 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class Knowledge:
    """What a classifier knows of its own limits.

    Attributes:
        sets: by which prediction sets are made; None where nothing was measured, or images may have several
            labels.
        novelty: by which it tells what is like nothing it knows; None where it does not.
    """

    sets: Scores | None = None
    novelty: Novelty | None = None

    def check_coverage(self, coverage: float) -> None:
        """Refuse a coverage that there are no sets of.

        Raises:
            UsageError: it is out of range or too high for so few images, or there are no sets at all.
        """
        if self.sets is None:
            raise UsageError(
                "coverage needs a classifier of one label an image that fit has measured; leave it out, or "
                "fit again with enough images of every class"
            )
        check_coverage(self.sets, coverage)

    def find_sets(self, probabilities: FloatNC, coverage: float) -> BoolNC:
        """Say which classes are in the set of each image, (N, C); at least one, the most probable.

        Args:
            probabilities: float32 (N, C), of the classifier.
            coverage: one that `check_coverage` does not refuse.
        """
        assert self.sets is not None
        return find_sets(self.sets, probabilities, coverage)

    def to_bytes(self) -> bytes:
        """Give the content of the file; nothing for nothing."""
        arrays: dict[str, np.ndarray] = {}
        if self.sets is not None:
            arrays |= {"sets.values": self.sets.values, "sets.units": self.sets.units}
        if self.novelty is not None:
            scores = self.novelty.scores
            arrays |= {
                "novelty.mean": self.novelty.mean,
                "novelty.components": self.novelty.components,
                "novelty.values": scores.values,
                "novelty.units": scores.units,
            }
        return save_arrays(arrays) if arrays else b""


NO_KNOWLEDGE = Knowledge()


@dataclasses.dataclass(frozen=True)
class SetFigures:
    """Prediction sets on labelled images.

    Attributes:
        coverage: that they are to have.
        covered: the share of images that have their class in their set.
        size: the mean number of classes in a set.
        sizes: {number of classes: images that have so many in their set}.
    """

    coverage: float
    covered: Estimate
    size: float
    sizes: dict[int, int]


def measure_sets(
    knowledge: Knowledge,
    labels: IntN,
    probabilities: FloatNC,
    coverage: float | None,
    groups: Sequence[str],
) -> SetFigures | None:
    """Measure prediction sets, where a coverage is asked for.

    Args:
        labels: int (N,), N at least 1.
        probabilities: float32 (N, C); 0 for classes that the classifier does not know, which no set has.
        coverage: as in `Knowledge.find_sets`.
        groups: as in `metrics.number_units`.
    """
    if coverage is None:
        return None
    inside = knowledge.find_sets(probabilities, coverage)
    covered = inside[np.arange(len(labels)), labels]
    sizes = inside.sum(axis=1)
    values, counts = np.unique(sizes, return_counts=True)
    return SetFigures(
        coverage,
        bound_share(covered, units=number_units(groups)),
        float(sizes.mean()),
        dict(zip(values.tolist(), counts.tolist(), strict=True)),
    )


def measure_novel(
    knowledge: Knowledge, features: Mapping[str, FloatND], groups: Sequence[str]
) -> Estimate | None:
    """Measure the share of images that are none of these; None where the classifier cannot tell.

    For a share of one in a hundred it takes 99 known images, or groups.

    Args:
        features: {cut point: float32 (N, D)}, N at least 1.
        groups: as in `metrics.number_units`.
    """
    novelty = knowledge.novelty
    if novelty is None or 1 / (novelty.scores.count + 1) > NOVEL:
        return None
    shares = novelty.p_values(features[novelty.cut])
    return bound_share(shares <= NOVEL, units=number_units(groups))


def read_knowledge(path: Path, sha256: str, cut: str, width: int) -> Knowledge:
    """Read the file, which may come from anywhere.

    Args:
        sha256: that its content has to have.
        cut, width: of the features that novelty is told by; "" and 0 for none.

    Raises:
        InputError: missing, too large, damaged, or of other features.
    """
    data = read_bounded(path, MAX_BYTES, "damaged: larger than headstart writes it; fit again")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(
            f"{path}: damaged (its checksum is not the one recorded); fit again or restore the file"
        )
    try:
        arrays = load_arrays(data)
        sets = _read_scores(arrays, "sets", MAX_SCORES) if "sets.values" in arrays else None
        if not cut:
            return Knowledge(sets)
        scores = _read_scores(arrays, "novelty", MAX_KNOWN)
        mean, components = (arrays[f"novelty.{name}"] for name in ("mean", "components"))
        count = len(components) if components.ndim == 2 else 0
        _check(mean, "novelty.mean", np.float32, (width,))
        _check(components, "novelty.components", np.float32, (count, width))
        if not 1 <= count <= COMPONENTS:
            raise ValueError(f"{count} components, of 1 to {COMPONENTS}")
        if max(abs(mean).max(), abs(components).max()) > 1 + TOLERANCE:
            raise ValueError("the components are no directions")
    except KeyError as exc:
        raise InputError(f"{path}: damaged: tensor {exc} is missing; fit again") from exc
    except (SafetensorError, ValueError, TypeError) as exc:
        raise InputError(f"{path}: damaged: {exc}; fit again") from exc
    return Knowledge(sets, Novelty(cut, mean, components, scores))


def _read_scores(arrays: Mapping[str, np.ndarray], name: str, most: int) -> Scores:
    values, units = (arrays[f"{name}.{part}"] for part in ("values", "units"))
    if not 1 <= values.size <= most:
        raise ValueError(f"tensor '{name}.values' has {values.size} values, of 1 to {most}")
    _check(values, f"{name}.values", np.float32, (values.size,))
    _check(units, f"{name}.units", np.int32, (values.size,))
    return Scores(values, units)


def _check(array: np.ndarray, name: str, dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"tensor '{name}' is not {np.dtype(dtype)} {shape} of finite values")
