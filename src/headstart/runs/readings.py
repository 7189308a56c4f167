"""Takes an evaluation of a run, notes it in the run's folder, gives how often its images were measured.

Whoever measures the same test images again and again, and goes on with what was best, chooses by them: the
figures then flatter, though no image was ever trained on. evaluations.jsonl has a line for each evaluation on
images that the run had not used itself. It is written by one call, so that processes at once do not mix their
lines; it goes when a new run takes the folder. It may come from anywhere: no other line is counted.
"""

import dataclasses
import hashlib
import itertools
import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headstart.runs.folder import READINGS

__all__ = ["NOT_COUNTED", "Reading", "Readings", "list_readings", "note_reading"]

# A line has some 300 bytes; nobody reads a test set more often than fits here.
MAX_BYTES = 4 * 2**20
PLAIN = os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Reading(BaseModel):
    """A line of evaluations.jsonl.

    Attributes:
        date: in UTC, to the second.
        split: that was measured, or "all".
        images: how many.
        sha256: of the sorted hashes of their bytes, whatever they are called.
        figure, value: the most important figure.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]
    split: Literal["train", "val", "test", "all"]
    images: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    figure: Annotated[str, Field(max_length=64)]
    value: float | None


@dataclasses.dataclass(frozen=True)
class Readings:
    """How often the same images were measured with one run, this time included.

    Attributes:
        times: 0 where that is not counted: images that the run used itself, or no folder to note it in.
        occasions: the same, but the same evaluation repeated with no other in between counts once.
        problem: why this time could not be noted, on one line; "" where it was.
    """

    times: int = 0
    occasions: int = 0
    problem: str = ""

    def __str__(self) -> str:
        """What people should know of it: nothing before the second occasion."""
        if self.occasions < 2:
            return ""
        return (
            f"these images were measured {self.times:,} times with this run; each choice that is made after "
            "looking makes the figures flatter, and only new images do not"
        )


NOT_COUNTED = Readings()


def note_reading(
    folder: Path, split: str, contents: Sequence[str], figure: str, value: float
) -> Readings:
    """Note an evaluation in the folder of its run; never fails.

    Args:
        contents: the hashes of the images' bytes.
        figure, value: the most important figure, and what it is.
    """
    digest = hashlib.sha256("\n".join(sorted(contents)).encode()).hexdigest()
    reading = Reading.model_validate(
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "split": split,
            "images": len(contents),
            "sha256": digest,
            "figure": figure,
            "value": value if value == value else None,
        }
    )
    try:
        _append(folder / READINGS, reading.model_dump_json().encode() + b"\n")
    except OSError as exc:
        reason = exc.strerror or str(exc)
        return Readings(
            problem=f"{folder / READINGS}: cannot be written ({reason}), so it is not counted that these "
            "images were measured; make the folder writable to count"
        )
    every = [(r.sha256, r.figure, r.value) for r in list_readings(folder)]
    same = [key for key in every if key[0] == digest]
    distinct = [key for key, _ in itertools.groupby(every) if key[0] == digest]
    return Readings(len(same), len(distinct))


def list_readings(folder: Path) -> tuple[Reading, ...]:
    """List the evaluations that are noted in the folder of a run, the oldest first; () where none can be
    read."""
    try:
        file = os.open(folder / READINGS, os.O_RDONLY | PLAIN)
        try:
            _check(file)
            data = os.read(file, MAX_BYTES)
        finally:
            os.close(file)
    except OSError:
        return ()
    readings = []
    for line in data.splitlines():
        try:
            readings.append(Reading.model_validate_json(line))
        except ValidationError:  # torn by a full disk, or not ours
            continue
    return tuple(readings)


def _append(path: Path, line: bytes) -> None:
    """Add a line to a file by one call.

    Raises:
        OSError: it cannot be written, or is not a file of this folder alone.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | PLAIN, 0o644)
    try:
        size = _check(file)
        if size + len(line) > MAX_BYTES:
            raise OSError(f"larger than {MAX_BYTES >> 20} MiB")
        # The last line may have been torn by a full disk.
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        line = b"\n" + line if torn else line
        if os.write(file, line) < len(line):
            raise OSError("the disk is full")
        os.fsync(file)
    finally:
        os.close(file)


def _check(file: int) -> int:
    """Give the size of an open file.

    Raises:
        OSError: a device or pipe; or another name of a file elsewhere, which a folder from somewhere else
            may have.
    """
    info = os.fstat(file)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        raise OSError("not a plain file")
    return info.st_size
