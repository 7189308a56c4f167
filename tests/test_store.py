"""Rows that were committed come back as they were, for whoever asks, and nothing is computed twice."""

import dataclasses
import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import tracemalloc

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headstart.data.images import FileSource, ImageRef, MemorySource, Stamp
from headstart.data.loading import load_dataset
from headstart.errors import InputError, ResourceError, UsageError
from headstart.features.cache import list_networks, list_stores, prune, verify
from headstart.features.extraction import extract
from headstart.features.file_hashes import FileMemory
from headstart.features.runtime import Runtime
from headstart.features.store import Store
from headstart.features.tables import export_features
from headstart.files import write_atomically
from headstart.networks.backbones import load_backbone

EXAMPLES = int(os.environ.get("HEADSTART_TEST_EXAMPLES", "100"))
DAY = 86400


def name_of(number):
    return hashlib.sha256(str(number).encode()).digest()


def row_of(number):
    """(values, reason): every seventh row is that of an unreadable image."""
    values = np.random.default_rng(number).normal(size=5).astype(np.float32)
    return (np.zeros(5, np.float32), f"damaged {number}") if number % 7 == 6 else (values, "")


def add_rows(store, numbers):
    rows = [row_of(n) for n in numbers]
    columns = {"a": np.stack([v for v, _ in rows])}
    store.add([name_of(n) for n in numbers], columns, [e for _, e in rows])


# ---------------------------------------------------------------- against a dict

STEP = st.one_of(
    st.tuples(st.just("add"), st.lists(st.integers(0, 40), min_size=1, max_size=12)),
    st.tuples(st.just("read"), st.lists(st.integers(0, 40), max_size=12)),
    st.tuples(st.just("reopen"), st.none()),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(STEP, max_size=10))
def test_the_store_is_a_dict(tmp_path_factory, steps):
    cache = tmp_path_factory.mktemp("cache")
    store, model = Store.open(cache, {"k": 1}), set()
    for what, numbers in steps:
        if what == "add":
            add_rows(store, numbers)
            model.update(numbers)
        elif what == "reopen":
            store = Store.open(cache, {"k": 1})
        else:
            known = [n for n in numbers if n in model]
            found = store.read("a", [name_of(n) for n in known])
            assert found.shape[0] == len(known)
            for row, number in zip(found, known, strict=True):
                assert (row == row_of(number)[0]).all()
            assert [store.error(name_of(n)) for n in known] == [row_of(n)[1] for n in known]
        assert len(store) == len(model)
        assert all((name_of(n) in store) == (n in model) for n in range(41))
    assert store.problems == []
    assert Store.open(cache, {"k": 2}).read("a", []).shape[0] == 0


def test_the_first_row_of_a_name_counts_with_its_error(tmp_path):
    store = Store.open(tmp_path, {})
    good = np.ones((1, 2), np.float32)
    store.add([name_of(0)], {"a": good}, [""])
    store.add([name_of(0)], {"a": 0 * good}, ["damaged"])
    assert store.error(name_of(0)) == ""
    assert (store.read("a", [name_of(0)]) == good).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_columns_keep_shape_and_type(dtype, tmp_path):
    values = np.arange(48).reshape(2, 2, 3, 4).astype(dtype)
    Store.open(tmp_path, {}).add([name_of(i) for i in range(2)], {"a": values}, ["", ""])
    found = Store.open(tmp_path, {}).read("a", [name_of(1), name_of(0), name_of(1)])
    assert found.dtype == dtype
    assert (found == values[[1, 0, 1]]).all()


# ---------------------------------------------------------------- how much it holds open


def test_a_large_matrix_is_opened_and_read_at_once(tmp_path):
    rows, width = 100_000, 1280
    store = Store.open(tmp_path, {})
    names = [name_of(i) for i in range(rows)]
    for start in range(0, rows, 10_000):
        block = np.full((10_000, width), start, np.float32)
        store.add(names[start : start + 10_000], {"a": block}, [""] * 10_000)
    started = time.perf_counter()
    store = Store.open(tmp_path, {})
    tracemalloc.start()
    try:
        found = store.read("a", names[::1000])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - started < 5
    assert (found == (np.arange(100) // 10 * 10_000)[:, None]).all()
    assert peak < 4 * found.nbytes  # 512 MB are on disk, and stay there


def test_many_shards_need_few_file_handles(tmp_path):
    code = f"""if True:
        import hashlib, os, resource, numpy as np
        from pathlib import Path
        from headstart.features.store import Store
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        store = Store.open(Path({str(tmp_path)!r}), {{}})
        names = [hashlib.sha256(b"%d" % i).digest() for i in range(100)]
        for i, name in enumerate(names):
            row = np.full((1, 3), i, np.float32)
            store.add([name], {{"a": row, "b": -row, "c": row}}, [""])
        for _ in range(2):
            store = Store.open(Path({str(tmp_path)!r}), {{}})
            for column, sign in (("a", 1), ("b", -1), ("c", 1)):
                found = store.read(column, names)
                assert (found[:, 0] == sign * np.arange(100)).all()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- files that look the same


@dataclasses.dataclass
class Stamped:
    """A source that says when it was changed."""

    time_ns: int

    def stamp(self):
        return Stamp(3, self.time_ns, self.time_ns)


def test_hashes_are_remembered_unless_too_fresh(tmp_path):
    now = time.time_ns()
    for age_ns, known in ((10**10, True), (10**9, False), (-(10**9), False)):
        image = ImageRef(f"{known}", Stamped(now - age_ns))
        memory = FileMemory(tmp_path / "cache", tmp_path)
        memory.remember(image.id, image.stamp(), now, name_of(1))
        memory.save()
        again = FileMemory(tmp_path / "cache", tmp_path)
        assert again.find(image) == (name_of(1) if known else None)
        image.source.time_ns += 1
        assert again.find(image) is None
    known = ImageRef("True", Stamped(now - 10**10))
    assert again.find(known) == name_of(1)
    assert again.find(ImageRef("True", FileSource(tmp_path / "absent.png"))) is None
    assert again.find(ImageRef("True", MemorySource(b"one"))) is None
    assert FileMemory(tmp_path / "cache", tmp_path / "other").find(known) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a.png": 3}', '{"a.png": {}}', "\ufffe"])
def test_a_damaged_memory_is_forgotten(text, tmp_path):
    memory = FileMemory(tmp_path, tmp_path)
    memory.remember("b.png", Stamp(1, 0, 0), time.time_ns(), name_of(1))
    memory.save()
    (file,) = (tmp_path / "files").iterdir()
    file.write_text(text, encoding="utf-8")
    assert FileMemory(tmp_path, tmp_path).find(ImageRef("a.png", Stamped(0))) is None


# ---------------------------------------------------------------- what is computed, and when


@pytest.fixture(scope="module")
def vit(tiny):
    return load_backbone(tiny["backbone"], weights=tiny["weights"])


@pytest.fixture(scope="module")
def compiled(vit, loose, tmp_path_factory):
    """A cache that holds the converted network and nothing else."""
    cache = tmp_path_factory.mktemp("compiled")
    extract(load_dataset(loose), vit, Runtime(precision="fp32", device="cpu", cache_dir=cache))
    prune(cache, max_bytes=0)
    return cache


@pytest.fixture
def look(vit, compiled, tmp_path, monkeypatch):
    """A function (folder, **options) -> Features, with a store of the test's own."""
    cache = tmp_path / "cache"
    for place in ("backbones", "openvino"):
        (cache / place).parent.mkdir(exist_ok=True)
        (cache / place).symlink_to(compiled / place)

    def call(folder, **options):
        usual = {"precision": "fp32", "device": "cpu", "cache_dir": cache}
        return extract(load_dataset(folder), vit, Runtime(**{**usual, **options}))

    return call


def bits(features):
    values = {cut: values.tobytes() for cut, values in features.values.items()}
    return features.ids, values, features.errors, features.sha256


def test_moved_renamed_and_doubled_images_cost_nothing(look, plant, tmp_path):
    root = plant(tmp_path / "photos", {"blobs": 5, "plain": 4})
    first = look(root)
    assert first.computed == 9
    assert look(root).computed == 0
    (root / "blobs/00.png").rename(root / "blobs/zz.png")
    (root / "stripes").mkdir()
    (root / "blobs/01.png").rename(root / "stripes/01.png")
    (root / "plain/copy.png").write_bytes((root / "plain/00.png").read_bytes())
    root.rename(tmp_path / "moved")
    second = look(tmp_path / "moved")
    assert second.computed == 0
    for a, b in (("blobs/00", "blobs/zz"), ("blobs/01", "stripes/01"), ("plain/00", "plain/copy")):
        for cut in first.values:
            old = first.values[cut][first.ids.index(f"{a}.png")]
            assert (old == second.values[cut][second.ids.index(f"{b}.png")]).all()
    Image.new("RGB", (30, 30)).save(tmp_path / "moved/plain/01.png")
    assert look(tmp_path / "moved").computed == 1
    plant(tmp_path / "other", {"blobs": 7})
    assert look(tmp_path / "other").computed == 2


def test_the_same_image_many_times_is_run_once(look, tmp_path):
    for number in range(40):
        path = tmp_path / f"photos/a/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number % 3,) * 3).save(path)
    found = look(tmp_path / "photos", workers=8)
    assert found.computed == 3
    last = found.values["head"]
    assert all((last[i] == last[found.sha256.index(found.sha256[i])]).all() for i in range(40))


def test_unreadable_images_are_rows_with_a_reason(look, plant, tmp_path):
    root = plant(tmp_path / "photos", {"blobs": 5})
    (root / "blobs/01.png").write_bytes(b"text")
    (root / "blobs/03.png").write_bytes((root / "blobs/03.png").read_bytes()[:60])
    first = look(root)
    assert first.computed == 3
    assert first.good().tolist() == [True, False, True, False, True]
    assert [i for i, _ in first.unreadable()] == ["blobs/01.png", "blobs/03.png"]
    assert np.isnan(first.values["head"]).all(axis=1).tolist() == (~first.good()).tolist()
    again = look(root)
    assert (again.computed, bits(again)) == (0, bits(first))


def test_a_file_edited_within_the_clocks_resolution_is_noticed(look, plant, tmp_path):
    root = plant(tmp_path / "photos", {"blobs": 4})
    path = root / "blobs/00.png"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(path, compress_level=0)
    state = path.stat()
    look(root)
    Image.new("RGB", (9, 9), (4, 5, 6)).save(path, compress_level=0)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert look(root).computed == 1


def test_rehash_trusts_no_times(look, plant, tmp_path):
    """As where a file system keeps no time of change: what is remembered is said to fit."""
    root = plant(tmp_path / "photos", {"blobs": 3})
    before = look(root)
    (root / "blobs/00.png").write_bytes((root / "blobs/01.png").read_bytes())
    Image.new("RGB", (9, 9)).save(root / "blobs/02.png")
    memory = FileMemory(tmp_path / "cache", root)
    for image_id, digest in zip(before.ids, before.sha256, strict=True):
        stamp = FileSource(root / image_id).stamp()
        memory.remember(image_id, stamp, time.time_ns() + 10**11, bytes.fromhex(digest))
    memory.save()
    assert (look(root).computed, look(root).sha256) == (0, before.sha256)
    for _ in range(2):
        found = look(root, rehash=True)
        assert found.sha256[0] == found.sha256[1] == before.sha256[1]
        assert found.sha256[2] != before.sha256[2]
    assert look(root).sha256 == found.sha256


def test_an_image_that_vanishes_on_the_way_is_a_row_with_a_reason(
    look, plant, tmp_path, monkeypatch
):
    """Also one whose hash is remembered and whose features were pruned."""
    import headstart.data.images

    root = plant(tmp_path / "photos", {"blobs": 3})
    memory = FileMemory(tmp_path / "cache", root)
    path = root / "blobs/01.png"
    memory.remember("blobs/01.png", FileSource(path).stamp(), time.time_ns() + 10**11, name_of(1))
    memory.save()
    read = headstart.data.images.read_image_bytes

    def vanish(path, most):
        (root / "blobs/01.png").unlink(missing_ok=True)
        return read(path, most)

    monkeypatch.setattr(headstart.data.images, "read_image_bytes", vanish)
    found = look(root)
    assert found.errors == ("", "no such file or directory", "")
    assert np.isnan(found.values["head"]).all(axis=1).tolist() == [False, True, False]


def test_what_changes_a_number_changes_the_key(look, vit, tiny, plant, tmp_path):
    import torch

    root = plant(tmp_path / "photos", {"blobs": 3})
    look(root)
    assert look(root, precision="bf16").computed == 3
    assert look(root, engine="torch").computed == 3
    found = look(root, max_pixels=1000)
    assert (found.computed, found.good().any()) == (0, False)
    assert look(root).good().all()
    state = {k: v + 0.1 for k, v in torch.load(tiny["weights"]).items()}
    torch.save(state, tmp_path / "other.pth")
    other = load_backbone("test_vit", weights=tmp_path / "other.pth", cache_dir=tmp_path / "own")
    cache = tmp_path / "cache"
    options = {"engine": "torch", "precision": "fp32", "device": "cpu", "cache_dir": cache}
    assert extract(load_dataset(root), other, Runtime(**options)).computed == 3
    assert look(root, workers=1).computed == look(root, rehash=True).computed == 0
    stores = list_stores(cache)
    assert len(stores) == 5
    assert len({json.dumps(s.key) for s in stores}) == 5


# ---------------------------------------------------------------- care


@pytest.fixture
def stores(tmp_path):
    """Three stores: "a" used 10 days ago, "b" 5, "b" an hour ago; 10, 20 and 30 rows."""
    for number, (backbone, days) in enumerate((("a", 10), ("b", 5), ("b", 1 / 24)), 1):
        store = Store.open(tmp_path, {"backbone": backbone, "number": number})
        add_rows(store, range(10 * number))
        used = time.time() - days * DAY
        for path in store.folder.iterdir():
            os.utime(path, (used, used))
    return tmp_path


def test_stores_are_listed_the_last_used_first(stores):
    found = list_stores(stores)
    assert [(s.key["number"], s.rows) for s in found] == [(3, 30), (2, 20), (1, 10)]
    for info in found:
        files = (stores / "features" / info.name).iterdir()
        assert info.size_bytes == sum(f.stat().st_size for f in files)
    Store.open(stores, {"backbone": "a", "number": 1})
    assert list_stores(stores)[0].key["number"] == 1
    assert list_stores(stores / "nothing") == []


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"unused_days": 30}, [1, 2, 3]),
        ({"unused_days": 7}, [2, 3]),
        ({"unused_days": 1}, [3]),
        ({"unused_days": 7, "backbone": "b"}, [1, 2, 3]),
        ({"backbone": "a"}, [2, 3]),
        ({"backbone": "b"}, [1]),
        ({"max_bytes": 10**9}, [1, 2, 3]),
        ({"max_bytes": 0}, []),
        ({"max_bytes": -1, "backbone": "b"}, [1]),
        ({}, [1, 2, 3]),
    ],
)
def test_pruning(options, left, stores):
    sizes = {s.key["number"]: s.size_bytes for s in list_stores(stores)}
    gone = set(sizes) - set(left)
    assert prune(stores, **options) == (len(gone), sum(sizes[n] for n in gone))
    assert sorted(s.key["number"] for s in list_stores(stores)) == left


def test_pruning_by_size_keeps_the_last_used(stores):
    last = list_stores(stores)[0]
    prune(stores, max_bytes=last.size_bytes)
    assert list_stores(stores) == [last]
    with pytest.raises(InputError, match="holds no features of 'c'"):
        prune(stores, backbone="c")


@pytest.fixture
def networks(stores):
    """Beside the stores: networks "a" used 8 days ago and "c" now, with weights, and a compiled form."""
    for name, days in (("a", 8), ("c", 0)):
        folder = stores / "backbones" / (name * 64)
        folder.mkdir(parents=True)
        (folder / "card.json").write_text(json.dumps({"name": name}))
        (folder / "state.safetensors").write_bytes(bytes(1000))
        (folder / "openvino-1.bin").write_bytes(bytes(500))
        for path in (*folder.iterdir(), folder):
            os.utime(path, (time.time() - days * DAY,) * 2)
    (stores / "openvino").mkdir()
    (stores / "openvino/1.blob").write_bytes(bytes(300))
    os.utime(stores / "openvino/1.blob", (time.time() - 9 * DAY,) * 2)
    (stores / "backbones/parameters-timm-1.json").write_text("{}")
    return stores


def test_networks_are_counted_and_pruned_too(networks, cli):
    found = {n.key["backbone"]: n.size_bytes for n in list_networks(networks)}
    assert list(found) == ["c", "a", "compiled"]
    assert found["c"] == found["a"] == 1500 + len('{"name": "a"}')
    code, out, _ = cli("cache", "list", "--cache-dir", networks, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, len(rows)) == (0, 6)
    assert [r["what"] for r in rows].count("network") == 3
    _, out, _ = cli("cache", "size", "--cache-dir", networks, "--json")
    assert json.loads(out)["bytes"] >= sum(r["bytes"] for r in rows)
    prune(networks, unused_days=8.5)
    assert [n.key["backbone"] for n in list_networks(networks)] == ["c", "a"]
    prune(networks, unused_days=6)
    assert [n.key["backbone"] for n in list_networks(networks)] == ["c"]
    code, out, _ = cli("cache", "prune", "--backbone", "c", "--cache-dir", networks)
    assert (code, out) == (0, "removed 1 entry, 0.0 MB\n")
    assert list_networks(networks) == []
    assert (networks / "backbones/parameters-timm-1.json").exists()
    prune(networks, max_bytes=0)
    assert list_stores(networks) == []


def test_a_network_in_use_stays(tmp_path, tiny):
    """Loading one counts as use, and a pruned one is found anew."""
    options = {"weights": tiny["weights"], "cache_dir": tmp_path}
    first = load_backbone("test_vit", **options)
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))
    load_backbone("test_vit", **options)
    assert prune(tmp_path, unused_days=1)[0] == 0
    assert prune(tmp_path, max_bytes=0)[0] == 1
    assert load_backbone("test_vit", **options).fingerprint == first.fingerprint


def test_a_store_at_work_counts_as_used(stores):
    """A writer opens its store once and may then write for days."""
    store = Store.open(stores, {"backbone": "a", "number": 1})
    os.utime(store.folder / "key.json", (1e9, 1e9))
    add_rows(store, range(50, 60))
    prune(stores, unused_days=1)
    assert sorted(s.key["number"] for s in list_stores(stores)) == [1, 3]


@pytest.mark.parametrize(("age_s", "stays"), [(2 * DAY, False), (DAY / 2, True)])
def test_remains_of_the_dead_are_removed_when_old(age_s, stays, stores):
    folder = stores / "features" / list_stores(stores)[0].name
    remains = [
        folder / ".x.safetensors.1.2.partial",
        folder / "orphan.safetensors",
        stores / "quarantine/x.safetensors",
        stores / "files/.y.json.1.2.partial",
        stores / "backbones/z/.card.json.1.2.partial",
    ]
    for path in remains:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    for path in stores.rglob("*"):
        os.utime(path, (time.time() - age_s,) * 2)
    assert prune(stores) == (0, 0 if stays else 25)
    assert [path.exists() for path in remains] == [stays] * 5
    assert verify(stores) == (60, [])


def test_verify_names_what_is_damaged(stores):
    shard = next((stores / "features" / list_stores(stores)[0].name).glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    rows, problems = verify(stores)
    assert rows == 30
    assert len(problems) == 1
    assert shard.name in problems[0]
    assert (stores / "quarantine" / f"{shard.parent.name}-{shard.name}").exists()
    assert verify(stores) == (30, [])


def test_features_pruned_behind_our_back_end_as_a_clear_error(look, plant, tmp_path):
    found = look(plant(tmp_path / "photos", {"blobs": 3}))
    prune(tmp_path / "cache", max_bytes=0)
    with pytest.raises(ResourceError):
        found.values["head"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(ResourceError, match=r"cache: .*--cache-dir"):
        Store.open(tmp_path / "cache", {})


# ---------------------------------------------------------------- tables for other programs


@pytest.fixture
def odd(look, plant, tmp_path):
    """(data set, features) with ids, classes and errors of odd characters; one is unreadable."""
    root = plant(tmp_path / "photos", {"blobs": 2})
    data = (root / "blobs/00.png").read_bytes()
    for name in (b"=1+1, \"'.png", b"line\nbreak.png", b"\xff\xfe.png", "日本 é.png".encode()):
        (root / "blobs" / os.fsdecode(name)).write_bytes(data)
    other = root / os.fsdecode(b"caf\xe9")
    other.mkdir()
    (other / "0.png").write_bytes(b"nothing")
    return load_dataset(root), look(root)


# Apart, since from its import on Polars takes part in what an interrupt does.
READ_WITH_POLARS = """
import sys
import numpy, polars
frame = polars.read_parquet(sys.argv[1])
numpy.savez(sys.argv[2], **{name: numpy.array(frame[name].to_list()) for name in frame.columns})
"""


def test_exports_are_read_by_other_programs(odd, tmp_path):
    dataset, features = odd
    for suffix in ("parquet", "npz"):
        export_features(features, dataset, tmp_path / f"table.{suffix}")
    assert sorted(p.name for p in tmp_path.glob("*table*")) == ["table.npz", "table.parquet"]
    arrays = np.load(tmp_path / "table.npz", allow_pickle=False)
    paths = [tmp_path / "table.parquet", tmp_path / "polars.npz"]
    subprocess.run([sys.executable, "-c", READ_WITH_POLARS, *paths], check=True)
    frame = np.load(paths[1], allow_pickle=False)
    rows = duckdb.sql(f"select * from '{tmp_path / 'table.parquet'}'").fetchnumpy()
    assert len(frame["id"]) == len(dataset) == 7
    for name in ("id", "label", "split", "group", "sha256", "error"):
        assert arrays[name].tolist() == frame[name].tolist() == rows[name].tolist()
    assert all(i.isprintable() for i in frame["id"])
    assert frame["sha256"].tolist() == list(features.sha256)
    assert (frame["error"] != "").tolist() == (~features.good()).tolist()
    assert "blobs/日本 é.png" in frame["id"].tolist()
    for cut, right in features.values.items():
        for found in (
            arrays[f"features {cut}"],
            frame[cut].astype(np.float32),
            np.stack([np.asarray(v, np.float32) for v in rows[cut]]),
        ):
            assert np.array_equal(found, right, equal_nan=True)


def test_what_cannot_be_exported_is_refused(odd, tmp_path):
    dataset, features = odd
    with pytest.raises(UsageError, match=r"'.csv' is unknown; known: .parquet, .npz"):
        export_features(features, dataset, tmp_path / "table.csv")
    with pytest.raises(ResourceError, match="cannot be written: no such folder"):
        export_features(features, dataset, tmp_path / "absent/table.npz")


# ---------------------------------------------------------------- files


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / ("a" * 200)
    for content in (b"old", b"", b"new" * 1000):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "interrupt"])
def test_a_failed_write_leaves_the_old_content(step, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    error = KeyboardInterrupt if step == "interrupt" else OSError

    def refuse(*_):
        raise error(errno.ENOSPC, "No space left on device")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if step == "write":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    else:
        monkeypatch.setattr(os, "replace" if step == "replace" else "fsync", refuse)
    try:
        with pytest.raises(error):
            write_atomically(path, b"new" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="a folder has no handle there")
def test_file_and_folder_are_synced_in_order(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("sync") or sync(handle))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("replace") or replace(*paths))
    write_atomically(tmp_path / "a", b"new")
    assert done == ["sync", "replace", "sync"]


def test_a_passing_fault_of_the_system_is_no_damage(tmp_path, monkeypatch):
    store = Store.open(tmp_path, {"a": 1})
    add_rows(store, [1, 2])

    def refuse(*_args, **_options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("headstart.features.store.mmap.mmap", refuse)
        with pytest.raises(ResourceError, match=r"(?i)too many open files"):
            Store.open(tmp_path, {"a": 1})
    again = Store.open(tmp_path, {"a": 1})
    assert len(again) == 2
    assert not again.problems


def test_prune_removes_what_a_killed_one_left(tmp_path):
    left = tmp_path / ".removed.some.1"
    left.mkdir()
    (left / "part").write_bytes(b"abc")
    os.utime(left, (0, 0))
    assert prune(tmp_path) == (0, 3)
    assert not left.exists()
    assert prune(tmp_path) == (0, 0)


def test_two_prunes_do_not_hinder_each_other(tmp_path, monkeypatch):
    for number in range(2):
        add_rows(Store.open(tmp_path, {"a": number}), [1])
    stores = list_stores(tmp_path)
    shutil.rmtree(stores[0].path)
    monkeypatch.setattr("headstart.features.cache.list_stores", lambda cache_dir: stores)
    assert prune(tmp_path, max_bytes=0) == (1, stores[1].size_bytes)


def test_prune_leaves_what_is_not_of_the_store(tmp_path):
    add_rows(Store.open(tmp_path, {"a": 1}), [1])
    foreign = tmp_path / "features" / "mine" / "weights.safetensors"
    foreign.parent.mkdir()
    foreign.write_bytes(b"x")
    os.utime(foreign, (0, 0))
    assert prune(tmp_path, max_bytes=0)[0] == 1
    assert foreign.exists()
    assert not list_stores(tmp_path)
