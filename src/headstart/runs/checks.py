"""Takes the data of a training, gives what an audit would find of them at no more than a glance, a line each.

It goes by what is there: files of the same size and bytes, counts, and up to `PROBED` headers. Copies within
what is trained on and measured are told by `fitting`, which has their features.
"""

import shlex
from collections.abc import Iterator

import numpy as np

from headstart.arrays import IntN
from headstart.data.dataset import Dataset
from headstart.data.decoding import open_image
from headstart.data.splits import find_identical
from headstart.draws import draw
from headstart.errors import BadImageError, printable
from headstart.problem import SINGLE_LABEL
from headstart.runs.sources import Data, locate
from headstart.training.shortcuts import find_shortcuts

__all__ = ["check_data", "say_next"]

# A class is small below so many images, where half of the classes have this many times as many.
SMALL, TYPICAL = 10, 2
# So many images are asked for their size, of so many bytes; and files of more are not compared.
PROBED, HEADER_BYTES, COMPARED = 1000, 2**18, 200_000


def say_next(data: Data) -> str:
    """The command that tells more."""
    places = locate(data)
    if places is None:
        return "headstart.audit lists them"
    paths = places if isinstance(places, tuple) else (places,)
    return f"{printable(shlex.join(['headstart', 'audit', *map(str, paths)]))} lists them"


def check_data(dataset: Dataset, max_pixels: int) -> Iterator[str]:
    """Tell of images both in training and in the test split, of small classes, and of sizes that give away.

    Args:
        dataset: with its splits; test images are not decoded.

    Raises:
        ResourceError: out of file handles or memory.
    """
    splits = np.array(dataset.splits)
    rows = np.flatnonzero((splits == "train") & dataset.labelled())
    if (splits == "test").any() and len(dataset) <= COMPARED:
        yield from _check_test(dataset)
    if dataset.problem.name == SINGLE_LABEL.name:
        yield from _check_sizes_of_classes(dataset, rows)
        yield from _check_sizes_of_images(dataset, rows, max_pixels)


def _check_test(dataset: Dataset) -> Iterator[str]:
    trained, leaked = dict[str, str](), list[tuple[str, str]]()
    named = zip(find_identical(dataset), dataset.splits, dataset.ids, strict=True)
    of_content = sorted((c, split == "test", image) for c, split, image in named if c)
    for content, is_test, image in of_content:
        if not is_test:
            trained.setdefault(content, image)
        elif content in trained:
            leaked.append((image, trained[content]))
    if leaked:
        images = "image is" if len(leaked) == 1 else "images are"
        yield (
            f"{len(leaked):,} test {images} also among those to train or validate on, so "
            f"the test will flatter (first: '{leaked[0][0]}' and '{leaked[0][1]}')"
        )


def _check_sizes_of_classes(dataset: Dataset, rows: IntN) -> Iterator[str]:
    counts = np.bincount(dataset.labels[rows], minlength=len(dataset.classes))
    small = np.flatnonzero((counts < SMALL) & (counts > 0))
    if len(small) and np.median(counts) >= TYPICAL * SMALL:
        name, count = dataset.classes[small[0]], int(counts[small[0]])
        have = "es have" if len(small) > 1 else " has"
        yield (
            f"{len(small):,} class{have} fewer than {SMALL} training images "
            f"(first: '{name}' with {count}), too few to learn or to measure"
        )


def _check_sizes_of_images(dataset: Dataset, rows: IntN, max_pixels: int) -> Iterator[str]:
    """Tell of classes that the size of the image gives away, as in `audit`."""
    some = sorted(rows.tolist(), key=lambda row: draw(0, "sizes", dataset.ids[row]))[:PROBED]
    sizes: list[tuple[int, int, int]] = []
    for row in some:
        try:
            width, height = open_image(dataset.image(row).read(HEADER_BYTES), max_pixels).size
        except BadImageError:
            continue
        sizes.append((row, width, height))
    if len({size[1:] for size in sizes}) < 2:
        return
    table = np.array(sizes)
    labels = dataset.labels[table[:, 0]]
    units = dataset.units()
    pairs = {(int(k), units[row]) for k, row in zip(labels, table[:, 0].tolist(), strict=True)}
    counts = np.bincount([k for k, _ in pairs], minlength=len(dataset.classes))
    kept = np.flatnonzero(counts >= SMALL)
    is_kept = np.isin(labels, kept)
    if len(kept) < 2:
        return
    own = tuple(units[row] for row in table[is_kept, 0].tolist())
    figures = np.log(table[is_kept, 1:].astype(np.float64))
    found = find_shortcuts(figures, np.searchsorted(kept, labels[is_kept]), own, len(kept))
    if found:
        names = [dataset.classes[kept[shortcut.label]] for shortcut in found]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield (
            f"the size of an image alone tells class '{names[0]}'{more} from the others, so what is in the "
            "pictures may not be learnt"
        )
