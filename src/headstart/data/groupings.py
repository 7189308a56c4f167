"""Takes image ids, gives groupings that their names suggest: frames of a track, pictures of a patient.

A name suggests, and proves nothing: `training.grouping` measures which grouping matters.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from headstart.arrays import IntN

__all__ = ["name_groups", "suggest_groupings"]

# A grouping is looked at where at least this share of the images has company in its group, and this share of
# the classes two groups or more.
IN_COMPANY, DIVIDED = 0.5, 0.9
# No group holds more than this share of the images of a class that it could leave for others.
LARGEST = 0.5
# So many parts of a name are tried as its beginning.
MOST_PARTS = 3

_PARTS = re.compile(r"[\s._()-]+")
_LAST_NUMBER = re.compile(r"[\s._()-]*[0-9]+\)?$")


def suggest_groupings(ids: Sequence[str], labels: IntN) -> dict[str, tuple[str, ...]]:
    """Suggest groupings by the names of images, those that could matter.

    Args:
        ids: N paths with `/`.
        labels: int (N,), of the classes.

    Returns:
        As `name_groups`, the finest first.
    """
    suggested: dict[str, tuple[str, ...]] = {}
    for what, names in name_groups(ids).items():
        if names not in suggested.values() and _is_sensible(names, labels):
            suggested[what] = names
    return dict(sorted(suggested.items(), key=lambda entry: -len(set(entry[1]))))


def name_groups(ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Give {what the groups are named by, for people: N names of groups} of every grouping by names.

    Images of two folders are never in one group, unless that is what the key says.
    """
    return dict(_list_groupings(ids))


def _list_groupings(ids: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    folders, stems = [], []
    for image_id in ids:
        folder, _, name = image_id.rpartition("/")
        folders.append(folder)
        stems.append(name.rpartition(".")[0] or name)
    yield "their folder", tuple(folders)
    cut = [_LAST_NUMBER.sub("", stem) for stem in stems]
    yield "the name before its last number", _within(folders, cut)
    yield "the name before its last number, in any folder", tuple(cut)
    for count in range(1, MOST_PARTS + 1):
        begins = ["_".join(_PARTS.split(stem)[:count]) for stem in stems]
        words = "first part" if count == 1 else f"first {count} parts"
        yield f"the {words} of the name", _within(folders, begins)
        yield f"the {words} of the name, in any folder", tuple(begins)


def _within(folders: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for folder, name in zip(folders, names, strict=True))


def _is_sensible(names: tuple[str, ...], labels: IntN) -> bool:
    """Whether the groups could be held out: most images have company, and most classes several groups."""
    sizes = Counter(names)
    if sum(n for n in sizes.values() if n > 1) < IN_COMPANY * len(names):
        return False
    of_class: dict[int, Counter[str]] = defaultdict(Counter)
    for name, label in zip(names, labels.tolist(), strict=True):
        of_class[label][name] += 1
    divided = [max(own.values()) <= LARGEST * own.total() for own in of_class.values()]
    return sum(divided) >= DIVIDED * len(divided)
