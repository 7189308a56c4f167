"""Takes images and an engine, gives what became of each and its activations, in a stream.

Every thread takes a micro-batch of images and reads, decodes, resizes and runs it to the end, so reading and
the network overlap, no thread waits for another, and at most a few micro-batches are in memory.
"""

import dataclasses
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from headstart.data.decoding import (
    MAX_PIXELS,
    Preprocessing,
    convert_image,
    decode_and_prepare,
    prepare_image,
    read_image_bytes,
)
from headstart.errors import BadImageError, ResourceError, TooManyBadImagesError
from headstart.features.engine import Engine
from headstart.features.engines import StartingEngine
from headstart.parallel import T, count_threads, do_nothing, map_ahead

__all__ = ["ImageSource", "Reading", "Refused", "check_bad_images", "read_image", "run_images"]


@dataclasses.dataclass(frozen=True)
class Refused:
    """Stands for an image that must not be read, and says why."""

    reason: str


# A file, a file's bytes, or pixels in memory.
ImageSource = Path | bytes | Image.Image | Refused


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What became of one image.

    Attributes:
        error: why it could not be read, "" for a good one.
        sha256: of its bytes, 32 bytes; None where even those could not be had.
        skipped: its bytes need no work, so it was not decoded.
        info: its state when it was opened.
        read_at_ns: when that was.
    """

    error: str = ""
    sha256: bytes | None = None
    skipped: bool = False
    info: os.stat_result | None = None
    read_at_ns: int = 0


Result = tuple[list[Reading], dict[str, np.ndarray]]


def run_images(
    sources: Iterable[ImageSource],
    engine: Engine,
    preprocessing: Preprocessing,
    *,
    workers: int | None = None,
    exact: bool = True,
    max_pixels: int = MAX_PIXELS,
    skip: Callable[[bytes], bool] = lambda name: False,
) -> Generator[Result, None, None]:
    """Stream images through a network.

    Args:
        sources: where each image is; taken a few micro-batches ahead.
        exact: as in `decoding.decode_and_prepare`.
        skip: told the SHA-256 of an image's bytes; True spares it the decoding and the network.

    Yields:
        What became of each image, and for every cut point float32 (n, D) of the n that were run; in
        the order of `sources`.
    """
    count = count_threads(workers)

    def prepare(data: bytes) -> np.ndarray:
        return decode_and_prepare(data, preprocessing, exact=exact, max_pixels=max_pixels)

    loading = threading.Lock()  # the same image of Pillow's may be given twice

    def convert(image: Image.Image) -> tuple[Reading, np.ndarray | None]:
        try:
            with loading:
                rgb = convert_image(image, max_pixels=max_pixels)
        except BadImageError as exc:
            return Reading(str(exc)), None
        return Reading(), prepare_image(rgb, preprocessing)

    def work(chunk: list[ImageSource]) -> Result:
        readings, batch = [], []
        for source in chunk:
            if isinstance(source, Refused):
                reading, pixels = Reading(source.reason), None
            elif isinstance(source, Image.Image):
                reading, pixels = convert(source)
            else:
                reading, pixels = read_image(source, prepare, skip)
            readings.append(reading)
            if pixels is not None:
                batch.append(pixels)
        return readings, engine.run(np.stack(batch)) if batch else {}

    stop = engine.give_up if isinstance(engine, StartingEngine) else do_nothing
    yield from map_ahead(work, _chunks(sources, engine.micro_batch), count, stop)


def read_image(
    source: Path | bytes, prepare: Callable[[bytes], np.ndarray], skip: Callable[[bytes], bool]
) -> tuple[Reading, np.ndarray | None]:
    """Read, hash and prepare one image, of a file or its bytes; `skip` may spare it the preparing.

    Raises:
        ResourceError: out of memory or file handles.
    """
    digest, info, now = None, None, time.time_ns()
    try:
        if isinstance(source, Path):
            info = os.stat(source)
        data = source if isinstance(source, bytes) else read_image_bytes(source)
        digest = hashlib.sha256(data).digest()
        if skip(digest):
            return Reading("", digest, True, info, now), None
        return Reading("", digest, False, info, now), prepare(data)
    except BadImageError as exc:
        return Reading(str(exc), digest, False, info, now), None
    except ResourceError:
        raise
    except OSError as exc:  # of the stat; a file that has vanished, for one
        return Reading((exc.strerror or str(exc)).lower()), None
    except ValueError as exc:  # a NUL in the name
        return Reading(str(exc)), None


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


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
