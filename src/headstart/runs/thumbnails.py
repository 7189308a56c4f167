"""Takes an `Audit`, writes a sheet of thumbnails for each kind of finding, for people to look at.

A sheet is a WebP of pixels that were decoded and encoded anew; names are drawn on it, nothing but pixels.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from headstart.data.decoding import decode_picture
from headstart.errors import BadImageError, UsageError, printable
from headstart.files import translate_errors, write_atomically
from headstart.runs.auditing import Audit

__all__ = ["check_new_folder", "write_thumbnails"]

# A sheet has so many images at most, this many a row; a thumbnail's sides, and the height of its text.
MOST, COLUMNS = 48, 8
SIDE_PX, TEXT_PX = 128, 26
LETTERS = 20  # of a name, from its end, which tells most


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that has something in it.

    Raises:
        UsageError: it has, or is no folder.
    """
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: exists; name another folder for the thumbnails, or remove it")


def write_thumbnails(audit: Audit, folder: Path, *, max_pixels: int) -> list[Path]:
    """Write `label-errors.webp`, `copies.webp` and so on, for the kinds of which there is something to see.

    Args:
        max_pixels: as of the audit.

    Returns:
        The files.

    Raises:
        UsageError: the folder has something in it.
        ResourceError: it cannot be written.
    """
    check_new_folder(folder)
    rows = {image: row for row, image in enumerate(audit.dataset.ids)}
    files = []
    with translate_errors(folder, advice="choose another folder"):
        for name, entries in _list_sheets(audit):
            shown = entries[:MOST]
            if not shown:
                continue
            lines = -(-len(shown) // COLUMNS)
            columns = min(COLUMNS, len(shown))
            sheet = Image.new("RGB", (columns * SIDE_PX, lines * (SIDE_PX + TEXT_PX)), "white")
            for number, (image, note) in enumerate(shown):
                place = (number % COLUMNS * SIDE_PX, number // COLUMNS * (SIDE_PX + TEXT_PX))
                _draw(sheet, place, _shrink(audit, rows[image], max_pixels), (image, note))
            data = io.BytesIO()
            sheet.save(data, "WEBP", quality=75)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"{name}.webp", data.getvalue())
            files.append(folder / f"{name}.webp")
    return files


def _list_sheets(audit: Audit) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(name, [(image, what is said of it)]), images that belong together one after the other."""
    yield "label-errors", [(e.image, f"{e.label}: {e.suggested}?") for e in audit.label_errors]
    yield (
        "conflicts",
        [pair for c in audit.conflicts for pair in zip(c.images, c.labels, strict=True)],
    )
    yield (
        "leaks",
        [pair for leak in audit.leaks for pair in zip(leak.images, leak.splits, strict=True)],
    )
    copies = [(n, image) for n, images in enumerate(audit.duplicates, 1) for image in images]
    yield "copies", [(image, f"picture {n}") for n, image in copies]
    yield "outliers", [(o.image, f"{o.label} {o.score:.1f}") for o in audit.outliers]
    yield "files", [(f.image, f.problem) for f in audit.files if f.problem != "unreadable"]


def _shrink(audit: Audit, row: int, max_pixels: int) -> Image.Image | None:
    try:
        data = audit.dataset.image(row).read()
        image = decode_picture(data, least_px=SIDE_PX, max_pixels=max_pixels).image
    except BadImageError:  # it may have changed since
        return None
    scale = (SIDE_PX - 4) / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)


def _draw(
    sheet: Image.Image, place: tuple[int, int], image: Image.Image | None, texts: tuple[str, str]
) -> None:
    left, top = place
    if image is not None:
        width, height = image.size
        sheet.paste(image, (left + (SIDE_PX - width) // 2, top + (SIDE_PX - height) // 2))
    font, pen = ImageFont.load_default(10), ImageDraw.Draw(sheet)
    ends = (printable(texts[0])[-LETTERS:], printable(texts[1])[:LETTERS])
    for line, text in enumerate(ends):
        # The font has Latin letters alone.
        known = text.encode("latin-1", "replace").decode("latin-1")
        pen.text((left + 3, top + SIDE_PX + 12 * line), known, fill="black", font=font)
