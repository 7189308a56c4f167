"""Takes a folder of images beside a metadata.csv, .jsonl or .parquet, gives a `Dataset`.

The layout of Hugging Face's ImageFolder: the file has a column `file_name`, of paths from its own folder,
and stands in the data's folder or in each folder of a split.
https://huggingface.co/docs/datasets/image_dataset#imagefolder
"""

import dataclasses
import os
from pathlib import Path

from headstart.data.dataset import SPLIT_NAMES, Dataset, Row, dataset_of_rows
from headstart.data.form import Form, LoadOptions, list_folders
from headstart.data.rows import Listing
from headstart.data.tables import list_columns
from headstart.errors import HeadstartError, InputError, UsageError

__all__ = ["METADATA"]

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"


def _find_tables(root: Path) -> dict[str, str]:
    """{path of each metadata file below the root: the split of its folder}."""
    folders = [name for name in list_folders(root) if name.lower() in SPLIT_NAMES]
    places = {"": "", **{f"{name}/": SPLIT_NAMES[name.lower()] for name in folders}}
    return {
        f"{place}{name}": split
        for place, split in places.items()
        for name in NAMES
        if (root / place / name).is_file()
    }


def _recognises(path: Path) -> bool:
    """Many folders of classes have a metadata.csv of another kind beside them."""
    return any(_names_files(path / name) for name in _find_tables(path))


def _names_files(table: Path) -> bool:
    try:
        return FILE_NAME in list_columns(table)
    except UsageError:  # Parquet, which cannot be looked into; reading it says so
        return True
    except HeadstartError:
        return False


def _load(root: Path, options: LoadOptions) -> Dataset:
    """The images that the metadata name.

    Raises:
        InputError: two metadata files stand in one folder, or one cannot be used.
    """
    tables = _find_tables(root)
    folders: dict[str, str] = {}
    for name in tables:
        folder = os.path.dirname(name)
        if (other := folders.setdefault(folder, name)) != name:
            raise InputError(f"{root}: {other} and {name} stand in one folder; keep one")
    path_column = options.path_column or FILE_NAME
    listing = Listing(root, dataclasses.replace(options, path_column=path_column))
    for name, split in tables.items():
        prefix = name.removesuffix(os.path.basename(name))
        listing.add(listing.find(name), prefix=prefix, split=split, read=_with_split)
    if not listing.rows:
        raise InputError(f"{root}: {' and '.join(tables)} name no images")
    rows = listing.finish()
    return dataset_of_rows(root, rows, warnings=listing.warnings)


def _with_split(row: Row) -> Row:
    """The row in the split that its folder names, where nothing else names one."""
    top, slash, _ = row.id.partition("/")
    return row._replace(split=SPLIT_NAMES.get(top.lower(), "")) if slash and not row.split else row


METADATA = Form(
    name="metadata",
    looks="a folder with a metadata.csv",
    uses=frozenset({"group", "allow_outside", "path_column", "label_column", "label_separator"}),
    recognises=_recognises,
    load=_load,
)
