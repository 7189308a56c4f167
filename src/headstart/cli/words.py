"""Takes figures, gives words that fit a terminal: spark lines, lines of epochs, folded lists, short names.

Pure functions on text. Widths are in columns, of which a wide letter takes two.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from headstart.errors import printable

__all__ = ["WIDTH", "EpochLines", "draw_spark", "fold", "say_class", "shorten"]

WIDTH = 80
BLOCKS = "▁▂▃▄▅▆▇█"


def say_class(name: str, width: int) -> str:
    """A class as a sentence names it, in quotation marks where a number could be taken for a count."""
    if any(map(str.isalpha, name)):
        return shorten(name, width)
    return f"'{shorten(name, width - 2)}'"


def shorten(name: str, width: int) -> str:
    """Make a name printable, and leave out its middle where it is wider."""
    name = printable(name)
    if cell_len(name) <= width:
        return name
    half = (width - 1) // 2
    tail = set_cell_size(name[::-1], half)[::-1]
    return f"{set_cell_size(name, width - 1 - half).rstrip()}…{tail.lstrip()}"


def fold(head: str, items: Sequence[str], width: int | None = WIDTH) -> list[str]:
    """Write a head and items with commas between them as lines no wider than this, broken between items.

    Args:
        width: None for one line, whatever its width.
    """
    lines = [head]
    for number, item in enumerate(items):
        text = f"{item}{',' if number + 1 < len(items) else ''}"
        if width is not None and cell_len(f"{lines[-1]} {text}") > width:
            lines.append("    " + text)
        else:
            lines[-1] = f"{lines[-1]} {text}" if lines[-1] else text
    return lines


def draw_spark(values: Sequence[float], width: int) -> str:
    """Draw the last values as blocks, from the lowest to the highest of them; a gap for NaN."""
    shown = values[-width:] if width > 0 else ()
    finite = [v for v in shown if math.isfinite(v)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        BLOCKS[round((v - low) * scale)] if math.isfinite(v) else " " for v in shown
    ).rstrip()


class EpochLines:
    """Writes a line an epoch, with what came before as a spark line.

    Args:
        encoding: of what shows them; without the blocks there is no spark line.
    """

    def __init__(self, encoding: str, width: int = WIDTH) -> None:
        self._accuracies: list[float] = []
        self._digits = 1
        self._width = width if _can_write(BLOCKS, encoding) else 0

    def write(self, entry: dict[str, Any]) -> str:
        """Write the line of an epoch, whose figures are as `fit` tells them."""
        epoch, epochs = entry["epoch"], entry["epochs"]
        if epoch == 0:
            self._accuracies.clear()
            self._digits = 1
        # The time may suffice for fewer epochs than were planned; the lines stay under each other.
        digits = self._digits = max(self._digits, len(str(epochs)))
        parts = [f"fold {entry['fold']}"] if "fold" in entry else []
        parts.append(
            f"{epoch:>{digits + 1}}/{epochs:<{digits}}" if epoch else "start".rjust(2 * digits + 2)
        )
        parts += _list_figures(entry)
        best = entry["best_epoch"]
        tail = f"  best {best or 'start'}" if epoch and "val_loss" in entry else ""
        self._accuracies.append(entry.get("val_accuracy", entry.get("train_accuracy", math.nan)))
        line = "  ".join(parts)
        spark = draw_spark(self._accuracies, self._width - len(line) - len(tail) - 2)
        if len(self._accuracies) > 1 and spark:
            line += f"  {spark}"
        return line + tail


def _list_figures(entry: dict[str, Any]) -> Iterator[str]:
    """Losses, then the accuracy: of the validation images where there are some."""
    for name in ("train", "val"):
        if f"{name}_loss" in entry:
            yield f"{name} {entry[f'{name}_loss']:.3f}"
    if "val_accuracy" in entry:
        yield f"accuracy {entry['val_accuracy']:.3f}"
    elif "train_accuracy" in entry:
        yield f"training accuracy {entry['train_accuracy']:.3f}"


def _can_write(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True
