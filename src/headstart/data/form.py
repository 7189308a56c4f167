"""What a form of data is: how it is told from others, which options it heeds, and what reads it.

A form is one file with one `Form`, and its line in `loading`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from headstart.data.dataset import Dataset

__all__ = ["Form", "LoadOptions"]


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """What may be said of data beside where they are; `load_dataset` explains each.

    Attributes:
        root: the folder that paths inside of the data are relative to; None for their own.
        group: a regular expression that captures an image's group in its id; None for none.
        allow_outside: whether links and paths may lead out of the root.
    """

    root: Path | None = None
    group: str | None = None
    allow_outside: bool = False

    def given(self) -> list[str]:
        """Names of those that differ from their default."""
        fields = dataclasses.fields(self)
        return [field.name for field in fields if getattr(self, field.name) != field.default]


@dataclasses.dataclass(frozen=True)
class Form:
    """A form that data come in.

    Attributes:
        name: what people insist on it by.
        looks: what it looks like, with its article, for messages: "a folder of class folders".
        heeds: names of the options that have an effect on it; another one is refused.
        recognises: whether what lies at a path, which exists, is of this form; opens no image.
        load: reads it; raises InputError that names the element and the next step.
    """

    name: str
    looks: str
    heeds: frozenset[str]
    recognises: Callable[[Path], bool]
    load: Callable[[Path, LoadOptions], Dataset]
