"""How often `compare` tells two contenders apart that differ by their seeds only, at the 5 % level.

    python benchmarks/compare_alarms.py                   # simulated
    python benchmarks/compare_alarms.py --runs 16         # and runs of an MLP head on scikit-learn's digits

Simulated: every image is right with a chance of its own, whose log odds are normal (mean 2, deviation
2.5); a seed shifts all log odds by a normal draw, as far as the column says, and in groups (of 5 images,
alike in difficulty) also each group's by a draw of deviation 1. Accuracies of seeds then differ by about
0.1 of the shift, beyond what chance in single images does. "power" is the share found where the log odds
of the second contender are 0.7 lower.

Runs: heads of 32 hidden units trained with seeds of their own on 200 of the digits, for 3 and for 60
epochs, measured on the test split; all pairs of one run each, and 1,000 draws of three against three.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np

import headstart
from headstart.cli.demo import write_digits
from headstart.contrasts import LEVEL, contrast_runs

SHIFTS = (0.0, 0.1, 0.3)
SIZES = (100, 1000)
GROUP = 5


def draw_runs(
    rng: np.random.Generator, odds: np.ndarray, units: np.ndarray, seeds: int, shift: float
) -> np.ndarray:
    """Which images each run gets right, (S, N)."""
    shifts = rng.normal(0, shift, (seeds, 1))
    if units[-1] + 1 < len(units):
        shifts = shifts + rng.normal(0, 1, (seeds, units[-1] + 1))[:, units]
    return rng.random((seeds, len(odds))) < 1 / (1 + np.exp(-odds - shifts))


def simulate(
    images: int, seeds: int, shift: float, *, grouped: bool, worse: float, draws: int
) -> float:
    """The share of `draws` pairs of contenders that are told apart."""
    rng = np.random.default_rng(0)
    units = np.arange(images) // (GROUP if grouped else 1)
    found = 0
    for _ in range(draws):
        odds = rng.normal(2, 2.5, units[-1] + 1)[units]
        first = draw_runs(rng, odds, units, seeds, shift)
        second = draw_runs(rng, odds - worse, units, seeds, shift)
        found += contrast_runs(first, second, units).p < LEVEL
    return found / draws


def train(runs: int, epochs: int) -> np.ndarray:
    """Which digits of the test split each of some runs gets right, (S, N)."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_digits(place / "digits")
        dataset = headstart.load_dataset(place / "digits")
        of_test = np.array([s == "test" for s in dataset.splits])
        few = np.random.default_rng(0).permutation(np.flatnonzero(~of_test))[:200]
        test, right = dataset.select(np.flatnonzero(of_test)), []
        for seed in range(runs):
            run = headstart.fit(
                dataset.select(np.sort(few)), place / str(seed),
                strategy="linear-probe", head="32", batch=16, epochs=epochs, seed=seed,
            )  # fmt: skip
            measured = headstart.evaluate(run, test, split="all").measured
            right.append(measured.probabilities.argmax(axis=1) == measured.labels)
        return np.stack(right)


def count_alarms(right: np.ndarray) -> tuple[float, float]:
    """The share of pairs of single runs, and of draws of three against three, that are told apart."""
    units, rng = np.arange(right.shape[1]), np.random.default_rng(0)
    pairs = list(itertools.combinations(range(len(right)), 2))
    single = [contrast_runs(right[[i]], right[[j]], units).p < LEVEL for i, j in pairs]
    several = []
    for _ in range(1000):
        order = rng.permutation(len(right))
        several.append(contrast_runs(right[order[:3]], right[order[3:6]], units).p < LEVEL)
    return float(np.mean(single)), float(np.mean(several))


def main() -> None:
    """A row for every kind of test set, number of seeds and shift; then real runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    print("| images | groups | seeds | shift of a seed | false alarms | power |")
    print("|---:|---|---:|---:|---:|---:|")
    for images, grouped, seeds, shift in itertools.product(SIZES, (False, True), (1, 3, 5), SHIFTS):
        options = {"grouped": grouped, "draws": arguments.draws}
        alarms = simulate(images, seeds, shift, worse=0.0, **options)
        power = simulate(images, seeds, shift, worse=0.7, **options)
        kind = f"of {GROUP}" if grouped else "none"
        print(
            f"| {images:,} | {kind} | {seeds} | {shift} | {alarms:.3f} | {power:.2f} |", flush=True
        )
    if arguments.runs:
        for epochs in (3, 60):
            right = train(arguments.runs, epochs)
            single, several = count_alarms(right)
            accuracies = right.mean(axis=1)
            print(
                f"\n{arguments.runs} runs of {epochs} epochs, accuracy {accuracies.mean():.3f} (deviation "
                f"{accuracies.std(ddof=1):.4f}) on {right.shape[1]} images: false alarms {single:.3f} "
                f"between single runs, {several:.3f} between three and three",
                flush=True,
            )
    print(f"\n{arguments.draws:,} draws, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
