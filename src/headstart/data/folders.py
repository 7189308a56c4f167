"""Takes a folder with a sub-folder a class, gives a `Dataset`; knows links, splits and what is no image."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from headstart.choices import natural_key
from headstart.data.dataset import SPLIT_NAMES, Dataset, Row, dataset_of_rows
from headstart.data.form import Form, LoadOptions
from headstart.errors import InputError

__all__ = ["ARCHIVE_SUFFIXES", "FOLDER", "list_files"]

# Files that commonly lie beside images. Any other file in a class folder is taken for an image and
# its type told by content, so that an image with a wrong or no extension still counts.
ARCHIVE_SUFFIXES = frozenset(".zip .tar .gz .tgz .bz2 .xz .7z .rar".split())
COMPANION_SUFFIXES = ARCHIVE_SUFFIXES | frozenset(
    ".csv .db .doc .docx .html .htm .ini .ipynb .json .jsonl .log .mat .md .npy .npz .parquet .pdf "
    ".pkl .py .rst .sh .tsv .txt .xls .xlsx .xml .yaml .yml".split()
)
COMPANION_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "license", "readme"})

MAX_DEPTH = 100


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


class _Tree:
    """What lies below a folder of class folders, as it is gone through.

    Attributes:
        rows: one for each image.
        ignored: what was passed over, by kind.
        warnings: one line each.
    """

    def __init__(self, root: Path, allow_outside: bool) -> None:
        self.rows: list[Row] = []
        self.ignored: Counter[str] = Counter()
        self.warnings: list[str] = []
        self._root, self._real_root, self._allow_outside = root, root.resolve(), allow_outside
        self._images: Counter[str] = Counter()  # of each class, those of none too
        self._spelled: dict[str, str] = {}  # class -> the name of its folder

    def read(self) -> None:
        """Every class folder, in every split where the folders are splits."""
        tops = self._find_splits()
        for top, split in tops.items():
            self._read_classes(top, split)
        empty = sorted((c for c, count in self._images.items() if count == 0), key=natural_key)
        if empty:
            self.warnings.append(f"class without images, left out: {', '.join(empty[:8])}")

    def _find_splits(self) -> dict[str, str]:
        """{folder below the root, with its slash: split}; {"": ""} where no folder is a split."""
        root = self._root
        names = [n for n in _list_names(root) if not n.startswith(".") and n != "__MACOSX"]
        folders = [n for n in names if (root / n).is_dir()]
        parts = [(n, SPLIT_NAMES[n.lower()]) for n in folders if n.lower() in SPLIT_NAMES]
        if not any(split == "train" and _has_folders(root / n) for n, split in parts):
            return {"": ""}
        for name, _ in parts:
            if reason := self._refuse(root / name):
                raise InputError(f"{root / name}: {reason}")
        others = [n for n in folders if n.lower() not in SPLIT_NAMES]
        if others:
            self.warnings.append(
                f"passed over {', '.join(others[:4])}: beside train, only val and test are read"
            )
        if len({split for _, split in parts}) < len(parts):
            twice = Counter(split for _, split in parts).most_common(1)[0][0]
            same = " and ".join(n for n, split in parts if split == twice)
            raise InputError(f"{root}: {same} both mean the split '{twice}'; keep one")
        return {f"{n}/": split for n, split in parts}

    def _read_classes(self, top: str, split: str) -> None:
        """The class folders in a folder below the root; anything else in it is passed over."""
        here = self._root / top
        loose = 0
        for name in _list_names(here):
            folder, suffix = here / name, os.path.splitext(name)[1].lower()
            if name.startswith(".") or _is_companion(folder):
                self.ignored["hidden" if name.startswith(".") else name.lower()] += 1
            elif reason := self._refuse(folder):
                self.rows.append(Row(top + name, None, split, error=reason))
            elif folder.is_dir():
                self._read_class(here, top, name, split)
            elif suffix in COMPANION_SUFFIXES:
                self.ignored[suffix] += 1
            else:
                loose += 1
        if loose:
            self.warnings.append(
                f"passed over {loose} file{'s' if loose > 1 else ''} in {top or 'the data folder'}"
                " outside of any class folder"
            )

    def _read_class(self, here: Path, top: str, name: str, split: str) -> None:
        label = unicodedata.normalize("NFC", name)
        if self._spelled.setdefault(label, name) != name:
            self.warnings.append(f"class '{label}' occurs in two Unicode forms; taken as one")
        seen = _keys(self._root, here)
        prefix = f"{top}{name}/"
        found = _walk(here / name, self._real_root, prefix, self._allow_outside, self.ignored, seen)
        before = len(self.rows)
        self.rows += [Row(i, (label,), split, error=error) for i, error in found]
        self._images[label] += len(self.rows) - before

    def _refuse(self, path: Path) -> str:
        """Why what stands there may not be followed, or ""."""
        if not path.is_symlink():
            return ""
        return _link_reason(path, self._real_root, self._allow_outside)


def _load(root: Path, options: LoadOptions) -> Dataset:
    """The images of a folder with a sub-folder a class, alone or in folders of splits.

    Raises:
        InputError: it has no class folders with images, or cannot be listed.
    """
    tree = _Tree(root, options.allow_outside)
    tree.read()
    if not any(row.labels for row in tree.rows):
        raise InputError(f"{root}: no images in class folders; {_advise(root, tree.ignored)}")
    return dataset_of_rows(
        root, tree.rows, ignored=dict(tree.ignored), warnings=tuple(tree.warnings)
    )


FOLDER = Form(
    name="folder",
    looks="a folder of class folders",
    uses=frozenset({"group", "allow_outside"}),
    recognises=Path.is_dir,
    load=_load,
)


def _list_names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except OSError as exc:
        raise InputError(f"{folder}: the folder cannot be listed: {exc.strerror}") from exc


def _advise(root: Path, ignored: Mapping[str, int]) -> str:
    """What to give in the place of a folder that has no class folders with images."""
    packed = {suffix: count for suffix, count in ignored.items() if suffix in ARCHIVE_SUFFIXES}
    if packed:
        found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(packed.items()))
        return (
            f"there are archives ({found}), which are not read; unpack them into a folder a class"
        )
    here = Path(os.path.abspath(root))
    above = here.parent
    if above.name.lower() in SPLIT_NAMES and above != above.parent:
        above = above.parent if _has_folders(above.parent / "train") else above
    siblings = [here.parent / name for name in _folders(here.parent) if name != here.name]
    if _holds_images(here) and any(map(_holds_images, siblings)):
        shown = above if root.is_absolute() else Path(os.path.relpath(above))
        return f"it looks like the images of one class; give the folder of all classes: {shown}"
    return (
        "put each class's images in a folder of its name, or give a manifest (.csv, .tsv, .jsonl "
        "or .parquet with columns path and label)"
    )


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    except OSError:
        return []


def _holds_images(folder: Path) -> bool:
    """Whether files lie in the folder itself that are taken for images."""
    try:
        with os.scandir(folder) as entries:
            return any(
                e.is_file()
                and not e.name.startswith(".")
                and os.path.splitext(e.name)[1].lower() not in COMPANION_SUFFIXES
                and not _is_companion(Path(e.path))
                for e in entries
            )
    except OSError:
        return False


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
