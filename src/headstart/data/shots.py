"""Takes a `Dataset`, gives the camera and the time of each image, from the EXIF in its files' headers."""

from concurrent.futures import ThreadPoolExecutor

from headstart.data.bounds import MAX_PIXELS
from headstart.data.dataset import Dataset
from headstart.data.decoding import open_image, read_shot
from headstart.draws import draw
from headstart.errors import BadImageError

__all__ = ["Shot", "read_shots"]

# The camera, and the time in seconds by its clock; None where an image does not say when it was taken.
Shot = tuple[str, float] | None

# EXIF takes up to 64 kB, nearly always at the start of a file.
EXIF_BYTES = 2**17
# So many images are asked first; if fewer than this share say when they were taken, no others are.
ASKED, LEAST_SHARE = 200, 0.3


def read_shots(dataset: Dataset, *, max_pixels: int = MAX_PIXELS) -> tuple[Shot, ...]:
    """Read when and by what each image was taken, N of them, from at most `EXIF_BYTES` a file.

    No pixels are decoded. An image that cannot be read says nothing.

    Raises:
        ResourceError: out of file handles or memory.
    """
    rows = [row for row, error in enumerate(dataset.errors) if not error]
    first = sorted(rows, key=lambda row: draw(0, "shots", dataset.ids[row]))[:ASKED]

    def ask(row: int) -> Shot:
        try:
            return read_shot(open_image(dataset.image(row).read(EXIF_BYTES), max_pixels))
        except BadImageError:
            return None

    with ThreadPoolExecutor(max_workers=4) as pool:
        shots = dict(zip(first, pool.map(ask, first), strict=True))
        if sum(shot is not None for shot in shots.values()) < max(1, LEAST_SHARE * len(first)):
            return (None,) * len(dataset)
        others = [row for row in rows if row not in shots]
        shots |= zip(others, pool.map(ask, others), strict=True)
    return tuple(shots.get(row) for row in range(len(dataset)))
