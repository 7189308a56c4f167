"""Takes a folder with a sub-folder a class, gives a `Dataset`; knows links, splits and what is no image."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from headstart.choices import natural_key
from headstart.data.dataset import SPLIT_NAMES, Dataset, dataset_of_rows
from headstart.errors import InputError

__all__ = ["ARCHIVE_SUFFIXES", "list_files", "load_folder"]

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


def load_folder(root: Path, allow_outside: bool) -> Dataset:
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
        raise InputError(f"{root}: no images in class folders; {_advise(root, ignored)}")
    return dataset_of_rows(
        root, [(i, c, s, "", e) for i, c, s, e in rows], dict(ignored), tuple(warnings)
    )


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
        "put each class's images in a folder of its name, or give a manifest (.csv, .tsv or .jsonl "
        "with columns path and label)"
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
