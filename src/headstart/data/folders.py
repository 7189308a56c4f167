"""Takes a folder with a sub-folder a class, gives a `Dataset`; lists folders on disk and judges links."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from headstart.data.dataset import SPLIT_NAMES, Dataset, dataset_of_rows
from headstart.data.form import Form, LoadOptions, list_folders
from headstart.data.members import list_archives
from headstart.data.trees import (
    ARCHIVE_SUFFIXES,
    ClassFolders,
    Entry,
    has_folders,
    holds_images,
    walk_images,
)
from headstart.errors import InputError

__all__ = ["FOLDER", "list_files"]


def list_files(folder: Path, *, allow_outside: bool = False) -> Iterator[tuple[str, str]]:
    """Every candidate image below a folder as (path relative to it, reason it cannot be read or "").

    Yields nothing for hidden files and files that commonly lie beside images.
    """
    yield from walk_images(_Folder(folder, allow_outside), "", Counter(), set())


class _Folder:
    """A `Tree` on disk, whose links are followed where they may be.

    Attributes:
        name: its path.
        place: (device, inode); None where it cannot be told.
    """

    def __init__(self, root: Path, allow_outside: bool = False) -> None:
        self.name = str(root)
        self._root, self._real_root, self._allow_outside = root, root.resolve(), allow_outside
        try:
            info = root.stat()
            self.place: tuple[int, int] | None = (info.st_dev, info.st_ino)
        except OSError:
            self.place = None

    def list(self, prefix: str) -> list[Entry]:
        """List a folder, as `Tree` says."""
        with os.scandir(self._root / prefix) as found:
            return [self._describe(entry) for entry in sorted(found, key=lambda e: e.name)]

    def _describe(self, entry: "os.DirEntry[str]") -> Entry:
        is_link, reason = entry.is_symlink(), ""
        if not is_link and _is_plain_file(entry):
            return Entry(entry.name, False)
        if is_link:
            reason = _link_reason(Path(entry.path), self._real_root, self._allow_outside)
        try:
            info = entry.stat()
        except OSError as exc:
            return Entry(entry.name, False, is_link, reason or exc.strerror or str(exc))
        if stat.S_ISDIR(info.st_mode):
            return Entry(entry.name, True, is_link, reason, (info.st_dev, info.st_ino))
        if not reason and not stat.S_ISREG(info.st_mode):
            reason = "not a regular file"
        return Entry(entry.name, False, is_link, reason)


def _is_plain_file(entry: "os.DirEntry[str]") -> bool:
    """Whether the listing of the folder says so, as of nearly every entry; to ask costs a call for each."""
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return False


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


def _load(root: Path, options: LoadOptions) -> Dataset:
    """The images of a folder with a sub-folder a class, alone or in folders of splits.

    Raises:
        InputError: it has no class folders with images, or cannot be listed.
    """
    found = ClassFolders(_Folder(root, options.allow_outside))
    found.read()
    if not any(row.labels for row in found.rows):
        raise InputError(f"{root}: no images in class folders; {_advise(root, found.ignored)}")
    return dataset_of_rows(
        root, found.rows, ignored=dict(found.ignored), warnings=tuple(found.warnings)
    )


FOLDER = Form(
    name="folder",
    looks="a folder of class folders",
    uses=frozenset({"group", "allow_outside"}),
    recognises=lambda path: path.is_dir() and not list_archives(path),
    load=_load,
)


def _advise(root: Path, ignored: Mapping[str, int]) -> str:
    """What to give in the place of a folder that has no class folders with images."""
    packed = {suffix: count for suffix, count in ignored.items() if suffix in ARCHIVE_SUFFIXES}
    if packed:
        found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(packed.items()))
        return (
            f"there are archives ({found}); name them instead of the folder, one a class or one that "
            "holds class folders"
        )
    here = Path(os.path.abspath(root))
    above = here.parent
    if above.name.lower() in SPLIT_NAMES and above != above.parent:
        above = above.parent if has_folders(_Folder(above.parent), "train/") else above
    siblings = [here.parent / name for name in list_folders(here.parent) if name != here.name]
    if holds_images(_Folder(here)) and any(holds_images(_Folder(path)) for path in siblings):
        shown = above if root.is_absolute() else Path(os.path.relpath(above))
        return f"it looks like the images of one class; give the folder of all classes: {shown}"
    return (
        "put each class's images in a folder of its name, or give a manifest (.csv, .tsv, .jsonl "
        "or .parquet with columns path and label)"
    )
