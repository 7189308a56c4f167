"""How well a classifier tells what is none of its classes, and how often it is wrong about its own.

    python benchmarks/novelty.py ../shared/data/* --cuts classifier,blocks.5,blocks.3
    python benchmarks/novelty.py ../shared/data/* --scores          # other scores of the same features

What is known is the train part of a folder, of those that have one, else a half. Asked about are its own test
images, those of other folders, and 100 generated ones: noise, blurs, plain colours, gratings and mosaics.
A row has the share of its own that is called none of these; and for each of the others the area under the ROC
curve by novelty, and the share that is called none of these; the seconds are those of learning. Features are
those of a frozen network, which a linear probe (the last cut point) and a partial fine-tune (an earlier one)
both have: those to learn from as `fit` extracts them, those to ask about as `predict` does. With --scores,
features at the last cut point are told apart by ten scores, each with a threshold from five folds of the
training images; then with every second class unknown.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from calibration import read_parts
from extract import describe
from PIL import Image, ImageFilter
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

import headstart
from headstart.training import novelty
from headstart.training.heads import assign_folds, fit_linear

OTHERS = 300  # images of every other folder
ALARM = 0.01
Score = Callable[[np.ndarray], np.ndarray]


def generate() -> headstart.Dataset:
    random = np.random.default_rng(0)
    pictures = []
    for number in range(100):
        noise = Image.fromarray(random.integers(0, 256, (96, 96, 3), dtype=np.uint8))
        kind = number % 5
        if kind == 1:
            noise = noise.filter(ImageFilter.GaussianBlur(4))
        elif kind == 2:
            noise = noise.resize((1, 1)).resize((96, 96))
        elif kind == 3:
            y, x = np.mgrid[:96, :96]
            wave = np.sin(y / random.uniform(2, 10) + x / random.uniform(2, 10)) > 0
            noise = Image.fromarray(
                (wave[..., None] * random.integers(60, 256, 3)).astype(np.uint8)
            )
        elif kind == 4:
            noise = noise.resize((8, 8)).resize((96, 96), Image.Resampling.NEAREST)
        pictures.append(np.asarray(noise))
    return headstart.from_arrays(np.stack(pictures), [str(n % 2) for n in range(100)])


def features_of(dataset: headstart.Dataset, backbone: headstart.Backbone) -> dict[str, np.ndarray]:
    found = headstart.extract(dataset, backbone, headstart.Runtime(precision="fp32"))
    return {name: values[found.good()] for name, values in found.values.items()}


def some(dataset: headstart.Dataset) -> headstart.Dataset:
    return dataset.select(np.arange(0, len(dataset), max(1, len(dataset) // OTHERS)))


def area(own: np.ndarray, other: np.ndarray) -> float:
    """The area under the ROC curve of a score that is larger for the others."""
    known = np.r_[np.zeros(len(own)), np.ones(len(other))]
    return float(roc_auc_score(known, np.r_[own, other]))


def run_cuts(data: dict[str, tuple[headstart.Dataset, headstart.Dataset]], cuts: list[str]) -> None:
    backbone, generated = headstart.load_backbone(), generate()
    names = [*data, "generated"]
    print("| known | features | false alarms | " + " | ".join(names) + " | seconds |")
    print("|---|---|---:|" + "---:|" * (len(names) + 1))
    for own, (train, test) in data.items():
        learned_from = headstart.extract(train, backbone).values
        asked = {n: some(t) for n, (_, t) in data.items() if n != own} | {"generated": generated}
        features = {n: features_of(d, backbone) for n, d in {own: test, **asked}.items()}
        for cut in cuts or [backbone.cuts[-1].name]:
            began = time.perf_counter()
            known = novelty.learn_novelty(learned_from[cut], tuple(train.units()), cut, 0)
            seconds = time.perf_counter() - began
            assert known is not None
            mine, cells = known.p_values(features[own][cut]), []
            for name in names:
                theirs = known.p_values(features[name][cut])
                found = f"{area(-mine, -theirs):.3f}, {(theirs <= ALARM).mean():.2f}"
                cells.append("" if name == own else found)
            row = f"| {own} | {cut} | {(mine <= ALARM).mean():.3f} | {' | '.join(cells)} |"
            print(f"{row} {seconds:.2f} |", flush=True)


# ---------------------------------------------------------------- other scores


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def nearest(x: np.ndarray, labels: np.ndarray, *, count: int = 5, width: int = 0) -> Score:
    """The distance to the fifth nearest direction (Sun et al. 2022), of random projections."""
    projection = np.random.default_rng(0).normal(size=(x.shape[1], width)) if width else None

    def project(values: np.ndarray) -> np.ndarray:
        return unit(values if projection is None else values @ projection)

    known = project(x)
    return lambda values: np.sort(-project(values) @ known.T, axis=1)[:, count - 1]


def principal(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    mean = x.mean(axis=0)
    return mean, np.linalg.svd(x - mean, full_matrices=False)[2][:count]


def nearest_principal(x: np.ndarray, labels: np.ndarray) -> Score:
    mean, axes = principal(x, 128)
    known = unit((x - mean) @ axes.T)
    return lambda values: np.sort(-unit((values - mean) @ axes.T) @ known.T, axis=1)[:, 4]


def mahalanobis(x: np.ndarray, labels: np.ndarray, *, relative: bool = False) -> Score:
    """To the nearest class (Lee et al. 2018), less that to all (Ren et al. 2021)."""
    mean, axes = principal(x, 128)
    z = (x - mean) @ axes.T
    present, place = np.unique(labels, return_inverse=True)
    centres = np.stack([z[place == k].mean(axis=0) for k in range(len(present))])
    within = np.linalg.inv(ledoit_wolf(z - centres[place], assume_centered=True)[0])
    whole = np.linalg.inv(ledoit_wolf(z, assume_centered=True)[0])

    def score(values: np.ndarray) -> np.ndarray:
        z = (values - mean) @ axes.T
        away = z[:, None] - centres[None]
        least = np.einsum("ncd,de,nce->nc", away, within, away).min(axis=1)
        return least - np.einsum("nd,de,ne->n", z, whole, z) if relative else least

    return score


def by_logits(x: np.ndarray, labels: np.ndarray, *, energy: bool = False) -> Score:
    """The probability of the most probable class (Hendrycks 2017), or the energy (Liu et al. 2020)."""
    present, place = np.unique(labels, return_inverse=True)
    head = fit_linear(x.astype(np.float32), place, len(present), penalty=0.1)

    def score(values: np.ndarray) -> np.ndarray:
        logits = values @ head.weight.T.astype(np.float64) + head.bias
        most = logits.max(axis=1)
        summed = np.log(np.exp(logits - most[:, None]).sum(axis=1))
        return -(most + summed) if energy else summed

    return score


def residual(x: np.ndarray, labels: np.ndarray, *, count: int) -> Score:
    """The distance from the principal subspace, as headstart has it."""
    novelty.COMPONENTS, usual = count, novelty.COMPONENTS
    mean, axes = novelty._find_subspace(x.astype(np.float32), 0)
    novelty.COMPONENTS = usual
    return lambda values: novelty._measure(values.astype(np.float32), mean, axes)


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], Score]] = {
    "residual 32": lambda x, y: residual(x, y, count=32),
    "residual 64": lambda x, y: residual(x, y, count=64),
    "residual 128": lambda x, y: residual(x, y, count=128),
    "5th nearest": nearest,
    "5th nearest, 128 random projections": lambda x, y: nearest(x, y, width=128),
    "5th nearest, 128 components": nearest_principal,
    "Mahalanobis": mahalanobis,
    "relative Mahalanobis": lambda x, y: mahalanobis(x, y, relative=True),
    "probability": by_logits,
    "energy": lambda x, y: by_logits(x, y, energy=True),
}


def run_scores(data: dict[str, tuple[headstart.Dataset, headstart.Dataset]]) -> None:
    backbone = headstart.load_backbone()
    cut = backbone.cuts[-1].name
    found = {
        n: tuple(features_of(d, backbone)[cut].astype(np.float64) for d in parts)
        for n, parts in data.items()
    }
    generated = features_of(generate(), backbone)[cut].astype(np.float64)
    print(
        "| trained on | score | false alarms | least area | least found | half the classes | found |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for own, (train, test) in data.items():
        x, t = found[own]
        others = [t for n, (_, t) in found.items() if n != own] + [generated]
        for name, make in SCORES.items():
            score, limit = calibrate(make, x, train.labels, train.units())
            mine, theirs = score(t), [score(o[:: max(1, len(o) // OTHERS)]) for o in others]
            cells = [
                f"{(mine > limit).mean():.3f}",
                f"{min(area(mine, o) for o in theirs):.3f}",
                f"{min((o > limit).mean() for o in theirs):.2f}",
            ]
            if len(train.classes) > 2:
                seen, asked = train.labels % 2 == 0, test.labels % 2 == 0
                units = [u for u, s in zip(train.units(), seen, strict=True) if s]
                score, limit = calibrate(make, x[seen], train.labels[seen], units)
                unknown = score(t[~asked])
                cells += [
                    f"{area(score(t[asked]), unknown):.3f}",
                    f"{(unknown > limit).mean():.2f}",
                ]
            else:
                cells += ["", ""]
            print(f"| {own} | {name} | {' | '.join(cells)} |", flush=True)


def calibrate(
    make: Callable[[np.ndarray, np.ndarray], Score],
    x: np.ndarray,
    labels: np.ndarray,
    units: list[str],
) -> tuple[Score, float]:
    """The score, and what it is above for one in a hundred known images that it has not seen."""
    folds = assign_folds(labels, tuple(units), 5, 0)
    values = np.zeros(len(x))
    for fold in range(5):
        values[folds == fold] = make(x[folds != fold], labels[folds != fold])(x[folds == fold])
    return make(x, labels), float(np.quantile(values, 1 - ALARM))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--cuts", default="", help="Cut points; the last one by default.")
    parser.add_argument("--scores", action="store_true")
    args = parser.parse_args()
    data = {folder.name: read_parts(folder) for folder in args.folders}
    print(f"{describe()}\n")
    if args.scores:
        run_scores(data)
    else:
        run_cuts(data, [cut for cut in args.cuts.split(",") if cut])


if __name__ == "__main__":
    main()
