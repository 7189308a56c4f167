"""Takes paths as a table of images has them, gives image ids below a root; refuses what leads out of it."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from headstart.errors import InputError

__all__ = ["HALVES", "IMAGE_SUFFIXES", "Resolver"]

# The suffixes of files of the formats that are decoded.
IMAGE_SUFFIXES = tuple(
    ".bmp .dib .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
LONGEST_SUFFIX = max(map(len, IMAGE_SUFFIXES))

# What means itself on every system: no drive, address, "." or "..", nothing empty or not Unicode. Nearly
# every path is of this kind, and is not looked at further.
_PART = r"[^/\\:\0.\ud800-\udfff][^/\\:\0\ud800-\udfff]*"
PLAIN = re.compile(rf"(?:{_PART}/)*{_PART}")
HALVES = re.compile(r"[\ud800-\udfff]")


class _Folder(NamedTuple):
    """A folder that paths name.

    Attributes:
        inside: whether its real path lies below the root.
        links: names of the links in it; None where it cannot be listed.
    """

    inside: bool
    links: frozenset[str] | None


class Resolver:
    """The path of an image in a table -> its id below the root.

    A folder is listed once, however many images are in it. A name without an image's suffix, as an
    `id` is, stands for the one file that has such a suffix beside.
    """

    def __init__(self, root: Path, allow_outside: bool) -> None:
        self._root = root
        self._allow_outside = allow_outside
        self._real_root = root.resolve()
        self._folders: dict[str, _Folder] = {}
        # {folder: {name: [the file itself, or those that have a suffix more]}}
        self._files: dict[str, dict[str, list[str]]] = {}

    def __call__(self, text: str) -> str:
        """Give the id.

        Raises:
            InputError: the path leads out of the root, is an address or no text that a name can be, or may
                be one of several files. The message does not say where it stands.
        """
        image_id = text if PLAIN.fullmatch(text) else self._normalise(text)
        if not image_id[-LONGEST_SUFFIX:].lower().endswith(IMAGE_SUFFIXES):
            image_id = self._complete(image_id)
        self.check(image_id)
        return image_id

    def check(self, name: str) -> None:
        """Check that a name below the root, without "..", leads nowhere else.

        Raises:
            InputError: it is a link that does.
        """
        if not self._allow_outside and not self._is_inside(name):
            raise InputError(
                f"'{name}' is a link that leads outside of {self._root}; allow it with --allow-outside"
            )

    def _normalise(self, text: str) -> str:
        if "\0" in text:
            raise InputError("the path contains a NUL character")
        if HALVES.search(text):
            raise InputError(f"the path {text!a} is not valid Unicode")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
            raise InputError(f"'{text}' is an address; download the images first")
        outside = (
            text.startswith(("/", "\\"))
            or re.match(r"[A-Za-z]:", text) is not None
            or ".." in re.split(r"[/\\]", text)
        )
        if outside and not self._allow_outside:
            raise InputError(
                f"'{text}' leads outside of {self._root}; use paths relative to it, another --root, or "
                "--allow-outside"
            )
        return os.path.normpath(text).replace(os.sep, "/")

    def _complete(self, image_id: str) -> str:
        """The id of the file that is meant by one without a suffix; the same where there is none."""
        folder, slash, name = image_id.rpartition("/")
        if not self._allow_outside and not self._look(folder).inside:
            return image_id  # which is refused
        if folder not in self._files:
            self._files[folder] = self._list_files(folder or slash)
        found = self._files[folder].get(name, [name])
        if len(found) > 1:
            raise InputError(
                f"'{image_id}' may be {' or '.join(sorted(found)[:4])}; write the suffix too"
            )
        return f"{folder}{slash}{found[0]}"

    def _list_files(self, folder: str) -> dict[str, list[str]]:
        files: dict[str, list[str]] = {}
        try:
            names = os.listdir(self._root / folder)
        except (OSError, ValueError):
            return files
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                files.setdefault(stem, []).append(name)
        return files | {name: [name] for name in names}

    def _is_inside(self, image_id: str) -> bool:
        folder, _, name = image_id.rpartition("/")
        here = self._look(folder)
        if here.inside and here.links is not None and name not in here.links:
            return True
        try:
            path = self._root / image_id
            return here.inside and (
                not path.is_symlink()
                or Path(os.path.realpath(path)).is_relative_to(self._real_root)
            )
        except OSError:  # a name that is too long: no such file, so a bad image and no way out
            return here.inside

    def _look(self, folder: str) -> _Folder:
        if folder not in self._folders:
            self._folders[folder] = self._look_at(folder)
        return self._folders[folder]

    def _look_at(self, folder: str) -> _Folder:
        path = self._root / folder
        try:
            inside = Path(os.path.realpath(path)).is_relative_to(self._real_root)
        except OSError:  # a name that is too long, as above
            return _Folder(True, None)
        try:
            with os.scandir(path) as entries:
                return _Folder(inside, frozenset(e.name for e in entries if e.is_symlink()))
        except FileNotFoundError:
            return _Folder(inside, frozenset())
        except OSError:
            return _Folder(inside, None)
