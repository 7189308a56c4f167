"""How well several labels an image are found, on mosaics of pictures that have one each.

    python benchmarks/multilabel.py ../shared/data/cifar10-100        # a folder with train and test
    python benchmarks/multilabel.py photos --strategy partial-fine-tune --no-rival

A mosaic has two by two places, each of which is empty or has a picture, one as likely as the other; so an
image has no label up to four. Every picture is used once, else a probe would be measured on pictures that it
has seen: all of the first class, a fifth of the last, and of those between in even steps. Mosaics to train on
are of training pictures, those to test on of test pictures. Beside what `fit` does by itself stand the same
probabilities with every threshold at one half, and with one that is chosen for all labels; and scikit-learn's
LogisticRegressionCV for each label on the features of the last cut point.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from extract import describe
from PIL import Image
from sklearn.linear_model import LogisticRegressionCV
from sklearn.preprocessing import StandardScaler

import headstart
from headstart.label_metrics import measure_labels
from headstart.training.thresholds import choose_thresholds

CELL_PX = 32


def plant(pictures: Path, split: str, folder: Path, seed: int) -> Path:
    """Write mosaics of the pictures of a split, and the manifest that lists them."""
    generator = np.random.default_rng(seed)
    classes = sorted(p.name for p in (pictures / split).iterdir())
    shares = np.linspace(1, 0.2, len(classes))
    pool = []
    for name, share in zip(classes, shares, strict=True):
        files = sorted((pictures / split / name).iterdir())
        pool += [
            (name, files[n]) for n in generator.permutation(len(files))[: round(share * len(files))]
        ]
    left = [pool[n] for n in generator.permutation(len(pool))]
    folder.mkdir()
    lines = ["path,label"]
    while left:
        mosaic = Image.new("RGB", (2 * CELL_PX, 2 * CELL_PX), (128, 128, 128))
        labels = set()
        for place in range(4):
            if generator.random() < 0.5 or not left:
                continue
            label, file = left.pop()
            with Image.open(file) as picture:
                cell = picture.convert("RGB").resize((CELL_PX, CELL_PX))
            mosaic.paste(cell, (place % 2 * CELL_PX, place // 2 * CELL_PX))
            labels.add(label)
        name = f"{len(lines):05}.png"
        mosaic.save(folder / name)
        lines.append(f"{name},{'|'.join(sorted(labels))}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder / "labels.csv"


def fit_rival(train: Path, test: Path) -> tuple[np.ndarray, float]:
    """Probabilities (N, C) of the test images by scikit-learn, and the seconds that fitting took."""
    backbone = headstart.load_backbone("tf_efficientnet_lite0")
    found = []
    for path in (train, test):
        dataset = headstart.load_dataset(path, multi_label=True)
        features = headstart.extract(dataset, backbone)
        found.append((features.values[backbone.cuts[-1].name][:], dataset.targets))
    scaler = StandardScaler().fit(found[0][0])
    x, y = scaler.transform(found[0][0]), found[0][1]
    began = time.perf_counter()
    columns = []
    for label in y.T:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = LogisticRegressionCV(Cs=10, cv=5, scoring="neg_log_loss", max_iter=300)
            model.fit(x, label)
        columns.append(model.predict_proba(scaler.transform(found[1][0]))[:, 1])
    return np.stack(columns, axis=1), time.perf_counter() - began


def say(name: str, figures: dict[str, headstart.Estimate], seconds: float) -> None:
    shown = ("mean_average_precision", "macro_f1", "micro_f1", "log_loss")
    cells = [
        f"{figures[n].value:.3f} ({figures[n].low:.3f} to {figures[n].high:.3f})" for n in shown
    ]
    print(f"{name:34s}" + "".join(f"{c:>26s}" for c in cells) + f"{seconds:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--strategy", default="linear-probe")
    parser.add_argument("--rival", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(describe())
    header = ("mean average precision", "macro F1", "micro F1", "log loss")
    print(" " * 34 + "".join(f"{h:>26s}" for h in header) + "       s")
    with tempfile.TemporaryDirectory() as name:
        paths = [
            plant(arguments.pictures, split, Path(name, split), arguments.seed + n)
            for n, split in enumerate(("train", "test"))
        ]
        options = {"strategy": arguments.strategy, "seed": arguments.seed}
        if arguments.strategy == "linear-probe":
            options["cut"] = "auto"
        run = headstart.fit(paths[0], Path(name, "run"), **options)
        result = headstart.evaluate(run, paths[1])
        print(f"{sum(run.images.values())} images to train on, {len(result.measured)} to test on")
        say(f"{run.strategy}, as fit says", run.metrics, run.seconds)
        say("the same on test images", result.metrics, 0.0)
        measured = result.measured
        half = measure_labels(measured.labels, measured.probabilities, measured.classes)
        say("with thresholds of one half", half, 0.0)
        one = choose_thresholds(
            run.measured.labels.reshape(-1, 1), run.measured.probabilities.reshape(-1, 1)
        )
        common = measure_labels(
            measured.labels, measured.probabilities, measured.classes, thresholds=one[0]
        )
        say("with one threshold for all labels", common, 0.0)
        rare = min(run.per_class, key=lambda label: run.per_class[label].images)
        own = run.per_class[rare]
        print(
            f"thresholds {min(run.classifier.thresholds):.2f} to {max(run.classifier.thresholds):.2f}; "
            f"rarest label {rare}, {own.images} images: F1 {own.f1.value:.3f} as fit says, "
            f"{result.per_class[rare].f1.value:.3f} on test images"
        )
        if arguments.rival:
            probabilities, seconds = fit_rival(*paths)
            rival = measure_labels(measured.labels, probabilities, measured.classes)
            say("scikit-learn, last features", rival, seconds)


if __name__ == "__main__":
    main()
