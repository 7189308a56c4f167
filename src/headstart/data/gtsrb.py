"""Takes the German Traffic Sign Recognition Benchmark as it is distributed, gives a `Dataset`.

Each class folder of the training images has a GT-00000.csv by semicolons, with the region of the sign in
each image; those of the test images stand in one folder, and GT-final_test.csv with their classes comes in
an archive of its own. https://benchmark.ini.rub.de/gtsrb_dataset.html
"""

import dataclasses
import functools
import os
import re
from pathlib import Path

from headstart.data.dataset import Dataset, Row, dataset_of_rows
from headstart.data.form import Form, LoadOptions, list_folders
from headstart.data.rows import Listing
from headstart.data.tables import list_columns
from headstart.errors import InputError

__all__ = ["GTSRB"]

# Where they lie below what people name: the folder GTSRB, and the training images in that, which are in
# Training in the archive that was corrected.
LAYOUTS = tuple(
    (top, images)
    for images in ("Final_Training/Images/", "Training/", "Images/", "")
    for top in ("", "GTSRB/")
)
TEST = "Final_Test/Images/"
ANSWERS = "GT-final_test.csv"
CLASS_ID = "ClassId"
CLASS_FOLDER = re.compile(r"[0-9]{5}")
NUMBER = re.compile(r"[0-9]{1,5}")
# 00012_00003.ppm is image 3 of track 12 of its class: of one sign, as the car came nearer.
TRACK = re.compile(r"([0-9]{5})_[0-9]{5}\.ppm", re.IGNORECASE)
REGIONS = (
    "regions of interest (Roi.X1, …) are not cut out: the network sees whole images, with the margin "
    "around the sign"
)


def _find_layout(root: Path) -> tuple[str, str] | None:
    """The one of the `LAYOUTS` that lies there; None for no GTSRB."""
    for top, images in LAYOUTS:
        folder = root / top / images
        if any((folder / _table_of(name)).is_file() for name in _list_classes(folder)):
            return top, images
    return None


def _table_of(name: str) -> str:
    return f"{name}/GT-{name}.csv"


def _list_classes(folder: Path) -> list[str]:
    return [name for name in list_folders(folder) if CLASS_FOLDER.fullmatch(name)]


def _find_answers(root: Path, top: str, listing: Listing) -> Path | None:
    """The classes of the test images, which come in another archive: beside them or above."""
    below = [f"{top}{place}{ANSWERS}" for place in (TEST, "Final_Test/", "")]
    found = [listing.find(name) for name in (*below, ANSWERS) if (root / name).is_file()]
    found.append(Path(os.path.abspath(root)).parent / ANSWERS)
    return next((p for p in found if p.is_file() and CLASS_ID in list_columns(p)), None)


def _load(root: Path, options: LoadOptions) -> Dataset:
    """The training images in their tracks, and the test images where their classes are there.

    Raises:
        InputError: a class lacks its table, or one cannot be used, or has an image of another class.
    """
    layout = _find_layout(root)
    if layout is None:
        raise InputError(f"{root}: no {_table_of('00000')} in {LAYOUTS[0][1]} or Training")
    top, images = layout
    options = dataclasses.replace(
        options, path_column="Filename", label_column=CLASS_ID, multi_label=False
    )
    listing = Listing(root, options)
    for name in _list_classes(root / top / images):
        folder, table = f"{top}{images}{name}/", f"{top}{images}{_table_of(name)}"
        if not (root / table).is_file():
            raise InputError(f"{root}: {table} is missing; unpack the archive once more")
        read = functools.partial(_read_training, name=name, in_tracks=options.group is None)
        listing.add(listing.find(table), prefix=folder, split="train", read=read)
    warnings = [REGIONS]
    if (root / top / TEST).is_dir():
        answers = _find_answers(root, top, listing)
        if answers is None:
            warnings.append(
                f"the test images are left out, since no {ANSWERS} with their classes lies beside or above; "
                "it comes in GTSRB_Final_Test_GT.zip"
            )
        else:
            listing.add(answers, prefix=f"{top}{TEST}", split="test", read=_with_number)
    return dataset_of_rows(root, listing.rows.values(), warnings=(*listing.warnings, *warnings))


def _with_number(row: Row) -> Row:
    """The row with its class as the folders are called."""
    assert row.labels is not None
    [label] = row.labels
    if not NUMBER.fullmatch(label):
        raise InputError(f"the {CLASS_ID} must be a number below 100,000, got '{label}'")
    return row._replace(labels=(f"{int(label):05}",))


def _read_training(row: Row, *, name: str, in_tracks: bool) -> Row:
    row = _with_number(row)
    if row.labels != (name,):
        raise InputError(f"'{row.id}' is of another class than its folder")
    track = TRACK.fullmatch(os.path.basename(row.id))
    return row._replace(group=f"{name}/{track[1]}") if track and in_tracks else row


GTSRB = Form(
    name="gtsrb",
    looks="a folder GTSRB as distributed",
    uses=frozenset({"group", "allow_outside"}),
    recognises=lambda path: _find_layout(path) is not None,
    load=_load,
)
