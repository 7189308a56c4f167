"""What temperature scaling does to probabilities, and how large and how right prediction sets are.

    python benchmarks/calibration.py ../shared/data/*          # folders of labelled images
    python benchmarks/calibration.py ../shared/data/* --per-class 5,10,30 --seeds 5 --strategies linear-probe

A folder with train and test (or val) is trained on the one and tested on the other; of any other half is
held out to test on. Every row is one way of training, over all draws: the log loss and the calibration
error (of the most probable class, in 15 bins of as many images) on the test images, as trained and at the
temperature that `fit` chose; then the log loss at those that other rules would have chosen from the same
probabilities. The second table is of sets with a coverage of --coverage, by three scores: the share of test
images whose set has their class, the least such share of a class with ten images or more, and the mean size.
"""

import argparse
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from extract import describe

import headstart
from headstart.metrics import calibration_error, image_losses
from headstart.runs import calibrating, fitting
from headstart.training.probes import units_of
from headstart.training.temperature import choose_temperature, scale_probabilities

TRACKS = "([^/]+/[^/]+)_[^/]*$"  # frames of a track in gtsrb-small
WAYS: dict[str, dict[str, Any]] = {
    "linear-probe": {"strategy": "linear-probe"},
    "mlp": {"strategy": "linear-probe", "head": "d0.3-256-d0.3"},
    "partial-fine-tune": {
        "strategy": "partial-fine-tune",
        "cut": "blocks.5",
        "epochs": 6,
        "views": 3,
    },
}
# Other ways to choose the temperature.
OTHERS = {
    "always": {"measurable": 0.0},
    "from 3": {"measurable": 3.0},
    "prior 0.25": {"prior": 0.25},
    "prior 1": {"prior": 1.0},
    "likelihood": {"prior": math.inf, "measurable": 0.0},
}


def read_parts(folder: Path) -> tuple[headstart.Dataset, headstart.Dataset]:
    """The images to train on, and those to test on."""
    group = TRACKS if folder.name == "gtsrb-small" else None
    dataset = headstart.load_dataset(folder, **({"group": group} if group else {}))
    tested = next((s for s in ("test", "val") if s in dataset.splits), None)
    if tested is None:
        dataset, tested = headstart.split_dataset(dataset, val=0.5), "val"
    splits = np.array(dataset.splits)
    train = dataset.select(np.flatnonzero(splits == "train"))
    return train, dataset.select(np.flatnonzero(splits == tested))


def train_all(
    train: headstart.Dataset, options: dict[str, Any], draws: list[tuple[int | None, int]]
) -> Iterator[tuple[headstart.Classifier, dict[str, Any]]]:
    """Train on each draw; yield the classifier and what `fit` had before it chose the temperature."""
    kept: dict[str, Any] = {}

    def keep(task: Any, head: Any, measured: Any) -> Any:
        rows = task.val_rows if len(task.val_rows) else task.rows
        kept.update(measured=measured, units=units_of(task, rows))
        return calibrating.calibrate(task, head, measured)

    for per_class, seed in draws:
        with tempfile.TemporaryDirectory() as out, mock.patch.object(fitting, "calibrate", keep):
            some = {} if per_class is None else {"per_class": per_class}
            run = headstart.fit(train, Path(out) / "run", seed=seed, **options, **some)
            if run.measured is not None:
                yield run.classifier, dict(kept)


def score_sets(probabilities: np.ndarray, score: str) -> np.ndarray:
    """The nonconformity of every class of every image (N, C), as MAPIE's lac, aps and raps have it."""
    if score == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1)
    ranks = np.argsort(order, axis=1)
    ahead = np.take_along_axis(
        np.cumsum(np.take_along_axis(probabilities, order, 1), 1), ranks, axis=1
    )
    if score == "raps":  # two classes are free, each further one costs 0.05
        ahead = ahead + 0.05 * np.maximum(ranks + 1 - 2, 0)
    return ahead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--strategies", default=",".join(WAYS))
    parser.add_argument(
        "--per-class", default="", help="Numbers, of which each is drawn by itself."
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--coverage", type=float, default=0.9)
    args = parser.parse_args()
    counts = [int(n) for n in args.per_class.split(",") if n] or [None]
    scaled: list[str] = []
    sets: list[str] = []
    for folder in args.folders:
        train, test = read_parts(folder)
        tested = headstart.extract(test, headstart.load_backbone())
        for way in args.strategies.split(","):
            for count in counts:
                draws = [(count, seed) for seed in range(args.seeds)]
                name = folder.name if count is None else f"{folder.name}, {count} a class"
                found = measure(train, test, tested, WAYS[way], draws, args.coverage)
                scaled.append(f"| {name} | {way} | {' | '.join(found['scaled'])} |")
                sets.append(f"| {name} | {way} | {' | '.join(found['sets'])} |")
                print(scaled[-1], flush=True)
    print(f"\n{describe()}; {args.seeds} draw(s) a row\n")
    others = " | ".join(OTHERS)
    print("| data | trained | T | log loss | scaled | error | scaled | " + others + " |")
    print("|---|---|" + "---:|" * (5 + len(OTHERS)))
    print("\n".join(scaled))
    columns = " | ".join(f"{s}: covered | least class | size" for s in ("lac", "aps", "raps"))
    print(f"\n| data | trained | {columns} |")
    print("|---|---|" + "---:|" * 9)
    print("\n".join(sets))


def measure(
    train: headstart.Dataset,
    test: headstart.Dataset,
    tested: headstart.Features,
    options: dict[str, Any],
    draws: list[tuple[int | None, int]],
    coverage: float,
) -> dict[str, list[str]]:
    figures = defaultdict(list)
    for classifier, kept in train_all(train, options, draws):
        features, labels = tested, tested.targets
        if classifier.backbone.fingerprint != headstart.load_backbone().fingerprint:
            features = headstart.extract(test, classifier.backbone)
        after = classifier.predict_proba(features.values)
        before = scale_probabilities(after, 1 / classifier.temperature)
        figures["t"].append(classifier.temperature)
        for name, probabilities in (("before", before), ("after", after)):
            figures[f"loss {name}"].append(image_losses(labels, probabilities).mean())
            right = probabilities.argmax(axis=1) == labels
            error = calibration_error(probabilities.max(axis=1), right)
            figures[f"error {name}"].append(error.value)
        measured, units = kept["measured"], kept["units"]
        raw = (measured.labels, measured.probabilities, units)
        for name, other in OTHERS.items():
            changed = scale_probabilities(before, choose_temperature(*raw, **other))
            figures[name].append(image_losses(labels, changed).mean())
        held = scale_probabilities(raw[1], classifier.temperature)
        for score in ("lac", "aps", "raps"):
            own = score_sets(held, score)[np.arange(len(held)), raw[0]]
            rank = math.ceil((len(own) + 1) * coverage - 1e-9)
            limit = np.sort(own)[rank - 1] if rank <= len(own) else np.inf
            inside = score_sets(after, score) <= limit
            inside[np.arange(len(after)), after.argmax(axis=1)] = True
            if score == "lac":  # headstart's own, in which a group counts as one image
                inside = classifier.knowledge.find_sets(after.astype(np.float32), coverage)
            covered = inside[np.arange(len(labels)), labels]
            present = [c for c in np.unique(labels) if (labels == c).sum() >= 10]
            figures[f"{score} covered"].append(covered.mean())
            figures[f"{score} least"].append(min(covered[labels == c].mean() for c in present))
            figures[f"{score} size"].append(inside.sum(axis=1).mean())
    mean = {name: float(np.mean(values)) for name, values in figures.items()}
    names = ["loss before", "loss after", "error before", "error after"]
    names += OTHERS
    return {
        "scaled": [f"{mean['t']:.2f}", *(f"{mean[n]:.3f}" for n in names)],
        "sets": [
            f"{mean[f'{score} {part}']:.3f}"
            for score in ("lac", "aps", "raps")
            for part in ("covered", "least", "size")
        ],
    }


if __name__ == "__main__":
    main()
