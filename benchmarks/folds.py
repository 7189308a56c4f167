"""What folds cost, and how near their figure comes to what a classifier reaches.

    python benchmarks/folds.py hymenoptera gtsrb-small         # folders with a split
    python benchmarks/folds.py hymenoptera --folds 10 --seeds 3 --epochs 0 --cut auto

The images of `train` are fitted on, and those of `test`, or else `val`, are the test split here. Each way of
training is fitted twice with an empty cache: as it is, and with `--folds`. Told are the seconds that both
keep the processors busy, which other programs change little, and the accuracy that each reports, against what
the classifier, which is the same, reaches on the test split.
Without folds, partial fine-tuning reports the accuracy on the fifth that was held out, by which its best
epoch was chosen too; the linear probe that of the cross-validation which chose its penalty.

So that it takes minutes, the cut point, the views and the epochs of partial fine-tuning are given; `--cut
auto`, `--views 0` and `--epochs 0` leave them to headstart.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from extract import describe

import headstart

STRATEGIES = ("linear-probe", "partial-fine-tune")


def fit(data: Path, place: Path, options: dict[str, object]) -> tuple[headstart.Run, float]:
    """Fit with an empty cache: (the run, seconds of the processors)."""
    began = time.process_time()
    run = headstart.fit(data, place / "run", cache_dir=place / "cache", device="cpu", **options)
    return run, time.process_time() - began


def measure(data: Path, options: dict[str, object], folds: int) -> dict[str, object]:
    """Fit with and without folds; what each took, reported, and the classifier reaches."""
    test = next(data / name for name in ("test", "val") if (data / name).is_dir())
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        alone, alone_s = fit(data / "train", Path(one), options)
        measured, folds_s = fit(data / "train", Path(other), {**options, "folds": folds})
        evaluation = headstart.evaluate(
            measured, test, split="all", cache_dir=Path(other) / "cache", device="cpu"
        )
    reported, out_of_fold = (run.metrics["accuracy"] for run in (alone, measured))
    reached, told = evaluation.metrics["accuracy"], measured.decisions.facts["folds"]
    figures = {
        "data": data.name,
        **options,
        "folds": folds,
        "images": len(measured.measured),
        "alone_s": round(alone_s, 1),
        "folds_s": round(folds_s, 1),
        "times": round(folds_s / alone_s, 2),
    }
    for name, estimate in (("reported", reported), ("folds", out_of_fold), ("test", reached)):
        figures[f"{name}_accuracy"] = [
            round(v, 4) for v in (estimate.value, estimate.low, estimate.high)
        ]
    return {**figures, "by_fold": [round(v, 4) for v in told["values"]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cut", default="blocks.5")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    print(json.dumps(describe()))
    own = {"cut": args.cut, "views": args.views or None, "epochs": args.epochs or None}
    own = {name: value for name, value in own.items() if value is not None}
    for strategy in args.strategies:
        off: dict[str, list[float]] = {"reported": [], "folds": []}
        times = []
        for data in args.data:
            for seed in range(args.seeds):
                options = {"strategy": strategy, "seed": seed}
                figures = measure(
                    data,
                    {**options, **(own if strategy == "partial-fine-tune" else {})},
                    args.folds,
                )
                print(json.dumps(figures), flush=True)
                times.append(figures["times"])
                for name, values in off.items():
                    values.append(figures[f"{name}_accuracy"][0] - figures["test_accuracy"][0])
        print(
            f"{strategy}: {args.folds} folds take {min(times):.1f} to {max(times):.1f} times as long; above "
            f"the test split by {statistics.mean(off['reported']):+.3f} without folds, "
            f"{statistics.mean(off['folds']):+.3f} with"
        )


if __name__ == "__main__":
    main()
