"""What the fast way costs in accuracy: scaled decoding and bf16, against exact decoding and fp32.

    python benchmarks/precision.py FOLDER …     # class folders; scikit-learn's digits by default

For each data set: how far the pixels of `exact=False` are from the exact ones, how far the features at
each cut point are (relative, |a - b| / |b| over all images), and the cross-validated accuracy of a linear
probe on either, on the training images.
"""

import argparse
import importlib.metadata
import tempfile
from pathlib import Path

import numpy as np

import headstart
from headstart.cli.demo import write_digits
from headstart.data.decoding import decode_and_prepare
from headstart.training.heads import choose_penalty


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    arguments = parser.parse_args()
    names = ("headstart", "torch", "openvino", "pillow", "simplejpeg")
    print(", ".join(f"{n} {importlib.metadata.version(n)}" for n in names))
    with tempfile.TemporaryDirectory() as temporary:
        folders = arguments.folders
        if not folders:
            folders = [Path(temporary) / "digits"]
            write_digits(folders[0])
        for folder in folders:
            compare(folder, Path(temporary))


def compare(folder: Path, cache: Path) -> None:
    backbone = headstart.load_backbone()
    dataset = headstart.split_dataset(headstart.load_dataset(folder), val=0)
    dataset = dataset.select(dataset.rows("train"))
    how = backbone.preprocessing
    means, worst = [], 0
    for row in range(min(300, len(dataset))):
        data = dataset.image(row).read()
        exact = decode_and_prepare(data, how).astype(int)
        away = np.abs(decode_and_prepare(data, how, exact=False).astype(int) - exact)
        means.append(away.mean())
        worst = max(worst, int(away.max()))
    print(f"\n{folder.name}, {len(dataset)} training images")
    print(
        f"pixels, of 255: {np.mean(means):.2f} away on average, {max(means):.2f} in the worst image, "
        f"{worst} in the worst pixel"
    )
    found = {
        p: headstart.extract(dataset, backbone, headstart.Runtime(precision=p, cache_dir=cache))
        for p in ("fp32", "bf16")
    }
    good = found["fp32"].good()
    print("features, relative:", end="")
    for cut in backbone.cuts:
        a, b = (found[p].values[cut.name][good] for p in ("bf16", "fp32"))
        print(f" {cut.name} {np.linalg.norm(a - b) / np.linalg.norm(b):.4f}", end="")
    print()
    labels = dataset.labels[good]
    units = tuple(u for u, g in zip(dataset.units(), good, strict=True) if g)
    predicted = {}
    for precision, features in found.items():
        matrix = features.values[backbone.cuts[-1].name][good]
        penalty = choose_penalty(matrix, labels, units, len(dataset.classes))
        assert penalty.probabilities is not None
        predicted[precision] = penalty.probabilities.argmax(axis=1)
        accuracy = (predicted[precision] == labels).mean()
        print(f"cross-validated accuracy, {precision}: {accuracy:.4f}")
    print(f"same prediction: {(predicted['fp32'] == predicted['bf16']).mean():.4f}")


if __name__ == "__main__":
    main()
