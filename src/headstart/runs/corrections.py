"""Takes an `Audit`, writes a table to act on; takes it back with actions, writes a manifest for `fit`."""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from headstart.choices import nearest
from headstart.data.dataset import Dataset
from headstart.data.tables import read_separated, read_text
from headstart.errors import InputError, UsageError, csv_cell, printable
from headstart.files import translate_errors, write_atomically
from headstart.runs.auditing import Audit
from headstart.runs.sources import Data, read_data
from headstart.training.settings import make_settings

__all__ = ["Corrected", "apply_corrections", "check_new_file", "write_corrections"]

COLUMNS = ("image", "problem", "label", "suggested", "score", "action")
ACTIONS = ("drop", "relabel", "keep")


@dataclasses.dataclass(frozen=True)
class Corrected:
    """The outcome of applying corrections.

    Attributes:
        images: in the manifest.
        dropped: images that are not.
        relabelled: images with another label.
        root: the folder that the manifest's paths are relative to; None where it is the manifest's own.
    """

    images: int
    dropped: int
    relabelled: int
    root: Path | None


def check_new_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse to write where there is something, which may be hours of somebody's work.

    Raises:
        UsageError: the file exists, or has another suffix.
    """
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path}: the file is written as {' or '.join(suffixes)}; name it so")
    if os.path.lexists(path):
        raise UsageError(f"{path}: exists; name another file, or remove it")


def write_corrections(audit: Audit, path: Path) -> None:
    """Write a CSV with a row for each image and problem, and an empty column for what is to be done.

    The columns are image, problem, label, suggested, score and action, which takes drop, relabel (to what
    stands under suggested) or keep.

    Raises:
        UsageError: the file exists, or is no .csv.
        ResourceError: it cannot be written.
    """
    check_new_file(path, (".csv",))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for image, problem, label, suggested, score in _list_rows(audit):
        shown = "" if score is None else f"{score:.4f}"
        cells = [csv_cell(cell) for cell in (image, problem, label, suggested)]
        writer.writerow([*cells, shown, ""])
    with translate_errors(path.parent, advice="choose another folder"):
        write_atomically(path, text.getvalue().encode())


def _list_rows(audit: Audit) -> Iterator[tuple[str, str, str, str, float | None]]:
    """List (image, problem, label, suggested, score or None)."""
    labels = dict(zip(audit.dataset.ids, audit.dataset.label_names(), strict=True))
    for error in audit.label_errors:
        yield error.image, "label error", error.label, error.suggested, error.score
    for conflict in audit.conflicts:
        others = ", ".join(dict.fromkeys(conflict.labels))
        for image, label in zip(conflict.images, conflict.labels, strict=True):
            yield image, f"conflict: the same picture under {others}", label, "", None
    for leak in audit.leaks:
        image, other = leak.images
        yield image, f"leak: the same picture as {other}", labels[image], "", leak.similarity
    for first, *copies in audit.duplicates:
        for image in copies:
            yield image, f"duplicate: the same picture as {first}", labels[image], "", None
    for outlier in audit.outliers:
        yield outlier.image, "outlier", outlier.label, "", outlier.score
    for file in audit.files:
        yield file.image, f"{file.problem}: {file.evidence}", file.label, "", None


def apply_corrections(
    data: Data,
    table: str | os.PathLike[str],
    output: str | os.PathLike[str],
    **options: Any,
) -> Corrected:
    """Write a manifest of the images, without those to drop and with the new labels of others.

    Args:
        data: files, as `load_dataset` takes them, or a `Dataset` of files.
        table: a CSV of `write_corrections` with actions; a row without one changes nothing.
        output: the manifest to write, .csv or .jsonl; its paths are relative to its own folder where
            the images lie below that, else to the data's root.
        **options: those fields of `Settings` that say how the data are read, as for the audit.

    Raises:
        UsageError: the output exists, or is no manifest; or the images are not files of a folder.
        InputError: the data or the table cannot be used; names the line and its image.
        ResourceError: the manifest cannot be written.
    """
    place, source = Path(output), Path(table)
    check_new_file(place, (".csv", ".jsonl"))
    dataset = read_data(data, make_settings(options))
    dataset.check_single_label()
    if dataset.reader is not None:
        raise UsageError(
            f"{dataset.name}: --apply writes a manifest, which names files, and these images are none; "
            "unpack or save them as files, and audit those"
        )
    actions = _read_actions(source, dataset)
    folder, own = os.path.realpath(place.parent), os.path.realpath(dataset.root)
    below = Path(own).is_relative_to(folder)
    prefix = Path(own).relative_to(folder).as_posix() + "/" if below and own != folder else ""
    rows = []
    for image, label, split, group_name in zip(
        dataset.ids, dataset.label_names(), dataset.splits, dataset.groups, strict=True
    ):
        action, new = actions.get(image, ("", ""))
        if action != "drop":
            path = prefix + image
            rows.append([path, new or label, split, printable(group_name)])
    if not rows:
        raise InputError(f"{source}: drops all images; keep some")
    with translate_errors(place.parent, advice="choose another folder"):
        write_atomically(place, _format_manifest(rows, place).encode("utf-8", "surrogateescape"))
    kinds = [action for action, _ in actions.values()]
    return Corrected(
        len(rows), kinds.count("drop"), kinds.count("relabel"), None if below else dataset.root
    )


def _read_actions(path: Path, dataset: Dataset) -> dict[str, tuple[str, str]]:
    """{image: (action, its new label or "")} of the rows that have an action."""
    # What a cell says is escaped, so it is looked up, not read back.
    images, labels = _by_cell(dataset.ids), _by_cell(dataset.classes)
    own = dict(zip(dataset.ids, dataset.label_names(), strict=True))
    actions: dict[str, tuple[str, str]] = {}
    for number, cells in _read_table(path):
        where = f"{path}, line {number}"
        action = cells["action"].strip().lower()
        if not action:
            continue
        if action not in ACTIONS:
            raise InputError(
                f"{where}: action '{action}' is unknown{nearest(action, ACTIONS)}; "
                f"use {', '.join(ACTIONS)}, or leave it empty"
            )
        image = images.get(cells["image"])
        if image is None:
            raise InputError(f"{where}: '{cells['image']}' is not an image of {dataset.name}")
        new = ""
        if action == "relabel":
            given = cells["suggested"].strip()
            if given not in labels:
                known = ", ".join(list(labels)[:8]) + (", …" if len(labels) > 8 else "")
                raise InputError(
                    f"{where}: '{given}' under suggested is not a class{nearest(given, labels)}; "
                    f"relabel '{image}' to one of {known}"
                )
            new = labels[given]
            action = "keep" if new == own[image] else action
            new = "" if action == "keep" else new
        if actions.setdefault(image, (action, new)) != (action, new):
            raise InputError(f"{where}: '{image}' has another action on a line above; choose one")
    return actions


def _by_cell(names: Iterable[str]) -> Mapping[str, str]:
    """{what a cell says: the name}; without those that a cell cannot tell apart."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(csv_cell(name), []).append(name)
    return {cell: alike[0] for cell, alike in found.items() if len(alike) == 1}


def _read_table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Read the rows as (line, {column: cell}), as a spreadsheet may have written them."""
    reader = read_separated(read_text(path))
    header: list[str] = []
    try:
        for row in reader:
            if not header:
                header = [cell.strip().lower() for cell in row]
                missing = [name for name in ("image", "suggested", "action") if name not in header]
                if missing:
                    raise InputError(
                        f"{path}: no column '{missing[0]}'; give a table that headstart audit -o wrote"
                    )
            elif any(cell.strip() for cell in row):
                # A spreadsheet may leave empty cells out at the end.
                cells = row + [""] * (len(header) - len(row))
                if len(cells) > len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(row)} cells where the header has "
                        f"{len(header)}; quote cells that contain the separator"
                    )
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as exc:
        raise InputError(f"{path}, line {reader.line_num}: {exc}") from exc
    if not header:
        raise InputError(f"{path}: empty; give a table that headstart audit -o wrote")


def _format_manifest(rows: list[list[str]], path: Path) -> str:
    """Write rows of path, label, split and group as a manifest that reads back the same.

    Raises:
        InputError: a name is not valid Unicode; or a CSV would hold a label that a spreadsheet takes for
            a formula.
    """
    columns = ("path", "label", "split", "group")
    for row in rows:
        for cell in row:
            if any("\ud800" <= c <= "\udfff" for c in cell):
                raise InputError(
                    f"'{cell}' is not valid Unicode, which a manifest needs; rename it"
                )
    if path.suffix.lower() == ".jsonl":
        return "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        for cell in row[1:]:
            if csv_cell(cell)[:1] != cell[:1]:
                raise InputError(
                    f"'{cell}' could be taken for a formula in a CSV; write a .jsonl manifest instead"
                )
        # A path may begin with what a label may not.
        name = row[0] if csv_cell(row[0])[:1] == row[0][:1] else f"./{row[0]}"
        writer.writerow([name, *row[1:]])
    return text.getvalue()
