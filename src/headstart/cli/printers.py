"""Takes predictions one by one, prints them: as a table, or as JSON or CSV for programs."""

import csv
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from rich.text import Text

from headstart.cli.terminal import Table, out, print_json, say
from headstart.errors import csv_cell, printable

if TYPE_CHECKING:
    from headstart.runs.prediction import Prediction

__all__ = ["PRINTERS", "PredictionPrinter", "is_doubtful"]

# The table's mark: the first class is not likely, or the next one is not much less so.
DOUBTFUL_PROBABILITY, DOUBTFUL_SHARE = 1 / 2, 1 / 3
CLASSES_COUNTED = 20


class PredictionPrinter(Protocol):
    """Prints predictions; `top` is how many classes of each it needs."""

    top: int

    def add(self, prediction: "Prediction") -> None: ...

    def close(self) -> None: ...


class _TablePrinter:
    """A table at the end, the doubtful ones marked, and a count a class."""

    def __init__(self, top: int) -> None:
        self._shown, self.top = top, max(top, 2)  # the next class tells what is doubtful
        self._table = Table("image", "label", "prob.", "", "next")
        self._labels: Counter[str] = Counter()
        self._doubtful: Counter[str] = Counter()
        self._unreadable = 0

    def add(self, prediction: "Prediction") -> None:
        image = Text(printable(prediction.image))
        if prediction.error:
            self._unreadable += 1
            self._table.add_row(image, "", "", "", Text(printable(prediction.error), style="red"))
            return
        if prediction.labels is not None:
            self._add_labels(image, prediction, prediction.labels)
            return
        first, *others = _label(prediction)
        doubtful = is_doubtful(prediction)
        self._labels[first] += 1
        self._doubtful[first] += doubtful
        pairs = zip(others, prediction.top[1:], strict=True)
        more = [f"{label} {p:.3f}" for label, (_, p) in pairs][: self._shown - 1]
        self._table.add_row(
            image,
            Text(first, style="bold"),
            f"{prediction.probability:.3f}",
            Text("?" if doubtful else "", style="yellow"),
            Text(", ".join(more)),
        )

    def _add_labels(
        self, image: Text, prediction: "Prediction", labels: tuple[tuple[str, float], ...]
    ) -> None:
        """Add a row of the labels that an image was given, and the most probable others."""
        given = [printable(name) for name, _ in labels]
        self._labels.update(given or ["(none)"])
        others = [pair for pair in prediction.top if pair not in labels][: self._shown]
        self._table.add_row(
            image,
            Text("|".join(given), style="bold"),
            "|".join(f"{p:.3f}" for _, p in labels),
            "",
            Text(", ".join(f"{printable(name)} {p:.3f}" for name, p in others)),
        )

    def close(self) -> None:
        out.print(self._table)
        doubtful = sum(self._doubtful.values())
        if self._table.row_count > 1:
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


class _JsonPrinter:
    """An object a line."""

    def __init__(self, top: int) -> None:
        self.top = top

    def add(self, prediction: "Prediction") -> None:
        names: dict[str, Any] = {}
        if prediction.names:
            first, *_ = prediction.names
            names = {"synset": prediction.label, "name": first, "names": prediction.names}
        if prediction.labels is not None:
            names["labels"] = prediction.labels
        print_json(
            {
                "image": prediction.image,
                "label": prediction.label or None,
                "probability": prediction.probability,
                "top": prediction.top,
                "error": prediction.error or None,
                **names,
            }
        )

    def close(self) -> None:
        pass


class _CsvPrinter:
    """A row an image."""

    def __init__(self, top: int) -> None:
        self.top = top
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        self._writer.writerow(["image", "label", "probability", "top", "error"])

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
        self._writer.writerow([*texts[:2], probability, *texts[2:]])

    def close(self) -> None:
        pass


PRINTERS: dict[str, Callable[[int], PredictionPrinter]] = {
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
