"""The type of a form of data: how it is recognised, which options it uses, and how it is read.

A form is one file with one `Form`, and its line in `loading`.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from headstart.data.dataset import Dataset

__all__ = ["Columns", "Form", "LoadOptions", "list_folders"]


class Columns(TypedDict, total=False):
    """The options that say where labels stand, and of which kind they are; `load_dataset` explains each."""

    path_column: str | None
    label_column: str | None
    label_separator: str | None
    multi_label: bool | None


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """The options of loading beside the path; `load_dataset` explains each.

    Attributes:
        root: the folder that paths inside of the data are relative to; None for their own.
        group: a regular expression that captures an image's group in its id; None for none.
        allow_outside: whether links and paths may lead out of the root.
        path_column: the column of a table that has the images' paths; None for one with a usual name.
        label_column: likewise of their labels, or several with commas, of 0 and 1.
        label_separator: what stands between several labels in a cell; None for what is found.
        multi_label: whether an image has any number of labels; None for what is found.
    """

    root: Path | None = None
    group: str | None = None
    allow_outside: bool = False
    path_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    multi_label: bool | None = None

    def given(self) -> list[str]:
        """Names of those that differ from their default."""
        fields = dataclasses.fields(self)
        return [field.name for field in fields if getattr(self, field.name) != field.default]


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of data.

    Attributes:
        name: what people insist on it by.
        looks: what it looks like, with its article, for messages: "a folder of class folders".
        uses: names of the options that have an effect on it; any other is refused.
        recognises: whether what lies at a path, which exists, is of this form; opens no image.
        load: reads it; raises InputError that names the element and the next step.
        is_object: whether it is an object in memory; both functions get this instead of a path then.
        load_several: reads several of this form as one data set; None where one is all there can be.
    """

    name: str
    looks: str
    uses: frozenset[str]
    recognises: Callable[[Any], bool]
    load: Callable[[Any, LoadOptions], Dataset]
    load_several: Callable[[tuple[Path, ...], LoadOptions], Dataset] | None = None
    is_object: bool = False


def list_folders(path: Path) -> list[str]:
    """List by name the folders in a folder, as classes would lie there; none in one that cannot be listed."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []
