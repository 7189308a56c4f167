"""Problems planted among generated pictures are found, and the table of them makes a manifest."""

import csv
import dataclasses
import io
import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

import headstart
from headstart.errors import InputError, TooManyBadImagesError, UsageError
from headstart.metrics import wilson_interval
from headstart.runs.corrections import apply_corrections, write_corrections
from headstart.training.label_errors import count_likely, find_label_errors


@pytest.fixture(scope="module")
def scene():
    """A function (number, kind=0) -> a picture of 96 x 128 with edges, of a colour of its kind."""

    def draw(number, kind=0):
        rng = np.random.default_rng([7, number])
        y, x = np.mgrid[:96, :128]
        picture = np.full((96, 128, 3), (60, 110, 160)[number % 3], dtype=np.float64)
        for _ in range(14):
            cy, cx, size = rng.integers(96), rng.integers(128), rng.integers(8, 30)
            round_ = (y - cy) ** 2 + (x - cx) ** 2 < size**2
            box = (abs(y - cy) < size) & (abs(x - cx) < size * 2)
            picture[box if kind else round_] = rng.integers(0, 255, 3)
        return Image.fromarray(picture.astype(np.uint8))

    return draw


@pytest.fixture(scope="module")
def collection(scene, tmp_path_factory):
    """12 scenes of each of two classes in train and 6 in test, and the problems planted among them."""
    root = tmp_path_factory.mktemp("audit") / "scenes"
    for kind, name in enumerate(("round", "square")):
        for split, first, count in (("train", 0, 12), ("test", 50, 6)):
            (root / split / name).mkdir(parents=True)
            for number in range(first, first + count):
                scene(2 * number + kind, kind).save(root / split / name / f"{number:02}.png")
    train = root / "train"
    square = Image.open(train / "square/00.png")
    (train / "square/identical.png").write_bytes((train / "square/01.png").read_bytes())
    square.save(train / "square/encoded.jpg", quality=50)
    square.resize((64, 48)).save(train / "square/half.png")
    square.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(train / "square/mirrored.png")
    square.crop((6, 4, 122, 92)).save(train / "square/cropped.png")
    Image.open(train / "round/03.png").save(root / "test/round/leaked.jpg", quality=80)
    (train / "square/also.png").write_bytes((train / "round/04.png").read_bytes())
    square.filter(ImageFilter.GaussianBlur(4)).save(train / "square/soft.png")
    Image.new("RGB", (128, 96)).save(train / "square/black.png")
    scene(200).resize((14, 12)).save(train / "round/tiny.png")
    scene(201).crop((0, 0, 128, 26)).save(train / "round/long.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(202).save(train / "round/turned.jpg", exif=exif)
    (train / "round/torn.png").write_bytes((train / "round/05.png").read_bytes()[:400])
    return root


@pytest.fixture(scope="module")
def audit(collection):
    return headstart.audit(collection, device="cpu")


def test_copies_of_one_picture_are_one_group(audit):
    groups = [set(group) for group in audit.duplicates]
    names = ("00.png", "encoded.jpg", "half.png", "mirrored.png", "cropped.png")
    [group] = [g for g in groups if "train/square/00.png" in g]
    assert group - {"train/square/soft.png"} == {f"train/square/{n}" for n in names}
    assert {"train/square/01.png", "train/square/identical.png"} in groups
    # And no other picture is said to be one.
    assert sum(map(len, groups)) <= 5 + 1 + 2 + 2 + 2
    assert len(groups) == 4


def test_a_picture_in_two_splits_leaks_and_the_accuracy_is_stated_without_it(audit):
    [leak] = audit.leaks
    assert leak.images == ("test/round/leaked.jpg", "train/round/03.png")
    assert leak.splits == ("test", "train")
    assert 0.9 < leak.similarity <= 1
    assert not leak.mirrored
    [held] = audit.held
    assert (held.split, held.images, held.leaked) == ("test", 13, 1)
    right = round(held.accuracy.value * 13)
    assert held.without in [wilson_interval(n, 12) for n in (right - 1, min(right, 12))]


def test_a_picture_under_two_classes_is_a_conflict(audit):
    [conflict] = audit.conflicts
    assert conflict.images == ("train/round/04.png", "train/square/also.png")
    assert conflict.labels == ("round", "square")


def test_odd_files_are_named(audit):
    found = {(f.image.rpartition("/")[2], f.problem) for f in audit.files}
    assert found == {
        ("torn.png", "unreadable"),
        ("soft.png", "blurred"),
        ("black.png", "black"),
        ("tiny.png", "tiny"),
        ("long.png", "long"),
        ("turned.jpg", "turned"),
    }


def test_what_is_found_goes_into_json(audit):
    found = json.loads(json.dumps(audit.to_json(), allow_nan=False, default=float))
    assert found["groups"] == []
    assert {"label_errors", "duplicates", "leaks", "outliers", "files"} <= found.keys()
    assert found["leaks"][0]["images"] == ["test/round/leaked.jpg", "train/round/03.png"]
    assert "audit" in repr(audit).lower()


def test_a_second_audit_decodes_nothing(collection, audit, monkeypatch):
    monkeypatch.setattr("headstart.features.looks.look_at", None)
    again = headstart.audit(collection, device="cpu")
    assert again.to_json() == audit.to_json()


# ---------------------------------------------------------------- labels, outliers, classes


def test_wrong_labels_come_first(plant, tmp_path):
    data = plant(tmp_path / "data", {"blobs": 14, "plain": 14, "stripes": 14})
    for number, (one, other) in enumerate((("blobs", "plain"), ("stripes", "blobs"))):
        (data / one / f"{number:02}.png").rename(data / other / f"from_{one}.png")
    found = headstart.audit(data, device="cpu").label_errors
    wrong = {("plain/from_blobs.png", "blobs"), ("blobs/from_stripes.png", "stripes")}
    assert {(e.image, e.suggested) for e in found[:2]} == wrong
    assert all(a.score >= b.score for a, b in itertools.pairwise(found))
    assert len(found) <= 4


def test_a_copy_does_not_confirm_its_own_wrong_label(scene, tmp_path):
    """Each wrong label is on two copies, which would tell each other's label."""
    for kind, name in enumerate(("round", "square")):
        (tmp_path / name).mkdir()
        for number in range(16):
            scene(2 * number + kind, kind).save(tmp_path / name / f"{number:02}.png")
    wrong = scene(401, 1)
    wrong.save(tmp_path / "round" / "wrong.png")
    wrong.save(tmp_path / "round" / "wrong.jpg", quality=70)
    found = headstart.audit(tmp_path, device="cpu")
    assert ("round/wrong.jpg", "round/wrong.png") in found.duplicates
    assert {"round/wrong.png", "round/wrong.jpg"} <= {e.image for e in found.label_errors[:4]}


def test_a_foreign_image_is_an_outlier(plant, scene, tmp_path):
    data = plant(tmp_path / "data", {"plain": 20, "stripes": 20})
    scene(3).save(data / "plain" / "foreign.png")
    found = headstart.audit(data, device="cpu").outliers
    assert [o.image for o in found][:1] == ["plain/foreign.png"]
    assert len(found) <= 3


def test_a_class_that_its_border_or_its_size_gives_away_is_named(scene, tmp_path):
    for name, size, border in (("a", 96, 0), ("b", 96, 0), ("c", 64, 0), ("d", 96, 255)):
        (tmp_path / name).mkdir()
        for number in range(12):
            picture = scene("abcd".index(name) * 100 + number).resize((size, size))
            if border:
                framed = Image.new("RGB", (size, size), (border, 0, border))
                framed.paste(picture.crop((12, 12, 84, 84)), (12, 12))
                picture = framed
            picture.save(tmp_path / name / f"{number}.png")
    found = headstart.audit(tmp_path, device="cpu").classes
    assert [(c.name, c.problem) for c in found] == [("d", "border colour"), ("c", "image size")]


def test_a_small_class_is_named_and_is_not_judged(plant, tmp_path):
    data = plant(tmp_path / "data", {"blobs": 12, "plain": 12, "stripes": 1})
    found = headstart.audit(data, device="cpu")
    assert [(c.name, c.images, c.problem) for c in found.classes if c.problem == "small"] == [
        ("stripes", 1, "small")
    ]
    assert found.probe is not None
    assert "stripes" not in {e.label for e in found.label_errors}


@pytest.mark.parametrize("counts", [{"blobs": 1}, {"blobs": 1, "plain": 1}, {"blobs": 12}])
def test_little_data_are_audited_without_judging_labels(plant, tmp_path, counts):
    found = headstart.audit(plant(tmp_path / "data", counts), device="cpu")
    assert found.probe is None
    assert found.label_errors == ()
    assert any("labels are not judged" in w for w in found.warnings)


def test_images_that_are_all_unreadable_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"no image")
    with pytest.raises(TooManyBadImagesError, match="2 of 2 images are unreadable"):
        headstart.audit(tmp_path, device="cpu")


def test_a_setting_without_effect_is_refused(collection):
    with pytest.raises(UsageError, match="'strategy' has no effect on audit"):
        headstart.audit(collection, strategy="linear-probe")


# ---------------------------------------------------------------- the table and the manifest


def read(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def act(path, actions, **changes):
    """Fill in {image: action}, as a person does, in the first row of the image."""
    rows = read(path)
    done = set()
    for row in rows:
        if row["image"] in actions and row["image"] not in done:
            done.add(row["image"])
            row["action"] = actions[row["image"]]
            row |= changes.get(row["action"], {})
    assert done == set(actions)
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=";")  # as a spreadsheet may
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def table(audit, tmp_path):
    write_corrections(audit, tmp_path / "problems.csv")
    return tmp_path / "problems.csv"


def test_the_table_has_a_row_for_each_problem(audit, table):
    rows = read(table)
    assert list(rows[0]) == ["image", "problem", "label", "suggested", "score", "action"]
    assert {row["action"] for row in rows} == {""}
    problems = {(row["image"], row["problem"].partition(":")[0]) for row in rows}
    assert ("train/square/identical.png", "duplicate") in problems
    assert ("test/round/leaked.jpg", "leak") in problems
    assert ("train/square/also.png", "conflict") in problems
    assert ("train/round/torn.png", "unreadable") in problems


def test_actions_make_a_manifest_that_fit_reads(collection, table, cli, tmp_path, tiny):
    actions = {
        "train/round/torn.png": "drop",
        "train/square/also.png": "Relabel ",
        "test/round/leaked.jpg": "keep",
    }
    act(table, actions, **{"Relabel ": {"suggested": "round"}})
    code, out, err = cli("audit", collection, "--apply", table, "-o", tmp_path / "mended.csv")
    assert code == 0, err
    assert "1 dropped, 1 relabelled" in out
    assert f"--root {collection}" in err
    before, after = (
        headstart.load_dataset(collection),
        headstart.load_dataset(tmp_path / "mended.csv", root=collection),
    )
    names = dict(
        zip(before.ids, zip(before.label_names(), before.splits, strict=True), strict=True)
    )
    del names["train/round/torn.png"]
    names["train/square/also.png"] = ("round", "train")
    mended = zip(after.ids, zip(after.label_names(), after.splits, strict=True), strict=True)
    assert dict(mended) == names
    data = dataclasses.replace(after)
    assert headstart.fit(data, tmp_path / "run", **tiny).images["train"]


def test_a_manifest_above_the_images_needs_no_root(plant, tmp_path):
    data = plant(tmp_path / "data", {"blobs": 2, "plain": 2})
    table = tmp_path / "table.csv"
    table.write_text("image,suggested,action\nblobs/00.png,,drop\n", encoding="utf-8")
    done = apply_corrections(data, table, tmp_path / "mended.jsonl")
    assert (done.images, done.dropped, done.root) == (3, 1, None)
    mended = headstart.load_dataset(tmp_path / "mended.jsonl")
    assert mended.ids == ("data/blobs/01.png", "data/plain/00.png", "data/plain/01.png")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "empty"),
        ("image,label\n", "no column 'suggested'"),
        ("image,suggested,action\nblobs/09.png,,drop\n", "line 2: 'blobs/09.png' is not an image"),
        ("image,suggested,action\nblobs/00.png,,dorp\n", r"'dorp' is unknown \(nearest: drop\)"),
        ("image,suggested,action\nblobs/00.png,plan,relabel\n", r"not a class \(nearest: plain\)"),
        ("image,suggested,action\nblobs/00.png,,relabel\n", "'' under suggested is not a class"),
        (
            "image,suggested,action\nblobs/00.png,,drop\nblobs/00.png,,keep\n",
            "line 3: 'blobs/00.png' has another action",
        ),
        ("image,suggested,action\na,b,c,d\n", "line 2: 4 cells where the header has 3"),
        ('image,suggested,action\n"a\n', "line 2: unexpected end"),
        ("image,suggested,action\nblobs/00.png,,drop\nplain/00.png,,drop\n", "drops all images"),
    ],
)
def test_a_wrong_table_is_refused_by_its_line(plant, tmp_path, rows, message):
    data = plant(tmp_path / "data", {"blobs": 1, "plain": 1})
    table = tmp_path / "table.csv"
    table.write_text(rows, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        apply_corrections(data, table, tmp_path / "mended.csv")
    assert not (tmp_path / "mended.csv").exists()


def test_no_work_is_overwritten(collection, table, cli, tmp_path):
    code, _, err = cli("audit", collection, "-o", table)
    assert code == 2
    assert "exists; name another file" in err
    code, _, err = cli("audit", collection, "--apply", table, "-o", table)
    assert code == 2
    code, _, err = cli("audit", collection, "--apply", table)
    assert code == 2
    assert "add -o mended.csv" in err
    code, _, err = cli("audit", collection, "--apply", table, "-o", tmp_path / "m.csv", "--seed", 1)
    assert code == 2
    assert "--seed has no effect with --apply" in err


def test_hostile_names_are_no_formulas_and_read_back(plant, tmp_path, cli):
    data = plant(tmp_path / "data", {"blobs": 3, "plain": 3})
    (data / "blobs").rename(data / "=cmd()")
    for name in ("a\nb.png", "-1.png", "[red]x\x1b[2J.png"):
        (data / "plain" / name).write_bytes((data / "=cmd()" / "00.png").read_bytes())
    code, out, err = cli("audit", data, "-o", tmp_path / "table.csv", "--device", "cpu")
    assert code == 0, err
    assert "\x1b[2J" not in out
    text = (tmp_path / "table.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text)))
    assert any("=cmd()" in cell for row in rows for cell in row)
    assert not any(cell[:1] in tuple("=+-@\t") for row in rows for cell in row if cell)
    act(tmp_path / "table.csv", {"plain/a\\nb.png": "relabel"}, relabel={"suggested": "'=cmd()"})
    with pytest.raises(InputError, match=r"write a \.jsonl manifest"):
        apply_corrections(data, tmp_path / "table.csv", tmp_path / "mended.csv")
    apply_corrections(data, tmp_path / "table.csv", tmp_path / "mended.jsonl")
    mended = headstart.load_dataset(tmp_path / "mended.jsonl")
    labels = dict(zip(mended.ids, mended.label_names(), strict=True))
    assert labels["data/plain/a\nb.png"] == "=cmd()"
    assert labels["data/plain/-1.png"] == "plain"


def test_a_path_that_looks_like_a_formula_stays_a_path(plant, tmp_path):
    data = plant(tmp_path / "-data", {"blobs": 2, "plain": 2})
    table = tmp_path / "table.csv"
    table.write_text("image,suggested,action\n", encoding="utf-8")
    apply_corrections(data, table, tmp_path / "mended.csv")
    assert "\n-" not in (tmp_path / "mended.csv").read_text(encoding="utf-8")
    assert headstart.load_dataset(tmp_path / "mended.csv").ids[0] == "-data/blobs/00.png"


def test_the_command_shows_the_first_of_each_kind(collection, audit, cli):
    code, out, err = cli("audit", collection, "--device", "cpu")
    assert code == 0, err
    for title in ("the same picture in two splits: 1", "odd files: 6", "under several classes: 1"):
        assert title in out
    code, out, _ = cli("audit", collection, "--device", "cpu", "--json")
    found = json.loads(out)
    assert found["duplicates"] == [list(group) for group in audit.duplicates]
    assert found["images"] == len(audit.dataset)


def test_of_one_picture_under_two_classes_both_are_shown(plant, tmp_path, cli):
    data = plant(tmp_path / "data", {"blobs": 9, "plain": 3})
    for number in range(1, 9):
        shutil.copy(data / "blobs/00.png", data / f"blobs/{number:02}.png")
    shutil.copy(data / "blobs/00.png", data / "plain/00.png")
    _, out, _ = cli("audit", data, "--device", "cpu")
    (line,) = [line for line in out.splitlines() if "10 images" in line and "(" in line]
    assert "blobs/00.png (blobs)" in line
    assert "plain/00.png (plain)" in line
    copies = out.partition("the same picture more than once: ")[2]
    assert "… 7 more" in copies


def test_a_mirror_image_may_be_of_another_class(plant, tmp_path):
    data = plant(tmp_path / "data", {"blobs": 4, "plain": 4})
    image = Image.open(data / "blobs/00.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(data / "plain/00.png")
    found = headstart.audit(data, device="cpu")
    assert ("blobs/00.png", "plain/00.png") in found.duplicates
    assert not found.conflicts


def test_a_weak_probe_accuses_nobody_and_a_sure_one_does():
    random = np.random.default_rng(0)
    weak = random.dirichlet(np.ones(5), 2000)
    drawn = np.array([random.choice(5, p=row) for row in weak])  # as its probabilities say
    assert count_likely(weak, find_label_errors(drawn, weak)[2]) <= 20
    labels = np.arange(2000) % 5
    sure = np.full((2000, 5), 0.0005)
    sure[np.arange(2000), labels] = 0.998
    wrong = labels.copy()
    wrong[:50] = (wrong[:50] + 1) % 5
    rows, _, scores = find_label_errors(wrong, sure)
    likely = count_likely(sure, scores)
    assert likely == 50
    assert set(rows[:likely].tolist()) == set(range(50))
