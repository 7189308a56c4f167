"""Takes a CSV, TSV, JSONL or Parquet manifest, gives a `Dataset`; its paths are relative to a root."""

from pathlib import Path

from headstart.data.dataset import Dataset, dataset_of_rows
from headstart.data.form import Form, LoadOptions
from headstart.data.rows import Listing
from headstart.data.tables import TABLE_SUFFIXES
from headstart.errors import InputError

__all__ = ["MANIFEST"]


def _recognises(path: Path) -> bool:
    return path.suffix.lower() in TABLE_SUFFIXES and path.is_file()


def _load(path: Path, options: LoadOptions) -> Dataset:
    root = path.parent if options.root is None else options.root
    if not root.is_dir():
        raise InputError(f"{root}: the root of the manifest's paths is not a folder")
    listing = Listing(root, options)
    listing.add(path)
    if not listing.rows:
        raise InputError(f"{path}: no rows; each image needs a row with its path and label")
    rows = listing.finish()
    return dataset_of_rows(root, rows, warnings=listing.warnings)


MANIFEST = Form(
    name="manifest",
    looks="a .csv, .tsv, .jsonl or .parquet manifest",
    uses=frozenset(
        {"root", "group", "allow_outside", "path_column", "label_column", "label_separator"}
    ),
    recognises=_recognises,
    load=_load,
)
