"""How well several labels an image are found, on mosaics of pictures that have one each.

    python benchmarks/multilabel.py ../shared/data/cifar10-100        # a folder with train and test
    python benchmarks/multilabel.py photos --images 400 --strategy partial-fine-tune

A mosaic has two by two places; each is empty with a probability of one half, else it has a picture of some
class, of the first class nine times as likely as of the tenth. So an image has no label up to four, and some labels
are rare. Mosaics to train on are of training pictures, those to test on of test pictures. Beside
what `fit` does by itself stand the same probabilities with every threshold at one half, and scikit-learn's
LogisticRegressionCV for each label on the same features of the last cut point.
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

CELL_PX = 32


def plant(pictures: Path, split: str, count: int, folder: Path, seed: int) -> Path:
    """Write mosaics of the pictures of a split, and the manifest that lists them."""
    generator = np.random.default_rng(seed)
    classes = sorted(p.name for p in (pictures / split).iterdir())
    files = [sorted((pictures / split / name).iterdir()) for name in classes]
    likely = 1 / np.linspace(1, 9, len(classes))
    folder.mkdir()
    lines = ["path,label"]
    for number in range(count):
        mosaic = Image.new("RGB", (2 * CELL_PX, 2 * CELL_PX), (128, 128, 128))
        labels = set()
        for place in range(4):
            if generator.random() < 0.5:
                continue
            chosen = generator.choice(len(classes), p=likely / likely.sum())
            file = files[chosen][generator.integers(len(files[chosen]))]
            with Image.open(file) as picture:
                cell = picture.convert("RGB").resize((CELL_PX, CELL_PX))
            mosaic.paste(cell, (place % 2 * CELL_PX, place // 2 * CELL_PX))
            labels.add(classes[chosen])
        mosaic.save(folder / f"{number:05}.png")
        lines.append(f"{number:05}.png,{'|'.join(sorted(labels))}")
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
    parser.add_argument("--images", type=int, default=1000, help="To train on, and to test on.")
    parser.add_argument("--strategy", default="linear-probe")
    parser.add_argument("--rival", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(describe())
    header = ("mean average precision", "macro F1", "micro F1", "log loss")
    print(
        f"{arguments.images} images" + " " * 22 + "".join(f"{h:>26s}" for h in header) + "       s"
    )
    with tempfile.TemporaryDirectory() as name:
        paths = [
            plant(
                arguments.pictures, split, arguments.images, Path(name, split), arguments.seed + n
            )
            for n, split in enumerate(("train", "test"))
        ]
        options = {"strategy": arguments.strategy, "seed": arguments.seed}
        if arguments.strategy == "linear-probe":
            options["cut"] = "auto"
        run = headstart.fit(paths[0], Path(name, "run"), **options)
        say(f"{run.strategy}, as fit says", run.metrics, run.seconds)
        result = headstart.evaluate(run, paths[1])
        say("the same on test images", result.metrics, 0.0)
        measured = result.measured
        half = measure_labels(measured.labels, measured.probabilities, measured.classes)
        say("with thresholds of one half", half, 0.0)
        rare = min(run.labels, key=lambda label: run.labels[label].images)
        own = run.labels[rare]
        print(
            f"thresholds {min(run.classifier.thresholds):.2f} to {max(run.classifier.thresholds):.2f}; "
            f"rarest label {rare}, {own.images} images: F1 {own.f1.value:.3f} as fit says, "
            f"{result.labels[rare].f1.value:.3f} on test images"
        )
        if arguments.rival:
            probabilities, seconds = fit_rival(*paths)
            rival = measure_labels(measured.labels, probabilities, measured.classes)
            say("scikit-learn, last features", rival, seconds)


if __name__ == "__main__":
    main()
