"""Takes a `Dataset`, gives views of its images as pixels, in the order asked for, to train on.

The views are the same as those of `activations`, so a network may be trained on either. Shape letters: n
views, H W pixels.
"""

import dataclasses
import hashlib
import math
import threading
from collections.abc import Generator, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.data.dataset import Dataset
from headstart.data.decoding import Picture, decode_image
from headstart.data.views import import_operations
from headstart.errors import BadImageError, InputError, UsageError
from headstart.features.drawing import Drawing, pair_views
from headstart.features.reading import Reading, read_image
from headstart.features.runtime import Runtime
from headstart.parallel import READING, Progress, map_ahead, no_progress

__all__ = ["ViewReader", "check_images"]

NOTHING = np.empty(0, dtype=np.uint8)


class ViewReader:
    """Reads views of images as pixels, in threads, ahead of their use.

    A view comes from `augment_image`, a pure function of (seed, image id, view). Decoded images are kept in
    memory, so that later epochs only draw other views of them.
    """

    def __init__(
        self,
        dataset: Dataset,
        drawing: Drawing,
        *,
        sha256: Sequence[str] | None = None,
        runtime: Runtime = Runtime(),
        memory_bytes: int = 2**30,
    ) -> None:
        """Make the reader; it reads nothing yet.

        Args:
            drawing: how views are made of an image.
            sha256: N hex digests as in `Features` or `check_images`; a file that has another one now is
                refused. Without them it may not change between two readings.
            runtime: for its threads, which change no pixel.
            memory_bytes: for decoded images; the others are decoded again in every epoch.
        """
        self._dataset = dataset
        self._drawing = drawing
        self._digests = dict(enumerate(sha256)) if sha256 is not None else {}
        self._threads = runtime.threads
        self._free = memory_bytes
        self._kept: dict[tuple[int, bool], Picture | NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def read(
        self, order: Iterable[tuple[NDArray[np.int64], int | NDArray[np.int64]]]
    ) -> Generator[NDArray[np.uint8], None, None]:
        """Read batches of views, uint8 (n, H, W, 3), in this order.

        Args:
            order: for each batch n row numbers, and one view number for all or one for each; taken two
                batches ahead.

        Raises:
            UsageError: a row is no readable image, or the number of views is not that of rows.
            InputError: a file has vanished, changed or cannot be read; names it.
            ResourceError: out of memory or file handles.
        """
        height, width = self._drawing.preprocessing.input_px
        if not self._drawing.augmentation.is_plain:
            import_operations()

        def cut() -> Generator[_Task, None, None]:
            for rows, views in order:
                pairs = pair_views(rows, views)
                batch = np.empty((len(pairs), height, width, 3), dtype=np.uint8)
                size = max(1, math.ceil(len(pairs) / self._threads))  # every thread takes a part
                starts = range(0, max(1, len(pairs)), size)
                for start in starts:
                    yield batch, start, pairs[start : start + size], start == starts[-1]

        def work(task: _Task) -> tuple[NDArray[np.uint8], bool]:
            batch, start, pairs, last = task
            for place, (row, view) in enumerate(pairs, start):
                batch[place] = self._take(row, view)
            return batch, last

        stream = map_ahead(work, cut(), self._threads)
        try:
            for batch, last in stream:
                if last:
                    yield batch
        finally:
            stream.close()

    def _take(self, row: int, view: int) -> NDArray[np.uint8]:
        image_id, plain = self._dataset.ids[row], self._drawing.is_plain(view)
        found = self._kept.get((row, plain))
        if found is None:
            try:
                picture = self._drawing.decode(self._load(row), plain=plain)
            except BadImageError as exc:
                raise InputError(
                    f"'{image_id}' can no longer be read: {exc}; put it back as it was, or start again"
                ) from exc
            # Other views are never drawn from a plain one, so only its pixels are kept.
            found = self._drawing.draw(picture, image_id, view) if plain else picture
            self._keep((row, plain), found)
        return found if isinstance(found, np.ndarray) else self._drawing.draw(found, image_id, view)

    def _load(self, row: int) -> bytes:
        image = self._dataset.image(row)
        if image.error:
            raise UsageError(f"'{image.id}' is unreadable: {image.error}")
        data = image.read()
        digest = hashlib.sha256(data).hexdigest()
        if self._digests.setdefault(row, digest) != digest:
            raise InputError(
                f"'{image.id}' has changed since it was first read; put it back as it "
                "was, or start again"
            )
        return data

    def _keep(self, key: tuple[int, bool], found: Picture | NDArray[np.uint8]) -> None:
        # Pillow holds an RGB pixel in four bytes.
        size = found.nbytes if isinstance(found, np.ndarray) else 4 * math.prod(found.image.size)
        if size > self._free:
            return
        if isinstance(found, Picture):  # without the file and its metadata
            found = dataclasses.replace(found, image=Image.fromarray(np.asarray(found.image)))
        with self._lock:
            if key not in self._kept and size <= self._free:
                self._free -= size
                self._kept[key] = found


# A batch to fill, from which place, with which (row, view), and whether this is its last part.
_Task = tuple[NDArray[np.uint8], int, list[tuple[int, int]], bool]


def check_images(
    dataset: Dataset,
    runtime: Runtime = Runtime(),
    *,
    progress: Progress = no_progress,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read and decode every image once, for training without features.

    Returns:
        (errors, sha256): N reasons why an image could not be read, "" for a good one, and N hex digests
        of the images' bytes, "" where they could not be read; as in `Features`.

    Raises:
        ResourceError: out of memory or file handles.
    """

    def check(row: int) -> Reading:
        def decode(data: bytes) -> NDArray[np.uint8]:
            decode_image(data, max_pixels=runtime.max_pixels)
            return NOTHING

        return read_image(dataset.image(row), decode)[0]

    readings = []
    progress(READING, 0, len(dataset))
    for reading in map_ahead(check, range(len(dataset)), runtime.threads):
        readings.append(reading)
        progress(READING, len(readings), len(dataset))
    return (
        tuple(r.error for r in readings),
        tuple(r.sha256.hex() if r.sha256 is not None else "" for r in readings),
    )
