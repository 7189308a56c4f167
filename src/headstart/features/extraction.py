"""Takes a `Dataset` and a `Backbone`, gives the frozen network's outputs for every image, kept in a `Store`.

The network runs once per image (and view), ever: its outputs are kept under the hash of the image's bytes,
so a renamed, moved or copied image costs nothing, and of edited images only those are computed. An
`Extraction` describes what is computed: `Features` are pooled and of plain images,
`activations.Activations` are unpooled and of several views. Shape letters: N images, D features, K views,
H W pixels.

Every thread takes a micro-batch of images and reads, decodes, resizes and
runs it to the end, so reading and the network overlap, no thread waits for another, and at most a few
micro-batches are in memory. Rows are committed in shards as they come.
"""

import dataclasses
import functools
import importlib.metadata
import math
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.arrays import Targets
from headstart.data.dataset import Dataset
from headstart.data.decoding import DECODER
from headstart.data.views import AUGMENTATIONS, Views, import_operations
from headstart.errors import ResourceError, VerificationError
from headstart.features.drawing import Drawing, name_views
from headstart.features.engine import Engine, EngineChoice
from headstart.features.engines import StartingEngine, make_engine, use_engine
from headstart.features.file_hashes import FileMemory
from headstart.features.reading import Reading, read_image
from headstart.features.runtime import Runtime
from headstart.features.shards import Claims, RowWriter
from headstart.features.store import Store
from headstart.networks.backbones import Backbone
from headstart.parallel import PREPARING, READING, Progress, map_ahead, no_progress

__all__ = [
    "ITEM_BYTES",
    "Extracted",
    "Extraction",
    "Features",
    "extract",
    "run_extraction",
    "to_half",
]

# The types that values are stored in, with their bytes.
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Activations are much larger than features, so a shard is bounded by bytes: small enough to be held in
# memory twice, large enough that the thousands of rows of an epoch lie in few files.
SHARD_BYTES = 64 * 2**20

PLAIN = Views(1, AUGMENTATIONS["none"])

DISK_SHARE = 0.95  # fraction of the free disk that activations may take


@dataclasses.dataclass(frozen=True)
class Extraction:
    """The outputs to compute for every image.

    Attributes:
        cuts: the cut points whose activations are kept.
        pooled: whether they are averaged to one value a channel.
        dtype: the type that they are stored in, a key of `ITEM_BYTES`.
        views: how many of an image, and how they are drawn.
    """

    cuts: tuple[str, ...]
    pooled: bool = True
    dtype: str = "float32"
    views: Views = PLAIN

    def row_bytes(self, backbone: Backbone) -> int:
        """Compute the bytes that one view of an image takes on disk."""
        points = [backbone.cut(name) for name in self.cuts]
        numbers = sum(p.channels if self.pooled else math.prod(p.shape) for p in points)
        return numbers * ITEM_BYTES[self.dtype]


@dataclasses.dataclass(frozen=True, eq=False)
class Extracted:
    """The result of an extraction, in the order of the data set.

    Attributes:
        store: holds the rows, which `drawing.name_views` names.
        digests: N hashes of the images' bytes, None where they could not be read.
        errors: N reasons why an image has no rows, "" for a good one.
        recipe: of all views but 0, for `name_views`.
        engine: the engine that computed them.
        computed: how many rows were computed now; the others came from the store.
        warnings: one line each, for people.
    """

    store: Store
    digests: tuple[bytes | None, ...]
    errors: tuple[str, ...]
    recipe: bytes
    engine: EngineChoice
    computed: int
    warnings: tuple[str, ...]


def run_extraction(
    dataset: Dataset,
    backbone: Backbone,
    extraction: Extraction,
    runtime: Runtime = Runtime(),
    progress: Progress = no_progress,
) -> Extracted:
    """Complete the store: missing rows are computed and committed, also when interrupted.

    Raises:
        UsageError: an engine, precision or device is unknown or not available.
        ResourceError: out of disk, memory or permission; what is committed stays.
        VerificationError: values are not finite, or do not fit their type.
    """

    def run(choice: EngineChoice) -> Extracted:
        work = _Work(dataset, backbone, extraction, choice, runtime)
        if work.pending and not extraction.pooled:
            work.check_space()
        if work.pending:
            if not extraction.views.augmentation.is_plain:
                import_operations()  # while there are no threads
            cuts, pooled = extraction.cuts, extraction.pooled
            make = functools.partial(
                make_engine, backbone, choice, runtime, cuts=cuts, pooled=pooled
            )
            work.run(StartingEngine(choice, make), progress)
        return work.result()

    return use_engine(backbone, runtime, run)


def _make_key(
    backbone: Backbone, extraction: Extraction, choice: EngineChoice, max_pixels: int
) -> dict[str, Any]:
    """Everything that changes the bits of a row with a given name, as JSON.

    Seed and augmentation are part of a view's name, so that they share the plain one. An image above the
    limit of pixels is an error of this limit alone.
    """
    decoders = {n: importlib.metadata.version(n) for n in ("pillow", "simplejpeg")}
    return {
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "cuts": list(extraction.cuts),
        "pooling": "mean" if extraction.pooled else "none",
        "dtype": extraction.dtype,
        "engine": choice.key(),
        "decoder": {"version": DECODER, "exact": choice.precision == "fp32", **decoders},
        "max_pixels": max_pixels,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """A few images in work.

    Attributes:
        rows: their row numbers.
        readings: the result of reading each.
        names: for each, the names of the views that were drawn.
        values: {cut point: (n, …)} of the n views that were drawn of good images.
    """

    rows: list[int]
    readings: list[Reading]
    names: list[list[bytes]]
    values: dict[str, np.ndarray]


class _Work:
    """One extraction: the known rows, the pending images, and their results."""

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        extraction: Extraction,
        choice: EngineChoice,
        runtime: Runtime,
    ) -> None:
        self.dataset, self.extraction, self.choice = dataset, extraction, choice
        self.runtime = runtime
        self.row_bytes = extraction.row_bytes(backbone)
        self.drawing = Drawing(
            backbone.preprocessing,
            extraction.views.augmentation,
            extraction.views.seed,
            choice.precision == "fp32",
            runtime.max_pixels,
        )
        self.recipe = self.drawing.recipe()
        key = _make_key(backbone, extraction, choice, runtime.max_pixels)
        self.store = Store.open(runtime.cache, key)
        self.memory = FileMemory(runtime.cache, dataset.root)
        self.errors = list(dataset.errors)
        self.digests: list[bytes | None] = [None] * len(dataset)
        self.computed = 0
        for row, error in enumerate(self.errors):
            if not error and not runtime.rehash:
                self.digests[row] = self.memory.find(dataset.image(row))
        self.pending = [row for row, e in enumerate(self.errors) if not e and self._lacks(row)]

    def _names(self, row: int, digest: bytes) -> list[bytes]:
        """Name the views of an image, by their number."""
        views = range(self.extraction.views.count)
        return name_views(digest, self.dataset.ids[row], views, self.recipe)

    def _lacks(self, row: int) -> bool:
        digest = self.digests[row]
        return digest is None or any(n not in self.store for n in self._names(row, digest))

    def check_space(self) -> None:
        """Raise ResourceError if the missing rows do not fit the disk.

        Images whose hash is not known may already be in the store under another name; where that
        matters they are hashed, and those that are leave `pending`.
        """
        free = shutil.disk_usage(self.runtime.cache).free
        unknown = [row for row in self.pending if self.digests[row] is None]
        most = len(unknown) * (self.extraction.views.count if self.recipe else 1)
        if (self._count_missing() + most) * self.row_bytes <= DISK_SHARE * free:
            return

        def identify(row: int) -> Reading:
            return read_image(self.dataset.image(row), _never, lambda digest: True)[0]

        readings = map_ahead(identify, unknown, self.runtime.threads)
        for row, reading in zip(unknown, readings, strict=True):
            self._take(row, reading)
        self.memory.save()
        self.pending = [row for row in self.pending if not self.errors[row] and self._lacks(row)]
        needed = self._count_missing() * self.row_bytes
        if needed > DISK_SHARE * free:
            raise ResourceError(
                f"the activations at {', '.join(self.extraction.cuts)} take {needed / 1e9:.1f} GB more "
                f"and {free / 1e9:.1f} GB are free at {self.runtime.cache}; choose a later cut point, "
                "fewer views, or another --cache-dir"
            )

    def _count_missing(self) -> int:
        """Count the missing rows of images whose hash is known."""
        names = set[bytes]()
        for row in self.pending:
            digest = self.digests[row]
            if digest is not None:
                names.update(n for n in self._names(row, digest) if n not in self.store)
        return len(names)

    def run(self, engine: StartingEngine, progress: Progress) -> None:
        """Compute the missing rows and commit them, also when interrupted."""
        total = len(self.dataset)
        done = total - len(self.pending)
        progress(PREPARING, 0, 0)
        claimed = Claims(self.store)

        def work(rows: list[int]) -> _Part:
            return self._compute(rows, engine, claimed)

        # Enough images at once that few micro-batches are padded, and no more.
        views = self.extraction.views.count
        size = max(1, min(engine.micro_batch, 4 * engine.micro_batch // views))
        parts = (self.pending[i : i + size] for i in range(0, len(self.pending), size))
        stream = map_ahead(work, parts, self.runtime.threads, engine.give_up)
        most = None if self.extraction.pooled else max(1, SHARD_BYTES // self.row_bytes)
        shard = RowWriter(self.store, most)
        try:
            for part in stream:
                for row, reading, names in zip(part.rows, part.readings, part.names, strict=True):
                    self._take(row, reading)
                    for name in names:
                        shard.add_name(name, reading.error)
                shard.add_values(part.values)
                self.computed += len(next(iter(part.values.values()))) if part.values else 0
                shard.commit_if_due()
                done += len(part.rows)
                progress(READING, done, total)
        finally:
            stream.close()
            try:
                shard.close()
            finally:
                self.memory.save()

    def _compute(self, rows: list[int], engine: Engine, claimed: Claims) -> _Part:
        readings, names, batch = [], [], []
        for row in rows:
            reading, claims, pixels = self._read(row, claimed)
            readings.append(reading)
            names.append(claims)
            if pixels is not None:
                batch.append(pixels)
        if not batch:
            return _Part(rows, readings, names, {})
        pixels, size = np.concatenate(batch), engine.micro_batch
        runs = [engine.run(pixels[i : i + size]) for i in range(0, len(pixels), size)]
        values: dict[str, np.ndarray] = {
            cut: np.concatenate([run[cut] for run in runs]) for cut in self.extraction.cuts
        }
        if self.extraction.dtype != "float32":
            values = {cut: to_half(v, self.extraction.dtype) for cut, v in values.items()}
        return _Part(rows, readings, names, values)

    def _read(
        self, row: int, claimed: Claims
    ) -> tuple[Reading, list[bytes], NDArray[np.uint8] | None]:
        """Read the missing views of an image: their names, and their pixels if it is readable."""
        names, missing = list[bytes](), list[int]()

        def needs_nothing(digest: bytes) -> bool:
            for view, name in enumerate(self._names(row, digest)):
                if not claimed(name):
                    names.append(name)
                    missing.append(view)
            return not names

        def prepare(data: bytes) -> NDArray[np.uint8]:
            return self.drawing.draw_all(data, self.dataset.ids[row], missing)

        reading, pixels = read_image(self.dataset.image(row), prepare, needs_nothing)
        return reading, names, pixels

    def _take(self, row: int, reading: Reading) -> None:
        self.digests[row] = reading.sha256
        if reading.sha256 is None:
            self.errors[row] = reading.error
        elif reading.stamp is not None:
            self.memory.remember(
                self.dataset.ids[row], reading.stamp, reading.read_at_ns, reading.sha256
            )

    def result(self) -> Extracted:
        """Collect the rows of the store, in the order of the data set."""
        for row, digest in enumerate(self.digests):
            if digest is not None:
                reasons = (self.store.error(name) for name in self._names(row, digest))
                self.errors[row] = next(filter(None, reasons), "")
        return Extracted(
            store=self.store,
            digests=tuple(self.digests),
            errors=tuple(self.errors),
            recipe=self.recipe,
            engine=self.choice,
            computed=self.computed,
            warnings=tuple(self.store.problems),
        )


def _never(data: bytes) -> NDArray[np.uint8]:
    raise AssertionError("an image that is only hashed was decoded")


def to_half(values: NDArray[np.float32], dtype: str) -> NDArray[np.float16] | NDArray[np.uint16]:
    """Round float32 of any shape to float16, or to bfloat16 as uint16 bits, to nearest even.

    Raises:
        VerificationError: values are not finite, or do not fit float16.
    """
    if not np.isfinite(values).all():
        raise VerificationError(
            "the network gave NaN or infinite activations; use --precision fp32"
        )
    if dtype == "float16":
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise VerificationError("an activation does not fit float16; use bfloat16")
        return values.astype(np.float16)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Pooled activations, one row an image, in the order of the data set.

    Attributes:
        ids: N image ids.
        targets: (N, …), the data set's; for single labels int64 (N,), indices into `classes`, -1 for none.
        splits: N of "train", "val", "test" or "" (not assigned).
        classes: C class names.
        values: {cut point: float32 array (N, D)}, read from disk when asked for; rows of unreadable
            images are NaN.
        errors: N reasons why an image could not be read, "" for a good one.
        sha256: N hex digests of the images' bytes, "" where they could not be read.
        engine: the engine that computed them.
        computed: how many images were run through the network now; the others came from the store.
        warnings: one line each, for people.
    """

    ids: tuple[str, ...]
    targets: Targets
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    values: Mapping[str, NDArray[np.float32]]
    errors: tuple[str, ...]
    sha256: tuple[str, ...]
    engine: EngineChoice
    computed: int = 0
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Features({len(self.ids):,} images at {', '.join(self.values)}; {self.engine})"

    def good(self) -> NDArray[np.bool_]:
        """Say which rows have features, (N,)."""
        return np.array([not e for e in self.errors], dtype=bool)

    def select(self, rows: NDArray[np.int64]) -> "Features":
        """Select the features of these rows."""
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            targets=self.targets[rows],
            splits=tuple(self.splits[i] for i in rows),
            values=_Rows(self.values, rows),
            errors=tuple(self.errors[i] for i in rows),
            sha256=tuple(self.sha256[i] for i in rows),
        )

    def unreadable(self) -> list[tuple[str, str]]:
        """List (image id, reason) of every unreadable image."""
        return [(i, e) for i, e in zip(self.ids, self.errors, strict=True) if e]


class _Rows(Mapping[str, NDArray[np.float32]]):
    """Some rows of columns, selected when a column is asked for."""

    def __init__(self, columns: Mapping[str, NDArray[np.float32]], rows: NDArray[np.int64]) -> None:
        self._columns, self._rows = columns, rows

    def __getitem__(self, cut: str) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._columns[cut][self._rows]
        return rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class _Columns(Mapping[str, NDArray[np.float32]]):
    """Columns of a store as arrays in the order of the data set, each read once, when asked for."""

    def __init__(self, store: Store, names: list[bytes | None], widths: dict[str, int]) -> None:
        self._store, self._names, self._widths = store, names, widths
        self._read: dict[str, NDArray[np.float32]] = {}

    def __getitem__(self, cut: str) -> NDArray[np.float32]:
        if cut not in self._read:
            values = np.full((len(self._names), self._widths[cut]), np.nan, dtype=np.float32)
            rows = [i for i, name in enumerate(self._names) if name is not None]
            if rows:
                wanted = [name for name in self._names if name is not None]
                stored = self._store.read(cut, wanted)
                if len(rows) == len(values):
                    values = stored
                else:
                    values[rows] = stored
            self._read[cut] = values
        return self._read[cut]

    def __iter__(self) -> Iterator[str]:
        return iter(self._widths)

    def __len__(self) -> int:
        return len(self._widths)


def extract(
    dataset: Dataset,
    backbone: Backbone,
    runtime: Runtime = Runtime(),
    *,
    progress: Progress = no_progress,
) -> Features:
    """Extract the features of every image, from the store or computed and stored.

    Args:
        runtime: the engine, and the folder of the store. With precision "fp32" images are decoded exactly
            too; see `decoding.decode_and_prepare`. An image of more than its `max_pixels` is
            recorded as unreadable.

    Returns:
        Features with a row for every image, unreadable ones included (NaN and a reason).

    Raises:
        UsageError: an engine, precision or device is unknown or not available.
        ResourceError: out of disk, memory or permission; what is committed stays.
        VerificationError: features are not finite.
    """
    widths = {cut.name: cut.channels for cut in backbone.cuts}
    extracted = run_extraction(dataset, backbone, Extraction(tuple(widths)), runtime, progress)
    rows = zip(extracted.digests, extracted.errors, strict=True)
    names = [None if error else digest for digest, error in rows]
    return Features(
        ids=dataset.ids,
        targets=dataset.targets,
        splits=dataset.splits,
        classes=dataset.classes,
        values=_Columns(extracted.store, names, widths),
        errors=extracted.errors,
        sha256=tuple("" if digest is None else digest.hex() for digest in extracted.digests),
        engine=extracted.engine,
        computed=extracted.computed,
        warnings=extracted.warnings,
    )
