"""Takes data as people name them, gives the `Dataset` to train on, or says why it cannot be."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from headstart.data.dataset import Dataset, add_validation
from headstart.data.groups import say_why_whole
from headstart.data.loading import load_dataset
from headstart.data.scan import Scan, scan_images
from headstart.errors import InputError, UsageError
from headstart.features.reading import check_bad_images
from headstart.training.settings import Settings

__all__ = ["Data", "check_data", "check_trainable", "load_data", "locate", "report_scan"]

# A folder, a manifest, an archive or several, or a data set that was loaded before.
Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Dataset


def load_data(data: Data, settings: Settings) -> Dataset:
    """Load the data set that `fit` works on, with the splits that it comes with.

    Raises:
        InputError, UsageError: as `load_dataset` and `add_validation` say; or there is nothing to
            measure on, and all images are one group.
    """
    if isinstance(data, Dataset):
        unused = {"root", "group"} & settings.data.model_fields_set
        if unused:
            raise UsageError(f"{min(unused)} has no effect on a Dataset; give it to load_dataset")
        dataset = data
    else:
        dataset = load_dataset(
            data,
            root=settings.data.root,
            group=settings.data.group,
            allow_outside=settings.data.allow_outside,
        )
    val = settings.data.val
    if isinstance(val, str):
        validation = load_dataset(val, allow_outside=settings.data.allow_outside)
        dataset = add_validation(dataset, validation)
    elif val and "val" in dataset.splits:
        raise UsageError(
            f"val {val} would have no effect: the data have a validation split; leave --val out"
        )
    # What measures a classifier, or runs a network, takes images of one group.
    if "val" not in dataset.splits and (why := say_why_whole(dataset.groups)):
        raise InputError(f"{dataset.name}: the column group {why}")
    return dataset


def check_data(data: object) -> None:
    """Refuse what is no data.

    Raises:
        UsageError: names its type.
    """
    several = data if isinstance(data, list | tuple) else ()
    strange = [one for one in several or [data] if not isinstance(one, str | os.PathLike)]
    if strange and not isinstance(data, Dataset):
        raise UsageError(
            f"the data are of type {type(strange[0]).__name__}; give a folder, a manifest, archives or a "
            "Dataset"
        )


def locate(data: Data) -> Path | tuple[Path, ...] | None:
    """Give the absolute path of the data, or of each of several; None for a `Dataset`."""
    if isinstance(data, Dataset):
        return None
    several = [data] if isinstance(data, str | os.PathLike) else data
    paths = tuple(Path(os.path.abspath(path)) for path in several)
    return paths[0] if len(paths) == 1 else paths


def check_trainable(dataset: Dataset) -> None:
    own = zip(dataset.labels.tolist(), dataset.splits, strict=True)
    counts = Counter(label for label, split in own if label >= 0 and split in ("train", ""))
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
