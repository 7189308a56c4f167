"""How fast a head and its penalty are found, against scikit-learn's solvers on the same folds and penalties.

    python benchmarks/logistic.py                                       # generated features
    python benchmarks/logistic.py photos cifar10 --rounds 5 --limit 600 # and those of class folders

What is timed is the whole search: standardising, the cross-validation of every penalty tried, the other folds
at the best one, the head on all images. scikit-learn is told which folds and which penalties headstart tried
(the whole grid would be three times as many), goes through them from strong to weak, each started from the
one before, in the same floating-point numbers. lbfgs stops at the loosest `tol` with which, at the best
penalty from a cold start, the penalised loss is as near to its minimum as headstart asks for (1e-5 nats an
image in cross-validation, 1e-7 on all images). newton-cholesky keeps its default of 1e-4, which its last step
leaves far behind.

Every measurement is a process of its own, the rounds interleaved, so that a slow minute of the machine hits
all alike; starting Python and imports are not in it. One that takes longer than `--limit` is ended and not
tried again. "held-out" is the largest difference to headstart's log loss among the penalties, in nats.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from extract import describe

SOLVERS = ("headstart", "lbfgs", "newton-cholesky")
GENERATED = {"10 classes": (10_000, 1_280, 10), "100 classes": (5_000, 1_280, 100)}
TOLERANCES = tuple(10.0**-power for power in range(2, 8))
MOST_STEPS = 100_000


def generate(images: int, width: int, classes: int) -> dict[str, np.ndarray]:
    """Features with the spectrum of a network's (k^-1 of the k-th direction), classes that overlap."""
    rng = np.random.default_rng(0)
    labels = np.arange(images) % classes
    scales = np.arange(1, width + 1) ** -0.5
    hidden = (
        rng.standard_normal((images, width)) + 0.07 * rng.standard_normal((classes, width))[labels]
    )
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    return {"features": ((hidden * scales) @ turn).astype(np.float32), "labels": labels}


def extract(folder: Path) -> dict[str, np.ndarray]:
    """The training images' features of the built-in network, at its last cut point."""
    import headstart

    dataset = headstart.split_dataset(headstart.load_dataset(folder), val=0)
    dataset = dataset.select(dataset.rows("train"))
    backbone = headstart.load_backbone()
    features = headstart.extract(dataset, backbone)
    good = features.good()
    return {
        "features": features.values[backbone.cuts[-1].name][good],
        "labels": dataset.labels[good],
    }


def run_headstart(features: np.ndarray, labels: np.ndarray, classes: int) -> dict:
    from headstart.training.heads import JUDGED_UNITS, assign_folds, choose_penalty, fit_linear

    units = tuple(f"{row:06}" for row in range(len(labels)))
    began = time.perf_counter()
    found = choose_penalty(features, labels, units, classes)
    fit_linear(features, labels, classes, penalty=found.value)
    seconds = time.perf_counter() - began
    judged = min(found.folds, -(-JUDGED_UNITS * found.folds // len(labels)))
    folds = assign_folds(labels, units, found.folds, 0).tolist()
    return {
        "seconds": seconds,
        "losses": [loss for _, loss in found.path],
        "told": {
            "penalties": [value for value, _ in found.path],
            "best": found.value,
            "folds": folds,
            "judged": judged,
        },
    }


class Rival:
    """scikit-learn's logistic regression on standardised features."""

    def __init__(self, solver: str, features: np.ndarray, labels: np.ndarray, classes: int) -> None:
        from headstart.training.logistic import SMALL, standardise

        small = features.size * classes <= SMALL
        self.solver, self.labels, self.classes = solver, labels, classes
        mean, scale = standardise(features)
        self.matrix = ((features - mean) / scale).astype(np.float64 if small else np.float32)

    def solve(self, rows: np.ndarray, penalty: float, tol: float, start=None):
        """The model on some rows; `start` is another one, which is changed."""
        from sklearn.linear_model import LogisticRegression

        model = start or LogisticRegression(
            solver=self.solver, max_iter=MOST_STEPS, warm_start=True
        )
        # Of two classes scikit-learn keeps one row w, which stands for -w / 2 and w / 2.
        strength = (2 if self.classes == 2 else 1) / (penalty * len(rows))
        return model.set_params(C=strength, tol=tol).fit(self.matrix[rows], self.labels[rows])

    def loss(self, model, rows: np.ndarray) -> float:
        """Log loss in nats an image."""
        shares = model.predict_proba(self.matrix[rows].astype(np.float64))
        true = shares[np.arange(len(rows)), self.labels[rows]]
        return float(-np.log(np.maximum(true, 1e-12)).mean())

    def objective(self, model, rows: np.ndarray, penalty: float) -> float:
        size = float((model.coef_.astype(np.float64) ** 2).sum()) / (2 if self.classes == 2 else 1)
        return self.loss(model, rows) + penalty / 2 * size

    def calibrate(self, told: dict, gaps: tuple[float, float]) -> list[float]:
        """The loosest tolerances of `TOLERANCES` that come within these gaps of the minimum."""
        rows = np.flatnonzero(np.array(told["folds"]) != 0)
        matrix, self.matrix = self.matrix, self.matrix.astype(np.float64)
        lowest = self.objective(self.solve(rows, told["best"], 1e-9), rows, told["best"])
        self.matrix = matrix
        above = {
            tol: self.objective(self.solve(rows, told["best"], tol), rows, told["best"]) - lowest
            for tol in TOLERANCES
        }
        fine = [[tol for tol in TOLERANCES if above[tol] <= gap] for gap in gaps]
        return [max(tols, default=TOLERANCES[-1]) for tols in fine]


def run_rival(
    solver: str, features: np.ndarray, labels: np.ndarray, classes: int, told: dict
) -> dict:
    importlib.import_module("sklearn.linear_model")  # outside of what is timed

    folds, judged = np.array(told["folds"]), range(told["judged"])
    trained = [np.flatnonzero(folds != k) for k in range(folds.max() + 1)]
    held = [np.flatnonzero(folds == k) for k in range(folds.max() + 1)]
    began = time.perf_counter()
    rival = Rival(solver, features, labels, classes)
    models: list = [None] * len(trained)
    losses = []
    for penalty in told["penalties"]:
        found = []
        for k in judged:
            models[k] = rival.solve(trained[k], penalty, told["tol"][0], models[k])
            found += [rival.loss(models[k], held[k])] * len(held[k])
        losses.append(float(np.mean(found)))
    for k in range(len(judged), len(trained)):
        rival.solve(trained[k], told["best"], told["tol"][0])
    rival.solve(np.arange(len(labels)), told["best"], told["tol"][1])
    return {"seconds": time.perf_counter() - began, "losses": losses}


def work(solver: str, place: Path) -> dict:
    """One measurement, in this process."""
    from headstart.training.logistic import CV_GAP, GAP

    with np.load(place / "data.npz") as data:
        features, labels = data["features"], data["labels"]
    classes = int(labels.max()) + 1
    if solver == "headstart":
        return run_headstart(features, labels, classes)
    told = json.loads((place / "told.json").read_text())
    if solver.startswith("tol "):
        rival = Rival(solver.removeprefix("tol "), features, labels, classes)
        return {"tol": rival.calibrate(told, (CV_GAP, GAP))}
    return run_rival(solver, features, labels, classes, told)


def ask(solver: str, place: Path, limit: float) -> dict | str:
    """One measurement, in a process of its own; or why there is none."""
    command = [sys.executable, __file__, "--work", solver, str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"over {limit:g} s"
    if done.returncode:
        if "MemoryError" in done.stderr or done.returncode < 0:
            return "out of memory"
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, data: dict[str, np.ndarray], rounds: int, limit: float) -> None:
    images, width = data["features"].shape
    classes = int(data["labels"].max()) + 1
    print(f"\n{name}: {images:,} images x {width:,} features, {classes} classes")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.savez(place / "data.npz", **data)
        first = ask("headstart", place, limit * rounds)
        if isinstance(first, str):
            print(f"headstart: {first}")
            return
        told = first["told"]
        solves = len(told["penalties"]) * told["judged"] + max(told["folds"]) + 2 - told["judged"]
        print(
            f"penalties {', '.join(f'{p:.2g}' for p in told['penalties'])}; best {told['best']:.2g}; "
            f"judged on {told['judged']} of {max(told['folds']) + 1} folds; {solves} models"
        )
        (place / "told.json").write_text(json.dumps(told))
        found = ask("tol lbfgs", place, limit)
        default = [1e-4, 1e-4]
        # What cannot be calibrated in time gets the default too.
        tolerances = {
            "lbfgs": default if isinstance(found, str) else found["tol"],
            "newton-cholesky": default,
        }
        seconds: dict[str, list[float]] = {solver: [] for solver in SOLVERS}
        away = dict.fromkeys(SOLVERS, 0.0)
        given_up: dict[str, str] = {}
        for _ in range(rounds):
            for solver in SOLVERS:
                if solver in given_up:
                    continue
                if solver in tolerances:
                    text = json.dumps({**told, "tol": tolerances[solver]})
                    (place / "told.json").write_text(text)
                found = ask(solver, place, limit)
                if isinstance(found, str):
                    given_up[solver] = found
                    continue
                seconds[solver].append(found["seconds"])
                off = np.abs(np.array(found["losses"]) - first["losses"]).max()
                away[solver] = max(away[solver], float(off))
    print(f"{'':16} {'min s':>9} {'median s':>9} {'max s':>9} {'held-out':>9}  tol")
    for solver in SOLVERS:
        found, tol = seconds[solver], tolerances.get(solver)
        shown = "" if tol is None else f"  {tol[0]:g}, {tol[1]:g}"
        if not found:
            print(f"{solver:16} {given_up[solver]:>39}{shown}")
            continue
        row = (min(found), statistics.median(found), max(found))
        figures = " ".join(f"{value:9.3f}" for value in row)
        print(f"{solver:16} {figures} {away[solver]:9.5f}{shown}")


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        # newton-cholesky wants (C x D)^2 numbers, which must not push others out of memory.
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        resource.setrlimit(resource.RLIMIT_AS, (memory // 2, memory // 2))
        print(json.dumps(work(sys.argv[2], Path(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, help="Class folders to extract features of."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300, help="Seconds a measurement may take.")
    parser.add_argument("--generated", choices=[*GENERATED, "all", "none"], default="all")
    arguments = parser.parse_args()
    print(describe("headstart", "numpy", "scipy", "scikit-learn", "threadpoolctl"))
    print(f"{arguments.rounds} rounds, at most {arguments.limit:g} s each")
    for folder in arguments.folders:
        compare(folder.name, extract(folder), arguments.rounds, arguments.limit)
    for name, size in GENERATED.items():
        if arguments.generated in (name, "all"):
            compare(name, generate(*size), arguments.rounds, arguments.limit)


if __name__ == "__main__":
    main()
