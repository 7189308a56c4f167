"""The German traffic signs as they are distributed, whole and in part."""

import sys

import pytest
from table_files import plant_numbers, refused, rows, write

from headstart.data.loading import load_dataset

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and odd names")


HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2"
PIXELS = b"P6\n2 1\n255\n" + bytes(range(6))


def plant_signs(root, training="GTSRB/Final_Training/Images", answers="GT-final_test.csv"):
    """As the archives of https://benchmark.ini.rub.de have it: lines end on CR LF, tracks of 30 images."""
    for number, name in enumerate(("00000", "00014")):
        lines = [f"{HEADER};ClassId"]
        for track in range(2):
            for image in range(3):
                file = f"{track:05}_{image:05}.ppm"
                write(root / training / name / file, PIXELS)
                lines.append(f"{file};29;30;5;6;24;25;{int(name)}")
        write(root / training / name / f"GT-{name}.csv", "\r\n".join(lines) + "\r\n")
        write(root / f"GTSRB/Final_Test/Images/{number:05}.ppm", PIXELS)
    lines = [HEADER, "00000.ppm;53;54;6;5;48;49", "00001.ppm;42;45;5;5;36;40"]
    write(root / "GTSRB/Final_Test/Images/GT-final_test.test.csv", "\r\n".join(lines) + "\r\n")
    if answers:
        lines = [f"{lines[0]};ClassId", f"{lines[1]};14", f"{lines[2]};0"]
        write(root / answers, "\r\n".join(lines) + "\r\n")
    return root


@pytest.mark.parametrize("below", ["", "GTSRB"])
@pytest.mark.parametrize("training", ["GTSRB/Final_Training/Images", "GTSRB/Training"])
@pytest.mark.parametrize(
    "answers",
    [
        "GT-final_test.csv",
        "GTSRB/GT-final_test.csv",
        "GTSRB/Final_Test/GT-final_test.csv",
        "GTSRB/Final_Test/Images/GT-final_test.csv",
    ],
)
def test_gtsrb(below, training, answers, tmp_path):
    dataset = load_dataset(plant_signs(tmp_path, training, answers) / below)
    place = f"{training}/".removeprefix(f"{below}/" if below else "")
    test = "Final_Test/Images/" if below else "GTSRB/Final_Test/Images/"
    found = rows(dataset)
    assert found.pop(f"{test}00000.ppm") == "00014 / test"
    assert found.pop(f"{test}00001.ppm") == "00000 / test"
    assert found == {
        f"{place}{name}/{track:05}_{image:05}.ppm": f"{name} / train @ {name}/{track:05}"
        for name in ("00000", "00014")
        for track in range(2)
        for image in range(3)
    }
    assert all(dataset.image(row).read() == PIXELS for row in range(len(dataset)))
    assert [w.partition(" are ")[0] for w in dataset.warnings] == [
        "regions of interest (Roi.X1, …)"
    ]


def test_gtsrb_of_training_images_alone(tmp_path):
    images = plant_signs(tmp_path, answers="") / "GTSRB/Final_Training/Images"
    dataset = load_dataset(tmp_path)
    assert (len(dataset), set(dataset.splits)) == (12, {"train"})
    assert dataset.warnings[-1].startswith(
        "the test images are left out, since no GT-final_test.csv"
    )
    assert len(load_dataset(images)) == len(load_dataset(images.parent)) == 12
    names = write(tmp_path / "signnames.csv", "ClassId,SignName\n0,20\n14,Stop\n")
    assert load_dataset(tmp_path, class_names=names).classes == ("20", "Stop")
    assert load_dataset(tmp_path, group="([0-9]+_0000[0-9])").groups[0] == "00000_00000"
    assert len(load_dataset(tmp_path, format="gtsrb")) == 12


@pytest.mark.parametrize(
    ("place", "old", "new", "message"),
    [
        ("Final_Training/Images/00014/GT-00014.csv", ";14", ";15", "is of another class than its folder"),
        ("Final_Training/Images/00014/GT-00014.csv", ";14", ";", "has no label"),
        ("Final_Training/Images/00014/GT-00014.csv", ";14", ";stop", "ClassId must be a number below 100"),
        ("Final_Training/Images/00014/GT-00014.csv", "Filename", "Name", "no column 'Filename' (nearest: "),
        ("Final_Training/Images/00014/GT-00014.csv", "00001_00001.ppm", "../../x.ppm", "leads outside of"),
        ("Final_Training/Images/00014/GT-00014.csv", "\r\n", ";\r\n;", "cells where the header has"),
        ("GT-final_test.csv", ";14", ";999999", "ClassId must be a number below 100,000, got '999999'"),
        ("GT-final_test.csv", "00001.ppm", "00000.ppm", "line 3: '00000.ppm' stands already at line 2"),
    ],
)  # fmt: skip
def test_bad_gtsrb(place, old, new, message, tmp_path):
    path = plant_signs(tmp_path, answers="GTSRB/GT-final_test.csv") / "GTSRB" / place
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    assert message in refused(tmp_path)


def test_answers_of_gtsrb_behind_a_link_are_not_read(tmp_path):
    answers = plant_signs(tmp_path) / "GT-final_test.csv"
    (tmp_path / "GTSRB/Final_Test" / answers.name).symlink_to("../../GT-final_test.csv")
    assert "is a link that leads outside of" in refused(tmp_path / "GTSRB")
    assert len(load_dataset(tmp_path)) == 14


def test_gtsrb_with_a_class_that_lacks_its_table(tmp_path):
    plant_signs(tmp_path)
    (tmp_path / "GTSRB/Final_Training/Images/00014/GT-00014.csv").unlink()
    assert "Images/00014/GT-00014.csv is missing; unpack the archive once more" in refused(tmp_path)
    plant_numbers(tmp_path / "plain", "00000", "00014")
    assert load_dataset(tmp_path / "plain").groups == ("", "")
