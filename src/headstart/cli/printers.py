"""Takes predictions one by one, prints them: as a table, or as JSON or CSV for programs."""

import csv
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from rich.text import Text

from headstart.cli.terminal import Table, out, print_json, say
from headstart.cli.words import shorten
from headstart.errors import csv_cell, printable

if TYPE_CHECKING:
    from headstart.runs.prediction import Prediction

__all__ = ["PRINTERS", "PredictionPrinter", "is_doubtful"]

# The table's mark: the first class is not likely, or the next one is not much less so.
DOUBTFUL_PROBABILITY, DOUBTFUL_SHARE = 1 / 2, 1 / 3
CLASSES_COUNTED = 20
SET_SHOWN = 5
LEAST_NAME = 24  # columns of an image's name, however little room there is
# The label, in the table, of an image that is like nothing the classifier knows.
NONE = "none of these"


class PredictionPrinter(Protocol):
    """Prints predictions; `top` is how many classes of each it needs."""

    top: int

    def add(self, prediction: "Prediction") -> None: ...

    def close(self) -> None: ...


class _TablePrinter:
    """A table at the end, the doubtful ones marked, and a count a class."""

    def __init__(self, top: int, coverage: float | None = None) -> None:
        self._shown, self.top = top, max(top, 2)  # the next class tells what is doubtful
        last = "next" if coverage is None else f"{coverage:.4g} set"
        self._heads = ("image", "label", "prob.", "", last)
        self._rows: list[tuple[Text, ...]] = []
        self._labels: Counter[str] = Counter()
        self._doubtful: Counter[str] = Counter()
        self._unreadable = 0

    def add(self, prediction: "Prediction") -> None:
        image = Text(printable(prediction.image))
        if prediction.error:
            self._unreadable += 1
            told = Text(printable(prediction.error), style="red")
            self._rows.append((image, Text(), Text(), Text(), told))
            return
        if prediction.labels is not None:
            self._add_labels(image, prediction, prediction.labels)
            return
        first, *others = _label(prediction)
        doubtful = is_doubtful(prediction)
        if not prediction.is_known:
            first, others, doubtful = NONE, [first, *others], False
        self._labels[first] += 1
        self._doubtful[first] += doubtful
        pairs = list(zip(others, prediction.top[-len(others) :], strict=True)) if others else []
        more = [f"{label} {p:.3f}" for label, (_, p) in pairs][: self._shown - 1]
        if prediction.set is not None:  # which promises nothing of an image like no other
            more = [
                printable(name) for name, _ in prediction.set[:SET_SHOWN] if prediction.is_known
            ]
            rest = len(prediction.set) - SET_SHOWN
            more += [f"… {rest} more"] if rest > 0 else []
        row = (
            image,
            Text(first, style="bold" if prediction.is_known else "bold yellow"),
            Text(f"{prediction.probability:.3f}" if prediction.is_known else ""),
            Text("?" if doubtful else "", style="yellow"),
            Text(", ".join(more)),
        )
        self._rows.append(row)

    def _add_labels(
        self, image: Text, prediction: "Prediction", labels: tuple[tuple[str, float], ...]
    ) -> None:
        """Add a row of the labels that an image was given, and the most probable others."""
        given = [printable(name) for name, _ in labels]
        if not prediction.is_known:
            given, labels = [NONE], ()
        self._labels.update(given or ["(none)"])
        others = [pair for pair in prediction.top if pair not in labels][: self._shown]
        row = (
            image,
            Text("|".join(given), style="bold"),
            Text("|".join(f"{p:.3f}" for _, p in labels)),
            Text(),
            Text(", ".join(f"{printable(name)} {p:.3f}" for name, p in others)),
        )
        self._rows.append(row)

    def close(self) -> None:
        self._print_rows()
        doubtful = sum(self._doubtful.values())
        if len(self._rows) > 1:
            table = Table("label", "images", "doubtful")
            for label, count in self._labels.most_common(CLASSES_COUNTED):
                table.add_row(Text(label), f"{count:,}", f"{self._doubtful[label]:,}")
            rest = self._labels.most_common()[CLASSES_COUNTED:]
            if rest:
                unsure = sum(self._doubtful[label] for label, _ in rest)
                count = sum(count for _, count in rest)
                table.add_row(f"… {len(rest)} more", f"{count:,}", f"{unsure:,}")
            if self._unreadable:
                table.add_row(Text("unreadable", style="red"), f"{self._unreadable:,}", "")
            for column in table.columns[1:]:
                column.justify = "right"
            out.print()
            out.print(table)
        if doubtful:
            say(
                "? doubtful: probability below a half, or the next class more than a third as "
                "probable",
                style="dim",
            )
        if self._labels[NONE]:
            out.print(
                Text(
                    f"{NONE}: less like the images it learned from than 99 in 100 of them are",
                    style="dim",
                )
            )

    def _print_rows(self) -> None:
        """Print the table; on a terminal long names of images lose their middle, so that rows stay lines."""
        table = Table(*self._heads)
        room = None
        if out.is_terminal:
            # Why an image was not read is long, and rare.
            read = [row for row in self._rows if row[1]]
            columns = list(zip(*read, strict=True))[1:]
            widths = (max(cell.cell_len for cell in column) for column in columns)
            others = sum(
                2 + max(width, len(head))
                for width, head in zip(widths, self._heads[1:], strict=False)
            )
            room = max(LEAST_NAME, out.width - others)
        for image, *cells in self._rows:
            table.add_row(Text(shorten(image.plain, room)) if room else image, *cells)
        out.print(table)


class _JsonPrinter:
    """An object a line."""

    def __init__(self, top: int, coverage: float | None = None) -> None:
        self.top = top

    def add(self, prediction: "Prediction") -> None:
        names: dict[str, Any] = {}
        if prediction.names:
            first, *_ = prediction.names
            names = {"synset": prediction.label, "name": first, "names": prediction.names}
        if prediction.labels is not None:
            names["labels"] = prediction.labels
        if prediction.set is not None:
            names["set"] = prediction.set
        told = prediction.novelty is not None
        print_json(
            {
                "image": prediction.image,
                "label": prediction.label or None,
                "probability": prediction.probability,
                "top": prediction.top,
                "error": prediction.error or None,
                "known": prediction.is_known if told else None,
                "novelty": prediction.novelty,
                **names,
            }
        )

    def close(self) -> None:
        pass


class _CsvPrinter:
    """A row an image."""

    def __init__(self, top: int, coverage: float | None = None) -> None:
        self.top, self._has_sets = top, coverage is not None
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        columns = ["image", "label", "probability", "top", "error", "known", "novelty"]
        self._writer.writerow([*columns, *(["set"] if self._has_sets else [])])

    def add(self, prediction: "Prediction") -> None:
        labels = _label(prediction)
        pairs = zip(labels, prediction.top, strict=True)
        top = "; ".join(f"{label} {p:.6f}" for label, (_, p) in pairs)
        probability = "" if prediction.error else f"{prediction.probability:.6f}"
        label = "".join(labels[:1])
        if prediction.labels is not None:
            label = printable(prediction.label)
            probability = "|".join(f"{p:.6f}" for _, p in prediction.labels)
        texts = [csv_cell(t) for t in (prediction.image, label, top, prediction.error)]
        row = [*texts[:2], probability, *texts[2:], "", ""]
        if prediction.novelty is not None:
            row[-2:] = ["yes" if prediction.is_known else "no", f"{prediction.novelty:.6f}"]
        if self._has_sets:
            inside = (f"{printable(name)} {p:.6f}" for name, p in prediction.set or ())
            row.append(csv_cell("; ".join(inside)))
        self._writer.writerow(row)

    def close(self) -> None:
        pass


PRINTERS: dict[str, Callable[[int, float | None], PredictionPrinter]] = {
    "table": _TablePrinter,
    "json": _JsonPrinter,
    "csv": _CsvPrinter,
}


def is_doubtful(prediction: "Prediction") -> bool:
    """Whether a person should look at it: a prediction for a readable image, with its two best classes."""
    (_, first), *others = prediction.top
    return first < DOUBTFUL_PROBABILITY or any(p > DOUBTFUL_SHARE * first for _, p in others[:1])


def _label(prediction: "Prediction") -> list[str]:
    """Give the labels of the classes of `top`."""
    if not prediction.names:
        return [printable(c) for c, _ in prediction.top]
    return [
        printable(f"{name} ({c})")
        for name, (c, _) in zip(prediction.names, prediction.top, strict=True)
    ]
