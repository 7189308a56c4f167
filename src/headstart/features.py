"""Takes a `Dataset` and an `Engine`, gives `Features`: pooled activations of every image at every cut.

Place in the flow: after `engines`. Reading and decoding run in threads ahead of the network, with a
bounded number of images in flight. Shape letters: N images, D features, H W pixels.
"""

import collections
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from headstart.datasets import Dataset
from headstart.errors import BadImageError, TooManyBadImagesError
from headstart.images import (
    MAX_PIXELS,
    Preprocessing,
    decode_image,
    prepare_image,
    read_image_bytes,
)

if TYPE_CHECKING:  # engines import torch, which takes seconds and is not needed to read features
    from headstart.engines import Engine

__all__ = [
    "Features",
    "Pixels",
    "Progress",
    "check_bad_images",
    "extract",
    "no_progress",
    "run_images",
    "write_atomically",
]


class Progress(Protocol):
    """Called with what is going on, how much of it is done, and how much there is."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def no_progress(stage: str, done: int, total: int) -> None:
    """The `Progress` that shows nothing."""


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Pooled activations, one row an image, in the order of the data set.

    Attributes:
        ids: N image ids.
        values: {cut point: float32 array (N, D)}; rows of unreadable images are NaN.
        errors: N reasons why an image could not be read, "" for a good one.
        sha256: N hex digests of the images' bytes, "" where they could not be read.
    """

    ids: tuple[str, ...]
    values: dict[str, np.ndarray]
    errors: tuple[str, ...]
    sha256: tuple[str, ...]

    def good(self) -> np.ndarray:
        """bool array (N,): which rows have features."""
        return np.array([not e for e in self.errors], dtype=bool)

    def select(self, rows: np.ndarray) -> "Features":
        """The features of these rows."""
        return Features(
            tuple(self.ids[i] for i in rows),
            {cut: matrix[rows] for cut, matrix in self.values.items()},
            tuple(self.errors[i] for i in rows),
            tuple(self.sha256[i] for i in rows),
        )

    def bad(self) -> list[tuple[str, str]]:
        """(image id, reason) of every unreadable image."""
        return [(i, e) for i, e in zip(self.ids, self.errors, strict=True) if e]


@dataclasses.dataclass(frozen=True, eq=False)
class Pixels:
    """One image read: uint8 (H, W, 3) pixels and its bytes' SHA-256, or the reason why not."""

    values: np.ndarray | None
    error: str = ""
    sha256: str = ""


def extract(
    dataset: Dataset,
    engine: "Engine",
    preprocessing: Preprocessing,
    *,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = no_progress,
) -> Features:
    """Run every image once through the frozen network.

    Args:
        workers: threads that read and decode; the number of CPUs by default. Changes no number.
        max_pixels: an image with more is recorded as unreadable.

    Returns:
        Features with a row for every image, unreadable ones included (NaN and a reason).

    Raises:
        ResourceError: out of memory or file handles.
    """
    sources: list[Path | str] = [dataset.errors[i] or dataset.path(i) for i in range(len(dataset))]
    count = len(sources)
    values: dict[str, np.ndarray] = {}
    errors, digests = [""] * count, [""] * count
    done = 0
    progress("features", 0, count)
    stream = run_images(sources, engine, preprocessing, workers=workers, max_pixels=max_pixels)
    for rows, read, outputs in stream:
        for row, pixels in zip(rows, read, strict=True):
            errors[row], digests[row] = pixels.error, pixels.sha256
        good = [row for row, pixels in zip(rows, read, strict=True) if not pixels.error]
        for cut, batch in outputs.items():
            if cut not in values:
                values[cut] = np.full((count, batch.shape[1]), np.nan, dtype=np.float32)
            values[cut][good] = batch
        done += len(rows)
        progress("features", done, count)
    return Features(dataset.ids, values, tuple(errors), tuple(digests))


def run_images(
    sources: Iterable[Path | str],
    engine: "Engine",
    preprocessing: Preprocessing,
    *,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[list[int], list[Pixels], dict[str, np.ndarray]]]:
    """Stream images through a network.

    Args:
        sources: where each image is, or, as text, the reason why it cannot be read.

    Yields:
        Row numbers, what was read of each, and for every cut point float32 (n, D) of the n good ones,
        in order; every row comes once, in the order of `sources`.
    """
    count = workers if workers is not None else os.cpu_count() or 1

    def read(source: Path | str) -> Pixels:
        if isinstance(source, str):
            return Pixels(None, source)
        return read_pixels(source, preprocessing, max_pixels)

    rows: list[int] = []
    batch: list[Pixels] = []
    good = 0
    ahead = 2 * engine.micro_batch + count
    for row, pixels in enumerate(_map_ahead(read, sources, count, ahead)):
        rows.append(row)
        batch.append(pixels)
        good += not pixels.error
        if good == engine.micro_batch:
            yield rows, batch, _run(engine, batch)
            rows, batch, good = [], [], 0
    if rows:
        yield rows, batch, _run(engine, batch)


def _run(engine: "Engine", batch: list[Pixels]) -> dict[str, np.ndarray]:
    good = [p.values for p in batch if p.values is not None]
    return engine.run(np.stack(good)) if good else {}


def read_pixels(path: Path, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Read, decode, resize and crop one image file."""
    digest = ""
    try:
        data = read_image_bytes(path)
        digest = hashlib.sha256(data).hexdigest()
        image = decode_image(data, max_pixels=max_pixels)
        return Pixels(prepare_image(image, preprocessing), "", digest)
    except BadImageError as exc:
        return Pixels(None, str(exc), digest)


def _map_ahead(
    function: Callable[[Path | str], Pixels], items: Iterable[Path | str], workers: int, ahead: int
) -> Iterator[Pixels]:
    """Ordered parallel map that starts at most `ahead` items before they are asked for."""
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="headstart-read")
    waiting: collections.deque[Future[Pixels]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the consumer stops early or is interrupted
        pool.shutdown(wait=False, cancel_futures=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it has its old content or its new one, never a part.

    Raises:
        OSError: the file could not be written, or not be made durable; the old one is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # not on Windows, where a folder has no handle to sync
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_bad_images(bad: list[tuple[str, str]], total: int, max_bad: float) -> None:
    """End the work when too many images are unreadable.

    Args:
        bad: (image id, reason) of the unreadable ones.
        total: images in all, unreadable ones included.
        max_bad: the fraction allowed, in [0, 1]; one image is always allowed.

    Raises:
        TooManyBadImagesError: names the first of them.
    """
    # 0.29 * 100 is a little less than 29 in floating point.
    allowed = max(1, math.floor(max_bad * total + 1e-9))
    if len(bad) > allowed or (bad and len(bad) == total):
        first = "; ".join(f"{i}: {reason}" for i, reason in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        counted = f"{len(bad)} of {total} images {'is' if total == 1 else 'are'} unreadable"
        if len(bad) == total:  # no setting helps
            raise TooManyBadImagesError(f"{counted} ({first}{more}). Mend or replace them")
        raise TooManyBadImagesError(
            f"{counted}, and {allowed} {'is' if allowed == 1 else 'are'} allowed "
            f"({first}{more}). Mend or remove them, or allow more with --max-bad"
        )
