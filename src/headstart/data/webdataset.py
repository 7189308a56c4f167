"""Takes WebDataset shards, gives a `Dataset`: KEY.jpg is an image, and KEY.cls, .json or .txt says its class.

The format is that of https://github.com/webdataset/webdataset: members whose names are the same up to the
first dot are a sample. They are read in place, as in any archive.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from headstart.data.dataset import SPLIT_NAMES, Dataset, Row, clean_name, dataset_of_rows
from headstart.data.form import Form, LoadOptions
from headstart.data.images import MappedReader, Source
from headstart.data.members import (
    Member,
    common_folder,
    find_kind,
    first_names,
    list_archives,
    list_members,
    stem_of,
)
from headstart.data.paths import IMAGE_SUFFIXES
from headstart.data.rows import find_label
from headstart.errors import BadImageError, InputError

__all__ = ["WEBDATASET"]

IMAGES = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
LABELS = ("cls", "json", "txt")  # the first that a sample has

MAX_LABEL_BYTES = 2**16
MAX_LABEL = 200  # characters; a caption is no class
PEEKED = 64  # members, by which a tar is recognised


def _split_name(name: str) -> tuple[str, str]:
    """(key, extension in lower case) of a member: "a/1" and "left.jpg" of a/1.left.jpg."""
    folder, slash, own = name.rpartition("/")
    key, _, extension = own.partition(".")
    return folder + slash + key, extension.lower()


def _is_shard(path: Path) -> bool:
    """Whether the first members of a tar are samples.

    Beside images in class folders there may lie texts of the same name that are no labels.
    """
    if not find_kind(path).startswith("tar"):
        return False
    kinds: dict[str, set[str]] = {}
    try:
        for name in first_names(path, PEEKED):
            key, extension = _split_name(name)
            kinds.setdefault(key, set()).add(extension)
    except InputError:  # which is told when it is read
        pass
    return any(
        any(map(_is_image, found)) and ("cls" in found or ("/" not in key and found & {*LABELS}))
        for key, found in kinds.items()
    )


def _is_image(extension: str) -> bool:
    return extension.rpartition(".")[2] in IMAGES


def _recognises(path: Path) -> bool:
    if path.is_dir():
        shards = list_archives(path)
        return bool(shards) and _is_shard(shards[0])
    return path.is_file() and _is_shard(path)


def _load(path: Path, options: LoadOptions) -> Dataset:
    if path.is_dir():
        return _read(path, tuple(list_archives(path)))
    return _read(path, (path,))


def _load_several(paths: tuple[Path, ...], options: LoadOptions) -> Dataset:
    return _read(common_folder(paths), paths)


def _read(root: Path, shards: tuple[Path, ...]) -> Dataset:
    """The images of shards; where there are several, an id begins with the shard's stem.

    Raises:
        InputError: a shard is damaged, or none holds a labelled image.
    """
    splits = _name_splits(shards)
    rows: list[Row] = []
    sources: dict[str, Source] = {}
    ignored: Counter[str] = Counter()
    warnings = []
    seen = set[str]()
    for shard, split in zip(shards, splits, strict=True):
        stem = stem_of(shard)
        if stem in seen:
            raise InputError(f"{shard}: another shard is named {stem} too; rename one")
        seen.add(stem)
        listing = list_members(shard)
        warnings += [f"{shard.name}: {warning}" for warning in listing.tell()]
        prefix = "" if len(shards) == 1 else f"{stem}/"
        for name, labels, error in _list_samples(listing.members, ignored):
            rows.append(Row(prefix + name, labels, split, error=error))
            source = listing.members[name].source
            if source is not None:
                sources[prefix + name] = source
    if not any(row.labels for row in rows):
        reason = f" ({rows[0].error})" if rows else ""
        raise InputError(
            f"{root}: no labelled images in the shards{reason}; a sample is KEY.jpg with KEY.cls, or "
            "with KEY.json that has a field label"
        )
    dataset = dataset_of_rows(root, rows, ignored=dict(ignored), warnings=tuple(warnings))
    return dataclasses.replace(dataset, reader=MappedReader(sources))


def _name_splits(shards: tuple[Path, ...]) -> list[str]:
    """The split that the words of each shard's name say; "" for all where none is to train on."""
    splits = []
    for shard in shards:
        words = re.split(r"[^a-z]+", stem_of(shard).lower())
        splits.append(next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), ""))
    return splits if "train" in splits else [""] * len(splits)


def _list_samples(
    members: Mapping[str, Member], ignored: Counter[str]
) -> list[tuple[str, tuple[str, ...] | None, str]]:
    """(name of the image, labels, why it cannot be used) of each sample, in the order of the shard."""
    samples: dict[str, dict[str, str]] = {}
    for name, member in members.items():
        key, extension = _split_name(name)
        if member.is_folder:
            continue
        if extension in LABELS or (key.rpartition("/")[2] and _is_image(extension)):
            samples.setdefault(key, {})[extension] = name
        else:
            ignored[f".{extension}" if key.rpartition("/")[2] else "hidden"] += 1
    found = []
    for own in samples.values():
        images = [name for extension, name in own.items() if _is_image(extension)]
        labels = [own[extension] for extension in LABELS if extension in own]
        ignored.update(_split_name(name)[1] for name in images[1:])
        if not images:
            ignored["label without an image"] += 1
            continue
        error = members[images[0]].error
        named = None
        try:
            if not labels:
                raise BadImageError("no label: neither KEY.cls, nor KEY.json, nor KEY.txt is there")
            named = _read_labels(labels[0], members[labels[0]])
        except BadImageError as exc:
            error = error or str(exc)
        found.append((images[0], named, error))
    return found


def _read_labels(name: str, member: Member) -> tuple[str, ...]:
    """The class that a member says, or the classes of a list in JSON.

    Raises:
        BadImageError: it cannot be read, or names none.
    """
    where = name.rpartition("/")[2]
    if member.source is None:
        raise BadImageError(f"{where}: {member.error}")
    data = member.source.read(MAX_LABEL_BYTES)
    try:
        text = data.decode("utf-8-sig").strip()
        value = json.loads(text) if name.lower().endswith(".json") else text
    except (ValueError, RecursionError) as exc:
        raise BadImageError(f"{where}: neither text nor JSON of at most 64 KiB") from exc
    if isinstance(value, dict):
        value = find_label(value)
    several = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(_check_label(where, own) for own in several))


def _check_label(where: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise BadImageError(f"{where}: names no class, as text or a whole number")
    try:
        label = clean_name("the label", str(value))
    except InputError as exc:
        raise BadImageError(f"{where}: {exc}") from exc
    if len(label) > MAX_LABEL:
        raise BadImageError(f"{where}: a text of {len(label):,} characters, which names no class")
    return label


WEBDATASET = Form(
    name="webdataset",
    looks="a WebDataset of tar shards",
    uses=frozenset({"group"}),
    recognises=_recognises,
    load=_load,
    load_several=_load_several,
)
