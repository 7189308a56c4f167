"""Takes a tree of folders and files, on disk or in an archive, gives a row for each image: the rules by name.

Which files are passed over, which folders are splits and which are classes is told here alone, so that the
same images are the same data set wherever they lie. A tree lists its folders; this file reads none.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from headstart.choices import natural_key
from headstart.data.dataset import SPLIT_NAMES, Row
from headstart.errors import InputError

__all__ = [
    "ARCHIVE_SUFFIXES",
    "COMPANION_SUFFIXES",
    "ClassFolders",
    "Entry",
    "Tree",
    "has_folders",
    "holds_images",
    "list_visible",
    "walk_images",
]

# Files that commonly lie beside images. Any other file in a class folder is taken for an image and
# its type told by content, so that an image with a wrong or no extension still counts.
ARCHIVE_SUFFIXES = frozenset(".zip .tar .gz .tgz .bz2 .tbz2 .xz .txz .zst .tzst .7z .rar".split())
COMPANION_SUFFIXES = ARCHIVE_SUFFIXES | frozenset(
    ".csv .db .doc .docx .html .htm .ini .ipynb .json .jsonl .log .mat .md .npy .npz .parquet .pdf "
    ".pkl .py .rst .sh .tsv .txt .xls .xlsx .xml .yaml .yml".split()
)
COMPANION_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "license", "readme"})

MAX_DEPTH = 100


class Entry(NamedTuple):
    """One file or folder in a folder.

    Attributes:
        name: its own, without that of the folder.
        is_folder: whether there is a folder, at the end of a link too.
        is_link: whether it is a symbolic link.
        error: why it must not be read or entered, "" where it may be.
        place: what a folder is, by whichever links it is reached; None where only one name leads there.
    """

    name: str
    is_folder: bool
    is_link: bool = False
    error: str = ""
    place: tuple[int, int] | None = None


class Tree(Protocol):
    """Folders and files below one, wherever they are."""

    @property
    def name(self) -> str:
        """What people know it by."""
        ...

    @property
    def place(self) -> tuple[int, int] | None:
        """As `Entry.place`, of the uppermost folder."""
        ...

    def list(self, prefix: str) -> list[Entry]:
        """List a folder by its path with a slash at the end, "" for the uppermost, in the order of names.

        Raises:
            OSError: it cannot be listed.
        """
        ...


def walk_images(
    tree: Tree,
    prefix: str,
    ignored: Counter[str],
    seen: set[tuple[int, int] | None],
    folder: Entry | None = None,
) -> Iterator[tuple[str, str]]:
    """Every candidate image below a folder as (path in the tree, reason it cannot be read or "").

    Depth first in the order of names; nothing for hidden files and files that commonly lie beside images.

    Args:
        ignored: counts, by kind, of what is passed over; grows.
        seen: places of folders that no link may enter; grows.
        folder: the entry of the folder itself; None for the uppermost.
    """
    if prefix.count("/") > MAX_DEPTH:
        yield prefix.rstrip("/"), f"nested deeper than {MAX_DEPTH} folders"
        return
    if folder is not None and folder.is_link and folder.place in seen:
        yield prefix.rstrip("/"), "link to a folder that is read already"
        return
    try:
        entries = tree.list(prefix)
    except OSError as exc:
        yield prefix.rstrip("/"), f"folder cannot be listed: {exc.strerror or exc}"
        return
    seen.add(tree.place if folder is None else folder.place)
    for entry in entries:
        if kind := _passed_over(entry):
            ignored[kind] += 1
        elif entry.is_folder and not entry.error:
            yield from walk_images(tree, f"{prefix}{entry.name}/", ignored, seen, entry)
        elif suffix := _companion_suffix(entry):
            ignored[suffix] += 1
        else:
            yield prefix + entry.name, entry.error


class ClassFolders:
    """What lies below a folder of class folders, as it is gone through.

    Attributes:
        rows: one for each image.
        ignored: what was passed over, by kind.
        warnings: one line each.
    """

    def __init__(self, tree: Tree) -> None:
        self.rows: list[Row] = []
        self.ignored: Counter[str] = Counter()
        self.warnings: list[str] = []
        self._tree = tree
        self._images: Counter[str] = Counter()  # of each class, those of none too
        self._spelled: dict[str, str] = {}  # class -> the name of its folder

    def read(self) -> None:
        """Go through every class folder, in every split where the folders are splits.

        Raises:
            InputError: the folder, or a split, cannot be listed or must not be entered, or two folders
                mean the same split.
        """
        for prefix, (split, place) in self._find_splits().items():
            self._read_classes(prefix, split, place)
        empty = sorted((c for c, count in self._images.items() if count == 0), key=natural_key)
        if empty:
            self.warnings.append(f"class without images, left out: {', '.join(empty[:8])}")

    def _find_splits(self) -> dict[str, tuple[str, tuple[int, int] | None]]:
        """{path of the folder: (split, place)}; the uppermost alone, of no split, where none is one."""
        name, place = self._tree.name, self._tree.place
        entries = [e for e in self._list("") if not e.name.startswith(".")]
        folders = [e for e in entries if e.is_folder and e.name != "__MACOSX"]
        parts = [(e, SPLIT_NAMES[e.name.lower()]) for e in folders if e.name.lower() in SPLIT_NAMES]
        if not any(s == "train" and has_folders(self._tree, f"{e.name}/") for e, s in parts):
            return {"": ("", place)}
        for entry, _ in parts:
            if entry.error:
                raise InputError(f"{os.path.join(name, entry.name)}: {entry.error}")
        others = [e.name for e in folders if e.name.lower() not in SPLIT_NAMES]
        if others:
            self.warnings.append(
                f"passed over {', '.join(others[:4])}: beside train, only val and test are read"
            )
        if len({split for _, split in parts}) < len(parts):
            twice = Counter(split for _, split in parts).most_common(1)[0][0]
            same = " and ".join(e.name for e, split in parts if split == twice)
            raise InputError(f"{name}: {same} both mean the split '{twice}'; keep one")
        return {f"{e.name}/": (split, e.place) for e, split in parts}

    def _read_classes(self, prefix: str, split: str, place: tuple[int, int] | None) -> None:
        """The class folders in a folder; anything else in it is passed over."""
        loose = 0
        for entry in self._list(prefix):
            if kind := _passed_over(entry):
                self.ignored[kind] += 1
            elif entry.is_link and entry.error:
                self.rows.append(Row(prefix + entry.name, None, split, error=entry.error))
            elif entry.is_folder:
                self._read_class(prefix, entry, split, {self._tree.place, place})
            elif suffix := _companion_suffix(entry):
                self.ignored[suffix] += 1
            else:
                loose += 1
        if loose:
            self.warnings.append(
                f"passed over {loose} file{'s' if loose > 1 else ''} in {prefix or 'the data folder'}"
                " outside of any class folder"
            )

    def _read_class(
        self, prefix: str, folder: Entry, split: str, seen: set[tuple[int, int] | None]
    ) -> None:
        label = unicodedata.normalize("NFC", folder.name)
        if self._spelled.setdefault(label, folder.name) != folder.name:
            self.warnings.append(f"class '{label}' occurs in two Unicode forms; taken as one")
        found = walk_images(self._tree, f"{prefix}{folder.name}/", self.ignored, seen, folder)
        before = len(self.rows)
        self.rows += [Row(i, (label,), split, error=error) for i, error in found]
        self._images[label] += len(self.rows) - before

    def _list(self, prefix: str) -> list[Entry]:
        try:
            return self._tree.list(prefix)
        except OSError as exc:
            where = os.path.join(self._tree.name, prefix.rstrip("/")) if prefix else self._tree.name
            raise InputError(f"{where}: the folder cannot be listed: {exc.strerror}") from exc


def has_folders(tree: Tree, prefix: str) -> bool:
    """Class folders in it, and no more loose images than folders: then it is a split, not a class."""
    entries = _try_list(tree, prefix)
    folders = sum(entry.is_folder for entry in entries)
    images = sum(not (entry.is_folder or _is_file_beside(entry)) for entry in entries)
    return folders > 0 and folders >= images


def list_visible(tree: Tree, prefix: str) -> list[Entry]:
    """List what is in a folder, without what is passed over by its name."""
    return [e for e in _try_list(tree, prefix) if not (_passed_over(e) or _is_file_beside(e))]


def holds_images(tree: Tree, prefix: str = "") -> bool:
    """Whether files lie in the folder itself that are taken for images."""
    return any(not (entry.is_folder or entry.error) for entry in list_visible(tree, prefix))


def _try_list(tree: Tree, prefix: str) -> list[Entry]:
    """What is not hidden in a folder, nothing where it cannot be listed."""
    try:
        return [entry for entry in tree.list(prefix) if not entry.name.startswith(".")]
    except OSError:
        return []


def _is_file_beside(entry: Entry) -> bool:
    return not entry.is_folder and bool(_companion_suffix(entry))


def _passed_over(entry: Entry) -> str:
    """As which kind something is passed over by its name, whatever it holds, or "".

    A folder by the name of a file that commonly lies beside images may well be a class.
    """
    name = entry.name.lower()
    if name.startswith("."):
        return "hidden"
    is_companion = name in COMPANION_NAMES and (name == "__macosx" or not entry.is_folder)
    return name if is_companion else ""


def _companion_suffix(entry: Entry) -> str:
    """The ending of a file that commonly lies beside images, or ""."""
    _, dot, ending = entry.name.rpartition(".")
    suffix = dot + ending.lower()
    return suffix if suffix in COMPANION_SUFFIXES else ""
