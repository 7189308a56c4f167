"""Takes a `Dataset` and a `Backbone`, gives `Activations`: unpooled, at one cut point, in several views.

Place in the flow: after `features`, whose store and reading it shares. What is above a cut point can
be trained on these without ever running the frozen part again. Shape letters: N images, K views.
"""

import dataclasses
import functools
import hashlib
import math
import os
import shutil
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart.backbones import Backbone
from headstart.datasets import Dataset, choose
from headstart.engines import (
    EngineChoice,
    choose_engine,
    count_threads,
    make_engine,
    prepare_engine,
)
from headstart.errors import ResourceError, UsageError, VerificationError
from headstart.features import (
    SHARD_ROWS,
    Progress,
    Reading,
    RowWriter,
    feature_key,
    map_ahead,
    no_progress,
    read_image,
)
from headstart.images import MAX_PIXELS, Augmentation, augment_image, decode_image
from headstart.store import FileMemory, Store, default_cache_dir

if TYPE_CHECKING:
    import torch

__all__ = ["Activations", "activations_bytes", "extract_activations"]

# Activations are much larger than features; a shard of them is no larger than this.
SHARD_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Activations:
    """Unpooled activations at one cut point, K views an image, on disk.

    Attributes:
        ids: N image ids, in the order of the data set.
        cut: the cut point.
        shape: of one activation, without the batch axis.
        views: K; view 0 is the plain image.
        dtype: "bfloat16" or "float16".
        errors: N reasons why an image could not be read, "" for a good one.
        engine: what computed them.
        computed: activations computed now; the others came from the store.
        warnings: one line each, for people.
    """

    ids: tuple[str, ...]
    cut: str
    shape: tuple[int, ...]
    views: int
    dtype: str
    errors: tuple[str, ...]
    engine: EngineChoice
    computed: int
    warnings: tuple[str, ...]
    _store: Store
    _names: list[bytes | None]

    def read(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Activations of readable rows in one view, (n, …): float16, or bfloat16 as uint16 bits."""
        if not 0 <= view < self.views:
            raise UsageError(f"view {view} is not one of 0 to {self.views - 1}")
        names = []
        for row in rows:
            digest = self._names[row]
            if digest is None:
                raise UsageError(f"'{self.ids[row]}' has no activations: {self.errors[row]}")
            names.append(_view_name(digest, self.ids[row], view))
        return self._store.read(self.cut, names)

    def read_tensor(self, rows: np.ndarray, view: int) -> "torch.Tensor":
        """As `read`, as a torch tensor of the activations' own dtype."""
        import torch

        values = torch.from_numpy(self.read(rows, view))
        return values.view(torch.bfloat16) if self.dtype == "bfloat16" else values


def activations_bytes(dataset: Dataset, backbone: Backbone, cut: str, views: int) -> int:
    """How many bytes the activations of a data set take on disk."""
    return len(dataset) * views * math.prod(backbone.cut(cut).shape) * 2


def extract_activations(
    dataset: Dataset,
    backbone: Backbone,
    cut: str,
    *,
    views: int = 1,
    augmentation: Augmentation | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    workers: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = no_progress,
) -> Activations:
    """Unpooled activations of every image in K views, from the store or computed and kept.

    Args:
        cut: a cut point of the backbone.
        views: K, at least 1. View 0 is the plain image, each other view one of `augment_image`, a
            pure function of (seed, image id, view).
        dtype: "bfloat16" or "float16".
        Others as in `extract`.

    Raises:
        UsageError: an option is out of range.
        ResourceError: the disk would be short; raised before anything is computed.
        VerificationError: an activation does not fit float16.
    """
    if views < 1:
        raise UsageError(f"views must be at least 1, got {views}")
    choose("dtype", dtype, dict.fromkeys(("bfloat16", "float16")))
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    point = backbone.cut(cut)
    style = augmentation or Augmentation()
    decide = functools.partial(
        choose_engine,
        backbone,
        engine=engine,
        precision=precision,
        device=device,
        cache_dir=cache,
    )
    choice = decide()
    if choice.library == "openvino" and engine == "auto":
        try:
            prepare_engine(backbone, choice, cuts=(cut,), pooled=False, cache_dir=cache)
        except UsageError:  # remembered now, so that the choice falls on PyTorch
            choice = decide()
    key = {
        **feature_key(backbone, choice),
        "cuts": [cut],
        "pooling": "none",
        "dtype": dtype,
        "seed": seed,
        "augmentation": dataclasses.asdict(style),
        "max_pixels": max_pixels,
    }
    store = Store.open(cache, key)
    memory = FileMemory(cache, dataset.root)
    errors = list(dataset.errors)
    names: list[bytes | None] = [None] * len(dataset)
    pending = []
    for row, error in enumerate(errors):
        if not error:
            names[row] = digest = memory.find(dataset.ids[row], dataset.path(row))
            if digest is None or not _has_views(store, digest, dataset.ids[row], views):
                pending.append(row)
    needed = activations_bytes(
        dataset.select(np.array(pending, dtype=np.int64)), backbone, cut, views
    )
    free = shutil.disk_usage(cache).free
    if needed > 0.95 * free:
        raise ResourceError(
            f"the activations at {cut} take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free "
            f"at {cache}; choose a later cut point, fewer views, or another --cache-dir"
        )
    computed = 0
    if pending:
        threads = count_threads(workers)
        runner = make_engine(
            backbone, choice, cuts=(cut,), pooled=False, threads=threads, cache_dir=cache
        )

        def work(row: int) -> tuple[int, Reading, np.ndarray | None]:
            image_id = dataset.ids[row]

            def prepare(data: bytes) -> np.ndarray:  # decoded once for all views
                image = decode_image(data, max_pixels=max_pixels)
                return np.stack(
                    [
                        augment_image(
                            image,
                            backbone.preprocessing,
                            style,
                            seed=seed,
                            image_id=image_id,
                            view=view,
                        )
                        for view in range(views)
                    ]
                )

            def skip(digest: bytes) -> bool:
                return _has_views(store, digest, image_id, views)

            reading, pixels = read_image(dataset.path(row), prepare, skip)
            if pixels is None:
                return row, reading, None
            size = runner.micro_batch
            parts = [runner.run(pixels[i : i + size])[cut] for i in range(0, views, size)]
            return row, reading, _to_half(np.concatenate(parts), dtype)

        shard_rows = max(1, min(SHARD_ROWS, SHARD_BYTES // (2 * math.prod(point.shape))) // views)
        done = len(dataset) - len(pending)
        progress("activations", done, len(dataset))
        stream = map_ahead(work, pending, threads)
        shard = RowWriter(store, shard_rows * views)
        try:
            for row, reading, values in stream:
                done += 1
                names[row] = reading.sha256
                if reading.sha256 is None:
                    errors[row] = reading.error
                else:
                    if reading.info is not None:
                        memory.remember(
                            dataset.ids[row], reading.info, reading.read_at_ns, reading.sha256
                        )
                    for view in range(views) if not reading.skipped else ():
                        name = _view_name(reading.sha256, dataset.ids[row], view)
                        shard.add_name(name, reading.error)
                if values is not None:
                    shard.add_values({cut: values})
                    computed += len(values)
                shard.commit_if_due()
                progress("activations", done, len(dataset))
        finally:
            stream.close()
            try:
                shard.close()
            finally:
                memory.save()
    for row, digest in enumerate(names):
        if digest is not None:
            error = store.error(_view_name(digest, dataset.ids[row], 0))
            if error:
                errors[row], names[row] = error, None
    return Activations(
        ids=dataset.ids,
        cut=cut,
        shape=point.shape,
        views=views,
        dtype=dtype,
        errors=tuple(errors),
        engine=choice,
        computed=computed,
        warnings=tuple(store.problems),
        _store=store,
        _names=names,
    )


def _view_name(digest: bytes, image_id: str, view: int) -> bytes:
    """The row of a view: the plain image's depends on its bytes alone, another's on its id too."""
    if view == 0:
        return hashlib.sha256(digest + b"plain").digest()
    text = unicodedata.normalize("NFC", image_id).encode("utf-8", "surrogateescape")
    return hashlib.sha256(digest + f"view {view} of ".encode() + text).digest()


def _has_views(store: Store, digest: bytes, image_id: str, views: int) -> bool:
    return all(_view_name(digest, image_id, view) in store for view in range(views))


def _to_half(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> float16, or bfloat16 as uint16 bits, rounded to nearest even."""
    if not np.isfinite(values).all():
        raise VerificationError(
            "the network gave NaN or infinite activations; use --precision fp32"
        )
    if dtype == "float16":
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise VerificationError("an activation does not fit float16; use bfloat16")
        return values.astype(np.float16)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded
