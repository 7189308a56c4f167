"""Takes a folder or a manifest, gives a `Dataset`: image ids, where each is, label, split, group.

Place in the flow: first; everything later reads the `Dataset` and nothing else of the source. No
image is opened here. Every random draw of the project goes through `draw`, so that neither the order
of files nor the number of workers changes it.
"""

import csv
import dataclasses
import difflib
import hashlib
import io
import json
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from headstart.errors import InputError, UsageError

__all__ = [
    "Dataset",
    "add_validation",
    "choose",
    "draw",
    "list_files",
    "load_dataset",
    "nearest",
    "split_dataset",
]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

T = TypeVar("T")

# Files that commonly lie beside images. Any other file in a class folder is taken for an image and
# its type told by content, so that an image with a wrong or no extension still counts.
COMPANION_SUFFIXES = frozenset(
    ".csv .db .doc .docx .html .htm .ini .ipynb .json .jsonl .log .mat .md .npy .npz .parquet .pdf "
    ".pkl .py .rst .sh .tsv .txt .xls .xlsx .xml .yaml .yml .zip .tar .gz .tgz .7z .rar".split()
)
COMPANION_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "license", "readme"})

MAX_DEPTH = 100

COLUMNS = {
    "path": ("path", "image", "file_name", "filename", "file", "filepath"),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "subset"),
    "group": ("group", "group_id"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, one row an image; rows are sorted by id and never dropped.

    Attributes:
        root: the folder that ids are relative to.
        classes: C class names; a label is an index into it.
        ids: N paths relative to `root`, with `/`; unique.
        labels: int64 array (N,), -1 where there is no label.
        splits: N of "train", "val", "test" or "" (not assigned).
        groups: N group names, "" for an image that is its own group.
        errors: N reasons why a row cannot be read (a broken link, say), "" for none known.
        ignored: what was passed over, as {kind: count}, e.g. {".txt": 2, "hidden": 1}.
        warnings: one line each, for people.
    """

    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: np.ndarray
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    errors: tuple[str, ...]
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, row: int) -> Path:
        """Where the image of a row lies."""
        return self.root / self.ids[row]

    def rows(self, split: str) -> np.ndarray:
        """int64 array of the rows of a split."""
        return np.array([i for i, s in enumerate(self.splits) if s == split], dtype=np.int64)

    def units(self) -> tuple[str, ...]:
        """N names of what must stay on one side of a split: the group, or the image itself."""
        return tuple(g or i for g, i in zip(self.groups, self.ids, strict=True))

    def select(self, rows: np.ndarray) -> "Dataset":
        """The data set of these rows, classes unchanged."""

        def pick(column: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(column[i] for i in rows)

        return dataclasses.replace(
            self,
            ids=pick(self.ids),
            labels=self.labels[rows],
            splits=pick(self.splits),
            groups=pick(self.groups),
            errors=pick(self.errors),
        )


def draw(seed: int, purpose: str, key: str, epoch: int = 0) -> float:
    """A uniform number in [0, 1) that depends on these values alone (BLAKE2b, 53 bits).

    The key is taken in Unicode form NFC, so that a data set copied from a Mac draws the same.
    """
    key = unicodedata.normalize("NFC", key)
    text = f"{seed}\0{purpose}\0{epoch}\0{key}".encode("utf-8", "surrogateescape")
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 11) / (1 << 53)


def nearest(name: str, known: Iterable[str]) -> str:
    """' (nearest: X)' for an error message, or '' when nothing is near."""
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1)
    return f" (nearest: {lower[close[0]]})" if close else ""


def choose(what: str, name: str, choices: Mapping[str, T]) -> T:
    """The named entry of a dict of choices.

    Raises:
        UsageError: names the keys and the nearest one.
    """
    if name not in choices:
        keys = ", ".join(choices)
        raise UsageError(f"{what} '{name}' is unknown{nearest(name, choices)}; known: {keys}")
    return choices[name]


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts 1, 2, 10 as people do; ties end on the text itself."""
    parts = re.split(r"([0-9]+)", name)
    numbered = tuple(
        (0, len(p.lstrip("0")), p.lstrip("0")) if p.isdecimal() else (1, 0, p.casefold())
        for p in parts
        if p
    )
    return (*numbered, (2, 0, name))


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
            stay on one side of every split. `([^/]*/[0-9]+)_` keeps `stop/00001_*.ppm` together.
        allow_outside: let links and manifest paths lead out of the root.

    Raises:
        InputError: nothing usable there; the message names the element and the next step.
        UsageError: `group` is no regular expression with a capture, or an argument has no effect.
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
        dataset = _load_tree(path, allow_outside)
    elif path.suffix.lower() in MANIFEST_READERS and stat.S_ISREG(mode):
        dataset = _load_manifest(path, Path(root) if root is not None else None, allow_outside)
    else:
        raise InputError(
            f"{path}: expected a folder of class folders or a .csv, .tsv or .jsonl manifest; "
            "unpack an archive first"
        )
    if group is not None:
        dataset = _with_groups(dataset, group)
    return _checked(dataset)


def split_dataset(dataset: Dataset, *, val: float = 0.2, seed: int = 0) -> Dataset:
    """Give every image a split: what the source says, else a held-out part of the training images.

    An image goes to "val" where the draw of its group (or of itself) is below `val`, so adding
    images moves no other image and classes are represented in proportion. One exception: where
    the draws would leave a class with at least two groups without a training or without a
    validation image, its group with the highest or lowest draw changes sides.

    Args:
        val: fraction held out in [0, 1); 0 holds nothing out. Without effect on a data set that
            brings its own validation images.
        seed: changes the draw.

    Raises:
        UsageError: `val` is out of range.
    """
    if not 0 <= val < 1:
        raise UsageError(f"val must be a fraction in [0, 1), got {val}")
    splits = [s or "train" for s in dataset.splits]
    if val > 0 and "val" not in splits:
        units = dataset.units()
        pool = [i for i, s in enumerate(splits) if s == "train"]
        draws = {u: draw(seed, "split", u) for u in {units[i] for i in pool}}
        held = {u for u, d in draws.items() if d < val}
        by_class: dict[int, set[str]] = {}
        for i in pool:
            if not dataset.errors[i]:
                by_class.setdefault(int(dataset.labels[i]), set()).add(units[i])
        for _, members in sorted(by_class.items()):
            order = sorted(members, key=lambda u: (draws[u], u))
            if members <= held:
                held.discard(order[-1])
            elif len(order) > 1 and not members & held:
                held.add(order[0])
        # A group that spans classes may have been moved for one class and needed by another.
        for _, members in sorted(by_class.items()):
            if members <= held:
                held.discard(max(members, key=lambda u: (draws[u], u)))
        for i in pool:
            if units[i] in held:
                splits[i] = "val"
    return dataclasses.replace(dataset, splits=tuple(splits))


def add_validation(dataset: Dataset, validation: Dataset) -> Dataset:
    """The data set with a second one's images as its validation part, classes matched by name.

    Ids of the second are prefixed with the way from the first's root to it.

    Raises:
        UsageError: the data set already has validation images.
        InputError: the second has a class that the first lacks.
    """
    if "val" in dataset.splits:
        raise UsageError("the data already have a validation split; leave --val out")
    if validation.root.resolve() == dataset.root.resolve():
        raise UsageError(f"{validation.root}: the validation data are the training data")
    mapping = match_classes(validation, dataset.classes)
    prefix = Path(os.path.relpath(validation.root.resolve(), dataset.root.resolve())).as_posix()
    rows = [i for i in range(len(validation)) if validation.splits[i] in ("", "val", "train")]
    if "val" in validation.splits:
        rows = [i for i in rows if validation.splits[i] == "val"]
    more = validation.select(np.array(rows, dtype=np.int64))
    ids = tuple(f"{prefix}/{i}" for i in more.ids)
    both = dataclasses.replace(
        dataset,
        ids=dataset.ids + ids,
        labels=np.concatenate([dataset.labels, mapping[more.labels]]),
        splits=dataset.splits + ("val",) * len(more),
        groups=dataset.groups + more.groups,
        errors=dataset.errors + more.errors,
        warnings=dataset.warnings + more.warnings,
    )
    return both.select(np.array(sorted(range(len(both)), key=both.ids.__getitem__)))


def match_classes(dataset: Dataset, classes: tuple[str, ...]) -> np.ndarray:
    """int64 array (C of the data set + 1,): its labels as indices into `classes`, by name; last -1.

    Raises:
        InputError: names the classes that `classes` lacks.
    """
    index = {name: i for i, name in enumerate(classes)}
    used = [c for k, c in enumerate(dataset.classes) if (dataset.labels == k).any()]
    unknown = [c for c in used if c not in index]
    if unknown:
        raise InputError(
            f"{dataset.root}: class '{unknown[0]}' is not one that the model knows"
            f"{nearest(unknown[0], classes)}"
            + (f", nor are {len(unknown) - 1} more" if len(unknown) > 1 else "")
            + f"; it knows {', '.join(classes[:8])}{', …' if len(classes) > 8 else ''}. "
            "Rename or remove the class"
        )
    return np.array([index.get(c, -1) for c in dataset.classes] + [-1], dtype=np.int64)


# ---------------------------------------------------------------- folders


def list_files(folder: Path, *, allow_outside: bool = False) -> Iterator[tuple[str, str]]:
    """Every candidate image below a folder as (path relative to it, reason it cannot be read or "").

    Yields nothing for hidden files and files that commonly lie beside images.
    """
    yield from _walk(folder, folder.resolve(), "", allow_outside, Counter(), set())


def _walk(
    folder: Path,
    root: Path,
    prefix: str,
    allow_outside: bool,
    ignored: Counter[str],
    seen: set[tuple[int, int]],
) -> Iterator[tuple[str, str]]:
    """Depth first in name order. `seen` holds the (device, inode) of folders that no link may enter."""
    if prefix.count("/") > MAX_DEPTH:
        yield prefix.rstrip("/"), f"nested deeper than {MAX_DEPTH} folders"
        return
    try:
        info = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as exc:
        yield prefix.rstrip("/"), f"folder cannot be listed: {exc.strerror or exc}"
        return
    key = (info.st_dev, info.st_ino)
    if key in seen and folder.is_symlink():
        yield prefix.rstrip("/"), "link to a folder that is read already"
        return
    seen.add(key)
    for entry in entries:
        name = entry.name
        suffix = os.path.splitext(name)[1].lower()
        if name.startswith(".") or _is_companion(Path(entry.path)):
            ignored["hidden" if name.startswith(".") else name.lower()] += 1
            continue
        image_id = prefix + name
        reason = ""
        if entry.is_symlink():
            reason = _link_reason(Path(entry.path), root, allow_outside)
        try:
            mode = entry.stat().st_mode if not reason else 0
        except OSError as exc:
            reason, mode = exc.strerror or str(exc), 0
        if not reason and stat.S_ISDIR(mode):
            yield from _walk(Path(entry.path), root, image_id + "/", allow_outside, ignored, seen)
        elif suffix in COMPANION_SUFFIXES:
            ignored[suffix] += 1
        elif not reason and not stat.S_ISREG(mode):
            yield image_id, "not a regular file"
        else:
            yield image_id, reason


def _keys(*folders: Path) -> set[tuple[int, int]]:
    return {(info.st_dev, info.st_ino) for info in (folder.stat() for folder in folders)}


def _is_companion(path: Path) -> bool:
    """Whether a file commonly lies beside images; a folder of that name may well be a class."""
    name = path.name.lower()
    return name in COMPANION_NAMES and (name == "__macosx" or not path.is_dir())


def _link_reason(link: Path, root: Path, allow_outside: bool) -> str:
    """Why a symbolic link may not be followed, or ""."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        missing = isinstance(exc, FileNotFoundError)
        return "broken link" if missing else "link that leads in a circle or cannot be followed"
    if not allow_outside and not target.is_relative_to(root):
        return "link leads outside of the data folder (allow with --allow-outside)"
    return ""


def _load_tree(root: Path, allow_outside: bool) -> Dataset:
    ignored: Counter[str] = Counter()
    warnings: list[str] = []
    try:
        names = sorted(e.name for e in os.scandir(root))
    except OSError as exc:
        raise InputError(f"{root}: the folder cannot be listed: {exc.strerror}") from exc
    folders = [n for n in names if not n.startswith(".") and (root / n).is_dir()]
    folders = [n for n in folders if n != "__MACOSX"]
    parts = [(n, SPLIT_NAMES[n.lower()]) for n in folders if n.lower() in SPLIT_NAMES]
    is_split_tree = any(s == "train" and _has_folders(root / n) for n, s in parts)
    if is_split_tree:
        for name, _ in parts:
            if (root / name).is_symlink():
                reason = _link_reason(root / name, root.resolve(), allow_outside)
                if reason:
                    raise InputError(f"{root / name}: {reason}")
        others = [n for n in folders if n.lower() not in SPLIT_NAMES]
        if others:
            warnings.append(
                f"passed over {', '.join(others[:4])}: beside train, only val and test are read"
            )
        tops = [(n + "/", s) for n, s in parts]
        if len({s for _, s in parts}) < len(parts):
            twice = Counter(s for _, s in parts).most_common(1)[0][0]
            same = " and ".join(n for n, s in parts if s == twice)
            raise InputError(f"{root}: {same} both mean the split '{twice}'; keep one")
    else:
        tops = [("", "")]

    rows: list[tuple[str, str, str, str]] = []  # id, class, split, error
    empty: dict[str, bool] = {}
    spelled: dict[str, str] = {}
    for top, split in tops:
        loose = 0
        here = root / top if top else root
        try:
            names = sorted(e.name for e in os.scandir(here))
        except OSError as exc:
            raise InputError(f"{here}: the folder cannot be listed: {exc.strerror}") from exc
        for name in names:
            if name.startswith(".") or _is_companion(here / name):
                ignored["hidden" if name.startswith(".") else name.lower()] += 1
                continue
            folder = here / name
            reason = ""
            if folder.is_symlink():
                reason = _link_reason(folder, root.resolve(), allow_outside)
            if reason:
                rows.append((top + name, "", split, reason))
                continue
            if not folder.is_dir():
                if os.path.splitext(name)[1].lower() in COMPANION_SUFFIXES:
                    ignored[os.path.splitext(name)[1].lower()] += 1
                else:
                    loose += 1
                continue
            label = unicodedata.normalize("NFC", name)
            if spelled.setdefault(label, name) != name:
                warnings.append(
                    f"class '{label}' stands twice in different Unicode forms; taken as one"
                )
            prefix = f"{top}{name}/"
            count = 0
            for image_id, error in _walk(
                folder, root.resolve(), prefix, allow_outside, ignored, _keys(root, here)
            ):
                rows.append((image_id, label, split, error))
                count += 1
            if count == 0:
                empty.setdefault(label, True)
            else:
                empty[label] = False
        if loose:
            warnings.append(
                f"passed over {loose} file{'s' if loose > 1 else ''} in {top or 'the data folder'}"
                " outside of any class folder"
            )
    missing = sorted((c for c, is_empty in empty.items() if is_empty), key=natural_key)
    if missing:
        warnings.append(f"class without images, left out: {', '.join(missing[:8])}")
    if not any(label for _, label, _, _ in rows):
        raise InputError(
            f"{root}: no images in class folders; put each class's images in a folder of its name, "
            "or give a manifest (.csv, .tsv or .jsonl with columns path and label)"
        )
    return _from_rows(
        root, [(i, c, s, "", e) for i, c, s, e in rows], dict(ignored), tuple(warnings)
    )


def _has_folders(folder: Path) -> bool:
    """Class folders below, and no more loose images than folders: then it is a split, not a class."""
    try:
        entries = [e for e in os.scandir(folder) if not e.name.startswith(".")]
    except OSError:
        return False
    folders = sum(os.path.isdir(e.path) for e in entries)
    images = sum(
        not os.path.isdir(e.path) and os.path.splitext(e.name)[1].lower() not in COMPANION_SUFFIXES
        for e in entries
    )
    return folders > 0 and folders >= images


# ---------------------------------------------------------------- manifests


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not {encoding} text at byte {exc.start}; save as UTF-8") from exc


def _read_delimited(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = [cell.strip() for cell in row]
                if len({name.lower() for name in header}) < len(header):
                    raise InputError(f"{path}: the header names a column twice: {header}")
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} cells where the header has "
                    f"{len(header)}; quote cells that contain the separator"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as exc:
        raise InputError(f"{path}, line {reader.line_num}: {exc}") from exc
    if header is None:
        raise InputError(f"{path}: empty; the first line must name the columns path and label")


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=refuse)
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{path}, line {number}: not JSON: {exc}") from exc
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected an object with path and label")
        yield number, row


MANIFEST_READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".csv": lambda path: _read_delimited(path, ","),
    ".tsv": lambda path: _read_delimited(path, "\t"),
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
}


def _load_manifest(path: Path, root: Path | None, allow_outside: bool) -> Dataset:
    root = path.parent if root is None else root
    if not root.is_dir():
        raise InputError(f"{root}: the root of the manifest's paths is not a folder")
    resolve = _Resolver(root, allow_outside)
    rows: dict[str, tuple[str, str, str, str, str]] = {}
    seen: dict[str, tuple[int, str]] = {}
    repeated = 0
    columns: dict[str, str] = {}
    for number, row in MANIFEST_READERS[path.suffix.lower()](path):
        where = f"{path}, line {number}"
        if not columns or path.suffix.lower() in (".jsonl", ".ndjson"):
            columns = _find_columns(where, list(row))
        text = row[columns["path"]]
        if not isinstance(text, str) or not text:
            raise InputError(f"{where}: the path is missing")
        image_id = resolve(where, text)
        label = _cell(where, "label", row[columns["label"]])
        if not label:
            raise InputError(f"{where}: the image '{text}' has no label; remove the row or fill it")
        split = _cell(where, "split", row[columns["split"]] if "split" in columns else "").lower()
        if split and split not in SPLIT_NAMES:
            raise InputError(
                f"{where}: split '{split}' is unknown{nearest(split, SPLIT_NAMES)}; "
                "use train, val or test"
            )
        split = SPLIT_NAMES.get(split, "")
        group = _cell(where, "group", row[columns["group"]] if "group" in columns else "")
        if image_id in seen:
            first, value = seen[image_id]
            if value != f"{label}\0{split}\0{group}":
                raise InputError(
                    f"{where}: '{text}' stands already at line {first} with another label, "
                    "split or group"
                )
            repeated += 1
            continue
        seen[image_id] = (number, f"{label}\0{split}\0{group}")
        rows[image_id] = (image_id, label, split, group, "")
    if not rows:
        raise InputError(f"{path}: no rows; each image needs a row with its path and label")
    warnings = (f"{repeated} repeated rows counted once",) if repeated else ()
    return _from_rows(root, list(rows.values()), {}, warnings)


def _find_columns(where: str, given: list[str]) -> dict[str, str]:
    lower = {str(name).strip().lower(): name for name in given}
    found = {}
    for column, aliases in COLUMNS.items():
        match = [lower[a] for a in aliases if a in lower]
        if match:
            found[column] = match[0]
        elif column in ("path", "label"):
            near = nearest(column, lower)
            raise InputError(
                f"{where}: no column '{column}'{near}; found {', '.join(map(repr, given[:8]))}. "
                "The columns path and label are needed, split and group may follow"
            )
    return found


def _cell(where: str, column: str, value: Any) -> str:
    """A label, split or group as text in Unicode form NFC."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{where}: the {column} must be text or a whole number, got {value!r}")
    return unicodedata.normalize("NFC", _text(where, column, str(value)).strip())


def _text(where: str, column: str, value: str) -> str:
    """The value, unless it holds half a surrogate pair, which no file name or report can."""
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(f"{where}: the {column} {value!a} is not valid Unicode")
    return value


class _Resolver:
    """Manifest path -> image id below the root, refusing what leads out of it."""

    def __init__(self, root: Path, allow_outside: bool) -> None:
        self.root = root
        self.real_root = root.resolve()
        self.allow_outside = allow_outside
        self.inside: dict[str, bool] = {}  # folder -> its real path lies below the root

    def __call__(self, where: str, text: str) -> str:
        if "\0" in text:
            raise InputError(f"{where}: the path contains a NUL character")
        text = _text(where, "path", text)
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
            raise InputError(f"{where}: '{text}' is an address; download the images first")
        outside = (
            text.startswith(("/", "\\"))
            or re.match(r"[A-Za-z]:", text) is not None
            or ".." in re.split(r"[/\\]", text)
        )
        if outside and not self.allow_outside:
            raise InputError(
                f"{where}: '{text}' leads outside of {self.root}; use paths relative to it, "
                "another --root, or --allow-outside"
            )
        image_id = os.path.normpath(text)
        if not self.allow_outside and not self._is_inside(image_id):
            raise InputError(
                f"{where}: '{text}' is a link that leads outside of {self.root}; "
                "allow it with --allow-outside"
            )
        return image_id.replace(os.sep, "/")

    def _is_inside(self, image_id: str) -> bool:
        try:
            return self._lies_inside(image_id)
        except OSError:  # a name that is too long: no such file, so a bad image and no way out
            return True

    def _lies_inside(self, image_id: str) -> bool:
        folder = os.path.dirname(image_id)
        if folder not in self.inside:
            real = Path(os.path.realpath(self.root / folder))
            self.inside[folder] = real.is_relative_to(self.real_root)
        path = self.root / image_id
        if self.inside[folder] and path.is_symlink():
            return Path(os.path.realpath(path)).is_relative_to(self.real_root)
        return self.inside[folder]


# ---------------------------------------------------------------- common to both


def _from_rows(
    root: Path,
    rows: list[tuple[str, str, str, str, str]],
    ignored: Mapping[str, int],
    warnings: tuple[str, ...],
) -> Dataset:
    """Rows of (id, class or "", split, group, error), sorted by id; classes in natural order."""
    rows = sorted(rows)
    classes = tuple(sorted({c for _, c, _, _, _ in rows if c}, key=natural_key))
    index = {name: i for i, name in enumerate(classes)}
    return Dataset(
        root=root,
        classes=classes,
        ids=tuple(r[0] for r in rows),
        labels=np.array([index.get(r[1], -1) for r in rows], dtype=np.int64),
        splits=tuple(r[2] for r in rows),
        groups=tuple(r[3] for r in rows),
        errors=tuple(r[4] for r in rows),
        ignored=ignored,
        warnings=warnings,
    )


def _with_groups(dataset: Dataset, pattern: str) -> Dataset:
    try:
        regex = re.compile(pattern)
    except re.error as exc:
        raise UsageError(f"group '{pattern}' is not a regular expression: {exc}") from exc
    if regex.groups == 0:
        raise UsageError(f"group '{pattern}' captures nothing; put parentheses around the group")
    if any(dataset.groups):
        raise UsageError("the manifest has a column group already; leave --group out")
    matches = [regex.search(i) for i in dataset.ids]
    if not any(matches):
        raise UsageError(f"group '{pattern}' matches no image; the first is '{dataset.ids[0]}'")
    groups = tuple("\0".join(g or "" for g in m.groups()) if m else "" for m in matches)
    unmatched = sum(m is None for m in matches)
    warnings = dataset.warnings
    if unmatched:
        warnings += (f"group pattern matches {len(groups) - unmatched} of {len(groups)} images",)
    return dataclasses.replace(dataset, groups=groups, warnings=warnings)


def _checked(dataset: Dataset) -> Dataset:
    """Add the warnings that need the whole data set."""
    warnings = list(dataset.warnings)
    folded = Counter(c.casefold() for c in dataset.classes)
    for name in [c for c in dataset.classes if folded[c.casefold()] > 1][:4]:
        warnings.append(f"class '{name}' differs from another only in upper and lower case")
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
