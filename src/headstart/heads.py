"""Takes a matrix of features and labels, gives a classifier on them: multinomial logistic regression.

Place in the flow: after `metrics`; `strategies` trains heads here. Shape letters: N images,
D features, R coordinates that the solver works in, C classes.

The penalty is chosen by stratified, group-aware cross-validation on the training part alone: from a
penalty of 1 in steps of half a decade, to where the loss gets no lower.

Each problem is solved by L-BFGS (Liu and Nocedal 1989) in coordinates in which the Hessian is nearly
the identity, which takes ten to twenty steps instead of hundreds. With fewer images than features
those are the principal axes, at most N of them: that changes neither the solution nor the loss of an
L2-penalised linear model (Hastie, Tibshirani, Friedman: The Elements of Statistical Learning, section
18.3.5). Else they come from a Cholesky factor of the approximate Hessian. Large problems are solved
in float32 with sums in float64, in blocks of rows side by side; the blocks, and the order in which
they are summed, depend on the problem alone, so the bits do not depend on the number of CPUs.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from headstart.datasets import draw, nearest
from headstart.engines import count_cpus
from headstart.errors import InputError, UsageError
from headstart.features import Progress, no_progress

__all__ = [
    "CutChoice",
    "CutScore",
    "LinearHead",
    "Penalty",
    "assign_folds",
    "choose_cuts",
    "choose_penalty",
    "choose_shallow",
    "fit_linear",
    "softmax",
    "suggest_cuts",
]

# From strongly to weakly regularised, two steps a decade. On standardised features the best value
# was inside this range on every data set tried (8 to 10,000 images a class, 2 to 100 classes).
PENALTIES = tuple(float(10 ** (e / 2)) for e in range(4, -11, -1))
FIRST_TRIED = PENALTIES.index(1.0)
PENALTY_WITHOUT_FOLDS = 1e-2
MAX_FOLDS = 5

# The choice is made on as many folds as hold out this many units; the loss of neighbouring penalties
# then differs by more than its error wherever the difference matters.
JUDGED_UNITS = 1000

# What lowers the loss by less is not worth a weaker penalty, in nats an image.
RESOLUTION = 0.001

# Cut points are compared on a sample of about so many units: among thousands of images the differences
# that matter are many times their error.
COMPARED_UNITS = 2000

# L-BFGS stops when the next step is expected to lower the loss by no more, in nats an image. On
# CIFAR-10 and GTSRB the looser one moves the held-out loss by at most 0.001 around the best penalty.
GAP = 1e-7
CV_GAP = 1e-5
MAX_STEPS = 1000
MEMORY = 10

# Up to this many multiplications a step a problem is solved in float64 on one thread: it spends its
# time in Python, where threads only wait for one another.
SMALL = 2_000_000
BLOCK_ROWS = 512

# Rows that the approximate Hessian is made of; more do not save a step.
HESSIAN_ROWS = 2048

Map = Callable[[Callable[[slice], Any], Iterable[slice]], Iterable[Any]]


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
        path: (penalty, log loss on the folds that were judged by) of every one tried, strong to weak.
        folds: 0 where there were too few images a class for cross-validation.
        probabilities: float32 (N, C), out of fold at the chosen penalty; None without folds.
    """

    value: float
    path: tuple[tuple[float, float], ...]
    folds: int
    probabilities: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class CutScore:
    """A head on the features of some cut points together, measured by cross-validation.

    Attributes:
        cuts: names of the cut points.
        log_loss: mean over the images, by their weights.
        accuracy: share of the images, by their weights.
        error: standard error of the log loss; units are independent, images of one are not.
        losses: float64 (U,) of each unit, of which `log_loss` is the mean; in the same order in all
            the scores of a choice, for paired comparisons.
    """

    cuts: tuple[str, ...]
    log_loss: float
    accuracy: float
    error: float
    losses: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class CutChoice:
    """The outcome of choosing among cut points.

    Attributes:
        cuts: the chosen ones; the matrix to train on has their features side by side in this order.
        penalty: for a head on them, chosen on all images.
        scores: of all candidates, in their order; empty where there were too few images a class.
    """

    cuts: tuple[str, ...]
    penalty: Penalty
    scores: tuple[CutScore, ...]


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
    of_class = labels.tolist()
    held = [Counter[int]() for _ in range(folds)]
    totals = [0] * folds
    result = np.zeros(len(labels), dtype=np.int64)
    order = sorted(members, key=lambda u: (-len(members[u]), draw(seed, "fold", u), u))
    for unit in order:
        rows = members[unit]
        counts = Counter(of_class[row] for row in rows)
        main = min(counts, key=lambda c: (-counts[c], c))
        fold = min(range(folds), key=lambda f: (held[f][main], totals[f], f))
        held[fold].update(counts)
        totals[fold] += len(rows)
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

    Minimises  sum_i w_i * -log p(y_i | x_i) / sum_i w_i  +  penalty / 2 * |W|^2 ; the bias is not
    penalised. scikit-learn's LogisticRegression has C = 1 / (penalty * N).

    Args:
        features: float (N, D), finite.
        labels: int (N,), each class at least once.
        penalty: above 0.
        weights: float (N,) weight of each image; 1 by default.

    Raises:
        InputError: NaN or infinite features.
    """
    with _side_by_side(features.size * classes) as run:
        problem = _Problem(features, labels, classes, weights, np.zeros_like(labels), run)
        return problem.head(problem.approach([None], penalty, GAP)[0])


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
    """The penalty with the lowest cross-validated log loss, or one within 0.001 of it.

    Args:
        features: float (N, D); labels: int (N,); units: N names of what stays in one fold.
        weights: float (N,) weight of each image, in training and in the loss.

    Raises:
        InputError: NaN or infinite features.
    """
    folds = min(MAX_FOLDS, min(_units_per_class(labels, units, classes)))
    if folds < 2:
        return Penalty(PENALTY_WITHOUT_FOLDS, (), 0, None)
    fold = assign_folds(labels, units, folds, seed)
    judged = range(min(folds, -(-JUDGED_UNITS * folds // len(set(units)))))
    with _side_by_side(features.size * classes) as run:
        problem = _Problem(features, labels, classes, weights, fold, run)
        solutions: dict[int, list[np.ndarray]] = {}

        def loss_at(step: int) -> float:
            progress("cross-validation", len(solutions), len(PENALTIES))
            starts: list[np.ndarray | None] = [None] * folds
            near = min(solutions, key=lambda s: abs(s - step), default=step)
            if near in solutions:
                starts = [*solutions[near]]
            if 2 * near - step in solutions:
                # The solution moves smoothly: going on in a straight line saves half of the steps.
                before = solutions[2 * near - step]
                starts = [2 * a - b for a, b in zip(solutions[near], before, strict=True)]
            to = problem.precondition(PENALTIES[step], starts[0])
            solutions[step] = [problem.solve(k, to, starts[k], CV_GAP) for k in judged]
            return problem.held_out_loss(solutions[step])

        losses, best = _search(loss_at)
        # The others start from nothing, since a start that has seen their images would flatter them.
        others = range(len(judged), folds)
        solutions[best] += problem.approach(others, PENALTIES[best], CV_GAP)
        probabilities = problem.held_out_probabilities(solutions[best])
    progress("cross-validation", len(PENALTIES), len(PENALTIES))
    path = tuple((PENALTIES[step], losses[step]) for step in sorted(losses))
    return Penalty(PENALTIES[best], path, folds, probabilities)


def suggest_cuts(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Candidates for `choose_cuts` of cut points in the order of the network.

    Each alone; the last 2, 3 and 4 together; all together. What a network has learned that suits the
    task may lie in any layer (Evci et al.: Head2Toe, ICML 2022).
    """
    together = [tuple(names[-n:]) for n in (2, 3, 4, len(names)) if n <= len(names)]
    return tuple(dict.fromkeys([*((name,) for name in names), *together]))


def choose_cuts(
    values: Mapping[str, np.ndarray],
    labels: np.ndarray,
    units: tuple[str, ...],
    classes: int,
    *,
    candidates: Sequence[tuple[str, ...]],
    weights: np.ndarray | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> CutChoice:
    """The candidate with the lowest cross-validated log loss, each at the best penalty for it.

    All are judged on the same folds. Of many thousands of images a stratified sample of units is
    judged on; the penalty of the chosen one is of all images in any case.

    Args:
        values: {name of a cut point: float (N, D)}; labels, units, weights: as `choose_penalty`.
        candidates: tuples of names in `values`, from the first layers to the last; with too few
            images a class to compare them, the last single one is chosen.

    Raises:
        InputError: NaN or infinite features.
        UsageError: no candidates, or an unknown name among them.
    """
    if not candidates or not all(candidates):
        raise UsageError("a choice of cut points needs candidates, each of at least one cut point")
    for name in dict.fromkeys(name for cuts in candidates for name in cuts):
        if name not in values:
            raise UsageError(
                f"cut point '{name}' is unknown{nearest(name, values)}; known: {', '.join(values)}"
            )
    weights = np.ones(len(labels)) if weights is None else weights

    def penalty_of(cuts: tuple[str, ...], rows: np.ndarray) -> Penalty:
        matrix = np.concatenate([values[name][rows] for name in cuts], axis=1)
        some = tuple(units[row] for row in rows)
        return choose_penalty(matrix, labels[rows], some, classes, weights=weights[rows], seed=seed)

    everything = np.arange(len(labels))
    rarest = min(_units_per_class(labels, units, classes))
    if rarest < 2:
        last = max(candidates, key=lambda cuts: (len(cuts) == 1, candidates.index(cuts)))
        return CutChoice(last, penalty_of(last, everything), ())
    # A fold is a stratified sample that keeps units together.
    parts = max(1, min(len(set(units)) // COMPARED_UNITS, rarest // (2 * MAX_FOLDS)))
    rows = np.flatnonzero(assign_folds(labels, units, parts, seed) == 0)
    scores, penalties = [], []
    for step, cuts in enumerate(candidates):
        progress("choice of cut points", step, len(candidates))
        penalty = penalty_of(cuts, rows)
        assert penalty.probabilities is not None
        some = tuple(units[row] for row in rows)
        scores.append(_score(cuts, penalty.probabilities, labels[rows], some, weights[rows]))
        penalties.append(penalty)
    best = min(range(len(scores)), key=lambda i: scores[i].log_loss)
    penalty = penalties[best] if parts == 1 else penalty_of(candidates[best], everything)
    progress("choice of cut points", len(candidates), len(candidates))
    return CutChoice(candidates[best], penalty, tuple(scores))


def choose_shallow(scores: Sequence[CutScore]) -> str:
    """The earliest cut point that is about as good as the best one before the last.

    That is: its log loss is within one standard error, of the difference on the same images, of the
    lowest among the single cut points but the last (the rule of Breiman et al.: CART, 1984).

    Args:
        scores: of `choose_cuts`, from the first layers to the last; others than of single cut points
            are left out.

    Raises:
        UsageError: fewer than two single cut points.
    """
    early = [score for score in scores if len(score.cuts) == 1][:-1]
    if not early:
        raise UsageError(
            "a shallow head needs the scores of at least two single cut points: those of a network "
            "with more than one, on at least two images (or groups) of every class"
        )
    best = min(early, key=lambda score: score.log_loss)
    for score in early:
        worse = score.losses - best.losses
        if worse.mean() <= _standard_error(worse):
            return score.cuts[0]
    return best.cuts[0]


def _score(
    cuts: tuple[str, ...],
    probabilities: np.ndarray,
    labels: np.ndarray,
    units: tuple[str, ...],
    weights: np.ndarray,
) -> CutScore:
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    of_image = np.array([places[unit] for unit in units])
    losses = np.bincount(of_image, weights * -np.log(np.maximum(true, 1e-12)))
    losses *= len(places) / weights.sum()
    accuracy = np.average(probabilities.argmax(axis=1) == labels, weights=weights)
    return CutScore(cuts, float(losses.mean()), float(accuracy), _standard_error(losses), losses)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _units_per_class(labels: np.ndarray, units: tuple[str, ...], classes: int) -> list[int]:
    pairs = set(zip(units, labels.tolist(), strict=True))
    counts = Counter(label for _, label in pairs)
    return [counts[c] for c in range(classes)]


def _search(loss_at: Callable[[int], float]) -> tuple[dict[int, float], int]:
    """Downhill from the first: {index into PENALTIES: loss} of those tried, and the one chosen."""
    losses = {FIRST_TRIED: loss_at(FIRST_TRIED)}
    best = FIRST_TRIED
    for way in (1, -1):
        while 0 <= best + way < len(PENALTIES):
            losses[best + way] = loss_at(best + way)
            if losses[best + way] > losses[best] - RESOLUTION:
                break
            best += way
        if best != FIRST_TRIED:
            break
    return losses, best


@contextlib.contextmanager
def _side_by_side(work: int) -> Iterator[Map]:
    """A `map` over blocks of rows: on all CPUs, each with linear algebra on one thread."""
    # Loaded before the limit is set, which concerns only the libraries that are there.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        if work <= SMALL:
            yield map
        else:
            with ThreadPoolExecutor(count_cpus()) as pool:
                yield pool.map


def _blocks(start: int, stop: int) -> list[slice]:
    return [slice(row, min(row + BLOCK_ROWS, stop)) for row in range(start, stop, BLOCK_ROWS)]


def _measure(features: np.ndarray, run: Map) -> tuple[np.ndarray, np.ndarray]:
    """float64 (D,) mean and scale of float (N, D); what never varies has an infinite scale."""

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
    spread = np.sqrt(sum(run(squares, blocks)) / len(features))
    # A feature that never varies says nothing; dividing by its rounding noise would amplify it.
    return mean, np.where(spread > 1e-7 * largest.astype(np.float64), spread, np.inf)


def _principal_axes(matrix: np.ndarray) -> np.ndarray:
    """(N, D) with N < D -> (D, R) orthonormal axes that span the rows, R at most N."""
    energy, vectors = np.linalg.eigh(matrix @ matrix.T)
    kept = energy > energy[-1] * 1e-12
    return np.asarray(matrix.T @ (vectors[:, kept] / np.sqrt(energy[kept])))


def _minimise(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    gap: float,
    noise: float,
) -> np.ndarray:
    """L-BFGS with backtracking, for a convex function whose Hessian is near the identity.

    scipy's takes 0.2 s to import, as long as a small fit, and stops on measures that say less.

    Args:
        gap: stops when the model of the function promises to get no lower than this.
        noise: relative rounding error of the function.
    """
    x, (value, gradient) = start, objective(start)
    pairs: list[tuple[np.ndarray, np.ndarray, float]] = []
    for _ in range(MAX_STEPS):
        step = -gradient
        shares = []
        for moved, turned, curvature in reversed(pairs):
            shares.append(moved @ step / curvature)
            step -= shares[-1] * turned
        if pairs:
            step *= pairs[-1][2] / (pairs[-1][1] @ pairs[-1][1])
        for (moved, turned, curvature), share in zip(pairs, reversed(shares), strict=True):
            step += (share - turned @ step / curvature) * moved
        slope = float(gradient @ step)
        if -slope / 2 <= gap:
            break
        length = 1.0
        while True:
            there = x + length * step
            value_there, gradient_there = objective(there)
            if value_there <= value + 1e-4 * length * slope + noise * abs(value):
                break
            if length < 1e-6:
                return x  # rounding hides what is left to gain
            # Lowest point of the parabola through what is known, within bounds.
            bend = 2 * (value_there - value - length * slope)
            length *= min(0.5, max(0.1, -slope * length / bend))
        moved, turned = there - x, gradient_there - gradient
        curvature = float(moved @ turned)
        if curvature > 0:
            pairs = [*pairs[1 - MEMORY :], (moved, turned, curvature)]
        x, value, gradient = there, value_there, gradient_there
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class _Coordinates:
    """W = forward(a), in which the penalised loss has nearly the identity for a Hessian.

    With H the approximate Hessian of one class: `root` is L of H = L L^T, `inverse` its inverse; where
    H is diagonal both are columns (R, 1). `bias` is the root of the Hessian of a bias.
    """

    penalty: float
    root: np.ndarray
    inverse: np.ndarray
    bias: float

    def forward(self, a: np.ndarray) -> np.ndarray:
        """(R + 1, C) -> (R + 1, C) coefficients, the bias last."""
        return np.vstack([self._times(self.inverse.T, a[:-1]), a[-1:] / self.bias])

    def gradient(self, gradient: np.ndarray) -> np.ndarray:
        """Of the coefficients -> of a."""
        return np.vstack([self._times(self.inverse, gradient[:-1]), gradient[-1:] / self.bias])

    def backward(self, coefficients: np.ndarray) -> np.ndarray:
        return np.vstack(
            [self._times(self.root.T, coefficients[:-1]), coefficients[-1:] * self.bias]
        )

    def _times(self, matrix: np.ndarray, a: np.ndarray) -> np.ndarray:
        return np.asarray(matrix.reshape(-1, 1) * a if 1 in matrix.shape else matrix @ a)


class _Problem:
    """Standardised features with labels, sorted by fold; solves without any fold for any penalty."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        classes: int,
        weights: np.ndarray | None,
        fold: np.ndarray,
        run: Map,
    ) -> None:
        count, width = features.shape
        small = features.size * classes <= SMALL
        self.dtype: type[np.floating[Any]] = np.float64 if small else np.float32
        self.mean, self.scale = _measure(features, run)
        # Sorted, the rows of a fold and those of all the others are views, so that nothing is copied.
        self.order = np.argsort(fold, kind="stable")
        self.ends = np.cumsum(np.bincount(fold)).tolist()
        self.basis: np.ndarray | None = None
        matrix = np.empty(features.shape, dtype=np.float64 if count < width else self.dtype)

        def standardise(rows: slice) -> None:
            matrix[rows] = (features[self.order[rows]] - self.mean) / self.scale

        list(run(standardise, _blocks(0, count)))
        if count < width:
            # X = Z V^T with orthogonal columns in Z: with W = V A the loss and |W| depend on A alone.
            self.basis = _principal_axes(matrix)
            matrix = (matrix @ self.basis).astype(self.dtype)
        self.matrix: np.ndarray = matrix
        self.classes = classes
        self.run = run
        self.labels = labels[self.order]
        self.weights = np.ones(count) if weights is None else weights[self.order].astype(np.float64)
        self.sample = slice(None, None, -(-count // HESSIAN_ROWS))
        x, w = self.matrix[self.sample], self.weights[self.sample]
        w = (w / w.sum()).astype(self.dtype)[:, None]
        self.energy = (w * x**2).sum(axis=0) if self.basis is not None else (w * x).T @ x

    def precondition(self, penalty: float, start: np.ndarray | None = None) -> _Coordinates:
        """Coordinates for a penalty, for solutions near `start`.

        The Hessian of one class is X^T diag(w p (1 - p)) X + penalty; p (1 - p) is taken at its mean.
        """
        spread = float((1 - 1 / self.classes) / self.classes)
        if start is not None:
            shares = softmax(self._logits(start, self.sample))
            spread = float(
                np.average((shares - shares**2).mean(1), weights=self.weights[self.sample])
            )
            spread = max(spread, 1e-6)
        # The floor keeps the factor computable in float32, whatever the features have in common.
        ridge = max(penalty, 1e-6 * len(self.energy) * spread)
        if self.energy.ndim == 1:
            root = np.sqrt(self.energy * spread + ridge).astype(self.dtype)[:, None]
            return _Coordinates(penalty, root, 1 / root, spread**0.5)
        from scipy.linalg import get_lapack_funcs

        hessian = self.energy * self.dtype(spread)
        hessian[np.diag_indices_from(hessian)] += self.dtype(ridge)
        factor, invert = get_lapack_funcs(("potrf", "trtri"), (hessian,))
        root = factor(hessian, lower=True, clean=True)[0]
        return _Coordinates(penalty, root, invert(root, lower=True)[0], spread**0.5)

    def approach(self, held: Sequence[int | None], penalty: float, gap: float) -> list[np.ndarray]:
        """`solve` for several folds, by way of penalties stronger by two decades each.

        Where classes can be told apart the loss is flat and far from a parabola: straight from nothing
        it takes three times the steps.
        """
        penalties = [penalty]
        while penalties[0] * 100 <= 1:
            penalties.insert(0, penalties[0] * 100)
        solutions: list[np.ndarray] = []
        for stage in penalties if held else []:
            starts: list[np.ndarray | None] = [*solutions] or [None] * len(held)
            to = self.precondition(stage, starts[0])
            enough = gap if stage == penalty else CV_GAP
            solutions = [self.solve(k, to, s, enough) for k, s in zip(held, starts, strict=True)]
        return solutions

    def solve(
        self, held: int | None, to: _Coordinates, start: np.ndarray | None, gap: float
    ) -> np.ndarray:
        """(R + 1, C) coefficients, the bias last, for all rows but those of fold `held`."""
        shape = (len(self.energy) + 1, self.classes)
        first, last = (0, 0) if held is None else self._bounds(held)
        blocks = _blocks(0, first) + _blocks(last, len(self.labels))
        total = self.weights[:first].sum() + self.weights[last:].sum()

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            coefficients = to.forward(flat.reshape(shape).astype(self.dtype))
            parts = list(self.run(lambda rows: self._differentiate(coefficients, rows), blocks))
            loss = sum(part[0] for part in parts) / total
            gradient = sum(part[1] for part in parts) / total
            exact = coefficients[:-1].astype(np.float64)
            loss += to.penalty / 2 * (exact**2).sum()
            gradient[:-1] += to.penalty * exact
            gradient = to.gradient(gradient.astype(self.dtype))
            return float(loss), gradient.astype(np.float64).ravel()

        initial = np.zeros(shape) if start is None else to.backward(start)
        noise = float(np.finfo(self.dtype).eps)
        found = _minimise(objective, initial.astype(np.float64).ravel(), gap, noise)
        return to.forward(found.reshape(shape).astype(self.dtype))

    def _differentiate(self, coefficients: np.ndarray, rows: slice) -> tuple[float, np.ndarray]:
        """Loss of some rows, not divided by their weight, and its gradient, float64 (R + 1, C)."""
        x, w = self.matrix[rows], self.weights[rows]
        true = np.arange(len(x)), self.labels[rows]
        # Loss: sum w (log sum exp z - z_y); its gradient in z: w (softmax(z) - onehot(y)).
        z = self._logits(coefficients, rows)
        z -= z.max(axis=1, keepdims=True)
        loss = -w @ z[true]
        np.exp(z, out=z)
        totals = z.sum(axis=1)
        loss += w @ np.log(totals)
        z *= (w / totals).astype(self.dtype)[:, None]
        z[true] -= w.astype(self.dtype)
        gradient = np.empty(coefficients.shape)
        gradient[:-1] = x.T @ z
        gradient[-1] = z.sum(axis=0, dtype=np.float64)
        return float(loss), gradient

    def _bounds(self, fold: int) -> tuple[int, int]:
        return self.ends[fold - 1] if fold else 0, self.ends[fold]

    def _logits(self, coefficients: np.ndarray, rows: slice) -> np.ndarray:
        return np.asarray(self.matrix[rows] @ coefficients[:-1] + coefficients[-1])

    def held_out_loss(self, solutions: list[np.ndarray]) -> float:
        """Log loss of the first folds, each by the solution that has not seen it."""
        losses = []
        for k, solution in enumerate(solutions):
            rows = slice(*self._bounds(k))
            shares = softmax(self._logits(solution, rows).astype(np.float64))
            true = shares[np.arange(len(shares)), self.labels[rows]]
            losses.append(-np.log(np.maximum(true, 1e-12)))
        weights = self.weights[: self.ends[len(solutions) - 1]]
        return float(np.average(np.concatenate(losses), weights=weights))

    def held_out_probabilities(self, solutions: list[np.ndarray]) -> np.ndarray:
        """float32 (N, C) of all folds, in the order in which the images were given."""
        logits = [self._logits(s, slice(*self._bounds(k))) for k, s in enumerate(solutions)]
        result = np.empty((len(self.labels), self.classes), dtype=np.float32)
        result[self.order] = softmax(np.concatenate(logits).astype(np.float64))
        return result

    def head(self, solution: np.ndarray) -> LinearHead:
        """Undo the rotation and fold the standardisation in: W x + b on raw features."""
        exact = solution.astype(np.float64)
        weight = exact[:-1] if self.basis is None else self.basis @ exact[:-1]
        weight = weight / self.scale[:, None]
        bias = exact[-1] - self.mean @ weight
        return LinearHead(weight.T.astype(np.float32), bias.astype(np.float32))
