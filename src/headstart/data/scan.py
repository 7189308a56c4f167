"""Takes a `Dataset`, gives counts, sizes and formats from its images' headers: the report before any work."""

import dataclasses
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from headstart.data.bounds import MAX_PIXELS
from headstart.data.dataset import Dataset
from headstart.data.decoding import open_image
from headstart.draws import draw
from headstart.errors import BadImageError

__all__ = ["Scan", "scan_images"]

# The header of nearly every image is in its first bytes.
HEADER_BYTES = 2**18


@dataclasses.dataclass(frozen=True)
class Scan:
    """The contents of a data set, from its files' headers.

    Attributes:
        images: rows, readable or not.
        counts: {split or "all": {class: images}}.
        probed: how many headers were read.
        width_px, height_px: (minimum, median, maximum) over the probed images.
        formats: {format: images} over the probed images.
        unreadable: (image id, reason) of the images known to be unreadable before decoding.
    """

    images: int
    counts: dict[str, dict[str, int]]
    probed: int
    width_px: tuple[int, int, int]
    height_px: tuple[int, int, int]
    formats: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]


def scan_images(dataset: Dataset, *, probes: int = 2000, max_pixels: int = MAX_PIXELS) -> Scan:
    """Count images and read up to `probes` headers, chosen by a draw of the image id."""
    counts: dict[str, Counter[str]] = {}
    for classes, split in zip(dataset.classes_of_rows(), dataset.splits, strict=True):
        for label in classes:
            counts.setdefault(split or "all", Counter())[dataset.classes[label]] += 1
    unreadable = [(i, e) for i, e in zip(dataset.ids, dataset.errors, strict=True) if e]
    rows = [i for i, e in enumerate(dataset.errors) if not e]
    if len(rows) > probes:
        rows = sorted(rows, key=lambda i: draw(0, "scan", dataset.ids[i]))[:probes]

    def probe(row: int) -> tuple[str, str, int, int]:
        source = dataset.image(row)
        try:
            try:
                image = open_image(source.read(HEADER_BYTES), max_pixels)
            except BadImageError:  # perhaps the header is longer than that
                image = open_image(source.read(), max_pixels)
        except BadImageError as exc:
            return str(exc), "", 0, 0
        return "", image.format or "", image.width, image.height

    with ThreadPoolExecutor(max_workers=4) as pool:
        results = list(pool.map(probe, rows))
    for row, result in zip(rows, results, strict=True):
        if result[0]:
            unreadable.append((dataset.ids[row], result[0]))
    good = [r for r in results if not r[0]]
    widths = sorted(r[2] for r in good) or [0]
    heights = sorted(r[3] for r in good) or [0]
    return Scan(
        images=len(dataset),
        counts={s: dict(c) for s, c in counts.items()},
        probed=len(good),
        width_px=(widths[0], widths[len(widths) // 2], widths[-1]),
        height_px=(heights[0], heights[len(heights) // 2], heights[-1]),
        formats=dict(Counter(r[1] for r in good).most_common()),
        unreadable=tuple(sorted(unreadable)),
    )
