"""Remembers the SHA-256 of files by path, size and times, so that a warm run reads none."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from headstart.files import write_atomically

__all__ = ["FileMemory"]

# A file changed within this time before it was hashed may be changed again without its time of
# modification moving: two seconds is the coarsest clock of the file systems in use (FAT).
CLOCK_RESOLUTION_NS = 2_000_000_000


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
