"""Sheets of thumbnails of what an audit finds."""

import shutil

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.errors import UsageError
from headstart.runs.thumbnails import COLUMNS, SIDE_PX, TEXT_PX, write_thumbnails


@pytest.fixture
def found(tmp_path, network):
    """An audit of images of which two are the same, one under a name of markup and control characters."""
    random = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 255, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((70, 50)).save(path)
    shutil.copy(path, path.with_name("<script>\x1b[2J\u202e 名.png"))
    return headstart.audit(tmp_path / "data", **network)


def test_a_sheet_a_kind_of_finding_and_hostile_names_are_pixels(found, tmp_path):
    files = write_thumbnails(found, tmp_path / "sheets", max_pixels=10**6)
    assert "copies.webp" in {file.name for file in files}
    assert sorted(files) == sorted((tmp_path / "sheets").iterdir())
    with Image.open(tmp_path / "sheets" / "copies.webp") as sheet:
        assert (sheet.format, sheet.height) == ("WEBP", SIDE_PX + TEXT_PX)
        assert sheet.width == 2 * SIDE_PX <= COLUMNS * SIDE_PX
    assert b"script" not in (tmp_path / "sheets" / "copies.webp").read_bytes()


def test_an_image_that_is_gone_leaves_its_place_empty(found, tmp_path):
    for path in (tmp_path / "data/b").iterdir():
        path.unlink()
    assert write_thumbnails(found, tmp_path / "sheets", max_pixels=10**6)


def test_a_folder_with_something_in_it_is_refused(found, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("mine")
    with pytest.raises(UsageError, match="mine: exists; name another folder"):
        write_thumbnails(found, tmp_path / "mine", max_pixels=10**6)
