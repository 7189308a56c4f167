"""What is held out: the wanted share of every class, whole units, and the same in any order."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headstart
from headstart.data import images, splits
from headstart.data.dataset import Dataset
from headstart.data.loading import load_dataset
from headstart.data.splits import find_identical, join_units, split_dataset
from headstart.errors import ResourceError, UsageError
from headstart.training import probes


def make(labels, groups=None, errors=None, splits=None):
    """A data set without files, one row a label."""
    columns = [tuple(column or [""] * len(labels)) for column in (splits, groups, errors)]
    names = tuple(f"c{k}" for k in range(max(labels) + 1))
    ids = tuple(f"{n:06}.png" for n in range(len(labels)))
    return Dataset(Path("root"), names, ids, np.array(labels, dtype=np.int64), *columns)


LABELLED = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 5)), min_size=1, max_size=40)
SHARES = st.floats(0.05, 0.6)


def grouped(table, *, spanning):
    """A data set of (class, group or -1); groups span classes, or not."""
    groups = ["" if g < 0 else f"g{g}" if spanning else f"g{c}-{g}" for c, g in table]
    return make([c for c, _ in table], groups)


def sides(dataset, share, seed=0):
    """{unit: {its splits}}."""
    found = {}
    done = split_dataset(dataset, val=share, seed=seed)
    for unit, split in zip(done.units(), done.splits, strict=True):
        found.setdefault(unit, set()).add(split)
    return found


def held_of_class(dataset, share, seed=0):
    """{class: (images held out, images)}."""
    done = split_dataset(dataset, val=share, seed=seed)
    held = Counter(y for y, s in zip(done.labels.tolist(), done.splits, strict=True) if s == "val")
    return {label: (held[label], n) for label, n in Counter(dataset.labels.tolist()).items()}


# ---------------------------------------------------------------- shares


@settings(max_examples=100, deadline=None)
@given(LABELLED, SHARES, st.integers(0, 99), st.booleans(), st.randoms())
def test_split_keeps_groups_whole_in_any_order(table, share, seed, spanning, random):
    dataset = grouped(table, spanning=spanning)
    found = sides(dataset, share, seed)
    assert all(len(side) == 1 for side in found.values())
    order = list(range(len(dataset)))
    random.shuffle(order)
    assert sides(dataset.select(np.array(order)), share, seed) == found
    units = np.array(dataset.units())
    for label in set(dataset.labels.tolist()):
        mine = set(units[dataset.labels == label])
        both = {"train"} if spanning or len(mine) == 1 else {"train", "val"}
        assert both <= set.union(*(found[unit] for unit in mine))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), SHARES, st.integers(0, 99))
def test_every_class_is_within_one_image_of_the_share(counts, share, seed):
    dataset = make([label for label, n in enumerate(counts) for _ in range(n)])
    for held, n in held_of_class(dataset, share, seed).values():
        assert abs(held - share * n) < 1


@settings(max_examples=100, deadline=None)
@given(LABELLED, SHARES, st.integers(0, 99))
def test_every_class_is_within_one_group_of_the_share(table, share, seed):
    dataset = grouped(table, spanning=False)
    of_class = {}
    for unit, label in zip(dataset.units(), dataset.labels.tolist(), strict=True):
        of_class.setdefault(label, Counter())[unit] += 1
    for label, (held, n) in held_of_class(dataset, share, seed).items():
        if len(of_class[label]) > 1:
            assert abs(held - share * n) <= max(of_class[label].values())
        else:
            assert held == 0


@pytest.mark.parametrize("size", [10, 100, 7])
@pytest.mark.parametrize("seed", range(5))
def test_thirty_percent_of_a_class_are_thirty_percent(size, seed):
    dataset = make([label for label in range(10) for _ in range(size)])
    found = held_of_class(dataset, 0.3, seed)
    shares = {held for held, _ in found.values()}
    assert shares <= ({3 * size // 10} if size % 10 == 0 else {2, 3})


def test_shares_that_are_no_whole_number_are_right_on_average():
    dataset = make([label for label in range(300) for _ in range(7)])
    held = sum(h for h, _ in held_of_class(dataset, 0.2).values())  # 1.4 of each
    assert held / len(dataset) == pytest.approx(0.2, abs=0.015)


def test_a_large_group_stays_where_smaller_ones_are_nearer_to_the_share():
    groups = ["film"] * 80 + [""] * 20
    for seed in range(20):
        found = sides(make([0] * 100, groups), 0.2, seed)
        assert found["film"] == {"train"}
        assert sum(side == {"val"} for side in found.values()) in (19, 20)


def test_groups_that_span_classes_come_near_the_share_of_each():
    """60 patients with one to six images each, of any of four classes."""
    rng = np.random.default_rng(0)
    table = [(int(c), g) for g in range(60) for c in rng.integers(0, 4, rng.integers(1, 7))]
    dataset = grouped(table, spanning=True)
    for seed in range(20):
        for held, n in held_of_class(dataset, 0.25, seed).values():
            assert abs(held - 0.25 * n) <= 2


def test_a_thousand_classes_of_two_have_one_on_either_side():
    dataset = make([label for label in range(1000) for _ in range(2)])
    assert set(held_of_class(dataset, 0.2).values()) == {(1, 2)}


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 60), st.integers(1, 60), SHARES, st.integers(0, 99))
def test_an_image_changes_sides_only_with_the_border_between_draws(old, new, share, seed):
    """Those held out have the lowest draws before and after, so what moves lies between two ranks."""
    whole = make([0] * (old + new))
    before = sides(whole.select(np.arange(old)), share, seed)
    after = sides(whole, share, seed)
    moved = {unit for unit in before if before[unit] != after[unit]}
    assert len({tuple(after[unit]) for unit in moved}) <= 1  # all go the same way
    added = len({unit for unit in after if after[unit] == {"val"}} - set(before))
    grown = sum(s == {"val"} for s in after.values()) - sum(s == {"val"} for s in before.values())
    assert len(moved) == abs(grown - added)


def test_renaming_the_root_changes_nothing():
    dataset = make([0, 1] * 20)
    moved = dataclasses.replace(dataset, root=Path("elsewhere"))
    assert split_dataset(moved).splits == split_dataset(dataset).splits


def test_the_work_grows_with_the_images_and_not_with_their_square(monkeypatch):
    """Units are looked at a few times each, in many small classes and in one large one."""
    looked = Counter()
    gain = splits._HeldOut.gain

    def count(part, unit):
        looked[unit] += 1
        return gain(part, unit)

    monkeypatch.setattr(splits._HeldOut, "gain", count)
    for labels in ([n // 2 for n in range(6000)], [0] * 6000):
        looked.clear()
        split_dataset(make(labels))
        assert max(looked.values()) <= 4


def test_split_respects_what_the_source_says():
    said = ("train", "val", "test", "")
    assert split_dataset(make([0] * 4, splits=said)).splits == ("train", "val", "test", "train")
    assert set(split_dataset(make([0] * 50), val=0).splits) == {"train"}
    errors = ["", "", "broken link", "broken link"]
    done = split_dataset(make([0] * 4, errors=errors), val=0.01)
    assert set(done.splits[:2]) == {"train", "val"}
    for share in (-0.1, 1, float("nan")):
        with pytest.raises(UsageError, match=r"val must be a fraction in \[0, 1\), got"):
            split_dataset(make([0]), val=share)


# ---------------------------------------------------------------- identical images


def test_copies_under_other_names_stay_on_one_side(plant, tmp_path):
    folder = plant(tmp_path, {"blobs": 12, "plain": 12})
    for image in sorted((folder / "blobs").iterdir())[:8]:
        shutil.copy(image, folder / "blobs" / f"copy of {image.name}")
    dataset = load_dataset(folder)
    for seed in range(10):
        side = dict(
            zip(dataset.ids, split_dataset(dataset, val=0.4, seed=seed).splits, strict=True)
        )
        assert all(side[i.replace("copy of ", "")] == side[i] for i in side)
        assert 6 <= sum(i.startswith("blobs") and side[i] == "val" for i in side) <= 10


def test_identical_images_are_found_by_their_bytes(tmp_path):
    start = bytes(range(256)) * 300  # longer than what is read first
    contents = {
        "a": start + b"1",
        "b": start + b"2",
        "c": start + b"1",
        "d": b"short",
        "e": b"short",
    }
    contents |= {"f": b"other", "g": b"", "h": b"", "i": start[:-1] + b"x1"}
    (tmp_path / "x").mkdir()
    for name, data in contents.items():
        (tmp_path / "x" / name).write_bytes(data)
    dataset = load_dataset(tmp_path)
    found = dict(zip(dataset.ids, find_identical(dataset), strict=True))
    assert found["x/a"] == found["x/c"] != ""
    assert found["x/d"] == found["x/e"] != ""
    assert found["x/a"] != found["x/d"]
    assert {found[f"x/{n}"] for n in "bfghi"} == {""}


def test_only_files_of_one_size_are_opened(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    for number in range(50):
        (tmp_path / "x" / f"{number}").write_bytes(b"x" * (number + 1))
    for name in ("one", "two"):
        (tmp_path / "x" / name).write_bytes(name.encode() * 1000)
    read = []

    def note(path, most=None):
        read.append(path.name)
        return path.read_bytes()

    monkeypatch.setattr(images, "read_image_bytes", note)
    find_identical(load_dataset(tmp_path))
    assert sorted(read) == ["one", "two"]


def test_unreadable_files_equal_none(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    for name in "abc":
        (tmp_path / "x" / name).write_bytes(b"same")
    dataset = load_dataset(tmp_path)
    (tmp_path / "x" / "b").unlink()
    a, b, c = find_identical(dataset)
    assert a == c != ""
    assert b == ""
    out_of_handles = ResourceError("too many open files")

    def read(path, most=None):
        raise out_of_handles

    monkeypatch.setattr(images, "read_image_bytes", read)
    with pytest.raises(ResourceError):
        find_identical(dataset)


def test_no_fold_of_a_cross_validation_parts_copies(plant, tiny, tmp_path, monkeypatch):
    folder = plant(tmp_path / "data", {"blobs": 6, "plain": 6})
    for image in sorted((folder / "blobs").iterdir()):
        shutil.copy(image, folder / "blobs" / f"copy of {image.name}")
    given = []
    choose_penalty = probes.choose_penalty

    def note(features, labels, units, classes, **options):
        given.append(units)
        return choose_penalty(features, labels, units, classes, **options)

    monkeypatch.setattr(probes, "choose_penalty", note)
    run = headstart.fit(folder, tmp_path / "run", **tiny)
    assert run.measured_on == "cross-validation"
    [units] = given
    assert Counter(Counter(units).values()) == {1: 6, 2: 6}
    assert not any("near copies" in w for w in run.warnings)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            None,
            "nothing could be measured: all 8 training images of class 'plain' are one group, or",
        ),
        ("([a-z]+)/", "could be on both sides of a split"),
    ],
)
def test_what_cannot_be_measured_names_the_cause(plant, tiny, tmp_path, groups, message):
    folder = plant(tmp_path / "data", {"blobs": 8, "plain": 1})
    if groups is None:
        [image] = (folder / "plain").iterdir()
        for number in range(7):
            shutil.copy(image, folder / "plain" / f"copy {number}.png")
        run = headstart.fit(folder, tmp_path / "run", **tiny)
        assert run.metrics == {}
        assert any(message in w for w in run.warnings)
    else:
        with pytest.raises(UsageError, match=message):
            headstart.fit(folder, tmp_path / "run", group=groups, **tiny)


def test_units_that_share_a_content_become_one():
    units = ("g", "h", "h", "i", "j", "k")
    assert join_units(units, ("", "1", "2", "2", "", "1")) == ("g", "h", "h", "h", "j", "h")
    assert join_units(units, ("",) * 6) == units


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), st.randoms())
def test_joined_units_are_the_connected_ones_in_any_order(pairs, random):
    units, contents = [f"u{u}" for u, _ in pairs], [str(c) if c else "" for _, c in pairs]
    found = join_units(units, contents)
    for i in range(len(pairs)):
        for k in range(len(pairs)):
            if units[i] == units[k] or contents[i] == contents[k] != "":
                assert found[i] == found[k]
    assert len(set(found)) >= len(set(units)) - sum(c != "" for c in contents)
    order = list(range(len(pairs)))
    random.shuffle(order)
    mixed = join_units([units[i] for i in order], [contents[i] for i in order])
    assert mixed == tuple(found[i] for i in order)
