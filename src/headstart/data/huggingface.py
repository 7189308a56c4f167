"""Takes a Dataset or DatasetDict of Hugging Face's `datasets`, gives a `Dataset` that reads its rows lazily.

They are known by what they offer, so that `datasets` is not imported. Images are taken as the bytes of
their files, which `decode=False` gives, so that they are decoded here and nowhere else.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from headstart.data.dataset import SPLIT_NAMES, Dataset, Row, dataset_of_rows
from headstart.data.form import Form, LoadOptions
from headstart.data.images import MAX_FILE_BYTES, read_image_bytes
from headstart.data.label_cells import LabelCells, list_class_columns
from headstart.data.rows import find_columns, list_texts, read_cells, tell_guesses
from headstart.data.tables import Batch
from headstart.errors import BadImageError, HeadstartError, InputError, ResourceError, one_line

__all__ = ["HUGGINGFACE"]

NAME = "datasets.Dataset"
# What is used of one; a stream of images offers less.
OFFERED = ("features", "cast_column", "select_columns", "with_format", "__getitem__", "__len__")


def _recognises(source: object) -> bool:
    parts = list(source.values()) if isinstance(source, Mapping) else [source]
    return bool(parts) and all(
        type(part).__module__.partition(".")[0] == "datasets" or _offers(part) for part in parts
    )


def _offers(part: object) -> bool:
    return all(hasattr(part, name) for name in OFFERED)


class _Part(NamedTuple):
    """One split: its images, by row, as {column: {"bytes", "path"}}; and their number."""

    images: Any
    column: str
    rows: int


@dataclasses.dataclass(frozen=True, slots=True)
class _RowSource:
    """The image of a row."""

    part: _Part
    row: int

    def read(self, most: int | None = None) -> bytes:
        """Read the bytes, or the first `most`.

        Raises:
            BadImageError: there are none, or they cannot be read.
            ResourceError: out of memory or file handles.
        """
        try:
            cell = self.part.images[self.row][self.part.column] or {}
            data, path = cell.get("bytes"), cell.get("path")
        except MemoryError as exc:
            raise ResourceError(f"{NAME}, row {self.row}: out of memory while reading") from exc
        except Exception as exc:  # of whatever kind pyarrow and datasets raise
            raise BadImageError(one_line(exc)) from exc
        if data is None:
            if path is None:
                raise BadImageError("no image in this row")
            return read_image_bytes(Path(path), most)
        if len(data) > MAX_FILE_BYTES:
            raise BadImageError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        return bytes(data[:most])

    def stamp(self) -> None:
        """Give None: a row has no state to compare."""


@dataclasses.dataclass(frozen=True, slots=True)
class _RowReader:
    """The images of the splits, by ids such as "train/00012"; "00012" where there is one without a name."""

    parts: Mapping[str, _Part]

    def open(self, image_id: str) -> _RowSource:
        """Give the row of an id."""
        part, _, row = image_id.rpartition("/")
        return _RowSource(self.parts[part], int(row))


def _load(source: Any, options: LoadOptions) -> Dataset:
    """The images with their labels, in the splits of a DatasetDict.

    Raises:
        InputError: it is a stream, lacks a column of images or labels, has several, or a row without label.
    """
    given = source if isinstance(source, Mapping) else {"": source}
    rows: list[Row] = []
    parts: dict[str, _Part] = {}
    labels = LabelCells(options)
    warnings: dict[str, None] = {}  # an ordered set
    for name, part in given.items():
        if name and str(name).lower() not in SPLIT_NAMES:
            raise InputError(f"{NAME}: split '{name}' is unknown; give train, val and test alone")
        where = f"{NAME} of {name}" if name else NAME
        found, told = _find_columns(where, part, options)
        if told:
            warnings[told] = None
        images = part.with_format(None).select_columns([found["path"]])
        feature = dataclasses.replace(images.features[found["path"]], decode=False)
        images = images.cast_column(found["path"], feature)
        parts[str(name)] = _Part(images, found["path"], len(part))
        own = _list_rows(where, str(name), part, found, labels)
        if not own:
            warnings[f"{where}: left out, since none of its images has a label"] = None
        rows += own
    if not rows:
        raise InputError(f"{NAME}: no labelled images")
    rows = labels.finish(rows)
    dataset = dataset_of_rows(Path(NAME), rows, warnings=(*warnings, *labels.warnings))
    return dataclasses.replace(dataset, reader=_RowReader(parts))


def _find_columns(where: str, part: Any, options: LoadOptions) -> tuple[dict[str, str], str]:
    """Those of images, labels, and perhaps splits and groups; and which of them are guesses."""
    if not _offers(part) or not part.features:
        raise InputError(f"{where}: streams its images; load them without streaming=True")
    kinds = {name: type(feature).__name__ for name, feature in part.features.items()}
    image, label = options.path_column, options.label_column
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if image is None and len(images) == 1:
        [image] = images
    if image is not None and kinds.get(image) != "Image":
        raise InputError(f"{where}: no column '{image}' of images; those of images: {images}")
    if image is None:
        advice = "choose one with path_column" if images else "cast one to datasets.Image()"
        raise InputError(f"{where}: {len(images) or 'no'} columns of images {images}; {advice}")
    several = [n for n, f in part.features.items() if _is_list(f)]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if label is None and labels and "label" not in labels:
        if len(labels) > 1:
            raise InputError(
                f"{where}: the columns '{labels[0]}' and '{labels[1]}' may both be the label; choose one "
                "with label_column"
            )
        [label] = labels
    if label is None and not labels and len(several) == 1:
        [label] = several
    others = [n for n, kind in kinds.items() if kind in ("Value", "ClassLabel") or n in several]
    chosen = dataclasses.replace(options, path_column=image, label_column=label)
    found = find_columns(where, [image, *others], chosen)
    if list_class_columns(found) and label is None:
        raise InputError(
            f"{where}: no column of labels among {others[:8]}; choose one with label_column, or several of 0 "
            "and 1 with commas"
        )
    return found, tell_guesses(found, chosen)


def _is_list(feature: Any) -> bool:
    """Whether a column has lists of labels: in any of the ways of `datasets`."""
    inner = getattr(feature, "feature", None)
    if isinstance(feature, list) and len(feature) == 1:
        [inner] = feature
    return type(inner).__name__ in ("Value", "ClassLabel")


def _list_rows(
    where: str, name: str, part: Any, found: Mapping[str, str], labels: LabelCells
) -> list[Row]:
    """The rows of a split, none where it has no labels, as a test split may."""
    wanted = {column: own for column, own in found.items() if column != "path"}
    plain = part.with_format(None).select_columns([*wanted.values()])
    try:
        table = plain[:]
    except Exception as exc:  # of whatever kind pyarrow and datasets raise
        raise InputError(f"{where}: cannot be read: {one_line(exc)}") from exc
    cells = {
        column: _name_values(where, part.features[own], table[own])
        for column, own in wanted.items()
    }
    if "label" in cells and not any(label is not None for label in cells["label"]):
        return []
    batch = Batch(f"{where}, row ", list(range(len(part))), cells)
    columns = [list_texts(batch, column) for column in ("split", "group")]
    split, width, rows = SPLIT_NAMES.get(name.lower(), ""), len(str(len(part) - 1)), []
    for row, texts in enumerate(zip(labels.list_cells(batch), *columns, strict=True)):
        image_id = f"{name}/{row:0{width}}" if name else f"{row:0{width}}"
        try:
            names, own, group = read_cells(labels, image_id, *texts)
        except HeadstartError as exc:
            raise InputError(f"{batch.where(row)}: {exc}") from exc
        if not (names or isinstance(texts[0], tuple)):
            labels.remember_blank(batch.where(row), image_id)
        rows.append(Row(image_id, names, split or own, group))
    return rows


def _name_values(where: str, feature: Any, values: list[Any]) -> list[Any]:
    """The names of a ClassLabel's numbers, None for -1, which is no label; other values as they are."""
    if _is_list(feature):
        inner = feature[0] if isinstance(feature, list) else feature.feature
        return [None if v is None else tuple(_name_values(where, inner, list(v))) for v in values]
    names = getattr(feature, "names", None)
    if names is None:
        return values
    numbers = {value for value in values if value is not None}
    if wrong := [n for n in numbers if type(n) is not int or not -1 <= n < len(names)]:
        raise InputError(f"{where}: a label {wrong[0]!a:.40}, and there are {len(names)} names")
    return [None if value is None or value < 0 else str(names[value]) for value in values]


HUGGINGFACE = Form(
    name="huggingface",
    looks="a datasets.Dataset",
    uses=frozenset({"group", "path_column", "label_column", "label_separator"}),
    recognises=_recognises,
    load=_load,
    is_object=True,
)
