"""What an audit finds of flaws that were planted, and what of clean data it accuses.

    python benchmarks/audit.py ../shared/data/cifar10-100 --rounds 3

Of 5 % of the images the label is changed at random. Told are the share of the changed ones among the first
tenth of the list (of as many as a tenth of the images), how many are called likely, and how many of those are
changed. Of 60 images slightly cropped copies of another quality are planted in a test split. Told are how
many are found, how many are leaks, and how many other pairs there are, such as those of the data themselves.
"""

import argparse
import dataclasses
import itertools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from extract import describe
from PIL import Image

import headstart

CHANGED, COPIES = 0.05, 60


def change_labels(data: Path, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Audit with changed labels."""
    dataset = headstart.load_dataset(data)
    draws, classes = np.random.default_rng(seed), len(dataset.classes)
    rows = draws.choice(len(dataset), round(CHANGED * len(dataset)), replace=False)
    targets = dataset.targets.copy()
    targets[rows] = (targets[rows] + draws.integers(1, classes, len(rows))) % classes
    found = headstart.audit(dataclasses.replace(dataset, targets=targets), **options)
    changed = {dataset.ids[row] for row in rows}
    right = [error.image in changed for error in found.label_errors]
    likely = [error.image in changed for error in found.label_errors if error.likely]
    return {
        "changed": len(rows),
        "listed": len(right),
        "found in the first tenth": round(sum(right[: len(dataset) // 10]) / len(rows), 3),
        "likely": len(likely),
        "of them changed": sum(likely),
    }


def plant_copies(data: Path, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Audit with copies of training images among the test images."""
    draws = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(
            p for p in data.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".ppm")
        )
        chosen = set(draws.sample(paths, min(COPIES, len(paths))))
        for number, path in enumerate(paths):
            place = Path(folder, "train", path.parent.name, f"{number:06}{path.suffix}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
            if path in chosen:
                image = Image.open(path).convert("RGB")
                cut = [round(draws.uniform(0, 0.05) * side) for side in (*image.size, *image.size)]
                box = (cut[0], cut[1], image.width - cut[2], image.height - cut[3])
                copy = Path(folder, "test", path.parent.name, f"copy-{number:06}.jpg")
                copy.parent.mkdir(parents=True, exist_ok=True)
                image.crop(box).save(copy, quality=draws.randrange(70, 95))
        found = headstart.audit(folder, allow_outside=True, **options)
    pairs = [p for group in found.duplicates for p in itertools.combinations(group, 2)]
    planted = sum("copy-" in one + two and one[-10:-4] == two[-10:-4] for one, two in pairs)
    return {
        "planted": len(chosen),
        "found": planted,
        "leaks": len(found.leaks),
        "other pairs": len(pairs) - planted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    print(json.dumps(describe()))
    with tempfile.TemporaryDirectory() as cache:
        options = {"cache_dir": cache}
        for data in args.data:
            clean = headstart.audit(data, **options)
            likely = sum(error.likely for error in clean.label_errors)
            print(
                json.dumps({"data": data.name, **clean.counts(), "likely label errors": likely}),
                flush=True,
            )
            for seed in range(args.rounds):
                for plant in (change_labels, plant_copies):
                    print(json.dumps({"seed": seed, **plant(data, seed, options)}), flush=True)


if __name__ == "__main__":
    main()
