"""Takes data as people name them, gives the `Dataset` to train on, or says why it cannot be."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headstart.data.dataset import SPLIT_NAMES, Dataset, add_validation
from headstart.data.decoding import decode_image
from headstart.data.form import Columns
from headstart.data.groups import say_why_whole
from headstart.data.images import FolderReader, ImageRef
from headstart.data.loading import list_paths, load_dataset
from headstart.data.scan import Scan, scan_images
from headstart.errors import BadImageError, HeadstartError, InputError, UsageError
from headstart.features.reading import check_bad_images
from headstart.networks.backbones import Backbone, load_backbone
from headstart.problem import MULTI_LABEL
from headstart.runs.documents import Measured
from headstart.training.settings import READING, Settings, make_settings

__all__ = [
    "Data",
    "check_trainable",
    "find_images",
    "load_data",
    "load_network",
    "locate",
    "name_files",
    "read_data",
    "read_known",
    "report_scan",
    "restore_settings",
    "select_images",
]

# Whatever `load_dataset` takes, or a data set that was loaded before.
Data = object


def load_data(data: Data, settings: Settings) -> Dataset:
    """Load the data set that `fit` works on, with the splits that it comes with.

    Raises:
        InputError, UsageError: as `load_dataset` and `add_validation` say; or there is nothing to
            measure on, and all images are one group.
    """
    dataset = read_data(data, settings)
    val = settings.data.val
    if isinstance(val, str):
        # A folder has no columns, and a manifest is most likely like the first.
        columns = _name_columns(settings) if os.path.isfile(val) else Columns()
        columns["multi_label"] = dataset.problem.name == MULTI_LABEL.name
        validation = load_dataset(
            val,
            allow_outside=settings.data.allow_outside,
            class_names=settings.data.class_names,
            **columns,
        )
        dataset = add_validation(dataset, validation)
    elif val and "val" in dataset.splits:
        raise UsageError(
            f"val {val} would have no effect: the data have a validation split; leave --val out"
        )
    # What measures a classifier, or runs a network, takes images of one group.
    if "val" not in dataset.splits and (why := say_why_whole(dataset.groups)):
        raise InputError(f"{dataset.name}: the column group {why}")
    return dataset


def read_data(data: Data, settings: Settings) -> Dataset:
    """Load what is no `Dataset` yet, in the way that the settings say.

    Raises:
        InputError, UsageError: as `load_dataset` says; or a setting has no effect on a `Dataset`.
    """
    if isinstance(data, Dataset):
        unused = ({"group", *READING} - {"allow_outside"}) & settings.data.model_fields_set
        if unused:
            raise UsageError(f"{min(unused)} has no effect on a Dataset; give it to load_dataset")
        return data
    return load_dataset(
        data,
        root=settings.data.root,
        group=settings.data.group,
        allow_outside=settings.data.allow_outside,
        class_names=settings.data.class_names,
        **_name_columns(settings),
    )


def _name_columns(settings: Settings) -> Columns:
    data = settings.data
    return Columns(
        path_column=data.path_column,
        label_column=data.label_column,
        label_separator=data.label_separator,
        multi_label=data.multi_label,
    )


def locate(data: Data) -> Path | tuple[Path, ...] | None:
    """Give the absolute path of the data, or of each of several; None for what is in memory."""
    paths = tuple(Path(os.path.abspath(path)) for path in list_paths(data))
    return paths if len(paths) > 1 else next(iter(paths), None)


def name_files(data: Data) -> str:
    """Make the name that files go by which are made of data: "photos" of photos, photos/train, photos.zip.

    It has letters, digits, "_", "." and "-" alone, and at most 60 of them; several archives give all theirs.
    """
    if isinstance(data, Dataset):
        data = [] if data.source is None else data.source
    names = []
    for path in map(Path, map(os.path.realpath, list_paths(data))):
        is_split = path.is_dir() and path.name.lower() in SPLIT_NAMES
        names.append((path.parent if is_split else path).name if path.is_dir() else _stem_of(path))
    name = re.sub(r"[^\w.-]+", "-", "-".join(names)).strip(".-")[:60].strip(".-")
    return name or "data"


def _stem_of(path: Path) -> str:
    """ "photos" of photos.csv and of photos.tar.gz."""
    return path.with_suffix("").stem if path.stem.lower().endswith(".tar") else path.stem


def check_trainable(dataset: Dataset) -> None:
    rows = zip(dataset.classes_of_rows(), dataset.labelled(), dataset.splits, strict=True)
    used = [own for own, is_known, split in rows if is_known and split in ("train", "")]
    counts = Counter(label for own in used for label in own)
    if len(dataset.classes) < 2:
        names = ", ".join(f"'{c}'" for c in dataset.classes) or "none"
        raise InputError(
            f"{dataset.name}: at least two classes are needed, found {names}; "
            "each class is a folder, or a label in the manifest"
        )
    missing = [c for i, c in enumerate(dataset.classes) if counts[i] == 0]
    if missing:
        raise InputError(
            f"{dataset.name}: class '{missing[0]}' has no readable training images"
            f"{f' (nor have {len(missing) - 1} more)' if len(missing) > 1 else ''}; "
            "add some, or remove the class"
        )
    everywhere = [c for i, c in enumerate(dataset.classes) if counts[i] == len(used)]
    if everywhere:
        raise InputError(
            f"{dataset.name}: all training images have the label '{everywhere[0]}', so it cannot be learned; "
            "leave it out, or add images without it"
        )


def report_scan(
    dataset: Dataset, settings: Settings, report: Callable[[Dataset, Scan], None]
) -> None:
    """Report what the data hold; stop where it shows already that too many images are unreadable."""
    scan = scan_images(dataset, max_pixels=settings.runtime.max_pixels)
    report(dataset, scan)
    parts = zip(dataset.ids, dataset.splits, strict=True)
    used = {image_id for image_id, part in parts if part != "test"}
    bad = [(image_id, reason) for image_id, reason in scan.unreadable if image_id in used]
    check_bad_images(bad, len(used), settings.data.max_bad)


def load_network(settings: Settings, *, random_weights: bool = False) -> Backbone:
    """Load the network that the settings name."""
    return load_backbone(
        settings.backbone,
        weights=settings.weights,
        input_px=settings.input_px,
        random_weights=random_weights,
        seed=settings.seed,
        cache_dir=settings.runtime.cache_dir,
    )


def restore_settings(recorded: Mapping[str, Mapping[str, Any]], **options: Any) -> Settings:
    """Make the settings by which a run's data were read, as they are on its record, and others besides.

    Raises:
        UsageError: one is not as the settings allow.
    """
    values = {n: recorded.get(n, {}) for n in ("val", "group", "engine", "precision", *READING)}
    given = {n: v["value"] for n, v in values.items() if v.get("origin") == "user"}
    return make_settings({**given, **options})


def find_images(
    measured: Measured, data: Path | tuple[Path, ...] | None, root: Path, settings: Settings
) -> Dataset | None:
    """Find the images that a run measured: files below its root, else whatever its data hold; None where they
    are gone."""
    if os.path.isfile(root / measured.ids[0]):  # which raises nothing, however odd the path
        return Dataset(
            root=root,
            classes=measured.classes,
            ids=measured.ids,
            targets=measured.labels,
            splits=("",) * len(measured),
            groups=("",) * len(measured),
            errors=("",) * len(measured),
            reader=FolderReader(root),
        )
    if data is None:
        return None
    try:
        return select_images(load_data(data, settings), measured)
    except HeadstartError:
        return None


def select_images(dataset: Dataset, measured: Measured) -> Dataset | None:
    """Select the measured images, in their order; None where one is missing."""
    rows = {image_id: row for row, image_id in enumerate(dataset.ids)}
    if not all(i in rows for i in measured.ids):
        return None
    return dataset.select(np.array([rows[i] for i in measured.ids], dtype=np.int64))


def read_known(ref: ImageRef | None, digests: Mapping[str, str] | None) -> Image.Image | str:
    """Read an image whose bytes are those on record, or say why not: "changed" or "unreadable".

    A run that comes from anywhere may name any file: only who knows its content gets it shown.

    Args:
        digests: {image id: hex digest}; None where nothing is on record, since the user named the images.
    """
    if ref is None:
        return "unreadable"
    try:
        data = ref.read()
        if digests is not None and hashlib.sha256(data).hexdigest() != digests.get(ref.id):
            return "changed"
        return decode_image(data)
    except BadImageError:
        return "unreadable"
