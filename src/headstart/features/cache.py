"""Care of the whole cache: what it holds, whether it is sound, and what to remove."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headstart.errors import InputError
from headstart.features.store import KEY_FILE, Store
from headstart.files import translate_errors

__all__ = ["StoreInfo", "list_networks", "list_stores", "prune", "verify"]

# A store's folder is named by half a SHA-256.
STORE_NAME = re.compile(r"[0-9a-f]{32}")
# That of what is kept of a network by a whole one, its fingerprint.
NETWORK_NAME = re.compile(r"[0-9a-f]{64}")

# Remains of writers that died; younger ones may belong to a writer at work.
ABANDONED_AFTER_S = 24 * 3600


@dataclasses.dataclass(frozen=True)
class StoreInfo:
    """What one store holds, or what is kept of one network.

    Attributes:
        name: the folder's or file's name.
        key: what the numbers depend on; of a network its name as "backbone".
        rows: images (or views of images); 0 of a network.
        size_bytes: on disk.
        used_s: when it was last opened, seconds since the epoch.
        path: of the folder or file.
    """

    name: str
    key: dict[str, Any]
    rows: int
    size_bytes: int
    used_s: float
    path: Path


def list_stores(cache_dir: Path) -> list[StoreInfo]:
    """Every store below a cache folder, the last used first."""
    found = []
    for folder in (cache_dir / "features").glob("*"):
        if not STORE_NAME.fullmatch(folder.name):  # not ours
            continue
        info = _inspect(folder, _read_object(folder / KEY_FILE))
        rows = 0
        for path in folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                rows += 0 if path.name == KEY_FILE else int(_read_object(path)["rows"])
        found.append(dataclasses.replace(info, rows=rows))
    return sorted(found, key=lambda s: -s.used_s)


def list_networks(cache_dir: Path) -> list[StoreInfo]:
    """What is kept of every network (its card, weights and converted form), and what OpenVINO compiled,
    the last used first."""
    found = []
    for folder in (cache_dir / "backbones").glob("*"):
        if NETWORK_NAME.fullmatch(folder.name):
            card = _read_object(folder / "card.json")
            found.append(_inspect(folder, {"backbone": card.get("name", "unknown")}))
    for blob in (cache_dir / "openvino").glob("*.blob"):
        found.append(_inspect(blob, {"backbone": "compiled"}))
    return sorted(found, key=lambda s: -s.used_s)


def _inspect(path: Path, key: dict[str, Any]) -> StoreInfo:
    size, used = 0, 0.0
    for file in [path, *path.glob("*")] if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            info = file.stat()
            if file.is_file():
                size += info.st_size
                # A writer may be at work for days; a compiled network is only ever read.
                used = max(used, info.st_mtime, info.st_atime if file is path else 0.0)
    return StoreInfo(path.name, key, 0, size, used, path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def verify(cache_dir: Path) -> tuple[int, list[str]]:
    """Check every shard's checksum; damaged ones are moved to quarantine.

    Returns:
        How many rows are sound, and one line for each damaged shard.

    Raises:
        ResourceError: a damaged shard cannot be moved.
    """
    rows, problems = 0, []
    with translate_errors(cache_dir):
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
    """Remove stores and what is kept of networks, the least recently used first, the remains of writers
    that died, and the memory of which engine refused which network.

    Args:
        unused_days: remove what was not used for this many days.
        max_bytes: remove until the rest is no larger.
        backbone: remove only what is of this network; alone, remove all of it.

    Returns:
        (stores and networks removed, bytes freed).

    Raises:
        InputError: nothing of this backbone.
    """
    stores = [*list_stores(cache_dir), *list_networks(cache_dir)]
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
            with translate_errors(cache_dir):
                os.replace(info.path, gone)
            if gone.is_dir():
                shutil.rmtree(gone, ignore_errors=True)
            else:
                gone.unlink(missing_ok=True)
            removed, freed, total = removed + 1, freed + info.size_bytes, total - info.size_bytes
    for path in cache_dir.glob("backbones/*/*.refused"):  # an engine may take the network after all
        path.unlink(missing_ok=True)
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
        ".removed.*",
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
