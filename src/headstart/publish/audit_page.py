"""Takes an `Audit`, gives its page: what is wrong with the images, with their pictures, and what to do."""

import dataclasses
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from headstart.parallel import Progress, no_progress
from headstart.publish.pages import Report, to_json_file, write_page
from headstart.publish.pictures import Album
from headstart.publish.report_words import say_name, say_percent
from headstart.runs.auditing import Audit, Conflict, Leak
from headstart.training.grouping import GroupingScore

__all__ = ["write_audit_page"]

# What is shown of a kind; all is in the JSON beside the page.
GROUPS, IN_GROUP, SINGLE, LINES = 24, 6, 36, 200


@dataclasses.dataclass(frozen=True)
class _Shot:
    """An image, with what is said of it: the first words in bold, and a mark where it is sure."""

    image: str
    words: str
    more: str = ""
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class _Kind:
    """The findings of a kind.

    Attributes:
        name, title: of its section.
        count: of all findings.
        words: what they are.
        advice: what to do about them.
        shots: images that stand alone.
        groups: images that belong together, each group with its words.
        columns, rows: a table.
    """

    name: str
    title: str
    count: int
    words: str
    advice: str
    shots: Sequence[_Shot] = ()
    groups: Sequence[tuple[str, Sequence[_Shot]]] = ()
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()

    @property
    def shown(self) -> int:
        """How many of the findings the page has."""
        return len(self.shots) or len(self.groups) or len(self.rows)

    def images(self) -> Iterable[str]:
        """The images to show."""
        yield from (shot.image for shot in self.shots)
        yield from (shot.image for _, shots in self.groups for shot in shots)


def write_audit_page(
    audit: Audit,
    page: Path,
    *,
    command: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Report:
    """Write the page of an audit, and its findings as JSON beside it.

    Args:
        page: as `check_page` gives it.
        command: the words that audit again, with the options that it was asked with, where known.
        progress: as in `report`.

    Raises:
        ResourceError: out of disk or permission.
    """
    again = command or ["headstart", "audit", audit.dataset.name]
    kinds = [kind for kind in _list_kinds(audit) if kind.count]
    rows = {image_id: row for row, image_id in enumerate(audit.dataset.ids)}
    album = Album(lambda image_id: audit.dataset.image(rows[image_id]), None)
    album.add((image for kind in kinds for image in kind.images()), progress)
    progress("writing the report", 0, 0)
    missing = [f"there was no room for {album.left_out:,} more pictures"] if album.left_out else []
    content = {
        "kind": "audit",
        "title": f"Audit of {say_name(audit.dataset.name)}",
        "data": say_name(audit.dataset.name),
        "about": f"{len(audit.dataset):,} images in {len(audit.dataset.classes):,} classes",
        "words": _tell(audit, kinds),
        "warnings": [*audit.warnings, *missing],
        "kinds": kinds,
        "pictures": album.pictures,
        "probe": audit.probe,
        "command": shlex.join([*again, "-o", "problems.csv"]),
    }
    tables = {".json": to_json_file(audit.to_json())}
    shown = len(album.pictures)
    return write_page(page, "audit.html", content, tables=tables, pictures=shown, missing=missing)


def _tell(audit: Audit, kinds: Sequence[_Kind]) -> list[str]:
    """Say what was found, for people who read no tables."""
    if not kinds:
        return ["Nothing odd was found in these images."]
    likely = sum(error.likely for error in audit.label_errors)
    total = sum(kind.count for kind in kinds)
    things = "1 thing" if total == 1 else f"{total:,} things"
    of = f", of {len(kinds)} kinds" if len(kinds) > 1 else ""
    words = [f"{things} to look at in {len(audit.dataset):,} images{of}."]
    words += [f"{kind.title}: {kind.count:,}." for kind in kinds]
    if likely:
        words.append(f"Of the first {likely:,} labels to look at, at least half are likely wrong.")
    elif audit.label_errors:
        words.append("Of the labels to look at none is likely wrong.")
    for held in audit.held:
        words.append(
            f"{held.leaked:,} of the {held.images:,} images of the {held.split} split have a copy in an "
            f"earlier one: a probe has {say_percent(held.accuracy.value)} there, and "
            f"{say_percent(held.without.value)} without them."
        )
    return words


def _list_kinds(audit: Audit) -> Iterable[_Kind]:
    likely = sum(error.likely for error in audit.label_errors)
    yield _Kind(
        "labels",
        "Labels to look at",
        len(audit.label_errors),
        "A probe that has not seen the image finds its label improbable, the least probable first."
        + (f" Of the first {likely:,} at least half are wrong." if likely else ""),
        "Look at each; where it is wrong, relabel or drop it.",
        shots=[
            _Shot(e.image, f"{e.label}", f"rather {e.suggested}?", "likely" if e.likely else "")
            for e in audit.label_errors[:SINGLE]
        ],
    )
    yield _Kind(
        "conflicts",
        "One picture under several classes",
        len(audit.conflicts),
        "The same picture has more than one label, so at least one is wrong.",
        "Keep one label of each, and drop the other files.",
        groups=[
            (
                f"{len(c.images):,} images",
                [_Shot(image, label) for image, label in _mix(c)[:IN_GROUP]],
            )
            for c in audit.conflicts[:GROUPS]
        ],
    )
    yield _Kind(
        "leaks",
        "Copies across splits",
        len(audit.leaks),
        "An image of a later split has a copy in an earlier one, which flatters every figure.",
        "Drop them from the later split, or split anew: headstart keeps copies together.",
        groups=[
            (
                _say_leak(leak),
                [_Shot(i, split) for i, split in zip(leak.images, leak.splits, strict=True)],
            )
            for leak in audit.leaks[:GROUPS]
        ],
    )  # fmt: skip
    yield from _list_others(audit)


def _list_others(audit: Audit) -> Iterable[_Kind]:
    """The kinds that no two images contradict each other in."""
    labels = dict(zip(audit.dataset.ids, audit.dataset.label_names(), strict=True))
    yield _Kind(
        "copies",
        "Copies",
        len(audit.duplicates),
        "Images that show the same picture, each a group.",
        "Harmless within a split, where they weigh more than others; else see copies across splits.",
        groups=[
            (f"{len(images):,} images", [_Shot(i, labels[i]) for i in images[:IN_GROUP]])
            for images in audit.duplicates[:GROUPS]
        ],
    )
    yield _Kind(
        "outliers",
        "Unlike all others",
        len(audit.outliers),
        "The nearest neighbours of these images are much farther than those of the others.",
        "Drop what is not of the task; what is rare and right stays.",
        shots=[
            _Shot(o.image, o.label, f"{o.score:.1f} times the usual spread")
            for o in audit.outliers[:SINGLE]
        ],
    )
    yield _Kind(
        "files",
        "Odd and unreadable files",
        len(audit.files),
        "Files that cannot be read, or whose pixels are odd: dark, bright, blurred, of one colour.",
        "Replace what is broken; unreadable images are left out of every training.",
        shots=[_Shot(f.image, f.problem, f.evidence) for f in audit.files[:SINGLE]],
    )
    yield _Kind(
        "classes",
        "Odd classes",
        len(audit.classes),
        "Classes that are small, or that something beside the subject gives away.",
        "Add images of small classes; take those of a class that is given away under other conditions.",
        columns=("class", "images", "problem", "evidence"),
        rows=[
            (c.name, f"{c.images:,}", c.problem, c.evidence) for c in audit.classes[:LINES]
        ],
    )  # fmt: skip
    yield _Kind(
        "groups",
        "Images that belong together",
        len(audit.groups),
        "Images of one group, as their names tell, are so alike that figures on single ones flatter.",
        "Say so: --group keeps a group on one side of every split; headstart fit does by itself.",
        columns=("named by", "evidence"),
        rows=[(g.name, _say_grouping(g)) for g in audit.groups[:LINES]],
    )


def _mix(conflict: Conflict) -> list[tuple[str, str]]:
    """(image, label), an image of each label first."""
    seen = Counter[str]()
    turns = []
    for number, (image, label) in enumerate(zip(conflict.images, conflict.labels, strict=True)):
        turns.append((seen[label], number, image, label))
        seen[label] += 1
    return [(image, label) for *_, image, label in sorted(turns)]


def _say_leak(leak: Leak) -> str:
    if leak.mirrored:
        return "mirrored"
    if leak.similarity == 0:
        return "copies of a third image"
    return "identical" if leak.similarity == 1 else f"similarity {leak.similarity:.3f}"


def _say_grouping(score: GroupingScore) -> str:
    return (
        f"{score.groups:,} groups; a probe has {score.together:.3f} where they are kept together and "
        f"{score.apart:.3f} where random groups of the same sizes are"
    )
