"""Takes images and an engine, streams the result of reading each image and its activations.

Every thread takes a micro-batch of images and reads, decodes, resizes and runs it to the end, so reading and
the network overlap, no thread waits for another, and at most a few micro-batches are in memory.
"""

import dataclasses
import errno
import hashlib
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from headstart.data.decoding import Preprocessing, decode_and_prepare
from headstart.data.images import ImageRef, Stamp
from headstart.errors import BadImageError, TooManyBadImagesError
from headstart.features.engine import Engine
from headstart.features.runtime import Runtime
from headstart.parallel import T, map_ahead

__all__ = ["Reading", "check_bad_images", "read_image", "run_images", "tell_bad_images"]

MISSING = os.strerror(errno.ENOENT).lower()  # as the reason why an image cannot be read


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """The result of reading one image.

    Attributes:
        error: why it could not be read, "" for a good one.
        sha256: of its bytes, 32 bytes; None where they could not be read.
        stamp: its source's state when it was opened, if it has one.
        read_at_ns: the time when it was opened.
    """

    error: str = ""
    sha256: bytes | None = None
    stamp: Stamp | None = None
    read_at_ns: int = 0


Result = tuple[list[Reading], dict[str, NDArray[np.float32]]]


def run_images(
    images: Iterable[ImageRef],
    engine: Engine,
    preprocessing: Preprocessing,
    runtime: Runtime = Runtime(),
    *,
    exact: bool = True,
    pool: ThreadPoolExecutor | None = None,
) -> Generator[Result, None, None]:
    """Stream images through a network.

    Args:
        images: taken a few micro-batches ahead.
        runtime: for its threads and its largest image.
        exact: as in `decoding.decode_and_prepare`.
        pool: threads to work in, left open; by default new ones for these images.

    Yields:
        The result of reading each image, and for every cut point float32 (n, D) of the n that were run;
        in the order of `images`.
    """

    def prepare(data: bytes) -> NDArray[np.uint8]:
        return decode_and_prepare(data, preprocessing, exact=exact, max_pixels=runtime.max_pixels)

    def work(chunk: list[ImageRef]) -> Result:
        readings, batch = [], []
        for image in chunk:
            reading, pixels = read_image(image, prepare)
            readings.append(reading)
            if pixels is not None:
                batch.append(pixels)
        return readings, engine.run(np.stack(batch)) if batch else {}

    yield from map_ahead(work, _chunks(images, engine.micro_batch), runtime.threads, pool=pool)


def read_image(
    image: ImageRef,
    prepare: Callable[[bytes], NDArray[np.uint8]],
    skip: Callable[[bytes], bool] = lambda digest: False,
) -> tuple[Reading, NDArray[np.uint8] | None]:
    """Read, hash and prepare one image, unless `skip` says that it is not needed.

    Raises:
        ResourceError: out of memory or file handles.
    """
    digest, now = None, time.time_ns()
    stamp = image.stamp()  # first, so that a change during the reading is seen the next time
    try:
        data = image.read()
        digest = hashlib.sha256(data).digest()
        if skip(digest):
            return Reading("", digest, stamp, now), None
        return Reading("", digest, stamp, now), prepare(data)
    except BadImageError as exc:
        return Reading(str(exc), digest, stamp, now), None


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def tell_bad_images(bad: Sequence[tuple[str, str]]) -> str:
    """Name the first few unreadable images, with their reasons."""
    first = "; ".join(f"{image_id}: {reason}" for image_id, reason in bad[:3])
    return first + (f"; and {len(bad) - 3} more" if len(bad) > 3 else "")


def check_bad_images(bad: list[tuple[str, str]], total: int, max_bad: float) -> None:
    """Stop when too many images are unreadable.

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
        told = tell_bad_images(bad)
        if total == 1:
            raise TooManyBadImagesError(
                f"the one image is unreadable ({told}). Check its name, or mend or replace it"
            )
        counted = f"{len(bad)} of {total} images are unreadable"
        if len(bad) == total:  # no setting helps
            are_there = any(reason != MISSING for _, reason in bad)
            advice = (
                "Repair or replace them"
                if are_there
                else ("Check their names; a manifest's paths start at its folder, or at --root")
            )
            raise TooManyBadImagesError(f"{counted} ({told}). {advice}")
        raise TooManyBadImagesError(
            f"{counted}, and {allowed} {'is' if allowed == 1 else 'are'} allowed "
            f"({told}). Repair or remove them, or allow more with --max-bad"
        )
