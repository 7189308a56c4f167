"""Takes the names of images and when they were taken, gives groupings that these suggest.

Frames of a track, pictures of a patient, a burst of shots. A name suggests, and proves nothing:
`training.grouping` measures which grouping matters.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from headstart.arrays import IntN
from headstart.data.shots import Shot

__all__ = ["LARGEST", "name_bursts", "name_groups", "suggest_groupings"]

# A grouping is looked at where at least this share of the images has company in its group, and this share of
# the classes two groups or more.
IN_COMPANY, DIVIDED = 0.5, 0.9
# No group holds more than this share of the images of a class that it could leave for others.
LARGEST = 0.5
# Seconds to the shot before, by the same camera, within which an image belongs to its burst: of a scene, and
# of a session. Each is measured, so there are no more of them.
GAPS_S = {"10 s": 10, "10 min": 600}
# So many parts of a name are tried as its beginning.
MOST_PARTS = 3

_PARTS = re.compile(r"[\s._()-]+")
_LAST_NUMBER = re.compile(r"[\s._()-]*[0-9]+\)?$")


def suggest_groupings(
    groupings: Mapping[str, tuple[str, ...]], labels: IntN
) -> dict[str, tuple[str, ...]]:
    """Choose the groupings that could matter, the finest first.

    Args:
        groupings: {what the groups are named by: N names of groups}.
        labels: int (N,), of the classes.
    """
    suggested: dict[str, tuple[str, ...]] = {}
    for what, names in groupings.items():
        if names not in suggested.values() and _is_sensible(names, labels):
            suggested[what] = names
    return dict(sorted(suggested.items(), key=lambda entry: -len(set(entry[1]))))


def name_groups(ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Give {what the groups are named by, for people: N names of groups} of every grouping by names.

    Images of two folders are never in one group, unless that is what the key says.
    """
    return dict(_list_groupings(ids))


def name_bursts(ids: Sequence[str], shots: Sequence[Shot]) -> dict[str, tuple[str, ...]]:
    """Give {what bursts are told by: N names of groups}, each that of the first image of its burst.

    Args:
        ids: N names; an image that says nothing of its time is a group of its own.
        shots: N of `read_shots`.
    """
    taken = sorted(
        (*shot, image_id, row)
        for row, (image_id, shot) in enumerate(zip(ids, shots, strict=True))
        if shot
    )
    bursts = {}
    for gap, seconds in GAPS_S.items() if taken else ():
        names, camera, time = list(ids), None, 0.0
        for own, now, image_id, row in taken:
            if own != camera or now - time > seconds:
                first = image_id
            names[row], camera, time = first, own, now
        bursts[f"camera and time, at most {gap} apart"] = tuple(names)
    return bursts


def _list_groupings(ids: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    folders, stems = [], []
    for image_id in ids:
        folder, _, name = image_id.rpartition("/")
        folders.append(folder)
        stems.append(name.rpartition(".")[0] or name)
    yield "their folder", tuple(folders)
    # A name that is a number and nothing else says nothing: its image is a group of its own.
    cut = [_LAST_NUMBER.sub("", stem) or own for stem, own in zip(stems, ids, strict=True)]
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
