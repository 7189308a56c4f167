"""Rows of numbers on disk, keyed by what they were computed from: the feature store.

All features are read and written through here, and nothing here knows what the numbers mean.

A store is a folder of immutable shards. Its name is the hash of a key, a JSON object of everything that
changes a number (network, pre-processing, decoder, engine, precision, versions). A row is named by 32
bytes, the SHA-256 of the image's bytes (and of the view, where there are several). A shard is a
safetensors file; its manifest entry, a small JSON file with the shard's length and checksum, is written
last and commits it. Every file is written under another name, synced and renamed, then its folder is
synced (Pillai et al., All File Systems Are Not Created Equal, OSDI 2014, shows why each step is needed).
Names of shards come from their content, so writers need no locks: at worst,
two at once write the same rows twice.
"""

import collections
import contextlib
import errno
import hashlib
import json
import mmap
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from headstart.errors import ResourceError, printable
from headstart.files import to_json_bytes, translate_errors, write_atomically

__all__ = ["KEY_FILE", "Store"]

FORMAT = 1
KEY_FILE = "key.json"

# Names of tensors that are not columns.
NAMES, ERRORS = "row_names", "row_errors"

DTYPES = {"F32": np.float32, "F16": np.float16, "U16": np.uint16}

# Shards kept mapped at once: each holds a file handle, of which a process may have as few as 256.
MAX_MAPPED = 32
OUT_OF_HANDLES = (errno.EMFILE, errno.ENFILE)


class Store:
    """The rows of one key.

    Attributes:
        folder: of its shards.
        problems: one line for each damaged shard that was moved away.
    """

    def __init__(self, folder: Path) -> None:
        """Read the names of all rows in an existing folder.

        Every shard's checksum is verified; a damaged one is moved to the folder `quarantine`, so
        its rows are missing and will be computed again.
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
        """Open the store of a key; make it if there is none.

        Raises:
            ResourceError: the folder cannot be made or read.
        """
        text = json.dumps(key, sort_keys=True)
        folder = cache_dir / "features" / hashlib.sha256(text.encode()).hexdigest()[:32]
        with translate_errors(cache_dir):
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / KEY_FILE).exists():
                os.utime(folder / KEY_FILE)  # last used, for pruning
            else:
                write_atomically(folder / KEY_FILE, to_json_bytes(key))
            return cls(folder)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: bytes) -> bool:
        return name in self._places

    def error(self, name: bytes) -> str:
        """Say why the image of this row could not be read, or ""."""
        return self._errors.get(name, "")

    def add(
        self, names: Sequence[bytes], columns: Mapping[str, np.ndarray], errors: Sequence[str]
    ) -> None:
        """Commit rows as one shard; once this returns, they are safely on disk.

        Args:
            names: n names of 32 bytes.
            columns: {name: array (n, …)}; the values of a row with an error do not matter.
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
        with translate_errors(self.folder):
            write_atomically(shard, data, kind="shard")
            write_atomically(
                shard.with_suffix(".json"), json.dumps(entry).encode(), kind="manifest"
            )
        self._index(shard, names, errors)

    def read(self, column: str, names: Sequence[bytes]) -> np.ndarray:
        """Read one column of these rows, (n, …), in this order; every name must be in the store."""
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
        """Map a column of a shard into memory: only the rows that are touched are read.

        Raises:
            ResourceError: another process has removed the shard since this store was opened, or no
                file can be opened.
        """
        with self._lock:
            if shard not in self._mapped:
                try:
                    self._map(shard)
                except OSError as exc:
                    if exc.errno not in OUT_OF_HANDLES:
                        raise ResourceError(
                            f"{self._shards[shard]}: {exc.strerror or exc}; the features were "
                            "removed in the meantime, run the command again"
                        ) from exc
                    self._mapped.clear()  # each holds a handle; the limit may be as low as 32
                    with translate_errors(self.folder):
                        self._map(shard)
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

    def _map(self, shard: int) -> None:
        path = self._shards[shard]
        if shard not in self._headers:
            self._headers[shard] = _read_header(path)
        with open(path, "rb") as file:  # half the time of np.memmap
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._mapped[shard] = np.frombuffer(whole, dtype=np.uint8)

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
            # A lack of handles, memory or permission says nothing about the shard.
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
    """Read the tensors' table of a safetensors file and where their bytes start; the library has no call
    that leaves the bytes on disk."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def _checksum(path: Path) -> str:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return xxhash.xxh3_128_hexdigest(data)
