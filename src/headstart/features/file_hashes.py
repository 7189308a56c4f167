"""Remembers the SHA-256 of files by path, size and times, so that a later run need not read them."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from headstart.data.images import ImageRef, Stamp
from headstart.files import write_quietly

__all__ = ["FileMemory"]

# A file that was modified within this time before it was hashed may change again without a new time of
# modification: two seconds is the coarsest clock of the file systems in use (FAT).
CLOCK_RESOLUTION_NS = 2_000_000_000


class FileMemory:
    """The SHA-256 of files by path, size and times, so that a later run need not read them.

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

    def find(self, image: ImageRef) -> bytes | None:
        """Find the hash of an image's bytes, if it is known and the source looks unchanged."""
        entry = self._entries.get(image.id)
        if entry is None or (stamp := image.stamp()) is None:
            return None
        try:
            if entry[:3] == list(stamp):
                return bytes.fromhex(entry[3])
        except (ValueError, TypeError, LookupError):
            pass
        return None

    def remember(self, image_id: str, stamp: Stamp, read_at_ns: int, digest: bytes) -> None:
        """Remember a hash; `stamp` is the source's state and `read_at_ns` the time when it was opened."""
        if max(stamp.modified_ns, stamp.changed_ns) + CLOCK_RESOLUTION_NS <= read_at_ns:
            self._entries[image_id] = [*stamp, digest.hex()]
            self._changed = True
        elif (
            self._entries.pop(image_id, None) is not None
        ):  # never keep a hash that is known to be old
            self._changed = True

    def save(self) -> None:
        """Write the hashes; a failure costs only time."""
        if self._changed:
            self._changed = not write_quietly(self._path, json.dumps(self._entries).encode())
