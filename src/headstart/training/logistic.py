"""Takes features, targets and folds, solves logistic regression with an L2 penalty.

Multinomial for one label an image, and one against the rest for each label where there may be several: these
are solved together, since they differ in nothing but their targets. `heads` chooses penalties and cut points
with it. Shape letters: N images, D features, R coordinates that the solver works in, C classes.

Each problem is solved by L-BFGS (Liu and Nocedal 1989) in coordinates in which the Hessian is nearly
the identity, which takes ten to twenty steps instead of hundreds. With fewer images than features
those are the principal axes, at most N of them: that changes neither the solution nor the loss of an
L2-penalised linear model (Hastie, Tibshirani, Friedman: The Elements of Statistical Learning, section
18.3.5). Else they come from a Cholesky factor of the approximate Hessian. Large problems are solved
in float32 with sums in float64, in blocks of rows side by side; the blocks, and the order in which
they are summed, depend on the problem alone, so the bits do not depend on the number of CPUs.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from headstart.arrays import FloatC, FloatCD, FloatD, FloatN, FloatNC, FloatND, IntN, Targets
from headstart.errors import InputError
from headstart.parallel import count_cpus
from headstart.problem import MULTI_LABEL, SINGLE_LABEL, Problem, sigmoid

__all__ = [
    "CV_GAP",
    "GAP",
    "REGRESSIONS",
    "Regression",
    "fold_standardisation",
    "side_by_side",
    "standardise",
]

# L-BFGS stops when the next step is expected to lower the loss by no more, in nats an image. On
# CIFAR-10 and GTSRB the looser one moves the held-out loss by at most 0.001 around the best penalty.
GAP = 1e-7
CV_GAP = 1e-5
STAGE_GAP = 1e-3
MAX_STEPS = 1000
MEMORY = 10

# Up to this many multiplications a step a problem is solved in float64 on one thread: it spends its
# time in Python, where threads only wait for one another.
SMALL = 2_000_000
BLOCK_ROWS = 512

# Rows that the approximate Hessian is made of; more do not save a step.
HESSIAN_ROWS = 2048

Map = Callable[[Callable[[slice], Any], Iterable[slice]], Iterable[Any]]


@contextlib.contextmanager
def side_by_side(work: int) -> Iterator[Map]:
    """Give a `map` over blocks of rows: on all CPUs, each with linear algebra on one thread."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        if work <= SMALL:
            yield map
        else:
            with ThreadPoolExecutor(count_cpus()) as pool:
                yield pool.map


def _blocks(start: int, stop: int) -> list[slice]:
    return [slice(row, min(row + BLOCK_ROWS, stop)) for row in range(start, stop, BLOCK_ROWS)]


def standardise(features: FloatND, run: Map = map) -> tuple[FloatD, FloatD]:
    """Measure the mean and scale that standardise features: (x - mean) / scale.

    Args:
        features: float (N, D).
        run: a `map` over blocks of rows.

    Returns:
        mean and scale, float64 (D,); the scale of a feature that never varies is infinite.

    Raises:
        InputError: NaN or infinite features.
    """

    def sums(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        block = features[rows]
        return block.sum(axis=0, dtype=np.float64), np.abs(block).max(axis=0)

    def squares(rows: slice) -> np.ndarray:
        return np.asarray(((features[rows] - mean) ** 2).sum(axis=0))

    blocks = _blocks(0, len(features))
    parts = list(run(sums, blocks))
    mean = sum(part[0] for part in parts) / len(features)
    largest = np.max([part[1] for part in parts], axis=0)
    if not np.isfinite(largest).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise InputError(f"features of row {row} are NaN or infinite")
    std = np.sqrt(sum(run(squares, blocks)) / len(features))
    # A feature that never varies says nothing; dividing by its rounding noise would amplify it.
    return mean, np.where(std > 1e-7 * largest.astype(np.float64), std, np.inf)


def fold_standardisation(
    weight: FloatCD, bias: FloatC, mean: FloatD, scale: FloatD
) -> tuple[FloatCD, FloatC]:
    """Give the float32 layer on raw features whose outputs are those of a layer on standardised ones.

    Args:
        weight, bias: float (C, D) and (C,), or as many rows as the layer has outputs.
        mean, scale: float64 (D,), as `standardise` gives them.
    """
    exact = weight.astype(np.float64) / scale
    return exact.astype(np.float32), (bias - exact @ mean).astype(np.float32)


def _principal_axes(matrix: np.ndarray) -> np.ndarray:
    """Give orthonormal axes (D, R) that span the rows of a matrix (N, D) with N < D; R is at most N."""
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    nonzero = values > values[-1] * 1e-12
    return np.asarray(matrix.T @ (vectors[:, nonzero] / np.sqrt(values[nonzero])))


def _factorise(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower L with matrix = L L^T, and its inverse, by halves: twice as fast as numpy."""
    count = len(matrix)
    if count <= 128:
        root = np.linalg.cholesky(matrix)
        return root, np.linalg.inv(root)
    # [[A, .], [B, C]]: L = [[K, 0], [M, N]] with K K^T = A, M = B K'^T, N N^T = C - M M^T.
    half = count // 2
    root, inverse = np.zeros_like(matrix), np.zeros_like(matrix)
    first, last = slice(half), slice(half, count)
    root[first, first], inverse[first, first] = _factorise(matrix[first, first])
    root[last, first] = matrix[last, first] @ inverse[first, first].T
    rest = matrix[last, last] - root[last, first] @ root[last, first].T
    root[last, last], inverse[last, last] = _factorise(rest)
    inverse[last, first] = -inverse[last, last] @ (root[last, first] @ inverse[first, first])
    return root, inverse


def _minimise(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    gap: float,
    noise: float,
) -> np.ndarray:
    """Minimise a convex function whose Hessian is near the identity: L-BFGS with backtracking.

    The names are those of Liu and Nocedal: s is the difference of two points, y that of their gradients,
    rho = 1 / (y^T s).

    scipy takes 0.3 s to import, longer than a small fit, and its L-BFGS stops on measures that say
    less.

    Args:
        gap: it stops when the quadratic model promises to lower the function by no more than this.
        noise: the function's relative rounding error.
    """
    x, (value, gradient) = start, objective(start)
    pairs: list[tuple[np.ndarray, np.ndarray, float]] = []
    for _ in range(MAX_STEPS):
        direction = -gradient
        alphas = []
        for s, y, inverse_rho in reversed(pairs):
            alphas.append(s @ direction / inverse_rho)
            direction -= alphas[-1] * y
        if pairs:
            direction *= pairs[-1][2] / (pairs[-1][1] @ pairs[-1][1])
        for (s, y, inverse_rho), alpha in zip(pairs, reversed(alphas), strict=True):
            direction += (alpha - y @ direction / inverse_rho) * s
        slope = float(gradient @ direction)
        if -slope / 2 <= gap:
            break
        length = 1.0
        while True:
            next_x = x + length * direction
            next_value, next_gradient = objective(next_x)
            if next_value <= value + 1e-4 * length * slope + noise * abs(value):
                break
            if length < 1e-6:
                return x  # the rest of the gain is below the rounding error
            # The lowest point of the parabola through both values and the slope, within bounds.
            curvature = 2 * (next_value - value - length * slope)
            length *= min(0.5, max(0.1, -slope * length / curvature))
        s, y = next_x - x, next_gradient - gradient
        inverse_rho = float(s @ y)
        if inverse_rho > 0:
            pairs = [*pairs[1 - MEMORY :], (s, y, inverse_rho)]
        x, value, gradient = next_x, next_value, next_gradient
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class _Preconditioner:
    """Coordinates a of coefficients W, in which the penalised loss has nearly the identity as its Hessian.

    With H the approximate Hessian of one class: `root` is L of H = L L^T, `inverse` its inverse; where
    H is diagonal both are columns (R, 1). `bias` is the root of the Hessian of a bias.
    """

    root: np.ndarray
    inverse: np.ndarray
    bias: float

    def to_coefficients(self, a: np.ndarray) -> np.ndarray:
        """Give the coefficients (R + 1, C), the bias last, at the coordinates (R + 1, C)."""
        return np.vstack([self._times(self.inverse.T, a[:-1]), a[-1:] / self.bias])

    def to_gradient(self, gradient: np.ndarray) -> np.ndarray:
        """Give the gradient with respect to a from that with respect to the coefficients."""
        return np.vstack([self._times(self.inverse, gradient[:-1]), gradient[-1:] / self.bias])

    def to_coordinates(self, coefficients: np.ndarray) -> np.ndarray:
        """Undo `to_coefficients`."""
        return np.vstack(
            [self._times(self.root.T, coefficients[:-1]), coefficients[-1:] * self.bias]
        )

    def _times(self, matrix: np.ndarray, a: np.ndarray) -> np.ndarray:
        return np.asarray(matrix.reshape(-1, 1) * a if 1 in matrix.shape else matrix @ a)


class Regression(abc.ABC):
    """Standardised features with targets, sorted by fold; solves with any fold left out, for any penalty."""

    problem: Problem

    def __init__(
        self,
        features: FloatND,
        targets: Targets,
        classes: int,
        weights: FloatN | None,
        fold: IntN,
        run: Map,
    ) -> None:
        count, width = features.shape
        small = features.size * classes <= SMALL
        self.dtype: type[np.floating[Any]] = np.float64 if small else np.float32
        self.mean, self.scale = standardise(features, run)
        # Sorted, the rows of a fold and those of all the others are views, so nothing is copied.
        self.order = np.argsort(fold, kind="stable")
        self.ends = np.cumsum(np.bincount(fold)).tolist()
        self.basis: np.ndarray | None = None
        matrix = np.empty(features.shape, dtype=np.float64 if count < width else self.dtype)

        def fill(rows: slice) -> None:
            matrix[rows] = (features[self.order[rows]] - self.mean) / self.scale

        list(run(fill, _blocks(0, count)))
        if count < width:
            # X = Z V^T with orthogonal columns in Z: with W = V A the loss and |W| depend on A alone.
            self.basis = _principal_axes(matrix)
            matrix = (matrix @ self.basis).astype(self.dtype)
        self.matrix: np.ndarray = matrix
        self.classes = classes
        self.run = run
        self.targets = targets[self.order]
        self.weights = np.ones(count) if weights is None else weights[self.order].astype(np.float64)
        self.sample = slice(None, None, -(-count // HESSIAN_ROWS))
        x, w = self.matrix[self.sample], self.weights[self.sample]
        w = (w / w.sum()).astype(self.dtype)[:, None]
        self.second_moment = (w * x**2).sum(axis=0) if self.basis is not None else (w * x).T @ x

    def precondition(self, penalty: float, start: np.ndarray | None = None) -> _Preconditioner:
        """Precondition the problem with a penalty, for solutions near `start`.

        The Hessian of one class is X^T diag(w p (1 - p)) X + penalty; p (1 - p) is taken at its mean.
        """
        variance = self._first_variance()
        if start is not None:
            p = self.problem.link(self._logits(start, self.sample))
            variance = float(np.average((p - p**2).mean(1), weights=self.weights[self.sample]))
            variance = max(variance, 1e-6)
        # The floor keeps the factor computable in float32, whatever the features have in common.
        ridge = max(penalty, 1e-6 * len(self.second_moment) * variance)
        if self.second_moment.ndim == 1:
            root = np.sqrt(self.second_moment * variance + ridge).astype(self.dtype)[:, None]
            return _Preconditioner(root, 1 / root, variance**0.5)
        hessian = self.second_moment * self.dtype(variance)
        hessian[np.diag_indices_from(hessian)] += self.dtype(ridge)
        return _Preconditioner(*_factorise(hessian), variance**0.5)

    def solve_in_stages(
        self, held_out: Sequence[int | None], penalty: float, gap: float
    ) -> list[np.ndarray]:
        """Solve for several folds, starting each penalty from the solution at one 100 times as strong.

        Where classes can be told apart the loss is flat and far from a parabola: a cold start takes
        three times as many steps.
        """
        penalties = [penalty]
        while penalties[0] * 100 <= 1:
            penalties.insert(0, penalties[0] * 100)
        solutions: list[np.ndarray] = []
        for stage in penalties if held_out else []:
            starts: list[np.ndarray | None] = [*solutions] or [None] * len(held_out)
            preconditioner = self.precondition(stage, starts[0])
            stage_gap = gap if stage == penalty else STAGE_GAP
            solutions = [
                self.solve(fold, stage, preconditioner, start, stage_gap)
                for fold, start in zip(held_out, starts, strict=True)
            ]
        return solutions

    def solve(
        self,
        held_out: int | None,
        penalty: float,
        preconditioner: _Preconditioner,
        start: np.ndarray | None,
        gap: float,
    ) -> np.ndarray:
        """Give the coefficients (R + 1, C), the bias last, for all rows but those of a fold."""
        shape = (len(self.second_moment) + 1, self.classes)
        first, last = (0, 0) if held_out is None else self._bounds(held_out)
        blocks = _blocks(0, first) + _blocks(last, len(self.targets))
        total = self.weights[:first].sum() + self.weights[last:].sum()

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            a = flat.reshape(shape).astype(self.dtype)
            coefficients = preconditioner.to_coefficients(a)
            parts = list(self.run(lambda rows: self._differentiate(coefficients, rows), blocks))
            loss = sum(part[0] for part in parts) / total
            gradient = sum(part[1] for part in parts) / total
            exact = coefficients[:-1].astype(np.float64)
            loss += penalty / 2 * (exact**2).sum()
            gradient[:-1] += penalty * exact
            gradient = preconditioner.to_gradient(gradient.astype(self.dtype))
            return float(loss), gradient.astype(np.float64).ravel()

        initial = np.zeros(shape) if start is None else preconditioner.to_coordinates(start)
        noise = float(np.finfo(self.dtype).eps)
        minimum = _minimise(objective, initial.astype(np.float64).ravel(), gap, noise)
        return preconditioner.to_coefficients(minimum.reshape(shape).astype(self.dtype))

    def _differentiate(self, coefficients: np.ndarray, rows: slice) -> tuple[float, np.ndarray]:
        """Give the loss of some rows, not divided by their weight, and its gradient, float64 (R + 1, C)."""
        z = self._logits(coefficients, rows)
        loss = self._to_slopes(z, rows)
        gradient = np.empty(coefficients.shape)
        gradient[:-1] = self.matrix[rows].T @ z
        gradient[-1] = z.sum(axis=0, dtype=np.float64)
        return loss, gradient

    @abc.abstractmethod
    def _first_variance(self) -> float:
        """Give p (1 - p) of a class before anything is known."""

    @abc.abstractmethod
    def _to_slopes(self, z: np.ndarray, rows: slice) -> float:
        """Turn the logits (n, C) of some rows into the gradient of their loss, in place; give the loss."""

    def _bounds(self, fold: int) -> tuple[int, int]:
        return self.ends[fold - 1] if fold else 0, self.ends[fold]

    def _logits(self, coefficients: np.ndarray, rows: slice) -> np.ndarray:
        return np.asarray(self.matrix[rows] @ coefficients[:-1] + coefficients[-1])

    def held_out_loss(self, solutions: list[np.ndarray]) -> float:
        """Give the log loss of the first folds, each by the solution that has not seen it."""
        losses = []
        for k, solution in enumerate(solutions):
            rows = slice(*self._bounds(k))
            probabilities = self.problem.link(self._logits(solution, rows).astype(np.float64))
            losses.append(self.problem.losses(self.targets[rows], probabilities))
        weights = self.weights[: self.ends[len(solutions) - 1]]
        return float(np.average(np.concatenate(losses), weights=weights))

    def held_out_probabilities(self, solutions: list[np.ndarray]) -> FloatNC:
        """Give float32 (N, C) of all folds, in the order in which the images were given."""
        logits = [self._logits(s, slice(*self._bounds(k))) for k, s in enumerate(solutions)]
        result = np.empty((len(self.targets), self.classes), dtype=np.float32)
        result[self.order] = self.problem.link(np.concatenate(logits).astype(np.float64))
        return result

    def layer(self, solution: np.ndarray) -> tuple[FloatCD, FloatC]:
        """Give the layer on raw features: weight float32 (C, D) and bias (C,)."""
        exact = solution.astype(np.float64)
        weight = exact[:-1] if self.basis is None else self.basis @ exact[:-1]
        return fold_standardisation(weight.T, exact[-1], self.mean, self.scale)


class _Softmax(Regression):
    problem = SINGLE_LABEL

    def _first_variance(self) -> float:
        return float((1 - 1 / self.classes) / self.classes)

    def _to_slopes(self, z: np.ndarray, rows: slice) -> float:
        w = self.weights[rows]
        true = np.arange(len(z)), self.targets[rows]
        # Loss: sum w (log sum exp z - z_y); its gradient in z: w (softmax(z) - onehot(y)).
        z -= z.max(axis=1, keepdims=True)
        loss = -w @ z[true]
        np.exp(z, out=z)
        totals = z.sum(axis=1)
        loss += w @ np.log(totals)
        z *= (w / totals).astype(self.dtype)[:, None]
        z[true] -= w.astype(self.dtype)
        return float(loss)


class _OneAgainstRest(Regression):
    problem = MULTI_LABEL

    def _first_variance(self) -> float:
        frequent = (self.targets > 0).mean(axis=0)
        return max(float((frequent * (1 - frequent)).mean()), 1e-6)

    def _to_slopes(self, z: np.ndarray, rows: slice) -> float:
        w, y = self.weights[rows], self.targets[rows].astype(self.dtype)
        # Loss: sum w sum_c (log(1 + exp z_c) - y_c z_c); its gradient in z: w (sigmoid(z) - y).
        losses = np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))) - y * z
        loss = w @ losses.sum(axis=1, dtype=np.float64)
        z[:] = (sigmoid(z) - y) * w.astype(self.dtype)[:, None]
        return float(loss)


# By `Problem.loss`.
REGRESSIONS: dict[str, type[Regression]] = {
    regression.problem.loss: regression for regression in (_Softmax, _OneAgainstRest)
}
