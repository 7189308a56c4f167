"""Rows of numbers on disk, keyed by what they were computed from: the feature store.

Place in the flow: after `images`; `features` reads and writes rows through here alone, and nothing
here knows what the numbers mean.

A store is a folder of immutable shards. Its name is the hash of a key, a JSON object of everything that
changes a number (network, pre-processing, decoder, engine, precision, versions). A row is named by 32
bytes, the SHA-256 of the image's bytes (and of the view, where there are several). A shard is a
safetensors file; its manifest entry, a small JSON file with the shard's length and checksum, is written
last and commits it. Every file is written under another name, synced and renamed, then its folder is
synced (Pillai et al., All File Systems Are Not Created Equal, OSDI 2014, shows why each step is needed).
Names of shards come from their content, so writers need no locks: the worst that two at once can do
is to write the same rows twice.
"""

import collections
import contextlib
import dataclasses
import errno
import hashlib
import json
import mmap
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from headstart.errors import InputError, ResourceError, printable

__all__ = [
    "FileMemory",
    "Store",
    "StoreInfo",
    "default_cache_dir",
    "list_stores",
    "prune",
    "verify",
    "write_atomically",
]

FORMAT = 1
KEY_FILE = "key.json"

# Names of tensors that are not columns.
NAMES, ERRORS = "row_names", "row_errors"

# A store's folder is named by half a SHA-256.
STORE_NAME = re.compile(r"[0-9a-f]{32}")

DTYPES = {"F32": np.float32, "F16": np.float16, "U16": np.uint16}

# Shards kept mapped at once: each holds a file handle, of which a process may have as few as 256.
MAX_MAPPED = 32

# A file changed within this time before it was hashed may be changed again without its time of
# modification moving: two seconds is the coarsest clock of the file systems in use (FAT).
CLOCK_RESOLUTION_NS = 2_000_000_000

# Remains of writers that died; younger ones may belong to a writer at work.
ABANDONED_AFTER_S = 24 * 3600


def default_cache_dir() -> Path:
    """HEADSTART_CACHE_DIR, else the system's folder for caches."""
    given = os.environ.get("HEADSTART_CACHE_DIR")
    if given:
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("headstart", appauthor=False))


# ---------------------------------------------------------------- writing


def _fail_point(name: str) -> None:
    """For the tests: HEADSTART_FAIL_AT=NAME kills the process here, NAME:enospc fills the disk."""
    given = os.environ.get("HEADSTART_FAIL_AT", "")
    if given == name:
        os.kill(os.getpid(), signal.SIGKILL)
    if given == f"{name}:enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_atomically(path: Path, data: bytes, *, fail_point: str = "file") -> None:
    """Write a file so that after a crash it has its old content or its new one, never a part.

    Raises:
        OSError: the file could not be written, or not be made durable; the old one is untouched.
    """
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.{time.monotonic_ns()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            _fail_point(f"{fail_point}-written")
            os.fsync(file.fileno())
        _fail_point(f"{fail_point}-synced")
        os.replace(temporary, path)
        _fail_point(f"{fail_point}-renamed")
        _sync_folder(path.parent)
        _fail_point(f"{fail_point}-done")
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows, where a folder has no handle to sync
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """The system's errors as one line that says what to do."""
    try:
        yield
    except ResourceError:
        raise
    except OSError as exc:
        raise ResourceError(
            f"{folder}: {exc.strerror or exc}; free space, or name another place with --cache-dir"
        ) from exc


# ---------------------------------------------------------------- the store


class Store:
    """The rows of one key.

    Attributes:
        folder: where they are.
        problems: one line for each shard that was found damaged and moved away.
    """

    def __init__(self, folder: Path) -> None:
        """Read the names of all rows below a folder that exists.

        Every shard's checksum is verified; a damaged one is moved to the folder `quarantine`, so its
        rows are missing and will be computed again.
        """
        self.folder = folder
        self.problems: list[str] = []
        self._shards: list[Path] = []
        self._headers: dict[int, tuple[dict[str, Any], int]] = {}
        self._mapped: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()  # of these two; batches are read ahead in threads
        self._places: dict[bytes, tuple[int, int]] = {}
        self._errors: dict[bytes, str] = {}
        for entry in sorted(folder.glob("*.json")):
            if entry.name != KEY_FILE:
                self._open(entry)

    @classmethod
    def open(cls, cache_dir: Path, key: Mapping[str, Any]) -> "Store":
        """The store of a key, made if there is none.

        Raises:
            ResourceError: the folder cannot be made or read.
        """
        text = json.dumps(key, sort_keys=True)
        folder = cache_dir / "features" / hashlib.sha256(text.encode()).hexdigest()[:32]
        with _translated(cache_dir):
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / KEY_FILE).exists():
                os.utime(folder / KEY_FILE)  # last used, for pruning
            else:
                write_atomically(folder / KEY_FILE, (json.dumps(key, indent=2) + "\n").encode())
            return cls(folder)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: bytes) -> bool:
        return name in self._places

    def error(self, name: bytes) -> str:
        """Why the image of this row could not be read, or ""."""
        return self._errors.get(name, "")

    def add(
        self, names: Sequence[bytes], columns: Mapping[str, np.ndarray], errors: Sequence[str]
    ) -> None:
        """Commit rows as one shard; after this returns they are never lost.

        Args:
            names: n names of 32 bytes.
            columns: {name: array (n, …)}; rows with an error hold anything.
            errors: n reasons, "" for a good row.

        Raises:
            ResourceError: the disk is full, or the folder cannot be written.
        """
        tensors = {c: np.ascontiguousarray(a) for c, a in columns.items()}
        tensors[NAMES] = np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 32)
        reasons = json.dumps({i: e for i, e in enumerate(errors) if e}).encode()
        tensors[ERRORS] = np.frombuffer(reasons, dtype=np.uint8)
        data = save(tensors)
        checksum = xxhash.xxh3_128_hexdigest(data)
        shard = self.folder / f"{checksum}.safetensors"
        entry = {
            "format": FORMAT,
            "store": self.folder.name,
            "rows": len(names),
            "bytes": len(data),
            "xxh3_128": checksum,
        }
        with _translated(self.folder):
            write_atomically(shard, data, fail_point="shard")
            write_atomically(
                shard.with_suffix(".json"), json.dumps(entry).encode(), fail_point="manifest"
            )
        self._index(shard, names, errors)

    def read(self, column: str, names: Sequence[bytes]) -> np.ndarray:
        """One column of these rows, (n, …), in this order; every name must be in the store."""
        wanted: dict[int, list[tuple[int, int]]] = {}
        for target, name in enumerate(names):
            shard, row = self._places[name]
            wanted.setdefault(shard, []).append((target, row))
        result: np.ndarray | None = None
        for shard, pairs in wanted.items():
            targets, rows = (np.array(v) for v in zip(*pairs, strict=True))
            values = self._column(shard, column)
            if values is None:  # a shard of unreadable images alone
                continue
            if result is None:
                result = np.zeros((len(names), *values.shape[1:]), dtype=values.dtype)
            result[targets] = values[rows]
        return result if result is not None else np.zeros((len(names), 0), dtype=np.float32)

    def _column(self, shard: int, column: str) -> np.ndarray | None:
        """A column of a shard, mapped into memory: only the rows that are touched are read.

        Raises:
            ResourceError: another process has removed the shard since this store was opened.
        """
        with self._lock:
            if shard not in self._mapped:
                path = self._shards[shard]
                try:
                    if shard not in self._headers:
                        self._headers[shard] = _read_header(path)
                    with open(path, "rb") as file:  # half the time of np.memmap
                        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except OSError as exc:
                    raise ResourceError(
                        f"{path}: {exc.strerror or exc}; the features were removed in the "
                        "meantime, run the command again"
                    ) from exc
                self._mapped[shard] = np.frombuffer(whole, dtype=np.uint8)
                if len(self._mapped) > MAX_MAPPED:
                    self._mapped.popitem(last=False)
            self._mapped.move_to_end(shard)
            (tensors, start), data = self._headers[shard], self._mapped[shard]
        if column not in tensors:
            return None
        facts = tensors[column]
        first, last = facts["data_offsets"]
        values: np.ndarray = data[start + first : start + last].view(DTYPES[facts["dtype"]])
        return values.reshape(facts["shape"])

    def _open(self, entry: Path) -> None:
        shard = entry.with_suffix(".safetensors")
        try:
            facts = json.loads(entry.read_bytes())
            size = shard.stat().st_size
            if size != facts["bytes"]:
                raise ValueError(f"{size} bytes instead of {facts['bytes']}")
            if size == 0 or _checksum(shard) != facts["xxh3_128"]:
                raise ValueError("the checksum does not match")
            with safe_open(shard, framework="numpy") as file:
                names = file.get_tensor(NAMES)
                reasons = json.loads(file.get_tensor(ERRORS).tobytes())
            if not isinstance(reasons, dict):
                raise ValueError("its reasons are not an object")
            if names.shape != (facts["rows"], 32) or entry.stem != facts["xxh3_128"]:
                raise ValueError("the manifest entry is not this shard's")
            if facts["format"] != FORMAT or facts["store"] != self.folder.name:
                raise ValueError("of another format or another store")
            for column, tensor in _read_header(shard)[0].items():
                known = column in (NAMES, ERRORS, "__metadata__")
                if not known and (
                    tensor["dtype"] not in DTYPES or tensor["shape"][0] != facts["rows"]
                ):
                    raise ValueError(f"column {column} has the wrong type or length")
        except (
            OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError,
        ) as exc:  # fmt: skip
            if not entry.exists():  # pruned by another process in the meantime
                return
            # Out of handles, memory or permission says nothing about the shard.
            if isinstance(exc, OSError) and exc.errno not in (None, errno.ENOENT, errno.EIO):
                raise
            self._quarantine(entry, shard, exc)
            return
        raw = names.tobytes()
        ids = [raw[i : i + 32] for i in range(0, len(raw), 32)]
        self._index(shard, ids, [reasons.get(str(i), "") for i in range(len(ids))])

    def _index(self, path: Path, names: Sequence[bytes], errors: Sequence[str]) -> None:
        number = len(self._shards)
        self._shards.append(path)
        for row, (name, error) in enumerate(zip(names, errors, strict=True)):
            if name not in self._places:
                self._places[name] = (number, row)
                if error:
                    self._errors[name] = error

    def _quarantine(self, entry: Path, shard: Path, reason: Exception) -> None:
        place = self.folder.parent.parent / "quarantine"
        place.mkdir(parents=True, exist_ok=True)
        for path in (shard, entry):
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, place / f"{self.folder.name}-{path.name}")
        self.problems.append(
            f"damaged shard {shard.name} moved to {place} ({printable(str(reason))}); "
            "its images are computed again"
        )


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors of a safetensors file and where their bytes start; the library has no such call
    that leaves the bytes on disk."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def _checksum(path: Path) -> str:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return xxhash.xxh3_128_hexdigest(data)


# ---------------------------------------------------------------- hashes of files


class FileMemory:
    """Remembers the SHA-256 of files by path, size and times, so that a warm run reads none.

    A file that was modified within the clock's resolution before it was hashed is not remembered, as
    in git's index: it might change again and look the same.
    """

    def __init__(self, cache_dir: Path, root: Path) -> None:
        where = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
        self._path = cache_dir / "files" / f"{where}.json"
        self._entries: dict[str, list[Any]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, RecursionError):
            entries = json.loads(self._path.read_bytes())
            if isinstance(entries, dict):
                self._entries = entries

    def find(self, image_id: str, path: Path) -> bytes | None:
        """The hash of a file's bytes when it is known and the file looks the same."""
        entry = self._entries.get(image_id)
        if entry is None:
            return None
        try:
            info = os.stat(path)
            if entry[:3] == [info.st_size, info.st_mtime_ns, info.st_ctime_ns]:
                return bytes.fromhex(entry[3])
        except (OSError, ValueError, TypeError, LookupError):
            pass
        return None

    def remember(self, image_id: str, info: os.stat_result, read_at_ns: int, digest: bytes) -> None:
        """Keep a hash; `info` is the file's state and `read_at_ns` the time when it was opened."""
        if max(info.st_mtime_ns, info.st_ctime_ns) + CLOCK_RESOLUTION_NS <= read_at_ns:
            times = [info.st_size, info.st_mtime_ns, info.st_ctime_ns]
            self._entries[image_id] = [*times, digest.hex()]
            self._changed = True
        elif self._entries.pop(image_id, None) is not None:  # never keep what is known to be old
            self._changed = True

    def save(self) -> None:
        """Write what is remembered; failing to is no loss but of time."""
        if not self._changed:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._entries).encode())
            self._changed = False


# ---------------------------------------------------------------- care of the whole cache


@dataclasses.dataclass(frozen=True)
class StoreInfo:
    """What one store holds.

    Attributes:
        name: the folder's name.
        key: what the numbers depend on.
        rows: images (or views of images).
        size_bytes: on disk.
        used_s: when it was last opened, seconds since the epoch.
    """

    name: str
    key: dict[str, Any]
    rows: int
    size_bytes: int
    used_s: float


def list_stores(cache_dir: Path) -> list[StoreInfo]:
    """Every store below a cache folder, the last used first."""
    found = []
    for folder in (cache_dir / "features").glob("*"):
        if not STORE_NAME.fullmatch(folder.name):  # not ours
            continue
        try:
            key = json.loads((folder / KEY_FILE).read_bytes())
            used = (folder / KEY_FILE).stat().st_mtime
        except (OSError, ValueError, RecursionError):
            key, used = {}, 0.0
        key = key if isinstance(key, dict) else {}
        rows = size = 0
        for path in folder.glob("*"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                info = path.stat()
                size += info.st_size
                used = max(used, info.st_mtime)  # a writer may be at work for days
                if path.suffix == ".json" and path.name != KEY_FILE:
                    rows += int(json.loads(path.read_bytes())["rows"])
        found.append(StoreInfo(folder.name, key, rows, size, used))
    return sorted(found, key=lambda s: -s.used_s)


def verify(cache_dir: Path) -> tuple[int, list[str]]:
    """Check every shard's checksum; damaged ones are moved to quarantine.

    Returns:
        How many rows are sound, and one line for each damaged shard.

    Raises:
        ResourceError: a damaged shard cannot be moved.
    """
    rows, problems = 0, []
    with _translated(cache_dir):
        for info in list_stores(cache_dir):
            store = Store(cache_dir / "features" / info.name)
            rows += len(store)
            problems += store.problems
    return rows, problems


def prune(
    cache_dir: Path,
    *,
    unused_days: float | None = None,
    max_bytes: int | None = None,
    backbone: str | None = None,
) -> tuple[int, int]:
    """Remove stores, the least recently used first, and the remains of writers that died.

    Args:
        unused_days: remove what was not used for this many days.
        max_bytes: remove until the rest is no larger.
        backbone: remove only stores of this network; alone, remove all of them.

    Returns:
        (stores removed, bytes freed).

    Raises:
        InputError: no store of this backbone.
    """
    stores = list_stores(cache_dir)
    total = sum(s.size_bytes for s in stores)
    if backbone is not None:
        stores = [s for s in stores if s.key.get("backbone") == backbone]
        if not stores:
            raise InputError(f"{cache_dir}: holds no features of '{backbone}'")
    removed = freed = 0
    everything = backbone is not None and unused_days is None and max_bytes is None
    for info in sorted(stores, key=lambda s: s.used_s):
        old = unused_days is not None and info.used_s < time.time() - unused_days * 86400
        large = max_bytes is not None and total > max_bytes
        if everything or old or large:
            # Renamed first, so that a reader finds a store whole or not at all.
            gone = cache_dir / f".removed.{info.name}.{os.getpid()}"
            with _translated(cache_dir):
                os.replace(cache_dir / "features" / info.name, gone)
            shutil.rmtree(gone, ignore_errors=True)
            removed, freed, total = removed + 1, freed + info.size_bytes, total - info.size_bytes
    for path in _abandoned(cache_dir):
        with contextlib.suppress(OSError):
            freed += path.stat().st_size
            path.unlink()
    return removed, freed


def _abandoned(cache_dir: Path) -> Iterable[Path]:
    """Partial files, shards without manifest entry, and what is in quarantine, older than a day."""
    before = time.time() - ABANDONED_AFTER_S
    patterns = (
        "features/*/.*.partial",
        "files/.*.partial",
        "backbones/.*.partial",
        "backbones/*/.*.partial",
        "backbones/*/.openvino-*",
        ".removed.*/*",
        "features/*/*.safetensors",
        "quarantine/*",
    )
    for pattern in patterns:
        for path in cache_dir.glob(pattern):
            if pattern.startswith("features") and not STORE_NAME.fullmatch(path.parent.name):
                continue  # not ours
            committed = path.parent.parent.name == "features" and (
                path.suffix == ".safetensors" and path.with_suffix(".json").exists()
            )
            with contextlib.suppress(OSError):
                if not committed and path.stat().st_mtime < before:
                    yield path
