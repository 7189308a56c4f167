"""Takes the cache folder, lists what it holds, verifies it, and removes from it."""

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
# A network's folder is named by a whole one, its fingerprint.
NETWORK_NAME = re.compile(r"[0-9a-f]{64}")

# Unfinished files of killed writers; younger ones may belong to a writer at work.
ABANDONED_AFTER_S = 24 * 3600


@dataclasses.dataclass(frozen=True)
class StoreInfo:
    """The contents of one store, or of one network's folder.

    Attributes:
        name: the folder's or file's name.
        key: everything that the numbers depend on; for a network its name as "backbone".
        rows: images (or views of images); 0 for a network.
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
    """List every store below a cache folder, the last used first."""
    stores = []
    for folder in (cache_dir / "features").glob("*"):
        if not STORE_NAME.fullmatch(folder.name):  # not ours
            continue
        info = _inspect(folder, _read_object(folder / KEY_FILE))
        rows = 0
        for path in folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                rows += 0 if path.name == KEY_FILE else int(_read_object(path)["rows"])
        stores.append(dataclasses.replace(info, rows=rows))
    return sorted(stores, key=lambda s: -s.used_s)


def list_networks(cache_dir: Path) -> list[StoreInfo]:
    """List the folders of networks (card, weights, converted form) and the files that OpenVINO compiled, the
    last used first."""
    networks = []
    for folder in (cache_dir / "backbones").glob("*"):
        if NETWORK_NAME.fullmatch(folder.name):
            card = _read_object(folder / "card.json")
            networks.append(_inspect(folder, {"backbone": card.get("name", "unknown")}))
    for blob in (cache_dir / "openvino").glob("*.blob"):
        networks.append(_inspect(blob, {"backbone": "compiled"}))
    return sorted(networks, key=lambda s: -s.used_s)


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
        The number of sound rows, and one line for each damaged shard.

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
    """Remove stores and cached networks, the least recently used first, unfinished files of killed
    writers, and the records of engines that refused a network.

    Args:
        unused_days: remove those not used for this many days.
        max_bytes: remove until the rest is no larger than this.
        backbone: remove only those of this network; without another condition, all of them.

    Returns:
        (stores and networks removed, bytes freed).

    Raises:
        InputError: the cache has nothing of this backbone.
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
            removed_path = cache_dir / f".removed.{info.name}.{os.getpid()}"
            with translate_errors(cache_dir):
                try:
                    os.replace(info.path, removed_path)
                except FileNotFoundError:  # another process has removed it meanwhile
                    continue
            if removed_path.is_dir():
                shutil.rmtree(removed_path, ignore_errors=True)
            else:
                removed_path.unlink(missing_ok=True)
            removed, freed, total = removed + 1, freed + info.size_bytes, total - info.size_bytes
    for path in cache_dir.glob("backbones/*/*.refused"):  # an engine may take the network after all
        path.unlink(missing_ok=True)
    for path in _abandoned(cache_dir):
        with contextlib.suppress(OSError):
            if path.is_dir():
                size = sum(file.stat().st_size for file in path.iterdir())
                shutil.rmtree(path)
            else:
                size = path.stat().st_size
                path.unlink()
            freed += size
    return removed, freed


def _abandoned(cache_dir: Path) -> Iterable[Path]:
    """Find partial files, shards without a manifest entry, and quarantined files, older than a day."""
    before = time.time() - ABANDONED_AFTER_S
    patterns = (
        "features/*/.*.partial",
        "files/.*.partial",
        "backbones/.*.partial",
        "backbones/*/.*.partial",
        "backbones/*/.openvino-*",
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
