"""Takes a `Dataset` and a `Backbone`, gives `Activations`: unpooled, at one cut point, in several views.

What is above a cut point can be trained on these without ever running the frozen part again;
`ViewReader` gives the same views as pixels, for training that needs those. Shape letters: N images, K
views, H W pixels.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import threading
import unicodedata
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from headstart.choices import choose
from headstart.data.dataset import Dataset
from headstart.data.decoding import (
    MAX_PIXELS,
    Picture,
    Preprocessing,
    decode_image,
    decode_picture,
    needed_px,
)
from headstart.data.views import Augmentation, augment_image, import_operations
from headstart.errors import BadImageError, InputError, ResourceError, UsageError, VerificationError
from headstart.features.engine import Engine, EngineChoice
from headstart.features.engines import StartingEngine, choose_engine, make_engine
from headstart.features.extraction import feature_key
from headstart.features.file_hashes import FileMemory
from headstart.features.reading import Reading, read_image
from headstart.features.shards import Claims, RowWriter
from headstart.features.store import Store
from headstart.files import default_cache_dir
from headstart.networks.backbones import Backbone
from headstart.parallel import PREPARING, READING, Progress, count_threads, map_ahead, no_progress

if TYPE_CHECKING:
    import torch

__all__ = [
    "Activations",
    "ViewReader",
    "activations_bytes",
    "check_images",
    "extract_activations",
    "to_half",
]

# Activations are much larger than features, so a shard is bounded by bytes: small enough to be held in
# memory twice, large enough that the thousands of rows of an epoch lie in few files.
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
    _digests: list[bytes | None]
    _recipe: bytes

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        views = f"{self.views} view{'s' if self.views > 1 else ''}"
        return (
            f"Activations({len(self.ids):,} images at {self.cut}, {views} of {shape} {self.dtype})"
        )

    def good(self) -> np.ndarray:
        """bool array (N,): which rows have activations."""
        return np.array([not e for e in self.errors], dtype=bool)

    def read(self, rows: np.ndarray, views: int | np.ndarray) -> np.ndarray:
        """Activations of readable rows, (n, …): float16, or bfloat16 as uint16 bits.

        Args:
            rows: n row numbers.
            views: one view number for all, or one for each row.

        Raises:
            UsageError: a view that is not there, or a row that could not be read.
            ResourceError: another process has removed the activations.
        """
        names = []
        for row, view in _pair_views(rows, views):
            if not 0 <= view < self.views:
                raise UsageError(f"view {view} is not one of 0 to {self.views - 1}")
            digest = self._digests[row]
            if digest is None:
                raise UsageError(f"'{self.ids[row]}' has no activations: {self.errors[row]}")
            names += _view_names(digest, self.ids[row], (view,), self._recipe)
        return self._store.read(self.cut, names)

    def read_tensor(self, rows: np.ndarray, views: int | np.ndarray) -> "torch.Tensor":
        """As `read`, as a torch tensor of the activations' own dtype."""
        import torch

        values = torch.from_numpy(self.read(rows, views))
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
    rehash: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = no_progress,
) -> Activations:
    """Unpooled activations of every image in K views, from the store or computed and kept.

    Only views that are missing are computed: another seed or augmentation shares view 0, and more
    views than before cost the new ones alone.

    Args:
        cut: a cut point of the backbone.
        views: K, at least 1. View 0 is the plain image, each other view one of `augment_image`, a
            pure function of (seed, image id, view).
        augmentation: of the views but 0; the preset "medium" by default.
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
    backbone.cut(cut)
    style = augmentation or Augmentation()
    decide = functools.partial(
        choose_engine, backbone, precision=precision, device=device, cache_dir=cache
    )
    choice = decide(engine=engine)
    threads = count_threads(workers)

    def run(choice: EngineChoice) -> Activations:
        draws = _Draws(backbone.preprocessing, style, seed, choice.precision == "fp32", max_pixels)
        work = _Work(dataset, backbone, cut, choice, draws, views, dtype, cache, rehash)
        if work.pending:
            work.check_space(cache, threads)
        if work.pending:
            if not style.is_plain:
                import_operations()
            make = functools.partial(
                make_engine,
                backbone,
                choice,
                cuts=(cut,),
                pooled=False,
                threads=threads,
                cache_dir=cache,
            )
            work.run(StartingEngine(choice, make), threads, progress)
        return work.activations()

    try:
        return run(choice)
    except UsageError:
        if engine != "auto" or choice.library == "torch":
            raise
        # OpenVINO could not take the network, and that is remembered now.
        return run(decide(engine="auto"))


@dataclasses.dataclass(frozen=True)
class _Draws:
    """How views are made of an image's bytes."""

    preprocessing: Preprocessing
    augmentation: Augmentation
    seed: int
    exact: bool
    max_pixels: int

    def is_plain(self, view: int) -> bool:
        return view == 0 or self.augmentation.is_plain

    def decode(self, data: bytes, *, plain: bool) -> Picture:
        """What plain or augmented views are taken of."""
        return decode_picture(data, least_px=self._least_px(plain), max_pixels=self.max_pixels)

    def draw(self, picture: Picture, image_id: str, view: int) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return augment_image(
            picture,
            self.preprocessing,
            self.augmentation,
            seed=self.seed,
            image_id=image_id,
            view=view,
        )

    def draw_all(self, data: bytes, image_id: str, views: Sequence[int]) -> np.ndarray:
        """Several views, uint8 (n, H, W, 3), of an image that is decoded once where one size serves."""
        pictures: dict[int | None, Picture] = {}
        pixels = []
        for view in views:
            plain = self.is_plain(view)
            least = self._least_px(plain)
            if least not in pictures:
                pictures[least] = self.decode(data, plain=plain)
            pixels.append(self.draw(pictures[least], image_id, view))
        return np.stack(pixels)

    def _least_px(self, plain: bool) -> int | None:
        if self.exact:
            return None
        return needed_px(self.preprocessing, None if plain else self.augmentation)

    def recipe(self) -> bytes:
        """What an augmented view depends on besides the image; empty when views are plain."""
        if self.augmentation.is_plain:
            return b""
        facts = {
            **dataclasses.asdict(self.augmentation),
            "seed": self.seed,
            "torchvision": importlib.metadata.version("torchvision"),
        }
        return json.dumps(facts, sort_keys=True).encode()


class _Work:
    """One extraction: which views are known, which are missing, and what came of them."""

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        cut: str,
        choice: EngineChoice,
        draws: _Draws,
        views: int,
        dtype: str,
        cache: Path,
        rehash: bool,
    ) -> None:
        self.dataset, self.cut, self.choice, self.draws = dataset, cut, choice, draws
        self.views, self.dtype = views, dtype
        self.shape = backbone.cut(cut).shape
        self.recipe = draws.recipe()
        # Seed and augmentation are part of a view's name, so that they share the plain one.
        key = {
            **feature_key(backbone, choice),
            "cuts": [cut],
            "pooling": "none",
            "dtype": dtype,
            "max_pixels": draws.max_pixels,
        }
        self.store = Store.open(cache, key)
        self.memory = FileMemory(cache, dataset.root)
        self.errors = list(dataset.errors)
        self.digests: list[bytes | None] = [None] * len(dataset)
        self.computed = 0
        for row, error in enumerate(self.errors):
            if not error and not rehash:
                self.digests[row] = self.memory.find(dataset.image(row))
        self.pending = [row for row, e in enumerate(self.errors) if not e and self._lacks(row)]

    def _names(self, row: int, digest: bytes) -> list[bytes]:
        """Of the views of a row, by number."""
        return _view_names(digest, self.dataset.ids[row], range(self.views), self.recipe)

    def _lacks(self, row: int) -> bool:
        digest = self.digests[row]
        return digest is None or any(n not in self.store for n in self._names(row, digest))

    def check_space(self, cache: Path, threads: int) -> None:
        """Raises ResourceError if the missing activations do not fit the disk.

        Images whose hash is not known may turn out to be in the store under another name; where that
        matters they are hashed, which also spares them from `pending`.
        """
        free = shutil.disk_usage(cache).free
        unknown = [row for row in self.pending if self.digests[row] is None]
        most = len(unknown) * (self.views if self.recipe else 1)
        if self._bytes(self._count_missing() + most) <= 0.95 * free:
            return

        def identify(row: int) -> Reading:
            return read_image(self.dataset.image(row), _never, lambda digest: True)[0]

        for row, reading in zip(unknown, map_ahead(identify, unknown, threads), strict=True):
            self._take(row, reading)
        self.memory.save()
        self.pending = [row for row in self.pending if not self.errors[row] and self._lacks(row)]
        needed = self._bytes(self._count_missing())
        if needed > 0.95 * free:
            raise ResourceError(
                f"the activations at {self.cut} take {needed / 1e9:.1f} GB more and "
                f"{free / 1e9:.1f} GB are free at {cache}; choose a later cut point, fewer views, or "
                "another --cache-dir"
            )

    def _count_missing(self) -> int:
        """How many activations are to be computed of images whose hash is known."""
        names = set[bytes]()
        for row in self.pending:
            digest = self.digests[row]
            if digest is not None:
                names.update(n for n in self._names(row, digest) if n not in self.store)
        return len(names)

    def _bytes(self, count: int) -> int:
        return count * math.prod(self.shape) * 2

    def run(self, engine: Engine, threads: int, progress: Progress) -> None:
        """Compute what is missing and commit it, also when interrupted."""
        total = len(self.dataset)
        done = total - len(self.pending)
        progress(PREPARING, 0, 0)
        claimed = Claims(self.store)

        def work(rows: list[int]) -> "_Part":
            return self._compute(rows, engine, claimed)

        # So many images together that few micro-batches are padded, and no more than those need.
        size = max(1, min(engine.micro_batch, 4 * engine.micro_batch // self.views))
        parts = [self.pending[i : i + size] for i in range(0, len(self.pending), size)]
        stop = engine.give_up if isinstance(engine, StartingEngine) else _nothing
        stream = map_ahead(work, parts, threads, stop)
        shard = RowWriter(self.store, max(1, SHARD_BYTES // self._bytes(1)))
        try:
            for rows, readings, names, values in stream:
                for row, reading, claims in zip(rows, readings, names, strict=True):
                    self._take(row, reading)
                    for name in claims:
                        shard.add_name(name, reading.error)
                if values is not None:
                    shard.add_values({self.cut: values})
                    self.computed += len(values)
                shard.commit_if_due()
                done += len(rows)
                progress("computing activations", done, total)
        finally:
            stream.close()
            try:
                shard.close()
            finally:
                self.memory.save()

    def _compute(self, rows: list[int], engine: Engine, claimed: Claims) -> "_Part":
        readings, names, batch = [], [], []
        for row in rows:
            reading, claims, pixels = self._read(row, claimed)
            readings.append(reading)
            names.append(claims)
            if pixels is not None:
                batch.append(pixels)
        if not batch:
            return rows, readings, names, None
        pixels, size = np.concatenate(batch), engine.micro_batch
        runs = [engine.run(pixels[i : i + size])[self.cut] for i in range(0, len(pixels), size)]
        return rows, readings, names, to_half(np.concatenate(runs), self.dtype)

    def _read(self, row: int, claimed: Claims) -> tuple[Reading, list[bytes], np.ndarray | None]:
        """The missing views of an image: their names, and their pixels if it is a good one."""
        names, missing = list[bytes](), list[int]()

        def needs_nothing(digest: bytes) -> bool:
            for view, name in enumerate(self._names(row, digest)):
                if not claimed(name):
                    names.append(name)
                    missing.append(view)
            return not names

        def prepare(data: bytes) -> np.ndarray:
            return self.draws.draw_all(data, self.dataset.ids[row], missing)

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

    def activations(self) -> Activations:
        """What the store holds now, in the order of the data set."""
        for row, digest in enumerate(self.digests):
            if digest is not None:
                reasons = (self.store.error(name) for name in self._names(row, digest))
                if reason := next(filter(None, reasons), ""):
                    self.errors[row], self.digests[row] = reason, None
        return Activations(
            ids=self.dataset.ids,
            cut=self.cut,
            shape=self.shape,
            views=self.views,
            dtype=self.dtype,
            errors=tuple(self.errors),
            engine=self.choice,
            computed=self.computed,
            warnings=tuple(self.store.problems),
            _store=self.store,
            _digests=self.digests,
            _recipe=self.recipe,
        )


# Rows, what became of each, the names of the views that were drawn of each, and their activations.
_Part = tuple[list[int], list[Reading], list[list[bytes]], np.ndarray | None]


def _nothing() -> None:
    pass


def _never(data: bytes) -> np.ndarray:
    raise AssertionError("an image that is only hashed was decoded")


def _pair_views(rows: np.ndarray, views: int | np.ndarray) -> list[tuple[int, int]]:
    """(row, view) as Python's numbers."""
    numbers = np.asarray(views)
    if numbers.shape not in ((), np.shape(rows)):
        raise UsageError(f"{len(rows)} rows need as many views, or one for all; got {views!r}")
    both = np.broadcast_to(numbers, np.shape(rows)).tolist()
    return list(zip(np.asarray(rows).tolist(), both, strict=True))


def _view_names(digest: bytes, image_id: str, views: Iterable[int], recipe: bytes) -> list[bytes]:
    """The rows of views in the store: a plain image's depends on its bytes alone, another's on its id
    and on how it is drawn too."""
    text = unicodedata.normalize("NFC", image_id).encode("utf-8", "surrogateescape")
    # The lengths keep two different pairs of texts from being the same one.
    augmented = digest + f"{len(recipe)} {len(text)} ".encode() + recipe + text
    plain = hashlib.sha256(digest + b"plain").digest()
    return [
        hashlib.sha256(augmented + b"%d" % view).digest() if view and recipe else plain
        for view in views
    ]


def to_half(values: np.ndarray, dtype: str) -> np.ndarray:
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


class ViewReader:
    """Reads views of images as pixels, in threads, ahead of their use.

    A view is what `augment_image` gives, a pure function of (seed, image id, view): nothing here changes
    a pixel but the arguments that say so. Decoded images are kept in memory, so that later epochs only
    draw other views of them.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocessing: Preprocessing,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        exact: bool = True,
        sha256: Sequence[str] | None = None,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
        memory_bytes: int = 2**30,
    ) -> None:
        """Nothing is read yet.

        Args:
            augmentation: of the views but 0; the preset "medium" by default.
            exact: decode exactly; otherwise as `decode_picture` with what `needed_px` says, which is
                faster for JPEGs much larger than the network's input.
            sha256: N hex digests as of `Features` or `check_images`; a file that has another now is
                refused. Without them it may not change between two readings.
            workers: threads; one more than CPUs by default. Changes no pixel.
            memory_bytes: for decoded images; what does not fit is decoded again in every epoch.
        """
        self._dataset = dataset
        self._draws = _Draws(preprocessing, augmentation or Augmentation(), seed, exact, max_pixels)
        self._digests = dict(enumerate(sha256)) if sha256 is not None else {}
        self._threads = count_threads(workers)
        self._free = memory_bytes
        self._kept: dict[tuple[int, bool], Picture | np.ndarray] = {}
        self._lock = threading.Lock()

    def read(
        self, order: Iterable[tuple[np.ndarray, int | np.ndarray]]
    ) -> Generator[np.ndarray, None, None]:
        """Batches of views, uint8 (n, H, W, 3), in this order.

        Args:
            order: of each batch n row numbers, and one view number for all or one for each; taken two
                batches ahead.

        Raises:
            UsageError: a row that is no readable image, or views of another number than rows.
            InputError: a file that has vanished, changed or cannot be read; names it.
            ResourceError: out of memory or file handles.
        """
        height, width = self._draws.preprocessing.input_px
        if not self._draws.augmentation.is_plain:
            import_operations()

        def cut() -> Generator[_Task, None, None]:
            for rows, views in order:
                pairs = _pair_views(rows, views)
                batch = np.empty((len(pairs), height, width, 3), dtype=np.uint8)
                size = max(1, math.ceil(len(pairs) / self._threads))  # every thread takes a part
                starts = range(0, max(1, len(pairs)), size)
                for start in starts:
                    yield batch, start, pairs[start : start + size], start == starts[-1]

        def work(task: _Task) -> tuple[np.ndarray, bool]:
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

    def _take(self, row: int, view: int) -> np.ndarray:
        image_id, plain = self._dataset.ids[row], self._draws.is_plain(view)
        found = self._kept.get((row, plain))
        if found is None:
            try:
                picture = self._draws.decode(self._load(row), plain=plain)
            except BadImageError as exc:
                raise InputError(
                    f"'{image_id}' can no longer be read: {exc}; put it back as it was, or start again"
                ) from exc
            # Of a plain view nothing but itself is ever needed.
            found = self._draws.draw(picture, image_id, view) if plain else picture
            self._keep((row, plain), found)
        return found if isinstance(found, np.ndarray) else self._draws.draw(found, image_id, view)

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

    def _keep(self, key: tuple[int, bool], found: Picture | np.ndarray) -> None:
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


# A batch to fill, from where, with which (row, view), and whether that is its last part.
_Task = tuple[np.ndarray, int, list[tuple[int, int]], bool]


def check_images(
    dataset: Dataset,
    *,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
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
        def decode(data: bytes) -> np.ndarray:
            return np.array(decode_image(data, max_pixels=max_pixels).size)

        return read_image(dataset.image(row), decode, lambda digest: False)[0]

    readings = []
    progress(READING, 0, len(dataset))
    for reading in map_ahead(check, range(len(dataset)), count_threads(workers)):
        readings.append(reading)
        progress(READING, len(readings), len(dataset))
    return (
        tuple(r.error for r in readings),
        tuple(r.sha256.hex() if r.sha256 is not None else "" for r in readings),
    )
