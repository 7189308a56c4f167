"""Takes what the user names, in any of the known forms of data, gives a checked `Dataset`."""

import dataclasses
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Unpack

from headstart.choices import choose
from headstart.data.archives import ARCHIVE
from headstart.data.cifar import CIFAR
from headstart.data.class_names import name_classes
from headstart.data.dataset import Dataset, with_problem
from headstart.data.folders import FOLDER
from headstart.data.form import Columns, Form, LoadOptions
from headstart.data.groups import NO_GROUPS, capture_groups, say_why_whole
from headstart.data.gtsrb import GTSRB
from headstart.data.huggingface import HUGGINGFACE
from headstart.data.idx import IDX
from headstart.data.in_memory import MEMORY
from headstart.data.known import KNOWN, find_downloaded
from headstart.data.manifests import MANIFEST
from headstart.data.metadata import METADATA
from headstart.data.numpy_files import NUMPY
from headstart.data.pickled import PICKLE
from headstart.data.trees import ARCHIVE_SUFFIXES
from headstart.data.webdataset import WEBDATASET
from headstart.errors import InputError, UsageError
from headstart.problem import MULTI_LABEL, SINGLE_LABEL

__all__ = ["FORMS", "list_paths", "load_dataset"]

# Characters that show nothing, beside those of the category Cf: fillers, joiners, variation selectors.
UNSEEN = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0") | frozenset(
    map(chr, range(0xFE00, 0xFE10))
)


# What programs write where a label is missing. "None" and "NA" are not among them: they may well be classes.
MISSING = frozenset({"nan", "<na>", "null"})

# A form of data is one file, and its line here; the first that recognises the data reads them. Those that
# know their files by name or content come before a folder of any.
FORMS = {
    form.name: form
    for form in (
        GTSRB,
        METADATA,
        CIFAR,
        IDX,
        PICKLE,
        NUMPY,
        FOLDER,
        MANIFEST,
        WEBDATASET,
        ARCHIVE,
        HUGGINGFACE,
        MEMORY,
    )
}


def load_dataset(
    source: object,
    *,
    format: str | None = None,
    root: str | os.PathLike[str] | None = None,
    group: str | None = None,
    allow_outside: bool = False,
    class_names: str | os.PathLike[str] | None = None,
    **columns: Unpack[Columns],
) -> Dataset:
    """Read labelled images in any of the known forms of data, which is found by looking.

    Args:
        source: a folder (class folders, or train / val / test folders with class folders in them; images
            with a metadata.csv beside; GTSRB as distributed); a zip or tar archive of class folders, or
            shards of WebDataset, or a list of several, which are one a class, or shards; a CSV, TSV, JSONL
            or Parquet manifest with columns path, label and optionally split and group, or the usual other
            names of these; a .npz, or .npy files, of images and labels; a folder or .tar.gz of CIFAR-10 or
            CIFAR-100; MNIST's files; pickles of arrays. Or what a Python program holds: (images, labels) as
            `from_arrays` takes them, pairs of an image and a label, a bunch of scikit-learn's, the
            tuples of a data set of Keras', a data set of PyTorch's without a transform, a Dataset or
            DatasetDict of Hugging Face's `datasets`. Or the name of a known data set that was downloaded.
        format: a key of `FORMS` to insist on; by default the first form that recognises the source.
        root: the folder that a manifest's paths are relative to; the manifest's own by default.
        group: "none", or a regular expression searched in each image id; images with the same captured text
            stay on one side of every split. `([^/]+/[^/]+)_[^/]*$` keeps `stop/00001_*.ppm` together.
        allow_outside: let links and manifest paths lead out of the root.
        class_names: a file with the names of classes that are numbers: a table of numbers and names, or
            one name a line from number 0 on, as text or as a JSON list, or a JSON object.
        path_column: the column of a manifest that has the paths; by default one with a usual name.
        label_column: likewise of the labels; or the columns of 0 and 1 that are a label each, with commas.
        label_separator: what stands between several labels in a cell of a manifest; by default `|` or `;`
            where that is clear. It implies `multi_label`.
        multi_label: whether an image may have any number of labels, or has one; by default what is found.

    Raises:
        InputError: nothing usable there; the message names the element and the next step.
        UsageError: `format` is unknown; `group` is no regular expression with a capture, takes too
            long to search, or leaves nothing to split; or an argument has no effect.
    """
    paths = list_paths(source)
    if columns.get("label_separator") is not None and columns.get("multi_label") is None:
        columns["multi_label"] = True
    options = LoadOptions(None if root is None else Path(root), group, allow_outside, **columns)
    form = _find_form(source, paths, format)
    _check_used(options, form)
    if len(paths) > 1 and form.load_several is not None:
        dataset = dataclasses.replace(form.load_several(paths, options), source=paths)
    elif paths:
        dataset = dataclasses.replace(form.load(paths[0], options), source=paths[0])
    else:
        dataset = form.load(source, options)
    if options.multi_label is not None:
        dataset = with_problem(dataset, MULTI_LABEL if options.multi_label else SINGLE_LABEL)
    for path in paths:
        if (other := find_downloaded(str(path))) is not None:
            told = f"{path} is what is here by that name, not the data set that was downloaded to {other}"
            dataset = dataclasses.replace(dataset, warnings=(*dataset.warnings, told))
    if class_names is not None:
        dataset = name_classes(dataset, Path(class_names))
    if group is not None and group != NO_GROUPS:
        dataset = _with_groups(dataset, group)
    return _checked(dataset)


def _check_used(options: LoadOptions, form: Form) -> None:
    """Refuse options without effect on data of this form."""
    if options.multi_label is False and options.label_separator is not None:
        raise UsageError("label_separator and multi_label False exclude each other; choose one")
    unused = [name for name in options.given() if name not in form.uses | {"multi_label"}]
    if unused:
        others = [other.name for other in FORMS.values() if unused[0] in other.uses]
        raise UsageError(
            f"{unused[0]} applies to the form{'s' if len(others) > 1 else ''} {', '.join(others)}, and the "
            f"data are {form.looks}; leave it out"
        )


def list_paths(source: object) -> tuple[Path, ...]:
    """Give the path that data are, or each of several; () for an object in memory.

    A list of paths alone is several; any other list has images in it. The name of a known data set stands
    for what was downloaded, where nothing is here by that name.
    """
    named = source if isinstance(source, list | tuple) else [source]
    if not all(isinstance(name, str | os.PathLike) for name in named):
        return ()
    if not all(map(os.fspath, named)):
        raise InputError("the data are an empty name; name a folder or a manifest")
    return tuple(map(_find_path, named))


def _find_path(name: str | os.PathLike[str]) -> Path:
    path = Path(name)
    if os.fspath(name) not in KNOWN or os.path.lexists(path):
        return path
    return find_downloaded(os.fspath(name)) or path


def _find_form(source: object, paths: tuple[Path, ...], name: str | None) -> Form:
    """The form of what lies at paths or is in memory, or the one that is insisted on.

    Raises:
        UsageError: no form of that name, or not one of such data; or no object that a form takes.
        InputError: nothing lies there; no form, or not that one, recognises it; or several cannot be one
            data set.
    """
    wanted = [*FORMS.values()] if name is None else [choose("format", name, FORMS)]
    fitting = [form for form in wanted if form.is_object != bool(paths)]
    if len(paths) > 1:
        fitting = [form for form in fitting if form.load_several is not None]
    for path in paths:
        _check_exists(path)
    for form in fitting:
        if all(map(form.recognises, paths or (source,))):
            return form
    what = (
        ("a path" if len(paths) == 1 else "paths") if paths else f"of type {type(source).__name__}"
    )
    if not fitting:
        raise UsageError(f"format '{name}' takes {wanted[0].looks}, and the data are {what}")
    if not paths:
        looks = " or ".join(form.looks for form in fitting)
        raise UsageError(f"the data are {what}; give a path or {looks}")
    if len(paths) > 1:
        strange = next((p for p in paths if not any(f.recognises(p) for f in fitting)), paths[0])
        raise InputError(
            f"{strange}: several data are one data set only where each is an archive: one a class, or "
            "shards of WebDataset"
        )
    if paths[0].suffix.lower() in ARCHIVE_SUFFIXES:
        raise InputError(
            f"{paths[0]}: no zip, nor a tar that is plain or compressed by gzip, bzip2, xz or zstd, or "
            "damaged; copy or download it again, or pack the images so"
        )
    if name is not None:
        raise InputError(f"{paths[0]}: expected {fitting[0].looks}")
    names = ", ".join(sorted(form.name for form in fitting))
    raise InputError(
        f"{paths[0]}: expected one of the forms of data {names}; such as {FOLDER.looks}"
    )


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except (OSError, ValueError) as exc:
        reason = "no access" if isinstance(exc, PermissionError) else "no such file or folder"
        advice = f"; run headstart download {path}" if str(path) in KNOWN else ""
        raise InputError(f"{path}: {reason}{advice}") from exc


def _with_groups(dataset: Dataset, pattern: str) -> Dataset:
    if any(dataset.groups):
        raise UsageError("the data have a column group already; leave --group out")
    groups = capture_groups(pattern, dataset.ids)
    named = sum(map(bool, groups))
    if why := say_why_whole(groups):
        raise UsageError(f"group '{pattern}' {why}")
    grouped = dataclasses.replace(dataset, groups=groups)
    images = _count_classes(dataset)
    if images and max(images.values()) > 1 and len(_undivided(grouped)) == len(images):
        raise UsageError(
            f"group '{pattern}' puts all images of a class into one group, in every class, so none "
            "could be on both sides of a split; capture a part of the file's name too, such as "
            "'([^/]+/[^/]+)_[^/]*$'"
        )
    if named < len(groups):
        more = f"group pattern matches {named} of {len(groups)} images"
        grouped = dataclasses.replace(grouped, warnings=(*grouped.warnings, more))
    return grouped


def _undivided(dataset: Dataset) -> list[int]:
    """Classes whose images to train on are one group; a class of one image counts as well."""
    found: dict[int, set[str]] = {}
    columns = (dataset.units(), dataset.classes_of_rows(), dataset.splits)
    for unit, classes, split in zip(*columns, strict=True):
        for label in classes if split in ("", "train") else ():
            found.setdefault(label, set()).add(unit)
    return sorted(label for label, units in found.items() if len(units) == 1)


def _count_classes(dataset: Dataset) -> Counter[int]:
    """Images of each class."""
    return Counter(label for classes in dataset.classes_of_rows() for label in classes)


def _as_seen(name: str) -> str:
    """A name without what the eye does not see, and with every kind of space the same."""
    seen = (c for c in name if c not in UNSEEN and unicodedata.category(c) != "Cf")
    return " ".join("".join(seen).split())


def _checked(dataset: Dataset) -> Dataset:
    """Add the warnings that need the whole data set."""
    warnings = list(dataset.warnings)
    for name in [c for c in dataset.classes if c.casefold() in MISSING]:
        warnings.append(f"class '{name}' reads as a missing label; remove its images or rename it")
    folded = Counter(c.casefold() for c in dataset.classes)
    for name in [c for c in dataset.classes if folded[c.casefold()] > 1][:4]:
        warnings.append(f"class '{name}' differs from another only in upper and lower case")
    seen = Counter(_as_seen(c).casefold() for c in folded)
    for name in [c for c in dataset.classes if seen[_as_seen(c).casefold()] > 1][:4]:
        if folded[name.casefold()] == 1:
            warnings.append(
                f"class {name!a} differs from another only in characters that cannot "
                "be seen, or in spaces; rename one"
            )
    if "val" not in dataset.splits:
        images = _count_classes(dataset)
        whole = [label for label in _undivided(dataset) if images[label] > 1]
        if whole:
            others = f"{len(whole) - 1} more class{'es' if len(whole) > 2 else ''}"
            more = f", nor of {others}" if len(whole) > 1 else ""
            warnings.append(
                f"all images of class '{dataset.classes[whole[0]]}' are one group, so none of it{more} "
                "can be held out"
            )
    where: dict[str, set[str]] = {}
    for group, split in zip(dataset.groups, dataset.splits, strict=True):
        if group and split:
            where.setdefault(group, set()).add(split)
    spread = sorted(g for g, s in where.items() if len(s) > 1)
    if spread:
        warnings.append(
            f"{len(spread)} group{'s have' if len(spread) > 1 else ' has'} images in more than one "
            f"split, so figures will flatter (first: '{spread[0]}')"
        )
    return dataclasses.replace(dataset, warnings=tuple(warnings))
