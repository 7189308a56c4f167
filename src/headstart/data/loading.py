"""Takes what the user names, a folder or a manifest, gives a checked `Dataset`."""

import dataclasses
import os
import stat
import unicodedata
from collections import Counter
from pathlib import Path

from headstart.data.dataset import Dataset
from headstart.data.folders import ARCHIVE_SUFFIXES, load_folder
from headstart.data.groups import capture_groups
from headstart.data.manifests import MANIFEST_READERS, load_manifest
from headstart.errors import InputError, UsageError

__all__ = ["load_dataset"]

# Characters that show nothing, beside those of the category Cf: fillers, joiners, variation selectors.
UNSEEN = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0") | frozenset(
    map(chr, range(0xFE00, 0xFE10))
)


def load_dataset(
    source: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    group: str | None = None,
    allow_outside: bool = False,
) -> Dataset:
    """Read a folder with a sub-folder a class, or a CSV, TSV or JSONL manifest.

    Args:
        source: a folder (class folders, or train / val / test folders with class folders in them),
            or a manifest with columns path, label and optionally split and group.
        root: the folder that a manifest's paths are relative to; the manifest's own by default.
        group: a regular expression searched in each image id; images with the same captured text
            stay on one side of every split. `([^/]+/[^/]+)_[^/]*$` keeps `stop/00001_*.ppm` together.
        allow_outside: let links and manifest paths lead out of the root.

    Raises:
        InputError: nothing usable there; the message names the element and the next step.
        UsageError: `group` is no regular expression with a capture, takes too long to search, or
            leaves nothing to split; or an argument has no effect.
    """
    path = Path(source)
    try:
        if not os.fspath(source):
            raise InputError("the data are an empty name; name a folder or a manifest")
        mode = path.stat().st_mode
    except (OSError, ValueError) as exc:
        if isinstance(exc, InputError):
            raise
        reason = "no such file or folder" if not isinstance(exc, PermissionError) else "no access"
        raise InputError(f"{path}: {reason}") from exc
    if stat.S_ISDIR(mode):
        if root is not None:
            raise UsageError("root applies to a manifest, and the data are a folder; leave it out")
        dataset = load_folder(path, allow_outside)
    elif path.suffix.lower() in MANIFEST_READERS and stat.S_ISREG(mode):
        dataset = load_manifest(path, Path(root) if root is not None else None, allow_outside)
    else:
        if path.suffix.lower() in ARCHIVE_SUFFIXES:
            raise InputError(f"{path}: an archive is not read; unpack it and give the folder")
        raise InputError(
            f"{path}: expected a folder of class folders or a .csv, .tsv or .jsonl manifest"
        )
    if group is not None:
        dataset = _with_groups(dataset, group)
    return _checked(dataset)


def _with_groups(dataset: Dataset, pattern: str) -> Dataset:
    if any(dataset.groups):
        raise UsageError("the manifest has a column group already; leave --group out")
    groups = capture_groups(pattern, dataset.ids)
    named = sum(map(bool, groups))
    if len(set(groups)) == 1 and len(groups) > 1:
        raise UsageError(
            f"group '{pattern}' puts all {len(groups)} images into one group, '{groups[0]}', so none "
            "could be held out; capture what differs between films, patients or objects"
        )
    grouped = dataclasses.replace(dataset, groups=groups)
    images = Counter(y for y in dataset.labels.tolist() if y >= 0)
    if images and max(images.values()) > 1 and len(_undivided(grouped)) == len(images):
        raise UsageError(
            f"group '{pattern}' puts all images of a class into one group, in every class, so none "
            "could be on both sides of a split; capture a part of the file's name too, such as "
            "'([^/]+/[^/]+)_[^/]*$'"
        )
    if named < len(groups):
        more = f"group pattern matches {named} of {len(groups)} images"
        grouped = dataclasses.replace(grouped, warnings=(*grouped.warnings, more))
    return grouped


def _undivided(dataset: Dataset) -> list[int]:
    """Classes whose images to train on are one group; a class of one image counts as well."""
    found: dict[int, set[str]] = {}
    columns = (dataset.units(), dataset.labels.tolist(), dataset.splits)
    for unit, label, split in zip(*columns, strict=True):
        if label >= 0 and split in ("", "train"):
            found.setdefault(label, set()).add(unit)
    return sorted(label for label, units in found.items() if len(units) == 1)


def _as_seen(name: str) -> str:
    """A name without what the eye does not see, and with every kind of space the same."""
    seen = (c for c in name if c not in UNSEEN and unicodedata.category(c) != "Cf")
    return " ".join("".join(seen).split())


def _checked(dataset: Dataset) -> Dataset:
    """Add the warnings that need the whole data set."""
    warnings = list(dataset.warnings)
    folded = Counter(c.casefold() for c in dataset.classes)
    for name in [c for c in dataset.classes if folded[c.casefold()] > 1][:4]:
        warnings.append(f"class '{name}' differs from another only in upper and lower case")
    seen = Counter(_as_seen(c).casefold() for c in folded)
    for name in [c for c in dataset.classes if seen[_as_seen(c).casefold()] > 1][:4]:
        if folded[name.casefold()] == 1:
            warnings.append(
                f"class {name!a} differs from another only in characters that cannot "
                "be seen, or in spaces; rename one"
            )
    if "val" not in dataset.splits:
        images = Counter(dataset.labels.tolist())
        whole = [label for label in _undivided(dataset) if images[label] > 1]
        if whole:
            more = f", nor of {len(whole) - 1} more classes" if len(whole) > 1 else ""
            warnings.append(
                f"all images of class '{dataset.classes[whole[0]]}' are one group, so none of it{more} "
                "can be held out"
            )
    where: dict[str, set[str]] = {}
    for group, split in zip(dataset.groups, dataset.splits, strict=True):
        if group and split:
            where.setdefault(group, set()).add(split)
    spread = sorted(g for g, s in where.items() if len(s) > 1)
    if spread:
        warnings.append(
            f"{len(spread)} groups have images in more than one split, so figures will flatter "
            f"(first: '{spread[0]}')"
        )
    return dataclasses.replace(dataset, warnings=tuple(warnings))
