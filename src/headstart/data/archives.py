"""Takes zip and tar archives, gives a `Dataset`: one that holds class folders, or several, one a class.

What is in an archive is judged by the same rules as what is in a folder. Several archives are read as a
folder that holds each as a folder of its name without the ending; so archives named train and val are splits.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from headstart.data.dataset import SPLIT_NAMES, Dataset, dataset_of_rows
from headstart.data.form import Form, LoadOptions
from headstart.data.images import MappedReader, Reader, Source
from headstart.data.members import (
    Contents,
    common_folder,
    find_kind,
    list_archives,
    list_members,
    stem_of,
)
from headstart.data.trees import (
    ARCHIVE_SUFFIXES,
    COMPANION_SUFFIXES,
    ClassFolders,
    Entry,
    has_folders,
    list_visible,
)
from headstart.errors import InputError

__all__ = ["ARCHIVE"]


@dataclasses.dataclass(frozen=True, slots=True)
class _JoinedReaders:
    """Members of several archives; an id is the archive's stem, a slash, and the id in it."""

    readers: Mapping[str, Reader]

    def open(self, image_id: str) -> Source:
        """Give the source of a member."""
        stem, _, own = image_id.partition("/")
        return self.readers[stem].open(own)


class _ArchiveTree:
    """A `Tree` in an archive.

    Attributes:
        name: the archive's path.
        place: None, since no link is followed in an archive.
        base: the path of the folder that stands around everything else, with its slash; "" for none.
    """

    place = None

    def __init__(self, path: Path, listing: Contents, *, is_class: bool) -> None:
        """Sort members into folders; `is_class` where the archive is one class, or one split, of several."""
        self.name = str(path)
        self.base = ""
        self._folders: dict[str, dict[str, Entry]] = {"": {}}
        self._sources: dict[str, Source] = {}
        for place, member in listing.members.items():
            above, _, name = place.rpartition("/")
            if member.is_folder:
                self._make_folder(place)
                continue
            folder = self._folders[self._make_folder(above)]
            if name not in folder:  # else a folder has that name
                folder[name] = Entry(name, False, member.is_link, member.error)
            if member.source is not None:
                self._sources[place] = member.source
        self.base = self._find_base(is_class)

    def list(self, prefix: str) -> list[Entry]:
        """List a folder, as `Tree` says."""
        return [entry for _, entry in sorted(self._folders[self.base + prefix].items())]

    def reader(self) -> Reader:
        return MappedReader(self._sources, self.base)

    def _make_folder(self, place: str) -> str:
        """Make a folder and those above it where they are missing; give its path with a slash."""
        prefix = f"{place}/" if place else ""
        if prefix not in self._folders:
            above, _, name = place.rpartition("/")
            self._folders[self._make_folder(above)][name] = Entry(name, True)
            self._folders[prefix] = {}
        return prefix

    def _find_base(self, is_class: bool) -> str:
        """The folder that was packed, where its name stands before that of everything in it.

        A folder alone that holds one folder is a class, as it would be in a folder; its images may be deeper.
        """
        visible = list_visible(self, "")
        if len(visible) != 1 or not visible[0].is_folder:
            return ""
        prefix = f"{visible[0].name}/"
        if is_class:
            return prefix
        inside = [entry for entry in list_visible(self, prefix) if entry.is_folder]
        is_train = SPLIT_NAMES.get(visible[0].name.lower()) == "train"
        parts = [e.name for e in inside if SPLIT_NAMES.get(e.name.lower()) == "train"]
        if is_train or not has_folders(self, prefix) or (len(inside) < 2 and not parts):
            return ""
        return prefix


class _JoinedTree:
    """A `Tree` of several archives, each a folder by its stem."""

    place = None

    def __init__(self, trees: Mapping[str, _ArchiveTree]) -> None:
        self.name = " ".join(tree.name for tree in trees.values())
        self._trees = trees

    def list(self, prefix: str) -> list[Entry]:
        """List a folder, as `Tree` says."""
        if not prefix:
            return [Entry(stem, True) for stem in sorted(self._trees)]
        stem, _, own = prefix.partition("/")
        return self._trees[stem].list(own)

    def reader(self) -> Reader:
        return _JoinedReaders({stem: tree.reader() for stem, tree in self._trees.items()})


def _recognises(path: Path) -> bool:
    """By content; files of other kinds are zip archives inside, and their names say that they are others."""
    if path.is_dir():
        return bool(list_archives(path))
    suffix = path.suffix.lower()
    if suffix in COMPANION_SUFFIXES - ARCHIVE_SUFFIXES or not path.is_file():
        return False
    return bool(find_kind(path))


def _load(path: Path, options: LoadOptions) -> Dataset:
    if path.is_dir():
        first, *others = list_archives(path)
        return _load_several((first, *others), options) if others else _load(first, options)
    listing = list_members(path)
    tree = _ArchiveTree(path, listing, is_class=False)
    return _read(tree, path, listing.tell())


def _load_several(paths: tuple[Path, ...], options: LoadOptions) -> Dataset:
    trees: dict[str, _ArchiveTree] = {}
    warnings = []
    for path in paths:
        stem, listing = stem_of(path), list_members(path)
        if stem in trees:
            raise InputError(
                f"{path}: {trees[stem].name} is the class '{stem}' already; rename one of the two"
            )
        trees[stem] = _ArchiveTree(path, listing, is_class=True)
        warnings += [f"{path.name}: {warning}" for warning in listing.tell()]
    return _read(_JoinedTree(trees), common_folder(paths), warnings)


def _read(tree: _ArchiveTree | _JoinedTree, root: Path, warnings: list[str]) -> Dataset:
    """The images of a tree.

    Raises:
        InputError: it has no class folders with images.
    """
    found = ClassFolders(tree)
    found.read()
    if not any(row.labels for row in found.rows):
        raise InputError(
            f"{tree.name}: no images in class folders{' (' + warnings[0] + ')' if warnings else ''}; give an "
            "archive with a folder a class in it, or several archives, one a class"
        )
    nested = sum(count for kind, count in found.ignored.items() if kind in ARCHIVE_SUFFIXES)
    if nested:
        warnings.append(
            f"passed over {nested} archive{'s' if nested > 1 else ''} inside of the archive, which "
            f"{'are' if nested > 1 else 'is'} not read"
        )
    dataset = dataset_of_rows(
        root, found.rows, ignored=dict(found.ignored), warnings=(*found.warnings, *warnings)
    )
    return dataclasses.replace(dataset, reader=tree.reader())


ARCHIVE = Form(
    name="archive",
    looks="a zip or tar archive of class folders",
    uses=frozenset({"group"}),
    recognises=_recognises,
    load=_load,
    load_several=_load_several,
)
