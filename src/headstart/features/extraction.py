"""Takes a `Dataset` and a `Backbone`, gives `Features`: pooled activations of every image at every cut.

The frozen network is run once per image, ever: what it gave is kept in a `Store` under the hash of the
image's bytes, so a renamed, moved or doubled image costs nothing and an edited one is computed alone.
Shape letters: N images, D features, K views, H W pixels.

How the work is shared out: every thread takes a micro-batch of images and reads, decodes, resizes and
runs it to the end, so reading and the network overlap, no thread waits for another, and at most a few
micro-batches are in memory. Rows are committed in shards as they come.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.arrays import Targets
from headstart.data.dataset import Dataset
from headstart.data.decoding import DECODER, MAX_PIXELS
from headstart.errors import UsageError
from headstart.features.engine import Engine, EngineChoice
from headstart.features.engine_openvino import has_own_graph
from headstart.features.engines import StartingEngine, choose_engine, make_engine
from headstart.features.file_hashes import FileMemory
from headstart.features.reading import Reading, run_images
from headstart.features.shards import Claims, RowWriter
from headstart.features.store import Store
from headstart.files import default_cache_dir
from headstart.networks.backbones import Backbone
from headstart.networks.lite import GRAPH
from headstart.parallel import PREPARING, READING, Progress, count_threads, no_progress

__all__ = ["Features", "extract", "feature_key"]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Pooled activations, one row an image, in the order of the data set.

    Attributes:
        ids: N image ids.
        targets: (N, …), the data set's; of single labels int64 (N,), indices into `classes`, -1 for none.
        splits: N of "train", "val", "test" or "" (not assigned).
        classes: C class names.
        values: {cut point: float32 array (N, D)}, read from disk when asked for; rows of unreadable
            images are NaN.
        errors: N reasons why an image could not be read, "" for a good one.
        sha256: N hex digests of the images' bytes, "" where they could not be read.
        engine: what computed them.
        computed: images that the network was run on now; the others came from the store.
        warnings: one line each, for people.
    """

    ids: tuple[str, ...]
    targets: Targets
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    errors: tuple[str, ...]
    sha256: tuple[str, ...]
    engine: EngineChoice
    computed: int = 0
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Features({len(self.ids):,} images at {', '.join(self.values)}; {self.engine})"

    def good(self) -> np.ndarray:
        """bool array (N,): which rows have features."""
        return np.array([not e for e in self.errors], dtype=bool)

    def select(self, rows: np.ndarray) -> "Features":
        """The features of these rows."""
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            targets=self.targets[rows],
            splits=tuple(self.splits[i] for i in rows),
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
            images are decoded exactly too; see `decoding.decode_and_prepare`.
        workers: threads; one more than CPUs by default. Changes no number.
        cache_dir: the place of the store; `files.default_cache_dir()` by default.
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
        "graph": GRAPH if choice.library == "openvino" and has_own_graph(backbone) else "traced",
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
                self.names[row] = self.memory.find(dataset.image(row))
        self.pending = [
            row
            for row, name in enumerate(self.names)
            if not self.errors[row] and (name is None or name not in self.store)
        ]

    def run(self, engine: Engine, threads: int, progress: Progress) -> None:
        """Compute the pending rows and commit them, also when interrupted."""
        total = len(self.dataset)
        known = total - len(self.pending)
        progress(PREPARING, 0, 0)
        shard = RowWriter(self.store)
        images = (self.dataset.image(row) for row in self.pending)
        claimed = Claims(self.store)
        stream = run_images(
            images,
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
                progress(READING, known + done, total)
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
        if reading.stamp is not None:
            self.memory.remember(
                self.dataset.ids[row], reading.stamp, reading.read_at_ns, reading.sha256
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
            targets=self.dataset.targets,
            splits=self.dataset.splits,
            classes=self.dataset.classes,
            values=_Columns(self.store, names, widths),
            errors=tuple(self.errors),
            sha256=tuple(n.hex() if n is not None else "" for n in self.names),
            engine=self.choice,
            computed=self.computed,
            warnings=tuple(self.store.problems),
        )
