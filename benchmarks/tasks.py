"""Makes the tasks that `advice.py` judges on: small data sets of all four cases, in folders of one form.

    python benchmarks/tasks.py FOLDER --data ../shared/data --fashion FILES --art FILES

A task is a folder with train/ and test/, each of class folders, and a file TASK: a line that describes it,
then, if need be, settings of `fit` a line, such as `group: REGEX`. Whoever makes such a folder has added a
task.

From these sources, each where it is at hand: the data sets of --data (a folder with hymenoptera, cifar10-100,
gtsrb-small and signdigits), scikit-learn's digits, the solar cells of the package elpv-dataset, and the
IDX files of Fashion-MNIST (Debian has them: dataset-fashion-mnist). Of each there are parts of 10, 30 and 100
images a class and all, and versions that are recoloured, noisy, or shrunken. Everything is drawn by a hash of
the image's name, so the same sources give the same tasks.

The tasks of --art came later, to judge rules on that were made with the others in sight: drawings that were
made to be drawings. FILES holds, unpacked, openclipart-png, tuxpaint-stamps-default and wesnoth-1.16-data of
Debian, and emoji-datasource-apple of npm.
"""

import argparse
import gzip
import hashlib
import io
import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

# A task's images: (class, name, picture), to train on and to test on.
Images = list[tuple[str, str, Callable[[], Image.Image]]]
TRACKS = "group: ([^/]+/[^/]+)_[^/]*$"


def rank(name: str) -> str:
    """A draw by name: sorting by it shuffles, the same way everywhere."""
    return hashlib.sha256(f"advice {name}".encode()).hexdigest()


def of_folder(folder: Path) -> Images:
    """The images of a folder of class folders."""
    paths = sorted(p for p in folder.glob("*/*") if p.is_file() and not p.name.startswith("."))
    return [(p.parent.name, p.stem, lambda p=p: Image.open(p).convert("RGB")) for p in paths]


def split(images: Images, tested: int, unit: Callable[[str], str] = str) -> tuple[Images, Images]:
    """Hold out this many images of every class to test on; what is left of their units is left out."""
    of_class = defaultdict(list)
    for entry in sorted(images, key=lambda e: (rank(unit(e[1])), rank(e[1]))):
        of_class[entry[0]].append(entry)
    entries = list(of_class.values())
    held = [entry for own in entries for entry in own[:tested]]
    units = {(c, unit(name)) for c, name, _ in held}
    return [e for own in entries for e in own if (e[0], unit(e[1])) not in units], held


def some(images: Images, count: int, unit: Callable[[str], str] = str) -> Images:
    """This many images of every class at most, whole units (frames of a track) together."""
    of_class = defaultdict(list)
    for entry in sorted(images, key=lambda e: (rank(unit(e[1])), rank(e[1]))):
        of_class[entry[0]].append(entry)
    return [entry for own in of_class.values() for entry in own[:count]]


def noisy(picture: Image.Image) -> Image.Image:
    """Blurred, then with noise of a standard deviation of 30 of 255 levels."""
    blurred = np.asarray(picture.convert("RGB").filter(ImageFilter.GaussianBlur(0.7)))
    seed = int(hashlib.sha256(picture.tobytes()).hexdigest()[:12], 16)
    noise = np.random.default_rng(seed).normal(0, 30, blurred.shape)
    return Image.fromarray((blurred + noise).clip(0, 255).astype(np.uint8))


def turned(picture: Image.Image) -> Image.Image:
    """Every hue turned by 120 degrees: red is green."""
    hue, saturation, value = picture.convert("HSV").split()
    return Image.merge("HSV", (hue.point(lambda h: (h + 85) % 256), saturation, value)).convert(
        "RGB"
    )


def shrunken(picture: Image.Image) -> Image.Image:
    """24 pixels on the shorter side."""
    scale = 24 / min(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    return picture.convert("RGB").resize(size, Image.Resampling.BOX)


def false_coloured(picture: Image.Image) -> Image.Image:
    """Grey levels as a thermal camera shows them."""
    grey = ImageOps.autocontrast(picture.convert("L"))
    return ImageOps.colorize(grey, black="#000020", mid="#c02060", white="#ffff80")


def make_tasks(
    data: Path | None, fashion: Path | None, art: Path | None
) -> Iterator[tuple[str, str, Images, Images]]:
    """Yield (name, lines of TASK, training images, test images) of every task whose source is there."""
    if data is not None:
        root = data / "hymenoptera"
        ants, tested = of_folder(root / "train"), of_folder(root / "val")
        text = "photographs of ants and bees"
        yield "hymenoptera-10", f"{text}, 10 a class", some(ants, 10), tested
        yield "hymenoptera-30", f"{text}, 30 a class", some(ants, 30), tested
        yield "hymenoptera-all", text, ants, tested
        for name, change, how in (
            ("hymenoptera-shrunken", shrunken, "shrunken to 24 pixels"),
            ("hymenoptera-turned", turned, "hues turned by 120 degrees"),
        ):
            yield name, f"{text}, {how}", changed(ants, change), changed(tested, change)
        root = data / "cifar10-100"
        train, tested = of_folder(root / "train"), of_folder(root / "test")
        text = "CIFAR-10, 32 x 32"
        for count in (10, 30, 100):
            yield f"cifar10-{count}", f"{text}, {count} a class", some(train, count), tested
        few = some(train, 30)
        for name, change, how in (
            ("cifar10-noisy-30", noisy, "blurred and noisy"),
            ("cifar10-turned-30", turned, "hues turned by 120 degrees"),
        ):
            yield name, f"{text}, 30 a class, {how}", changed(few, change), changed(tested, change)
        root = data / "gtsrb-small"
        train, tested = of_folder(root / "train"), of_folder(root / "test")
        text, track = "German traffic signs, 43 classes", lambda n: n.split("_")[0]
        few = some(train, 6, track)
        yield "signs-6", f"{text}, 6 a class\n{TRACKS}", few, tested
        yield "signs-all", f"{text}, 18 a class\n{TRACKS}", train, tested
        both = changed(few, false_coloured), changed(tested, false_coloured)
        yield "signs-false-6", f"{text}, 6 a class, false colours\n{TRACKS}", *both
        train, tested = split(of_folder(data / "signdigits"), 100)
        text = "hands that show digits"
        for count in (10, 30, 100):
            yield f"hands-{count}", f"{text}, {count} a class", some(train, count), tested
        few = some(train, 30)
        both = changed(few, shrunken), changed(tested, shrunken)
        yield "hands-shrunken-30", f"{text}, 30 a class, shrunken to 24 pixels", *both
    yield from make_digits()
    yield from make_cells()
    if fashion is not None:
        train, tested = read_idx(fashion, "train", 400), read_idx(fashion, "t10k", 100)
        text = "Fashion-MNIST, 28 x 28"
        for count in (10, 30, 100, 300):
            yield f"fashion-{count}", f"{text}, {count} a class", some(train, count), tested
    if art is not None:
        yield from make_art(art)


def make_digits() -> Iterator[tuple[str, str, Images, Images]]:
    from sklearn.datasets import load_digits

    digits = load_digits()

    def picture(row: int) -> Image.Image:
        return Image.fromarray((digits.images[row] * 255 / 16).round().astype(np.uint8)).convert(
            "RGB"
        )

    images = [
        (str(label), f"{row:04}", lambda row=row: picture(row))
        for row, label in enumerate(digits.target)
    ]
    train, tested = split(images, 70)
    text = "scikit-learn's digits, 8 x 8"
    for count in (10, 30, 100):
        yield f"digits-{count}", f"{text}, {count} a class", some(train, count), tested
    both = changed(some(train, 30), noisy), changed(tested, noisy)
    yield "digits-noisy-30", f"{text}, 30 a class, blurred and noisy", *both


def make_cells() -> Iterator[tuple[str, str, Images, Images]]:
    try:
        from elpv_dataset.utils import load_dataset
    except ImportError:
        return
    pictures, probability, _ = load_dataset()
    images = [
        (
            "defective" if p > 0.5 else "functional",
            f"{row:04}",
            lambda r=row: Image.fromarray(pictures[r]),
        )
        for row, p in enumerate(probability)
    ]
    train, tested = split(images, 250)
    text = "electroluminescence of solar cells"
    for count in (10, 30, 100):
        yield f"cells-{count}", f"{text}, {count} a class", some(train, count), tested
    yield "cells-all", f"{text}, all", train, tested
    few = some(train, 100)
    both = changed(few, false_coloured), changed(tested, false_coloured)
    yield "cells-false-100", f"{text}, 100 a class, false colours", *both


def on_white(path: Path) -> Image.Image:
    """A drawing as a page shows it, and no larger than 500 pixels: clip art has 2,000."""
    picture = Image.open(path).convert("RGBA")
    picture.thumbnail((500, 500))
    page = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(page, picture).convert("RGB")


def is_usual(path: Path) -> bool:
    """Whether a PNG has at most 20 megapixels; some clip art has 600."""
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width * height <= 20e6


def drawings(root: Path, folders: dict[str, str], words: str = "*.png") -> Images:
    """The drawings under some folders, each a class."""
    return [
        (
            name,
            "-".join(path.relative_to(root / folder).with_suffix("").parts),
            lambda p=path: on_white(p),
        )
        for name, folder in folders.items()
        for path in sorted(
            p for p in (root / folder).rglob(words) if not p.is_symlink() and is_usual(p)
        )
    ]


def make_art(files: Path) -> Iterator[tuple[str, str, Images, Images]]:
    """Yield tasks of drawings, as `make_tasks` does."""
    for root in files.rglob("openclipart/png"):
        names = "animals food people transportation recreation plants tools buildings"
        train, tested = split(drawings(root, {n: n for n in names.split()}), 20)
        text = "clip art by subject"
        for count in (10, 30):
            yield f"clip-{count}", f"{text}, {count} a class", some(train, count), tested
        both = changed(some(train, 30), shrunken), changed(tested, shrunken)
        yield "clip-shrunken-30", f"{text}, 30 a class, shrunken to 24 pixels", *both
    for root in files.rglob("tuxpaint/stamps"):
        names = "animals/mammals animals/birds food/fruit plants/flowers town/houses"
        images = drawings(root, {n.split("/")[1]: n for n in names.split()})
        train, tested = split(images, 12)
        yield "stamps-12", "stamps for children, 12 a class", some(train, 12), tested
    for root in files.rglob("images/units"):
        names = "dwarves human-loyalists monsters saurians undead drakes elves-wood orcs"

        def unit(name: str) -> str:
            return name.split("-")[0]

        train, tested = split(drawings(root, {n: n for n in names.split()}), 40, unit)
        text = "figures of a game by their people, frames of moves"
        figures = "group: ([^/]+/[^-/]+)[^/]*$"
        for count in (10, 30):
            yield (
                f"units-{count}",
                f"{text}, {count} a class\n{figures}",
                some(train, count),
                tested,
            )
        few = some(train, 100)
        yield "units-100", f"{text}, 100 a class\n{figures}", few, tested
    for root in files.rglob("images/terrain"):
        names = "castle water forest flat village cave mountains unwalkable"
        train, tested = split(drawings(root, {n: n for n in names.split()}), 30)
        text = "ground of a game"
        yield "terrain-10", f"{text}, 10 a class", some(train, 10), tested
        yield "terrain-30", f"{text}, 30 a class", some(train, 30), tested
    for path in files.rglob("emoji-datasource-apple/emoji.json"):
        signs = [
            (
                e["category"],
                e["unified"],
                lambda p=path.parent / "img/apple/64" / e["image"]: on_white(p),
            )
            for e in json.loads(path.read_text())
            if e["category"] != "Component" and e["has_img_apple"]
        ]
        train, tested = split(signs, 25)
        text = "emoji by category"
        for count in (10, 30):
            yield f"emoji-{count}", f"{text}, {count} a class", some(train, count), tested
        both = changed(some(train, 30), false_coloured), changed(tested, false_coloured)
        yield "emoji-false-30", f"{text}, 30 a class, false colours", *both


def read_idx(folder: Path, part: str, count: int) -> Images:
    """The first images of every class of an IDX pair."""

    def read(name: str, header: int) -> np.ndarray:
        [path] = folder.rglob(f"{part}-{name}-ubyte*")
        raw = path.read_bytes()
        return np.frombuffer(gzip.decompress(raw) if path.suffix == ".gz" else raw, np.uint8)[
            header:
        ]

    labels = read("labels-idx1", 8)
    pixels = read("images-idx3", 16).reshape(-1, 28, 28)
    rows = [r for c in range(10) for r in np.flatnonzero(labels == c)[:count]]
    return [
        (str(labels[r]), f"{r:05}", lambda r=r: Image.fromarray(pixels[r]).convert("RGB"))
        for r in rows
    ]


def changed(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    return [(c, name, lambda get=get: change(get())) for c, name, get in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, help="Where the tasks are made; those that are there stay."
    )
    parser.add_argument("--data", type=Path, help="Folder with hymenoptera, cifar10-100, …")
    parser.add_argument("--fashion", type=Path, help="Folder with the IDX files of Fashion-MNIST.")
    parser.add_argument("--art", type=Path, help="Folder with drawings, unpacked packages.")
    args = parser.parse_args()
    made = []
    for name, lines, train, tested in make_tasks(args.data, args.fashion, args.art):
        folder = args.folder / name
        made.append({"task": name, "train": len(train), "test": len(tested)})
        if (folder / "TASK").exists():
            continue
        for part, images in (("train", train), ("test", tested)):
            for label, stem, get in images:
                path = folder / part / label / f"{stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                buffer = io.BytesIO()
                get().convert("RGB").save(buffer, "PNG", compress_level=1)
                path.write_bytes(buffer.getvalue())
        (folder / "TASK").write_text(lines + "\n", encoding="utf-8")
        print(json.dumps(made[-1]), flush=True)


if __name__ == "__main__":
    main()
