"""Takes a matrix of features and labels, gives a classifier on them: multinomial logistic regression.

Place in the flow: after `metrics`; `strategies` trains heads here. Shape letters: N images,
D features, C classes.

The penalty is chosen by stratified, group-aware cross-validation on the training part alone, along a
path from strong to weak with a warm start. The features are first rotated to their principal axes,
which changes neither the solution nor the loss of an L2-penalised linear model (Hastie, Tibshirani,
Friedman: The Elements of Statistical Learning, section 18.3.5); it leaves at most N dimensions, and
axes along which the problem is nearly separable, so that a scaled L-BFGS needs few steps.
"""

import contextlib
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from headstart.datasets import draw
from headstart.errors import InputError
from headstart.features import Progress, no_progress

__all__ = ["LinearHead", "Penalty", "assign_folds", "choose_penalty", "fit_linear", "softmax"]

# From strongly to weakly regularised, two steps a decade. On standardised features the best value
# was inside this range on every data set tried (8 to 10,000 images a class, 2 to 100 classes).
PENALTIES = tuple(float(10 ** (e / 2)) for e in range(4, -11, -1))
PENALTY_WITHOUT_FOLDS = 1e-2
MAX_FOLDS = 5
MAX_STEPS = 1000

# Largest component of the scaled gradient at which L-BFGS stops.
TOLERANCE = 1e-6
CV_TOLERANCE = 1e-4

# Below this many multiplications a step the folds are solved one after another.
SERIAL_BELOW = 2_000_000

# The path ends when this many penalties in a row have not lowered the loss.
PATIENCE = 2


@dataclasses.dataclass(frozen=True, eq=False)
class LinearHead:
    """Logits = features @ weight.T + bias; standardisation is folded in.

    Attributes:
        weight: float32 (C, D).
        bias: float32 (C,).
    """

    weight: np.ndarray
    bias: np.ndarray

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """float32 (N, D) -> float32 (N, C); rows sum to one."""
        logits = features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        return softmax(logits).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Penalty:
    """The outcome of choosing the penalty.

    Attributes:
        value: the chosen penalty.
        path: (penalty, cross-validated log loss) of every one tried.
        folds: 0 where there were too few images a class for cross-validation.
        probabilities: float32 (N, C), out of fold at the chosen penalty; None without folds.
    """

    value: float
    path: tuple[tuple[float, float], ...]
    folds: int
    probabilities: np.ndarray | None


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, without overflow."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def assign_folds(labels: np.ndarray, units: tuple[str, ...], folds: int, seed: int) -> np.ndarray:
    """int64 (N,): the fold of each image; every unit (group) in one fold, classes spread evenly.

    Units are dealt in the order of a draw of their names, each to the fold that holds the fewest
    images of the unit's most frequent class, then the fewest images.
    """
    members: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
    held = np.zeros((folds, int(labels.max()) + 1), dtype=np.int64)
    result = np.zeros(len(labels), dtype=np.int64)
    order = sorted(members, key=lambda u: (-len(members[u]), draw(seed, "fold", u), u))
    for unit in order:
        rows = members[unit]
        counts = np.bincount(labels[rows], minlength=held.shape[1])
        main = int(counts.argmax())
        fold = min(range(folds), key=lambda f: (held[f, main], held[f].sum(), f))
        held[fold] += counts
        result[rows] = fold
    return result


def fit_linear(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    penalty: float,
    weights: np.ndarray | None = None,
) -> LinearHead:
    """Multinomial logistic regression on standardised features.

    Minimises  sum_i w_i * -log p(y_i | x_i) / sum_i w_i  +  penalty / 2 * |W|^2  with L-BFGS in
    float64; the bias is not penalised. scikit-learn's LogisticRegression has C = 1 / (penalty * N).

    Args:
        features: float (N, D), finite.
        labels: int (N,), each class at least once.
        penalty: above 0.
        weights: float (N,) weight of each image; 1 by default.

    Raises:
        InputError: NaN or infinite features.
    """
    with _one_thread_each():
        problem = _Problem(features, labels, classes, weights)
        solution = problem.solve(np.ones(len(labels), dtype=bool), penalty, None, TOLERANCE)
        return problem.head(solution)


def choose_penalty(
    features: np.ndarray,
    labels: np.ndarray,
    units: tuple[str, ...],
    classes: int,
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Penalty:
    """The penalty with the lowest cross-validated log loss.

    Args:
        features: float (N, D); labels: int (N,); units: N names of what stays in one fold.
        weights: float (N,) weight of each image, in training and in the loss.

    Raises:
        InputError: NaN or infinite features.
    """
    per_class = [
        len({u for u, y in zip(units, labels, strict=True) if y == c}) for c in range(classes)
    ]
    folds = min(MAX_FOLDS, min(per_class))
    if folds < 2:
        return Penalty(PENALTY_WITHOUT_FOLDS, (), 0, None)
    problem = _Problem(features, labels, classes, weights)
    fold = assign_folds(labels, units, folds, seed)
    masks = [fold != k for k in range(folds)]
    starts: list[np.ndarray | None] = [None] * folds
    path: list[tuple[float, float]] = []
    best: tuple[float, float, np.ndarray] | None = None
    # Small problems spend their time in Python, where threads only wait for one another.
    large = problem.matrix.size * classes > SERIAL_BELOW
    threads = min(folds, os.cpu_count() or 1) if large else 1
    with _one_thread_each(), ThreadPoolExecutor(threads) as pool:
        for step, penalty in enumerate(PENALTIES):
            progress("cross-validation", step, len(PENALTIES))

            solutions = list(
                pool.map(problem.solve, masks, [penalty] * folds, starts, [CV_TOLERANCE] * folds)
            )
            logits = np.zeros((len(labels), classes))
            for k, solution in enumerate(solutions):
                logits[fold == k] = problem.logits(solution, fold == k)
            starts = [*solutions]
            loss = problem.loss(logits)
            path.append((penalty, loss))
            if best is None or loss < best[1]:
                best = (penalty, loss, logits)
            elif len(path) > PATIENCE and all(v > best[1] for _, v in path[-PATIENCE:]):
                break
    progress("cross-validation", len(PENALTIES), len(PENALTIES))
    assert best is not None
    return Penalty(best[0], tuple(path), folds, softmax(best[2]).astype(np.float32))


def _one_thread_each() -> contextlib.AbstractContextManager[object]:
    """Linear algebra on one thread: the folds run side by side instead, the bits do not depend on
    the number of CPUs, and matrices of this size gain nothing from a second one."""
    from threadpoolctl import threadpool_limits

    limits: contextlib.AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


def _principal_axes(matrix: np.ndarray) -> np.ndarray:
    """(N, D) -> (D, R) orthonormal axes that span the rows, R at most min(N, D)."""
    count, width = matrix.shape
    gram = matrix @ matrix.T if count < width else matrix.T @ matrix
    energy, vectors = np.linalg.eigh(gram)
    kept = energy > energy[-1] * 1e-12
    energy, vectors = energy[kept], vectors[:, kept]
    return np.asarray(matrix.T @ vectors / np.sqrt(energy) if count < width else vectors)


class _Problem:
    """Standardised, rotated features with labels; solves for any subset of rows and any penalty."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        classes: int,
        weights: np.ndarray | None,
    ) -> None:
        if not np.isfinite(features).all():
            row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
            raise InputError(f"features of row {row} are NaN or infinite")
        matrix = features.astype(np.float64)
        self.mean = matrix.mean(axis=0)
        spread = matrix.std(axis=0)
        # A feature that never varies says nothing; dividing by its rounding noise would amplify it.
        floor = 1e-7 * np.abs(matrix).max(axis=0, initial=0.0)
        self.scale = np.where(spread > floor, spread, np.inf)
        matrix = (matrix - self.mean) / self.scale
        # X = Z V^T with the columns of Z orthogonal: with W = V A the loss and |W| depend on A alone.
        self.basis = _principal_axes(matrix)
        matrix = matrix @ self.basis
        self.energy = (matrix**2).mean(axis=0)
        self.matrix = matrix
        self.classes = classes
        self.labels = labels
        self.weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
        self.targets = np.eye(classes)[labels]

    def solve(
        self, rows: np.ndarray, penalty: float, start: np.ndarray | None, tolerance: float
    ) -> np.ndarray:
        """(R + 1, C) coefficients in principal axes, the bias last."""
        from scipy import optimize

        x = self.matrix[rows]
        targets = self.targets[rows]
        w = (self.weights[rows] / self.weights[rows].sum())[:, None]
        shape = (x.shape[1] + 1, self.classes)
        # In principal axes the Hessian is nearly diagonal: about E[p (1 - p)] times the energy of an
        # axis, plus the penalty. Scaling by its root takes L-BFGS to the optimum in a tenth of the
        # steps and changes nothing else.
        spread = (1 - 1 / self.classes) / self.classes
        scale = np.sqrt(np.append(self.energy * spread + penalty, spread))[:, None]

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            coefficients = flat.reshape(shape) / scale
            logits = x @ coefficients[:-1] + coefficients[-1]
            logits -= logits.max(axis=1, keepdims=True)
            exponents = np.exp(logits)
            totals = exponents.sum(axis=1, keepdims=True)
            # Loss: sum w (log sum exp z - z_y); its gradient in z: w (softmax(z) - onehot(y)).
            loss = (w * (np.log(totals) - (logits * targets).sum(axis=1, keepdims=True))).sum()
            residual = w * (exponents / totals - targets)
            gradient = np.empty(shape)
            gradient[:-1] = x.T @ residual + penalty * coefficients[:-1]
            gradient[-1] = residual.sum(axis=0)
            loss += penalty / 2 * (coefficients[:-1] ** 2).sum()
            return float(loss), (gradient / scale).ravel()

        initial = np.zeros(shape) if start is None else start
        result = optimize.minimize(
            objective,
            (initial * scale).ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": MAX_STEPS, "gtol": tolerance, "ftol": 1e-12, "maxcor": 20},
        )
        solution: np.ndarray = np.asarray(result.x).reshape(shape) / scale
        return solution

    def logits(self, solution: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix[rows] @ solution[:-1] + solution[-1])

    def loss(self, logits: np.ndarray) -> float:
        true = softmax(logits)[np.arange(len(self.labels)), self.labels]
        return float(np.average(-np.log(np.maximum(true, 1e-12)), weights=self.weights))

    def head(self, solution: np.ndarray) -> LinearHead:
        """Undo the rotation and fold the standardisation in: W x + b on raw features."""
        weight = (self.basis @ solution[:-1]) / self.scale[:, None]
        bias = solution[-1] - self.mean @ weight
        return LinearHead(weight.T.astype(np.float32), bias.astype(np.float32))
