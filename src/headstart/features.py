"""Takes a `Dataset` and a `Backbone`, gives `Features`: pooled activations of every image at every cut.

Place in the flow: after `engines`. The frozen network is run once per image, ever: what it gave is kept
in a `Store` under the hash of the image's bytes, so a renamed, moved or doubled image costs nothing and
an edited one is computed alone. Shape letters: N images, D features, K views, H W pixels.

How the work is shared out: every thread takes a micro-batch of images and reads, decodes, resizes and
runs it to the end, so reading and the network overlap, no thread waits for another, and at most a few
micro-batches are in memory. Rows are committed in shards as they come.
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from headstart.backbones import Backbone
from headstart.datasets import Dataset, choose
from headstart.engines import (
    Engine,
    EngineChoice,
    StartingEngine,
    choose_engine,
    count_threads,
    make_engine,
)
from headstart.errors import (
    BadImageError,
    ResourceError,
    TooManyBadImagesError,
    UsageError,
    VerificationError,
    printable,
)
from headstart.images import (
    DECODER,
    MAX_PIXELS,
    Preprocessing,
    decode_and_prepare,
    read_image_bytes,
)
from headstart.store import FileMemory, Store, default_cache_dir

__all__ = [
    "Claims",
    "Features",
    "Progress",
    "Reading",
    "RowWriter",
    "check_bad_images",
    "export_features",
    "extract",
    "feature_key",
    "map_ahead",
    "no_progress",
    "read_image",
    "run_images",
]

# A shard is committed when it has this many rows or is this old: a death costs no more work than that.
SHARD_ROWS = 512
SHARD_SECONDS = 15.0


T = TypeVar("T")
R = TypeVar("R")


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
        values: {cut point: float32 array (N, D)}, read from disk when asked for; rows of unreadable
            images are NaN.
        errors: N reasons why an image could not be read, "" for a good one.
        sha256: N hex digests of the images' bytes, "" where they could not be read.
        engine: what computed them.
        computed: images that the network was run on now; the others came from the store.
        warnings: one line each, for people.
    """

    ids: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    errors: tuple[str, ...]
    sha256: tuple[str, ...]
    engine: EngineChoice
    computed: int = 0
    warnings: tuple[str, ...] = ()

    def good(self) -> np.ndarray:
        """bool array (N,): which rows have features."""
        return np.array([not e for e in self.errors], dtype=bool)

    def select(self, rows: np.ndarray) -> "Features":
        """The features of these rows."""
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            values=_Rows(self.values, rows),
            errors=tuple(self.errors[i] for i in rows),
            sha256=tuple(self.sha256[i] for i in rows),
        )

    def bad(self) -> list[tuple[str, str]]:
        """(image id, reason) of every unreadable image."""
        return [(i, e) for i, e in zip(self.ids, self.errors, strict=True) if e]


class _Rows(Mapping[str, np.ndarray]):
    """Some rows of columns, taken when a column is asked for."""

    def __init__(self, columns: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        self._columns, self._rows = columns, rows

    def __getitem__(self, cut: str) -> np.ndarray:
        rows: np.ndarray = self._columns[cut][self._rows]
        return rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class _Columns(Mapping[str, np.ndarray]):
    """Columns of a store as arrays in the order of the data set, each read once, when asked for."""

    def __init__(self, store: Store, names: list[bytes | None], widths: dict[str, int]) -> None:
        self._store, self._names, self._widths = store, names, widths
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, cut: str) -> np.ndarray:
        if cut not in self._read:
            values = np.full((len(self._names), self._widths[cut]), np.nan, dtype=np.float32)
            rows = [i for i, name in enumerate(self._names) if name is not None]
            if rows:
                wanted = [name for name in self._names if name is not None]
                found = self._store.read(cut, wanted)
                if len(rows) == len(values):
                    values = found
                else:
                    values[rows] = found
            self._read[cut] = values
        return self._read[cut]

    def __iter__(self) -> Iterator[str]:
        return iter(self._widths)

    def __len__(self) -> int:
        return len(self._widths)


def extract(
    dataset: Dataset,
    backbone: Backbone,
    *,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    workers: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    rehash: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = no_progress,
) -> Features:
    """Features of every image, from the store where it has them, computed and kept where not.

    Args:
        engine, precision, device: a key of `engines.ENGINES`, `PRECISIONS`, `DEVICES`. With "fp32"
            images are decoded exactly too; see `images.decode_and_prepare`.
        workers: threads; one more than CPUs by default. Changes no number.
        cache_dir: the place of the store; `store.default_cache_dir()` by default.
        rehash: read every file again instead of trusting its size and times.
        max_pixels: an image with more is recorded as unreadable.

    Returns:
        Features with a row for every image, unreadable ones included (NaN and a reason).

    Raises:
        UsageError: an engine, precision or device that is unknown or cannot be.
        ResourceError: out of disk, memory or permission; what is committed stays.
    """
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    decide = functools.partial(
        choose_engine, backbone, precision=precision, device=device, cache_dir=cache
    )
    choice = decide(engine=engine)
    threads = count_threads(workers)

    def run(choice: EngineChoice) -> Features:
        work = _Work(dataset, backbone, choice, cache, rehash, max_pixels)
        if work.pending:
            engine = StartingEngine(
                choice, lambda: make_engine(backbone, choice, threads=threads, cache_dir=cache)
            )
            work.run(engine, threads, progress)
        return work.features()

    try:
        return run(choice)
    except UsageError:
        if engine != "auto" or choice.library == "torch":
            raise
        # OpenVINO could not take the network, and that is remembered now.
        return run(decide(engine="auto"))


def feature_key(backbone: Backbone, choice: EngineChoice) -> dict[str, Any]:
    """Everything that changes a feature's bits, as JSON."""
    decoders = {n: importlib.metadata.version(n) for n in ("pillow", "simplejpeg")}
    return {
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "cuts": [c.name for c in backbone.cuts],
        "pooling": "mean",
        "engine": choice.key(),
        "decoder": {"version": DECODER, "exact": choice.precision == "fp32", **decoders},
    }


class _Work:
    """One extraction: which rows are known, which are pending, and what came of them."""

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        choice: EngineChoice,
        cache: Path,
        rehash: bool,
        max_pixels: int,
    ) -> None:
        self.dataset, self.backbone, self.choice = dataset, backbone, choice
        self.max_pixels = max_pixels
        # An image above the limit is an error of this limit alone, so the limit is part of the key.
        key = {**feature_key(backbone, choice), "max_pixels": max_pixels}
        self.store = Store.open(cache, key)
        self.memory = FileMemory(cache, dataset.root)
        self.errors = list(dataset.errors)
        self.names: list[bytes | None] = [None] * len(dataset)
        self.computed = 0
        for row, error in enumerate(self.errors):
            if not error and not rehash:
                image_id = dataset.ids[row]
                self.names[row] = self.memory.find(image_id, dataset.path(row))
        self.pending = [
            row
            for row, name in enumerate(self.names)
            if not self.errors[row] and (name is None or name not in self.store)
        ]

    def run(self, engine: Engine, threads: int, progress: Progress) -> None:
        """Compute the pending rows and commit them, also when interrupted."""
        total = len(self.dataset)
        known = total - len(self.pending)
        progress("features", known, total)
        shard = RowWriter(self.store)
        sources = (self.dataset.path(row) for row in self.pending)
        claimed = Claims(self.store)
        stream = run_images(
            sources,
            engine,
            self.backbone.preprocessing,
            workers=threads,
            exact=self.choice.precision == "fp32",
            max_pixels=self.max_pixels,
            skip=claimed,
        )
        done = 0
        try:
            for readings, outputs in stream:
                for reading in readings:
                    row = self.pending[done]
                    done += 1
                    self._take(row, reading, shard)
                shard.add_values(outputs)
                self.computed += len(next(iter(outputs.values()))) if outputs else 0
                shard.commit_if_due()
                progress("features", known + done, total)
        finally:
            stream.close()
            try:
                shard.close()
            finally:
                self.memory.save()

    def _take(self, row: int, reading: "Reading", shard: "RowWriter") -> None:
        if reading.sha256 is None:
            self.errors[row], self.names[row] = reading.error, None
            return
        self.names[row] = reading.sha256
        if reading.info is not None:
            self.memory.remember(
                self.dataset.ids[row], reading.info, reading.read_at_ns, reading.sha256
            )
        if not reading.skipped:
            shard.add_name(reading.sha256, reading.error)

    def features(self) -> Features:
        """What the store holds now, in the order of the data set."""
        names: list[bytes | None] = list(self.names)
        for row, name in enumerate(self.names):
            if name is not None and (error := self.store.error(name)):
                self.errors[row], names[row] = error, None
        widths = {c.name: c.channels for c in self.backbone.cuts}
        return Features(
            ids=self.dataset.ids,
            values=_Columns(self.store, names, widths),
            errors=tuple(self.errors),
            sha256=tuple(n.hex() if n is not None else "" for n in self.names),
            engine=self.choice,
            computed=self.computed,
            warnings=tuple(self.store.problems),
        )


class Claims:
    """Tells a reader whether a row needs no work: in the store, or another's already."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._claimed: set[bytes] = set()
        self._lock = threading.Lock()

    def __call__(self, name: bytes) -> bool:
        with self._lock:
            if name in self._claimed or name in self._store:
                return True
            self._claimed.add(name)
            return False


class RowWriter:
    """Rows on their way to the store, committed in shards by a thread of its own."""

    def __init__(self, store: Store, most: int | None = None) -> None:
        """`most` rows are a shard, `SHARD_ROWS` by default."""
        self._store, self._most = store, SHARD_ROWS if most is None else most
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="headstart-write")
        self._writing: Future[None] | None = None
        self._clear()

    def _clear(self) -> None:
        self._names: list[bytes] = []
        self._errors: list[str] = []
        self._values: list[dict[str, np.ndarray]] = []
        self._since = time.monotonic()

    def add_name(self, name: bytes, error: str) -> None:
        """A row, good or with the reason why it has no values."""
        self._names.append(name)
        self._errors.append(error)

    def add_values(self, outputs: dict[str, np.ndarray]) -> None:
        """Values of the good ones among the names added since the last call."""
        for cut, values in outputs.items():
            if not np.isfinite(values).all():
                raise VerificationError(
                    f"the network gave NaN or infinite features at {cut}; use --precision fp32"
                )
        if outputs:
            self._values.append(outputs)

    def commit_if_due(self) -> None:
        """Start to write a shard when there is enough for one."""
        old = time.monotonic() - self._since > SHARD_SECONDS
        if len(self._names) >= self._most or (self._names and old):
            self._commit()

    def close(self) -> None:
        """Write what is left and wait until everything is on disk."""
        try:
            self._commit()
            self._wait()
        finally:
            self._pool.shutdown()

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _commit(self) -> None:
        self._wait()  # at most one shard is being written and one gathered
        good = np.array([not e for e in self._errors], dtype=bool)
        complete = sum(len(next(iter(v.values()))) for v in self._values)
        if self._names and complete == good.sum():  # not when a batch was lost to an error
            self._writing = self._pool.submit(
                _write_rows, self._store, self._names, self._errors, good, self._values
            )
        self._clear()


def _write_rows(
    store: Store,
    names: list[bytes],
    errors: list[str],
    good: np.ndarray,
    values: list[dict[str, np.ndarray]],
) -> None:
    columns = {}
    for cut in values[0] if values else ():
        found = np.concatenate([v[cut] for v in values])
        columns[cut] = found
        if len(found) < len(good):
            columns[cut] = np.zeros((len(good), *found.shape[1:]), dtype=found.dtype)
            columns[cut][good] = found
    store.add(names, columns, errors)


# ---------------------------------------------------------------- tables for other programs


def export_features(features: Features, dataset: Dataset, path: Path) -> None:
    """Write features with ids and labels as .parquet or .npz, for DuckDB, Polars, pandas, NumPy.

    A row an image: id, label, split, group, sha256, error, and a float32 vector for each cut point.

    Raises:
        UsageError: another suffix, or pyarrow is not installed.
        ResourceError: the file cannot be written.
    """
    write = choose("export format", path.suffix.lower(), EXPORTERS)
    labels = [printable(dataset.classes[y]) if y >= 0 else "" for y in dataset.labels]
    # Names that are no valid text would make the file unreadable; they are escaped.
    texts = {
        "id": [printable(i) for i in features.ids],
        "label": labels,
        "split": list(dataset.splits),
        "group": [printable(g) for g in dataset.groups],
        "sha256": list(features.sha256),
        "error": list(features.errors),
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(part, texts, features)
        os.replace(part, path)
    except OSError as exc:
        raise ResourceError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        part.unlink(missing_ok=True)


def _export_npz(path: Path, texts: dict[str, list[str]], features: Features) -> None:
    arrays: dict[str, Any] = {k: np.array(v, dtype=np.str_) for k, v in texts.items()}
    arrays.update({f"features {cut}": features.values[cut] for cut in features.values})
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def _export_parquet(path: Path, texts: dict[str, list[str]], features: Features) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise UsageError("Parquet needs pyarrow: pip install 'headstart[parquet]'") from exc
    columns = {k: pyarrow.array(v, pyarrow.string()) for k, v in texts.items()}
    for cut, matrix in features.values.items():
        flat = pyarrow.array(np.ascontiguousarray(matrix).reshape(-1))
        columns[cut] = pyarrow.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
    parquet.write_table(pyarrow.table(columns), path)


EXPORTERS: dict[str, Callable[[Path, dict[str, list[str]], Features], None]] = {
    ".parquet": _export_parquet,
    ".npz": _export_npz,
}


# ---------------------------------------------------------------- reading and running


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What became of one image file.

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
    sources: Iterable[Path | str],
    engine: Engine,
    preprocessing: Preprocessing,
    *,
    workers: int | None = None,
    exact: bool = True,
    max_pixels: int = MAX_PIXELS,
    skip: Callable[[bytes], bool] = lambda name: False,
) -> Generator[Result, None, None]:
    """Stream image files through a network.

    Args:
        sources: where each image is, or, as text, why it must not be read; taken a few
            micro-batches ahead.
        exact: as in `images.decode_and_prepare`.
        skip: told the SHA-256 of an image's bytes; True spares it the decoding and the network.

    Yields:
        What became of each image, and for every cut point float32 (n, D) of the n that were run; in
        the order of `sources`.
    """
    count = count_threads(workers)

    def prepare(data: bytes) -> np.ndarray:
        return decode_and_prepare(data, preprocessing, exact=exact, max_pixels=max_pixels)

    def work(chunk: list[Path | str]) -> Result:
        readings, batch = [], []
        for source in chunk:
            if isinstance(source, str):
                readings.append(Reading(source))
                continue
            reading, pixels = read_image(source, prepare, skip)
            readings.append(reading)
            if pixels is not None:
                batch.append(pixels)
        return readings, engine.run(np.stack(batch)) if batch else {}

    stop = engine.give_up if isinstance(engine, StartingEngine) else _nothing
    yield from map_ahead(work, _chunks(sources, engine.micro_batch), count, stop)


def _nothing() -> None:
    pass


def read_image(
    path: Path, prepare: Callable[[bytes], np.ndarray], skip: Callable[[bytes], bool]
) -> tuple[Reading, np.ndarray | None]:
    """Read, hash and prepare one image file; `skip` may spare it the preparing.

    Raises:
        ResourceError: out of memory or file handles.
    """
    digest, info, now = None, None, time.time_ns()
    try:
        info = os.stat(path)
        data = read_image_bytes(path)
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


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    stop: Callable[[], None] = _nothing,
) -> Generator[R, None, None]:
    """Ordered parallel map that starts at most a few items before they are asked for.

    `stop` is called at the end, also an early one, to free workers that wait for something.
    """
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="headstart")
    waiting: collections.deque[Future[R]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the consumer stops early or is interrupted
        stop()
        pool.shutdown(wait=True, cancel_futures=True)


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
