"""The files of a run's folder: their names, where a training writes, and how a new run replaces an old one.

This file knows neither networks nor data; `classifier` and `record` read and write the files' contents. A
new run is written into the sub-folder `.next`, and the list of its files comes last and commits it. Until
then the folder holds what it held before, however the process ends. From then on it is the new run: its
files are moved up one by one, and if the process is killed meanwhile, the next one that opens the folder
finishes that first (`recover`).
"""

import contextlib
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from headstart.errors import InputError, ResourceError, UsageError
from headstart.files import fail_point, read_json, sync_folder, to_json_bytes, write_atomically
from headstart.training.outputs import START, TRAINING

__all__ = [
    "CARD",
    "CONFIG",
    "FORMAT",
    "FORMAT_SEVERAL",
    "HEAD_FILE",
    "KNOWLEDGE",
    "MEMBERS",
    "METRICS",
    "MODEL",
    "NEXT",
    "PREDICTIONS",
    "PROVENANCE",
    "READINGS",
    "SETTINGS",
    "check_folder",
    "clear_training",
    "find_training",
    "mark_incomplete",
    "recover",
    "replace_run",
]

FORMAT = 1
# That of classifiers for images with several labels, which those who know only the first cannot read.
FORMAT_SEVERAL = 2

# The files of every run; the card describes the others.
CARD, CONFIG, MODEL = "headstart.json", "config.json", "model.safetensors"
# In the place of config and model where a head reads features and there is no network.
HEAD_FILE = "head.safetensors"
SETTINGS, METRICS, MEMBERS = "settings.json", "metrics.json", "split.jsonl"
# The probabilities of every image that was measured on; the provenance.
PREDICTIONS, PROVENANCE = "predictions.safetensors", "run.json"
# What a classifier knows of its own limits.
KNOWLEDGE = "knowledge.safetensors"
# How often it was measured on other images than its own; no new run has any.
READINGS = "evaluations.jsonl"

# The report of a run: not of its record, and gone with the run that it is of.
REPORT = tuple(
    f"report{end}" for end in (".html", ".json", "-images.csv", "-classes.csv", "-confusions.csv")
)

# In the order in which they are moved: a folder is read by its card, so the card comes last.
NAMES = (
    MODEL,
    CONFIG,
    HEAD_FILE,
    SETTINGS,
    METRICS,
    MEMBERS,
    PREDICTIONS,
    PROVENANCE,
    KNOWLEDGE,
    READINGS,
    *REPORT,
    *TRAINING,
    CARD,
)

NEXT, COMMIT = ".next", "commit.json"


def check_folder(folder: Path, *, overwrite: bool) -> bool:
    """Say whether the folder holds a complete run, which may be replaced.

    Raises:
        UsageError: the folder holds a complete run that may not be replaced, or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file of this name exists; choose another folder")
    recover(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    if not (folder / CARD).is_file():
        raise UsageError(f"{folder}: holds other files; choose an empty or new folder")
    complete = _read_status(folder) != "incomplete"
    if complete and not overwrite:
        pending = (folder / NEXT / START).exists()
        resume = ", or --resume, which goes on with the training that was to replace it"
        raise UsageError(
            f"{folder}: holds a run already; choose another, or --overwrite"
            f"{resume if pending else ''}"
        )
    return complete


def _read_status(folder: Path) -> str:
    try:
        return str(read_json(folder / CARD).get("status"))
    except InputError:
        return "unknown"


def mark_incomplete(folder: Path) -> None:
    """Make the folder and mark it as one without a complete run, until one is put there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CARD, to_json_bytes({"format": FORMAT, "status": "incomplete"}))


def find_training(folder: Path) -> Path:
    """Find the folder in which a training keeps its state: a sub-folder while it is to replace a run."""
    place = folder / NEXT
    return place if (place / START).exists() and not place.is_symlink() else folder


def clear_training(place: Path) -> None:
    """Remove the state of an earlier training."""
    if place.name == NEXT:
        _unlink_place(place)
        shutil.rmtree(place, ignore_errors=True)
    for name in TRAINING:
        _remove(place / name)
    _remove_partial(place)


def replace_run(folder: Path, files: Mapping[str, bytes], *, keep: Collection[str] = ()) -> None:
    """Put a new run into a folder; whenever the process is killed, it holds the old or the new one, complete.

    Args:
        files: {name: content} of the new run, its card among them.
        keep: names of the files of its training that belong to the run. All other files of an
            earlier run or of this one's training are removed; files that belong to no run stay.

    Raises:
        OSError: out of disk or permission; the old run is untouched.
    """
    place = folder / NEXT
    _unlink_place(place)
    place.mkdir(parents=True, exist_ok=True)
    try:
        for name, content in files.items():
            write_atomically(place / name, content)
        sync_folder(folder)
        record = to_json_bytes({"names": [*files, *keep]})
        write_atomically(place / COMMIT, record)
    except OSError:
        if not (place / START).exists():  # else it is the state that --resume continues
            shutil.rmtree(place, ignore_errors=True)
        raise
    recover(folder)


def recover(folder: Path) -> None:
    """Finish a replacement that was committed before its process was killed, if there is one.

    Raises:
        InputError: the list of its files is damaged.
        ResourceError: the folder cannot be written.
    """
    place = folder / NEXT
    if place.is_symlink() or not (place / COMMIT).is_file():
        return
    try:
        names = read_json(place / COMMIT).get("names")
    except InputError:
        if not (place / COMMIT).exists():  # another process has just finished it
            return
        raise
    if not isinstance(names, list):
        raise InputError(f"{place / COMMIT}: damaged; remove {place} to keep the run before")
    try:
        for name in NAMES:
            if name not in names:
                _remove(folder / name)
            elif os.path.lexists(place / name):
                if (folder / name).is_dir() and os.path.lexists(place / name):
                    _remove(folder / name)  # which no rename replaces
                with contextlib.suppress(FileNotFoundError):  # another process does the same
                    os.replace(place / name, folder / name)
            fail_point("moved")
        _remove_partial(folder)
        sync_folder(folder)
        # The list goes last: what is left of the training must not look like one to resume.
        for path in list(place.iterdir()):
            if path.name != COMMIT:
                _remove(path)
            fail_point("cleared")
        (place / COMMIT).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            place.rmdir()
    except OSError as exc:
        raise ResourceError(
            f"{folder}: a new run cannot be put in the place of the old one: "
            f"{exc.strerror or exc}; make the folder writable and run this again"
        ) from exc


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unlink_place(place: Path) -> None:
    """Remove a link; the folder may come from anywhere, and the target belongs to somebody else."""
    if place.is_symlink():
        place.unlink()


def _remove_partial(place: Path) -> None:
    """Remove the unfinished files of a process that was killed while it wrote."""
    for part in place.glob(".*.partial"):
        part.unlink(missing_ok=True)
