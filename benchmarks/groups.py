"""Bursts of single photographs: does a plain fit report what it reaches on new bursts?

    python benchmarks/groups.py photos emoji             # folders of class folders, of single photographs
    python benchmarks/groups.py photos --shots 5 --shake 0.1 --rounds 3

Half of the photographs of every class, at most `--photos`, become bursts to train on, the others bursts to
test on. A shot of a burst is a crop that is shaken by up to `--shake` of each side, turned by up to three
degrees, brighter or darker by up to a fifth, and saved as JPEG of another quality, under a name that says
nothing. Three kinds of data are made of them: with a camera and times in EXIF (a second between shots,
minutes between bursts), with nothing in EXIF, and with the first shot alone, which has no groups. Each is
fitted as it is and with `--group none`, by a linear probe; told are the accuracy that the fit reports, and
that on the bursts of the test photographs.
"""

import argparse
import json
import random
import statistics
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

from extract import describe
from PIL import Image, ImageEnhance

import headstart

KINDS = ("times", "plain", "single")


def shoot(photo: Image.Image, draws: random.Random, shake: float) -> Image.Image:
    """Take one shot of a burst."""
    turned = photo.rotate(draws.uniform(-3, 3), Image.Resampling.BICUBIC)
    width, height = turned.size
    left, top, right, bottom = (draws.uniform(0, shake) for _ in range(4))
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    cut = turned.crop(tuple(round(side) for side in box))
    return ImageEnhance.Brightness(cut).enhance(draws.uniform(0.8, 1.2))


def make_bursts(
    photos: list[Path], folder: Path, kind: str, seed: int, args: argparse.Namespace
) -> None:
    """Write the bursts of some photographs, in folders by class."""
    draws, began = random.Random(f"{seed} {folder.name}"), datetime(2024, 5, 1, 9)
    for path in photos:
        place = folder / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        began += timedelta(minutes=draws.randrange(3, 90))
        photo = Image.open(path).convert("RGB")
        for shot in range(1 if kind == "single" else args.shots):
            image, exif = shoot(photo, draws, args.shake), Image.Exif()
            if kind == "times":
                taken = began + timedelta(seconds=shot)
                exif[0x010F], exif[0x0110] = "Maker", "Model 1"
                exif.get_ifd(0x8769)[0x9003] = taken.strftime("%Y:%m:%d %H:%M:%S")
            name = f"{draws.getrandbits(64):016x}.jpg".translate(
                str.maketrans("0123456789", "ghijklmnop")
            )
            image.save(place / name, quality=draws.randrange(75, 96), exif=exif)


def list_photos(data: Path, most: int, seed: int) -> tuple[list[Path], list[Path]]:
    """Photographs to train on and to test on, of all splits together."""
    of_class: dict[str, list[Path]] = {}
    for path in sorted(data.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".ppm"):
            of_class.setdefault(path.parent.name, []).append(path)
    train, test = list[Path](), list[Path]()
    for paths in of_class.values():
        random.Random(seed).shuffle(paths)
        half = min(len(paths) // 2, most)
        train += paths[:half]
        test += paths[half : 2 * half]
    return train, test


def measure(data: Path, kind: str, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """Fit with and without groups; the accuracy that each reports and reaches."""
    train, test = list_photos(data, args.photos, seed)
    figures: dict[str, object] = {
        "data": data.name,
        "kind": kind,
        "photos": len(train),
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_bursts(train, place / "train", kind, seed, args)
        make_bursts(test, place / "test", kind, seed, args)
        for name, options in (("as it is", {}), ("none", {"group": "none"})):
            common = {"cache_dir": str(place / "cache")}
            run = headstart.fit(
                place / "train",
                place / name,
                strategy="linear-probe",
                seed=seed,
                **common,
                **options,
            )
            reached = headstart.evaluate(run, place / "test", **common).metrics["accuracy"].value
            figures[name] = {
                "reported": round(run.metrics["accuracy"].value, 4),
                "reached": round(reached, 4),
                "groups": len({group for group in run.members.groups if group}),
                "told": [warning for warning in run.warnings if "together" in warning],
            }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--photos", type=int, default=60, help="of a class, to train on")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--shake", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(describe()))
    for data in args.data:
        for kind in KINDS:
            rounds = [measure(data, kind, seed, args) for seed in range(args.rounds)]
            for figures in rounds:
                print(json.dumps(figures), flush=True)
            for name in ("as it is", "none"):
                means = [
                    statistics.mean(figures[name][what] for figures in rounds)
                    for what in ("reported", "reached")
                ]
                print(
                    f"{data.name} {kind}, {name}: reported {means[0]:.3f}, reached {means[1]:.3f}"
                )


if __name__ == "__main__":
    main()
