"""Groupings that names suggest, and the measurement that tells which of them matters."""

import hashlib
import shutil
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import headstart
from headstart.data.decoding import open_image, read_shot
from headstart.data.groupings import name_bursts, name_groups, suggest_groupings
from headstart.features.clusters import find_clusters
from headstart.runs.grouping import name_alike
from headstart.training.grouping import GroupingScore, choose_grouping, measure_groupings


def names(pattern, classes=3, groups=4, frames=5):
    """Ids by a pattern of class c, group g and frame f; and their labels."""
    rows = [
        (pattern.format(c=c, g=g, f=f), c)
        for c in range(classes)
        for g in range(groups)
        for f in range(frames)
    ]
    return [i for i, _ in rows], np.array([c for _, c in rows])


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("c{c}/{g:05}_{f:05}.ppm", "the name before its last number"),
        ("c{c}/patient{g} slice ({f}).png", "the name before its last number"),
        ("c{c}/film{g}/{f}.png", "their folder"),
        ("c{c}/film{g}-{f}-left.png", "the first part of the name"),
        ("c{c}/2024.{g}.{f}x.png", "the first 2 parts of the name"),
    ],
)
def test_the_usual_ways_of_naming_frames(pattern, what):
    ids, labels = names(pattern)
    suggested = suggest_groupings(name_groups(ids), labels)
    assert what in suggested
    groups = suggested[what]
    assert len(set(groups)) == 12
    assert all(len(set(groups[i : i + 5])) == 1 for i in range(0, 60, 5))


@pytest.mark.parametrize(
    "pattern",
    [
        "c{c}/IMG_{c}{f}.JPG",  # numbered through
        "c{c}/c{c} ({f}).png",  # by its class
        "c{c}/{f}{c}a{f}{g}b{c}.png",  # a hash
        "c{c}/part/{f}{c}x.png",
    ],
)
def test_names_that_say_nothing(pattern):
    ids, labels = names(pattern, groups=1, frames=9)
    assert suggest_groupings(name_groups(ids), labels) == {}


def test_the_same_name_in_two_folders_is_one_group_only_where_the_key_says_so():
    ids, labels = names("c{c}/patient{g}_{f}.png")
    suggested = suggest_groupings(name_groups(ids), labels)
    assert len(set(suggested["the name before its last number"])) == 12
    assert len(set(suggested["the name before its last number, in any folder"])) == 4
    sizes = [len(set(groups)) for groups in suggested.values()]
    assert sizes == sorted(sizes, reverse=True)


@given(st.lists(st.text(min_size=1, max_size=12), max_size=30))
def test_any_names_are_taken(ids):
    for groups in suggest_groupings(name_groups(ids), np.arange(len(ids)) % 2).values():
        assert len(groups) == len(ids)


def tracks(spread, seed=0, classes=3, count=10, frames=6):
    """Features of classes and, within them, of tracks this far apart."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), count * frames)
    track = np.repeat(np.arange(classes * count), frames)
    centres = random.normal(size=(classes, 16)) * 0.5
    own = random.normal(size=(classes * count, 16)) * spread
    features = centres[labels] + own[track] + 0.3 * random.normal(size=(len(labels), 16))
    return features.astype(np.float32), labels, [f"t{t}" for t in track]


def test_tracks_that_are_alike_matter_and_names_alone_do_not():
    features, labels, of_track = tracks(1.0)
    random = [f"r{n}" for n in np.random.default_rng(1).permutation(len(labels)) // 6]
    scores = measure_groupings(features, labels, {"random": random, "track": of_track}, 3)
    assert [s.name for s in scores] == ["random", "track"]
    assert [s.matters for s in scores] == [False, True]
    assert scores[1].groups == 30
    assert scores[1].apart > scores[1].together + 0.2
    assert choose_grouping(scores) == scores[1]


def test_groups_that_are_independent_images_hardly_ever_matter():
    found = 0
    for seed in range(20):
        features, labels, of_track = tracks(0.0, seed=seed, count=8, frames=4)
        scores = measure_groupings(features, labels, {"track": of_track}, 3, seed=seed)
        found += choose_grouping(scores) is not None
    assert found <= 1


def test_of_groupings_that_matter_the_finest_that_is_as_low_is_chosen():
    fine = GroupingScore("fine", 100, 0.9, 0.70, 0.02)
    coarse = GroupingScore("coarse", 20, 0.9, 0.68, 0.04)
    finest = GroupingScore("finest", 200, 0.9, 0.85, 0.01)
    assert choose_grouping([finest, fine, coarse]) == fine
    assert choose_grouping([]) is None


def test_a_class_of_one_group_has_no_folds():
    features, labels, _ = tracks(1.0)
    assert measure_groupings(features, labels, {"class": [f"c{c}" for c in labels]}, 3) == ()


# ---------------------------------------------------------------- bursts


def test_a_burst_ends_with_a_gap_or_another_camera():
    ids = ["z", "b", "c", "d", "e"]
    shots = [("one", 109.0), ("one", 100.0), ("two", 105.0), ("one", 120.0), None]
    bursts = name_bursts(ids, shots)
    assert bursts["camera and time, at most 10 s apart"] == ("b", "b", "c", "d", "e")
    assert bursts["camera and time, at most 10 min apart"] == ("b", "b", "c", "b", "e")
    assert name_bursts(ids, [None] * 5) == {}


def stamp(when, tag=0x9003):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Model"
    exif.get_ifd(0x8769)[tag] = when
    return exif


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_camera_and_time_are_read(suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (8, 8)).save(path, exif=stamp("2024:02:29 23:59:58"))
    camera, first = read_shot(open_image(path.read_bytes(), 100))
    assert camera == "Maker\0Model"
    Image.new("RGB", (8, 8)).save(path, exif=stamp("2024:03:01 00:00:03"))
    assert read_shot(open_image(path.read_bytes(), 100))[1] - first == 5


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        stamp("0000:00:00 00:00:00").tobytes(),
        stamp("2024:13:45 99:99:99").tobytes(),
        stamp("2" * 60_000).tobytes(),
        stamp("2024:02:29 23:59:58", tag=0x9004).tobytes(),  # of a scanner
        stamp("2024:02:29 23:59:58").tobytes()[:60],
        b"\xff" * 500,
    ],
)
def test_exif_that_tells_no_time_is_no_shot(exif, tmp_path):
    path = tmp_path / "x.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    assert read_shot(open_image(path.read_bytes(), 100)) is None


@given(st.binary(max_size=300))
def test_any_exif_is_survived(block):
    image = Image.new("RGB", (8, 8))
    image.info["exif"] = b"Exif\0\0II*\0\x08\0\0\0" + block
    assert read_shot(image) is None or len(read_shot(image)) == 2


# ---------------------------------------------------------------- clusters


def test_clusters_are_found_where_there_are_some_and_nowhere_else():
    features, _, of_track = tracks(1.5)
    clusterings = find_clusters(features)
    assert clusterings
    of_first = np.array(of_track)
    for first in clusterings:
        assert (of_first == of_first[list(first)]).mean() > 0.9
    for seed in range(5):
        assert find_clusters(tracks(0.0, seed=seed)[0]) == []
    assert find_clusters(np.zeros((50, 4), dtype=np.float32)) == []
    assert find_clusters(features[:3]) == []


# ---------------------------------------------------------------- in a fit


@pytest.fixture
def films(plant, tmp_path):
    """Three classes of ten films of four nearly equal frames; which film it is shows more than the class."""
    random = np.random.default_rng(0)
    for label in ("a", "b", "c"):
        folder = tmp_path / "films" / label
        folder.mkdir(parents=True)
        for film in range(10):
            base = random.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            for frame in range(4):
                noise = random.integers(0, 8, (48, 48, 3), dtype=np.uint8)
                pixels = np.kron(base // 2, np.ones((8, 8, 1), dtype=np.uint8)) + noise
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{film:03}_{frame}.png")
    return tmp_path / "films"


def test_a_plain_fit_keeps_frames_of_a_film_together_and_says_why(films, network, tmp_path):
    run = headstart.fit(films, tmp_path / "run", **network, strategy="linear-probe")
    [told] = [w for w in run.warnings if "kept together by" in w]
    assert "the name before its last number, in 30 groups" in told
    assert "--group none" in told
    assert "the name before its last number" in {
        s["name"] for s in run.decisions.facts["groupings"]
    }
    apart = headstart.fit(
        films, tmp_path / "apart", **network, strategy="linear-probe", group="none"
    )
    assert not [w for w in apart.warnings if "kept together" in w]
    figures = [r.metrics["accuracy"].value for r in (apart, run)]
    assert figures[0] > figures[1] + 0.3
    named = headstart.fit(
        films, tmp_path / "named", **network, strategy="linear-probe", group="(.*)_"
    )
    assert named.metrics["accuracy"].value == pytest.approx(figures[1], abs=0.12)
    held = headstart.fit(films, tmp_path / "held", **network, strategy="linear-probe", val=0.3)
    sides = {(g, s) for g, s in zip(held.members.groups, held.members.splits, strict=True)}
    assert len(sides) == len({g for g, _ in sides}) == 30


def test_other_images_are_grouped_by_the_rule_of_the_run(films, network, tmp_path):
    run = headstart.fit(films, tmp_path / "run", **network, strategy="linear-probe")
    others = {kind: shutil.copytree(films, tmp_path / kind) for kind in ("frames", "single")}
    for number, path in enumerate(sorted(others["single"].glob("*/*.png"))):
        path.rename(path.with_name(f"{number:05}.png"))  # a name that tells no film
    for path in others["frames"].glob("*/*.png"):  # a film a class is a group all the same
        if path.name.startswith("000_"):
            path.rename(path.with_name("1" + path.name))
        else:
            path.unlink()
    device = {"device": "cpu"}
    frames, single = (headstart.evaluate(run, folder, **device) for folder in others.values())
    assert len(set(frames.measured.groups)) == 3
    assert not any(single.measured.groups)
    apart = headstart.evaluate(run, others["frames"], group="none", **device)
    assert not any(apart.measured.groups)
    width = {
        name: e.metrics["accuracy"].high - e.metrics["accuracy"].low
        for name, e in {"frames": frames, "apart": apart}.items()
    }
    assert width["frames"] > width["apart"]


@pytest.mark.parametrize(
    "told", [None, 3, [3], [{}], [{"name": [], "groups": 1, "apart": 1, "together": 0, "error": 0}],
             [{"name": "x", "groups": "", "apart": "", "together": "", "error": ""}]],
)  # fmt: skip
def test_facts_of_groups_may_come_from_anywhere(told):
    assert name_alike({"groupings": told}, ["a/1_1.png", "a/1_2.png"]) == ()
    assert name_alike({}, ["a/1_1.png", "a/1_2.png"]) == ()


def test_names_that_matter_nothing_are_measured_and_left_alone(plant, network, tmp_path):
    data = plant(tmp_path / "data", dict.fromkeys(("blobs", "plain", "stripes"), 16))
    for path in sorted(data.glob("*/*.png")):
        number = int(path.stem)
        path.rename(path.with_name(f"{number // 4:02}_{number % 4}.png"))
    run = headstart.fit(data, tmp_path / "run", **network, strategy="linear-probe")
    assert not [w for w in run.warnings if "kept together" in w]
    assert set(run.members.groups) == {""}
    assert run.decisions.facts["groupings"]


def test_an_audit_names_what_belongs_together(films, network):
    found = headstart.audit(films, **network)
    assert "the name before its last number" in {g.name for g in found.groups}
    [shown] = [g for g in found.to_json()["groups"] if g["groups"] == 30][:1]
    assert shown["apart"] > shown["together"] + 0.3


@pytest.fixture
def bursts(films, tmp_path):
    """The films under names that say nothing, with times: seconds within one, minutes between."""
    folder, began = tmp_path / "bursts", datetime(2024, 5, 1)
    for number, path in enumerate(sorted(films.glob("*/*.png"))):
        place = folder / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        taken = began + timedelta(minutes=20 * (number // 4), seconds=number % 4)
        name = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
        letters = name.translate(str.maketrans("0123456789", "ghijklmnop"))
        exif = stamp(taken.strftime("%Y:%m:%d %H:%M:%S"))
        Image.open(path).save(place / f"{letters}.png", exif=exif)
    return folder


def test_a_plain_fit_keeps_bursts_together_and_none_refuses_it(bursts, network, tmp_path):
    run = headstart.fit(bursts, tmp_path / "run", **network, strategy="linear-probe", val=0.3)
    [told] = [w for w in run.warnings if "kept together by" in w]
    assert "camera and time, at most 10 s apart, in 30 groups" in told
    of_group = {}
    for group, split in zip(run.members.groups, run.members.splits, strict=True):
        of_group.setdefault(group, set()).add(split)
    assert all(len(splits) == 1 for splits in of_group.values())
    apart = headstart.fit(bursts, tmp_path / "n", **network, strategy="linear-probe", group="none")
    assert not any(apart.members.groups)
    assert not [w for w in apart.warnings if "kept together" in w]
