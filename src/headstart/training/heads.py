"""Takes a matrix of features and targets, gives a classifier on them: logistic regression, multinomial or one
against the rest as the kind of problem asks.

Also holds the shape and the arithmetic of MLP heads, which `epochs` trains. Shape letters: N images, D
features, C classes.

The penalty is chosen by stratified, group-aware cross-validation on the training part alone: the search
goes from a penalty of 1 in steps of half a decade for as long as the loss falls.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from headstart.arrays import FloatC, FloatCD, FloatN, FloatNC, FloatND, IntN, Targets
from headstart.choices import nearest
from headstart.draws import draw
from headstart.errors import InputError, UsageError
from headstart.parallel import Progress, no_progress
from headstart.problem import MULTI_LABEL, SINGLE_LABEL, Problem, problem_of
from headstart.training.cuts import Heads
from headstart.training.logistic import CV_GAP, GAP, REGRESSIONS, side_by_side
from headstart.training.rules import MAX_FOLDS, PENALTY_WITHOUT_FOLDS, count_folds

__all__ = [
    "CutChoice",
    "CutScore",
    "Head",
    "HeadShape",
    "LinearHead",
    "MlpHead",
    "Penalty",
    "assign_folds",
    "average_heads",
    "average_probabilities",
    "choose_cuts",
    "choose_penalty",
    "choose_shallow",
    "cross_validate",
    "fit_linear",
    "head_of_arrays",
    "parse_head",
    "scale_head",
    "suggest_cuts",
]

# From strongly to weakly regularised, two steps a decade. On standardised features the best value
# was inside this range on every data set tried (8 to 10,000 images a class, 2 to 100 classes).
PENALTIES = tuple(float(10 ** (e / 2)) for e in range(4, -11, -1))
FIRST_TRIED = PENALTIES.index(1.0)

# The penalty is judged on as many folds as hold this many units: enough that the losses of neighbouring
# penalties differ by more than their error wherever the difference matters.
JUDGED_UNITS = 1000

# A weaker penalty must lower the loss by more than this, in nats an image.
RESOLUTION = 0.001

# Cut points are compared on a sample of about this many units: among thousands of images the differences
# that matter are many times their error.
COMPARED_UNITS = 2000

MAX_HIDDEN = 65_536


@dataclasses.dataclass(frozen=True, eq=False)
class LinearHead:
    """Logits = features @ weight.T + bias; standardisation is folded in.

    Attributes:
        weight: float32 (C, D).
        bias: float32 (C,).
        problem: its link turns logits into probabilities.
    """

    weight: FloatCD
    bias: FloatC
    problem: Problem = SINGLE_LABEL

    @property
    def classes(self) -> int:
        """C."""
        return len(self.weight)

    @property
    def width(self) -> int:
        """D."""
        return int(self.weight.shape[1])

    @property
    def layers(self) -> tuple[tuple[FloatCD, FloatC], ...]:
        """As `MlpHead.layers`: the one layer."""
        return ((self.weight, self.bias),)

    def predict_proba(self, features: FloatND) -> FloatNC:
        """float (N, D) -> float32 (N, C)."""
        logits = features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        return self.problem.link(logits).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Give the tensors by their names in a file; `head_of_arrays` reads them back."""
        return {"weight": self.weight, "bias": self.bias}


@dataclasses.dataclass(frozen=True, eq=False)
class MlpHead:
    """Dense layers with max(x, 0) between them; standardisation is folded into the first.

    Attributes:
        layers: (weight float32 (out, in), bias float32 (out,)), from the features to the logits.
        problem: its link turns logits into probabilities.
    """

    layers: tuple[tuple[FloatCD, FloatC], ...]
    problem: Problem = SINGLE_LABEL

    @property
    def classes(self) -> int:
        """C."""
        return len(self.layers[-1][0])

    @property
    def width(self) -> int:
        """D."""
        return int(self.layers[0][0].shape[1])

    def predict_proba(self, features: FloatND) -> FloatNC:
        """float (N, D) -> float32 (N, C)."""
        # In float64, since a folded standardisation may subtract two large numbers.
        values = features.astype(np.float64)
        for place, (weight, bias) in enumerate(self.layers):
            values = np.maximum(values, 0) if place else values
            values = values @ weight.T.astype(np.float64) + bias
        return self.problem.link(values).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Give the tensors by their names in a file; `head_of_arrays` reads them back."""
        return {
            f"layers.{place}.{kind}": array
            for place, layer in enumerate(self.layers)
            for kind, array in zip(("weight", "bias"), layer, strict=True)
        }


Head = LinearHead | MlpHead


def head_of_arrays(arrays: Mapping[str, np.ndarray], problem: Problem = SINGLE_LABEL) -> Head:
    """Make the head that has these `arrays()`, for a kind of problem.

    Raises:
        InputError: names the tensor that is missing, unknown, no finite float32, or of a shape that
            does not fit.
    """
    places = [("weight", "bias")]
    if "weight" not in arrays:
        count = max(1, sum(name.endswith(".weight") for name in arrays))
        places = [(f"layers.{n}.weight", f"layers.{n}.bias") for n in range(count)]
    names = [name for pair in places for name in pair]
    for name in names:
        if name not in arrays:
            raise InputError(
                f"head: tensor '{name}' is missing; has: {', '.join(arrays) or 'none'}"
            )
    for name in arrays:
        if name not in names:
            raise InputError(f"head: tensor '{name}' is unknown; needs: {', '.join(names)}")
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    for weight_name, bias_name in places:
        weight, bias = arrays[weight_name], arrays[bias_name]
        into = layers[-1][0].shape[0] if layers else None
        if weight.ndim != 2 or 0 in weight.shape or weight.shape[1] != (into or weight.shape[1]):
            raise InputError(
                f"head: tensor '{weight_name}' has the shape {weight.shape}, needs "
                f"(out, {into or 'in'})"
            )
        if bias.shape != weight.shape[:1]:
            raise InputError(
                f"head: tensor '{bias_name}' has the shape {bias.shape}, needs {weight.shape[:1]}, "
                f"one for each row of '{weight_name}'"
            )
        for name, array in ((weight_name, weight), (bias_name, bias)):
            if array.dtype != np.float32:
                raise InputError(f"head: tensor '{name}' is of {array.dtype}, needs float32")
            if not np.isfinite(array).all():
                raise InputError(f"head: tensor '{name}' has NaN or infinite values")
        layers.append((weight, bias))
    if "weight" in arrays:
        return LinearHead(*layers[0], problem)
    return MlpHead(tuple(layers), problem)


def scale_head(head: Head, temperature: float) -> Head:
    """Give the head whose logits are divided by a temperature."""
    if temperature == 1:
        return head
    *below, last = head.layers
    weight, bias = ((values.astype(np.float64) / temperature).astype(np.float32) for values in last)
    if isinstance(head, LinearHead):
        return LinearHead(weight, bias, head.problem)
    return MlpHead((*below, (weight, bias)), head.problem)


@dataclasses.dataclass(frozen=True)
class HeadShape:
    """The layers of a head; `str()` gives its notation.

    Attributes:
        widths: of the hidden layers, each followed by max(x, 0); none for a linear head.
        dropouts: probability in [0, 1) before each layer, the output's last; one more than widths.
    """

    widths: tuple[int, ...] = ()
    dropouts: tuple[float, ...] = (0.0,)

    def __str__(self) -> str:
        parts: list[str] = []
        for width, dropout in zip((*self.widths, None), self.dropouts, strict=True):
            if dropout:
                parts.append(f"d{np.format_float_positional(dropout)}")
            if width is not None:
                parts.append(str(width))
        return "-".join(parts) or "linear"


def parse_head(notation: str) -> HeadShape:
    """Read a head's notation: "linear", or widths of hidden layers and dropouts joined by "-".

    "d0.5-480-d0.5" is dropout of one half, a hidden layer of 480, dropout, and the output layer, which
    is always there and not written.

    Raises:
        UsageError: says which part cannot be read, and how a head is written.
    """

    def wrong(problem: str) -> UsageError:
        return UsageError(
            f"head '{notation}': {problem}; write linear, or hidden layers (1 to {MAX_HIDDEN}) and "
            "dropouts (d and a number between 0 and 1) joined by '-', such as 512 or d0.5-480-d0.5; "
            "the output layer is implied"
        )

    if notation == "linear":
        return HeadShape()
    widths: list[int] = []
    dropouts = [0.0]
    for part in notation.split("-"):
        if re.fullmatch("[1-9][0-9]{0,9}", part) and int(part) <= MAX_HIDDEN:
            widths.append(int(part))
            dropouts.append(0.0)
        elif re.fullmatch(r"d0?\.[0-9]+", part) and 0 < float(part[1:]) < 1:
            if dropouts[-1]:
                raise wrong(f"'{part}' follows another dropout")
            dropouts[-1] = float(part[1:])
        else:
            raise wrong(f"'{part}' is neither a width nor a dropout")
    return HeadShape(tuple(widths), tuple(dropouts))


@dataclasses.dataclass(frozen=True, eq=False)
class Penalty:
    """The outcome of choosing the penalty.

    Attributes:
        value: the chosen penalty.
        path: (penalty, log loss on the judged folds) of every penalty tried, from strong to weak.
        folds: 0 where there were too few images a class for cross-validation.
        probabilities: float32 (N, C), out of fold at the chosen penalty; None without folds.
    """

    value: float
    path: tuple[tuple[float, float], ...]
    folds: int
    probabilities: FloatNC | None


@dataclasses.dataclass(frozen=True, eq=False)
class CutScore:
    """A head on the features of some cut points, or the mean of several, measured by cross-validation.

    Attributes:
        heads: whose mean is taken; one alone is its own.
        log_loss: mean over the images, by their weights.
        accuracy: how right the images are, by their weights: `Problem.right`.
        error: standard error of the log loss, over independent units: images of one unit are not.
        accuracy_error: that of the accuracy.
        losses: float64 (U,) of each unit, of which `log_loss` is the mean; in the same order in all
            the scores of a choice, for paired comparisons.
    """

    heads: Heads
    log_loss: float
    accuracy: float
    error: float
    accuracy_error: float
    losses: FloatN


@dataclasses.dataclass(frozen=True, eq=False)
class CutChoice:
    """The outcome of choosing among cut points.

    Attributes:
        heads: the chosen ones; the best alone comes first.
        penalties: of each of them; empty where they were judged on a sample of the images.
        scores: of all candidates, in their order, then of the mean of several where that is better than
            any; empty where there were too few images a class.
    """

    heads: Heads
    penalties: tuple[Penalty, ...]
    scores: tuple[CutScore, ...]


def assign_folds(
    targets: Targets,
    units: tuple[str, ...],
    folds: int,
    seed: int,
    *,
    problem: Problem = SINGLE_LABEL,
) -> IntN:
    """Give each image a fold, (N,): every unit (group) lies in one fold, classes are spread evenly.

    Units are assigned from the largest to the smallest, those of one size in the order of a draw by name.
    Each goes to the fold that holds the smallest fraction of its classes, and of those with the fewest
    images. Where images have several labels, the units with the rarest one come first, while there is still
    a choice (Sechidis et al., On the Stratification of Multi-Label Data, ECML PKDD 2011).
    """
    members: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
    of_row = problem.decode(targets)
    images = Counter(c for classes in of_row for c in classes)
    fractions = {c: [0.0] * folds for c in images}  # of each class in each fold
    totals = [0] * folds
    result = np.zeros(len(targets), dtype=np.int64)
    rarity = dict.fromkeys(members, 0)
    if problem.name == MULTI_LABEL.name:
        for unit, rows in members.items():
            rarity[unit] = min(
                (images[c] for row in rows for c in of_row[row]), default=len(targets)
            )
    order = sorted(members, key=lambda u: (-len(members[u]), rarity[u], draw(seed, "fold", u), u))
    for unit in order:
        rows = members[unit]
        counts = sorted(Counter(c for row in rows for c in of_row[row]).items())
        if len(counts) == 1:
            crowding = fractions[counts[0][0]]
        else:
            crowding = [sum(n * fractions[c][f] for c, n in counts) for f in range(folds)]
        keys = list(zip(crowding, totals, strict=True))
        fold = keys.index(min(keys))
        for c, n in counts:
            fractions[c][fold] += n / images[c]
        totals[fold] += len(rows)
        result[rows] = fold
    return result


def fit_linear(
    features: FloatND,
    targets: Targets,
    classes: int,
    *,
    penalty: float,
    weights: FloatN | None = None,
    gap: float = GAP,
) -> LinearHead:
    """Fit logistic regression on standardised features.

    Minimises  sum_i w_i * -log p(y_i | x_i) / sum_i w_i  +  penalty / 2 * |W|^2 ; the bias is not
    penalised. scikit-learn's LogisticRegression has C = 1 / (penalty * N), of each label where there may be
    several.

    Args:
        features: float (N, D), finite.
        targets: int64 (N,), each class at least once; or int8 (N, C) where images may have several labels.
        penalty: above 0.
        weights: float (N,) weight of each image; 1 by default.
        gap: how near the minimum it ends, in nats an image.

    Raises:
        InputError: NaN or infinite features.
    """
    with side_by_side(features.size * classes) as run:
        fold, problem = np.zeros(len(targets), dtype=np.int64), problem_of(targets)
        whole = REGRESSIONS[problem.loss](features, targets, classes, weights, fold, run)
        return LinearHead(*whole.layer(whole.solve_in_stages([None], penalty, gap)[0]), problem)


def choose_penalty(
    features: FloatND,
    targets: Targets,
    units: tuple[str, ...],
    classes: int,
    *,
    weights: FloatN | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Penalty:
    """Choose the penalty with the lowest cross-validated log loss, or one within 0.001 of it.

    Args:
        features: float (N, D); targets: as `fit_linear`; units: N names; images of one unit stay in one
            fold.
        weights: float (N,) weight of each image, in training and in the loss.

    Raises:
        InputError: NaN or infinite features.
    """
    problem = problem_of(targets)
    folds = count_folds(_count_held(targets, units, classes))
    if not folds:
        return Penalty(PENALTY_WITHOUT_FOLDS, (), 0, None)
    fold = assign_folds(targets, units, folds, seed, problem=problem)
    judged = range(min(folds, -(-JUDGED_UNITS * folds // len(set(units)))))
    with side_by_side(features.size * classes) as run:
        regression = REGRESSIONS[problem.loss](features, targets, classes, weights, fold, run)
        solutions: dict[int, list[np.ndarray]] = {}
        preconditioner = regression.precondition(PENALTIES[FIRST_TRIED])

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
            # A preconditioner takes as long as several steps to make, and serves the next penalty too.
            nonlocal preconditioner
            if solutions and step % 2 == FIRST_TRIED % 2:
                preconditioner = regression.precondition(PENALTIES[step], starts[0])
            solutions[step] = [
                regression.solve(k, PENALTIES[step], preconditioner, starts[k], CV_GAP)
                for k in judged
            ]
            return regression.held_out_loss(solutions[step])

        losses, best = _search(loss_at)
        # The others start cold, since a start that has seen their images would flatter them.
        others = range(len(judged), folds)
        solutions[best] += regression.solve_in_stages(others, PENALTIES[best], CV_GAP)
        probabilities = regression.held_out_probabilities(solutions[best])
    progress("cross-validation", len(PENALTIES), len(PENALTIES))
    path = tuple((PENALTIES[step], losses[step]) for step in sorted(losses))
    return Penalty(PENALTIES[best], path, folds, probabilities)


def average_heads(
    heads: Mapping[tuple[str, ...], LinearHead], widths: Mapping[str, int]
) -> tuple[tuple[str, ...], LinearHead]:
    """Make one linear head of several, whose logits are the mean of theirs.

    Args:
        heads: {names of the cut points that it reads side by side: the head}.
        widths: {name: number of features} of all cut points, in the order of the network.

    Returns:
        (names of the cut points that the head reads, side by side; the head).
    """
    first = next(iter(heads.values()))
    names = tuple(n for n in widths if any(n in cuts for cuts in heads))
    weights = {n: np.zeros((first.classes, widths[n])) for n in names}
    for cuts, head in heads.items():
        ends = np.cumsum([widths[n] for n in cuts])[:-1]
        for name, part in zip(cuts, np.split(head.weight, ends, axis=1), strict=True):
            weights[name] += part / len(heads)
    weight = np.concatenate([weights[n] for n in names], axis=1).astype(np.float32)
    bias = np.mean([head.bias for head in heads.values()], axis=0).astype(np.float32)
    return names, LinearHead(weight, bias, first.problem)


def average_probabilities(parts: Sequence[FloatNC], problem: Problem = SINGLE_LABEL) -> FloatNC:
    """Give the probabilities, float32 (N, C), of the mean of the logits that these came from."""
    logits = np.mean([problem.unlink(part) for part in parts], axis=0)
    return problem.link(logits).astype(np.float32)


def cross_validate(
    features: FloatND,
    targets: Targets,
    units: tuple[str, ...],
    classes: int,
    *,
    penalty: float,
    weights: FloatN | None = None,
    seed: int = 0,
) -> FloatNC:
    """Give every image's probabilities by a head at this penalty that was fitted without its unit.

    Args:
        features, targets, units, weights: as `choose_penalty`; every class has at least two units.

    Returns:
        float32 (N, C).

    Raises:
        InputError: NaN or infinite features.
    """
    problem = problem_of(targets)
    folds = count_folds(_count_held(targets, units, classes))
    fold = assign_folds(targets, units, folds, seed, problem=problem)
    with side_by_side(features.size * classes) as run:
        regression = REGRESSIONS[problem.loss](features, targets, classes, weights, fold, run)
        solutions = regression.solve_in_stages(range(folds), penalty, CV_GAP)
        return regression.held_out_probabilities(solutions)


def suggest_cuts(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """List candidates for `choose_cuts`, of cut points in the order of the network.

    Each alone; the last 2, 3 and 4 together; all together. Features that suit the task may lie in any
    layer (Evci et al.: Head2Toe, ICML 2022).
    """
    together = [tuple(names[-n:]) for n in (2, 3, 4, len(names)) if n <= len(names)]
    return tuple(dict.fromkeys([*((name,) for name in names), *together]))


def choose_cuts(
    values: Mapping[str, FloatND],
    targets: Targets,
    units: tuple[str, ...],
    classes: int,
    *,
    candidates: Sequence[tuple[str, ...]],
    weights: FloatN | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> CutChoice:
    """Choose the candidates whose mean has the lowest cross-validated log loss, each at its best penalty.

    The best one is joined by whichever lowers the loss of the mean most, for as long as one does (ensemble
    selection: Caruana et al., ICML 2004). Which depth is best is chance with few images, and their mean is
    better than most (docs/strategies.md).

    All are judged on the same folds: those of all images, or of a stratified sample of units where there are
    many thousands.

    Args:
        values: {name of a cut point: float (N, D)}; targets, units, weights: as `choose_penalty`.
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
    weights = np.ones(len(targets)) if weights is None else weights

    def penalty_of(cuts: tuple[str, ...], rows: IntN) -> Penalty:
        matrix = np.concatenate([values[name][rows] for name in cuts], axis=1)
        some = tuple(units[row] for row in rows)
        return choose_penalty(
            matrix, targets[rows], some, classes, weights=weights[rows], seed=seed
        )

    everything = np.arange(len(targets))
    problem, rarest = problem_of(targets), _count_held(targets, units, classes)
    if rarest < 2:
        last = max(candidates, key=lambda cuts: (len(cuts) == 1, candidates.index(cuts)))
        return CutChoice((last,), (penalty_of(last, everything),), ())
    # A fold is a stratified sample that keeps units together.
    parts = max(1, min(len(set(units)) // COMPARED_UNITS, rarest // (2 * MAX_FOLDS)))
    rows = np.flatnonzero(assign_folds(targets, units, parts, seed, problem=problem) == 0)
    some = tuple(units[row] for row in rows)
    penalties: dict[tuple[str, ...], Penalty] = {}
    logs: dict[tuple[str, ...], FloatNC] = {}
    for step, cuts in enumerate(candidates):
        progress("choice of cut points", step, len(candidates))
        penalties[cuts] = penalty_of(cuts, rows)
        held_out = penalties[cuts].probabilities
        assert held_out is not None
        logs[cuts] = problem.unlink(held_out)

    def score(heads: Heads, total: FloatNC) -> CutScore:
        probabilities = problem.link(total / len(heads))
        losses = problem.losses(targets[rows], probabilities)
        right = problem.right(targets[rows], probabilities)
        return _score(heads, losses, right, some, weights[rows])

    scores = [score((cuts,), logs[cuts]) for cuts in candidates]
    best = _select(min(scores, key=lambda s: s.log_loss), logs, score)
    if len(best.heads) > 1:
        scores.append(best)
    progress("choice of cut points", len(candidates), len(candidates))
    known = tuple(penalties[cuts] for cuts in best.heads) if parts == 1 else ()
    return CutChoice(best.heads, known, tuple(scores))


def _select(
    best: CutScore,
    logs: Mapping[tuple[str, ...], FloatNC],
    score: Callable[[Heads, FloatNC], CutScore],
) -> CutScore:
    """Add to the best head whichever lowers the log loss of the mean most, while one does."""
    total = logs[best.heads[0]]
    while others := [cuts for cuts in logs if cuts not in best.heads]:
        tried = {cuts: score((*best.heads, cuts), total + logs[cuts]) for cuts in others}
        joined = min(tried, key=lambda cuts: tried[cuts].log_loss)
        if tried[joined].log_loss > best.log_loss - RESOLUTION:
            break
        best, total = tried[joined], total + logs[joined]
    return best


def choose_shallow(scores: Sequence[CutScore]) -> str:
    """Choose the earliest cut point that is about as good as the best one before the last.

    Its log loss is within one standard error (of the difference on the same images) of the lowest among
    the single cut points but the last: the rule of Breiman et al., CART, 1984.

    Args:
        scores: of `choose_cuts`, from the first layers to the last; those of several cut points
            together are left out.

    Raises:
        UsageError: fewer than two single cut points.
    """
    early = [score for score in scores if sum(map(len, score.heads)) == 1][:-1]
    if not early:
        raise UsageError(
            "a shallow head needs the scores of at least two single cut points: those of a network "
            "with more than one, on at least two images (or groups) of every class"
        )
    best = min(early, key=lambda score: score.log_loss)
    for score in early:
        worse = score.losses - best.losses
        if worse.mean() <= _standard_error(worse):
            return score.heads[0][0]
    return best.heads[0][0]


def _score(
    heads: Heads,
    image_losses: FloatN,
    images_right: FloatN,
    units: tuple[str, ...],
    weights: FloatN,
) -> CutScore:
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    of_image = np.array([places[unit] for unit in units])

    def add_up(values: FloatN) -> FloatN:
        """Give each unit's part, of which the weighted mean over the images is the mean."""
        sums = np.bincount(of_image, weights * values) * (len(places) / weights.sum())
        return np.asarray(sums, dtype=np.float64)

    losses = add_up(image_losses)
    right = add_up(images_right)
    return CutScore(
        heads,
        float(losses.mean()),
        float(right.mean()),
        _standard_error(losses),
        _standard_error(right),
        losses,
    )


def _standard_error(values: FloatN) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _count_held(targets: Targets, units: tuple[str, ...], classes: int) -> int:
    """Count the units that folds can be made of: those of the rarest class.

    Where images may have several labels, a head against the rest can do without images of its label in a fold
    of the others; so then it is those with, or those without, the label that has most of both.
    """
    problem = problem_of(targets)
    rows = problem.decode(targets)
    pairs = {(unit, label) for unit, own in zip(units, rows, strict=True) for label in own}
    counts = Counter(label for _, label in pairs)
    if problem.name == MULTI_LABEL.name:
        total = len(set(units))
        return max(min(counts[c], total - counts[c]) for c in range(classes))
    return min(counts[c] for c in range(classes))


def _search(loss_at: Callable[[int], float]) -> tuple[dict[int, float], int]:
    """Search downhill from the first: {index into PENALTIES: loss} of those tried, and the index chosen."""
    losses = {FIRST_TRIED: loss_at(FIRST_TRIED)}
    best = FIRST_TRIED
    for direction in (1, -1):
        while 0 <= (step := best + direction) < len(PENALTIES):
            losses[step] = loss_at(step)
            if losses[step] > losses[best] - RESOLUTION:
                break
            best = step
        if best != FIRST_TRIED:
            break
    return losses, best
