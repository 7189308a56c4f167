"""How often the 95 % interval of each figure holds the truth, over simulated test sets.

    python benchmarks/coverage.py                        # the problems that are reported
    python benchmarks/coverage.py --tune                 # those that the intervals were chosen on
    python benchmarks/coverage.py --bootstrap 500        # and the percentile bootstrap beside them

A population of up to 200,000 images has known classes and probabilities: class c's evidence is normal, its
mean higher by `skill` for images of the class, and the probabilities are the true ones, or those of logits
that are `sharp` times as large, which is over-confident. Classes are unequally frequent, up to `skew` to 1.
Groups have 1 to 2 `group` - 1 images of one class, half of whose evidence is shared. Test sets are drawn from
it with replacement, by image or by group; the truth is the figure of the whole population. Where an image has
several labels, each is a class of its own.

A row tells the share of test sets whose interval holds the truth, of every figure, and below it of the
figures of single classes, over all of them. Of 1,000 draws the standard error is 0.007.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable

import numpy as np

from headstart.label_metrics import measure_each_label, measure_labels
from headstart.metrics import ClassFigures, Estimate, measure, measure_each

Figures = dict[str, Estimate]
POPULATION, CELLS = 200_000, 20_000_000
OF_CLASS = ("precision", "recall", "f1", "roc_auc", "average_precision")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A kind of test set, as above."""

    images: int
    classes: int
    skill: float
    sharp: float = 1.0
    skew: float = 2.0
    group: int = 1
    several: bool = False

    def __str__(self) -> str:
        kind = "labels" if self.several else "classes"
        groups = f", groups of {self.group}" if self.group > 1 else ""
        sure = "" if self.sharp == 1 else ", over-confident"
        return f"{self.images:,} images, {self.classes} {kind}, skill {self.skill}{groups}{sure}"


# The intervals were chosen on the first, and are reported on the others.
TUNING = (
    Problem(40, 2, 1.5),
    Problem(200, 2, 3.0, skew=5),
    Problem(200, 2, 1.0, sharp=2),
    Problem(100, 5, 3.0),
    Problem(1000, 10, 2.0, sharp=2, skew=4),
    Problem(150, 3, 2.0, group=5),
    Problem(400, 2, 1.5, group=20, sharp=2),
    Problem(1000, 50, 3.0),
    Problem(300, 4, 1.5, several=True),
)
REPORTED = (
    Problem(60, 2, 2.0),
    Problem(60, 2, 4.0, skew=3),
    Problem(500, 2, 2.0, skew=8),
    Problem(5000, 2, 3.0, sharp=2),
    Problem(80, 4, 2.5, sharp=2),
    Problem(300, 10, 3.5),
    Problem(2000, 10, 2.5, skew=5),
    Problem(2000, 10, 2.5, skew=5, sharp=2),
    Problem(240, 4, 2.0, group=8),
    Problem(1000, 10, 2.5, group=10, sharp=2),
    Problem(300, 2, 2.5, group=30),
    Problem(2000, 100, 4.0),
    Problem(2000, 100, 4.0, sharp=2),
    Problem(200, 3, 2.0, several=True),
    Problem(600, 5, 2.0, several=True, group=6),
)


@dataclasses.dataclass(frozen=True)
class Population:
    """Targets (M,) or (M, C), probabilities (M, C), and the first image of each group and the one after its
    last."""

    targets: np.ndarray
    probabilities: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def make_population(problem: Problem, rng: np.random.Generator) -> Population:
    count = min(POPULATION, CELLS // problem.classes)
    sizes = rng.integers(1, 2 * problem.group, count)
    ends = np.cumsum(sizes)
    ends = ends[ends <= count]
    count, starts = int(ends[-1]), np.append(0, ends[:-1])
    of = np.repeat(np.arange(len(ends)), ends - starts)
    shares = np.geomspace(1, 1 / problem.skew, problem.classes)
    shares /= shares.sum()
    shape = (len(ends), problem.classes)
    if problem.several:
        rates = np.geomspace(0.4, 0.4 / problem.skew, problem.classes)
        true = (rng.random(shape) < rates)[of]
        prior = np.log(rates / (1 - rates))
    else:
        labels = rng.choice(problem.classes, len(ends), p=shares)[of]
        true, prior = np.eye(problem.classes, dtype=bool)[labels], np.log(shares)
    shared = 0.5 if problem.group > 1 else 0.0
    noise = np.sqrt(1 - shared) * rng.normal(size=true.shape)
    if shared:
        noise += np.sqrt(shared) * rng.normal(size=shape)[of]
    evidence = problem.skill * true + noise
    if problem.several:
        logits = problem.sharp * (problem.skill * (evidence - problem.skill / 2) + prior)
        return Population(true.astype(np.int8), 1 / (1 + np.exp(-logits)), starts, ends)
    logits = problem.sharp * (problem.skill * evidence + prior)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    return Population(labels, odds.astype(np.float32), starts, ends)


def draw_rows(
    population: Population, problem: Problem, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Rows of a test set, and their groups."""
    if problem.group == 1:
        return rng.integers(len(population.targets), size=problem.images), ()
    drawn = rng.integers(len(population.ends), size=problem.images // problem.group)
    parts = [np.arange(population.starts[g], population.ends[g]) for g in drawn]
    names = [str(number) for number, part in enumerate(parts) for _ in part]
    return np.concatenate(parts), tuple(names)


def bootstrap(
    figures: Callable[..., Figures],
    arrays: tuple[np.ndarray, np.ndarray],
    groups: tuple[str, ...],
    draws: int,
    rng: np.random.Generator,
) -> Figures:
    """The percentile bootstrap by group, for comparison."""
    names = np.array(groups or range(len(arrays[0])))
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        rows = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        for name, figure in figures(*(array[rows] for array in arrays)).items():
            found.setdefault(name, []).append(figure.value)
    return {n: Estimate(0.0, *np.nanquantile(v, [0.025, 0.975])) for n, v in found.items()}


def simulate(problem: Problem, draws: int, resamples: int, seed: int) -> dict[str, float]:
    """{figure: the share of test sets whose interval holds the truth}."""
    rng = np.random.default_rng([seed, problem.images, problem.classes, problem.group])
    population = make_population(problem, rng)
    names = tuple(map(str, range(problem.classes)))
    measure_all = measure_labels if problem.several else measure
    measure_one = measure_each_label if problem.several else measure_each

    def figures(targets: np.ndarray, probabilities: np.ndarray, **options: object) -> Figures:
        return measure_all(targets, probabilities, names, **options)

    def flatten(each: dict[str, ClassFigures]) -> Figures:
        of = [(c, name) for c in each for name in OF_CLASS]
        return {f"of a class: {name} {c}": getattr(each[c], name) for c, name in of}

    whole = (population.targets, population.probabilities)
    truth = {n: e.value for n, e in (figures(*whole) | flatten(measure_one(*whole, names))).items()}
    held: dict[str, list[bool]] = {}
    for _ in range(draws):
        rows, groups = draw_rows(population, problem, rng)
        arrays = (population.targets[rows], population.probabilities[rows])
        found = figures(*arrays, groups=groups)
        found |= flatten(measure_one(*arrays, names, groups=groups))
        if resamples:
            rival = bootstrap(figures, arrays, groups, resamples, rng)
            found |= {f"bootstrap: {name}": figure for name, figure in rival.items()}
        for name, figure in found.items():
            true = truth[name.removeprefix("bootstrap: ")]
            if not np.isnan(figure.low) and not np.isnan(true):
                key = name.rsplit(" ", 1)[0] if name.startswith("of a class: ") else name
                held.setdefault(key, []).append(figure.low <= true <= figure.high)
    return {name: float(np.mean(hits)) for name, hits in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--bootstrap", type=int, default=0, help="resamples of each test set")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of problems, from 0 on")
    arguments = parser.parse_args()
    began = time.monotonic()
    problems = TUNING if arguments.tune else REPORTED
    for number, problem in enumerate(problems):
        if arguments.only and number not in arguments.only:
            continue
        found = simulate(problem, arguments.draws, arguments.bootstrap, int(arguments.tune))
        print(f"\n{number}: {problem}")
        for start in ("bootstrap: ", "of a class: ", ""):
            own = [n for n in found if n.startswith(start)]
            told = ", ".join(f"{n.removeprefix(start)} {found.pop(n):.3f}" for n in own)
            if own:
                print(f"  {start}{told}", flush=True)
    print(f"\n{arguments.draws:,} draws, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
