"""Draws the pictures of docs/notebooks.md: what a notebook shows of a run on scikit-learn's digits.

python benchmarks/notebooks.py docs/pictures/notebooks
"""

import sys
import tempfile
from pathlib import Path

import headstart
from headstart.cli.demo import write_digits

DPI = 72


def draw(folder: Path) -> None:
    """Train a linear probe, and write confusion.png and mistakes.png."""
    with tempfile.TemporaryDirectory() as place:
        digits = Path(place) / "digits"
        write_digits(digits)
        run = headstart.fit(digits, Path(place) / "run", strategy="linear-probe", device="cpu")
        result = headstart.evaluate(run, digits, split="test")
        folder.mkdir(parents=True, exist_ok=True)
        result.plot_confusion().savefig(folder / "confusion.png", dpi=DPI)
        result.plot_mistakes(8).savefig(folder / "mistakes.png", dpi=DPI)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
