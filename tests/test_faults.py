"""Whatever kills, starves or damages an extraction, what it committed stays and the result is the same.

The counts are those of every CI run; `scripts/long-run` sets larger ones.
"""

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from forks import Forked
from PIL import Image

import headstart.features.extraction
import headstart.features.shards
from headstart.data.loading import load_dataset
from headstart.errors import ResourceError, VerificationError
from headstart.features.cache import list_stores, verify
from headstart.features.engines import start_engine
from headstart.features.extraction import extract
from headstart.features.runtime import Runtime
from headstart.features.store import Store
from headstart.networks.backbones import load_backbone

KILLS = int(os.environ.get("HEADSTART_TEST_KILLS", "20"))
REPEATS = int(os.environ.get("HEADSTART_TEST_REPEATS", "2"))
DAMAGES = int(os.environ.get("HEADSTART_TEST_DAMAGES", "60"))
WRITERS = int(os.environ.get("HEADSTART_TEST_WRITERS", "4"))
ROUNDS = int(os.environ.get("HEADSTART_TEST_ROUNDS", "5"))
FILES = int(os.environ.get("HEADSTART_TEST_FILES", "3000"))
MEMORY = [int(n) for n in os.environ.get("HEADSTART_TEST_MEMORY", "300,3000").split(",")]

STEPS = ("written", "synced", "renamed", "done")
SHARD_POINTS = [f"{kind}-{step}" for kind in ("shard", "manifest") for step in STEPS]
FILE_POINTS = [f"file-{step}" for step in STEPS]

# An extraction as its own process: says when it starts, gives its result's hash and its memory.
WORKER = """if True:
    import hashlib, json, resource, sys
    import headstart.features.extraction
    import headstart.features.shards
    from headstart.networks.backbones import load_backbone
    from headstart.data.loading import load_dataset
    from headstart.features.runtime import Runtime
    cache, photos, weights, shard_rows = sys.argv[1:]
    headstart.features.shards.SHARD_ROWS = int(shard_rows)
    backbone = load_backbone("test_vit", weights=weights, cache_dir=cache)
    dataset = load_dataset(photos)
    print("start", flush=True)
    found = headstart.features.extraction.extract(
        dataset, backbone,
        Runtime(engine="openvino", precision="fp32", device="cpu", cache_dir=cache),
    )
    digest = hashlib.sha256(repr((found.ids, found.errors, found.sha256)).encode())
    for cut in found.values:
        digest.update(found.values[cut].tobytes())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([digest.hexdigest(), found.computed, found.warnings, peak_mb]))
"""

# An extraction with less memory than one of its images takes, then one with enough. Memory is taken away
# when all threads run: one that dies of it before its first line is waited for by Python for ever.
STARVED = """if True:
    import hashlib, json, resource, sys
    from pathlib import Path
    import headstart.features.extraction
    import headstart.features.shards
    from headstart.networks.backbones import load_backbone
    from headstart.data.loading import load_dataset
    from headstart.features.runtime import Runtime
    from headstart.features.engines import start_engine
    from headstart.errors import ResourceError
    from headstart.features.cache import list_stores
    cache, photos, weights, shard_rows = sys.argv[1:]
    headstart.features.shards.SHARD_ROWS = int(shard_rows)
    backbone = load_backbone("test_vit", weights=weights, cache_dir=cache)
    runtime = Runtime(engine="openvino", precision="fp32", device="cpu", cache_dir=cache)
    engine, _ = start_engine(backbone, runtime, threads=1)
    headstart.features.extraction.make_engine = lambda *_, **__: engine
    dataset = load_dataset(photos)
    def starve(stage, done, total):
        if done and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, resource.RLIM_INFINITY))
    try:
        headstart.features.extraction.extract(
            dataset, backbone, runtime.model_copy(update={"workers": 1}), progress=starve
        )
        said = ""
    except ResourceError as exc:
        said = str(exc)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    kept = sum(info.rows for info in list_stores(Path(cache)))
    found = headstart.features.extraction.extract(dataset, backbone, runtime)
    digest = hashlib.sha256(repr((found.ids, found.errors, found.sha256)).encode())
    for cut in found.values:
        digest.update(found.values[cut].tobytes())
    print(json.dumps([said, kept, digest.hexdigest()]))
"""

# Rows added to a store by its own process, which says how many shards are committed. The point of
# failure is set after some of them.
ADDER = """if True:
    import hashlib, os, sys
    from pathlib import Path
    import numpy as np
    from headstart.features.store import Store
    cache, point, after = sys.argv[1:]
    if after == "-1":
        os.environ["HEADSTART_FAIL_AT"] = point
    store = Store.open(Path(cache), {})
    for shard in range(4):
        if shard == int(after):
            os.environ["HEADSTART_FAIL_AT"] = point
        names = [hashlib.sha256(b"%d" % (3 * shard + i)).digest() for i in range(3)]
        store.add(names, {"a": np.full((3, 2), shard, np.float32)}, ["", "", "damaged"])
        print(shard, flush=True)
"""


def write_images(folder, count, seed=0):
    """Small images of noise, and one in fifty unreadable."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 256, 24 * 24 * 3, dtype=np.uint8).tobytes()
        data = b"P6 24 24 255\n" + pixels if number % 50 != 7 else b"%d is no image" % number
        (folder / f"{number:05}.ppm").write_bytes(data)
    return folder.parent


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "photos/a", 300)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "few/a", 40)


@pytest.fixture(scope="module")
def template(few, tiny, tmp_path_factory):
    """A cache that holds the converted network and nothing else."""
    cache = tmp_path_factory.mktemp("template")
    backbone = load_backbone("test_vit", weights=tiny["weights"], cache_dir=cache)
    options = {"engine": "openvino", "device": "cpu", "cache_dir": cache}
    for precision in ("fp32", "bf16"):
        extract(load_dataset(few), backbone, Runtime(precision=precision, **options))
    for part in ("features", "files"):
        shutil.rmtree(cache / part, ignore_errors=True)
    return cache


@pytest.fixture
def cache(template, tmp_path):
    return shutil.copytree(template, tmp_path / "cache")


@pytest.fixture(scope="module")
def engine(template, tiny):
    backbone = load_backbone("test_vit", weights=tiny["weights"], cache_dir=template)
    runtime = Runtime(engine="openvino", precision="fp32", cache_dir=template)
    return backbone, start_engine(backbone, runtime)[0]


@pytest.fixture
def look(engine, monkeypatch):
    """A function (cache, photos) -> (hash of the result, images computed, warnings), in this process."""
    backbone, made = engine
    monkeypatch.setattr(headstart.features.extraction, "make_engine", lambda *_, **__: made)
    monkeypatch.setattr(headstart.features.shards, "SHARD_ROWS", 8)

    def call(cache, photos, rows=slice(None)):
        dataset = load_dataset(photos)
        dataset = dataset.select(np.arange(len(dataset))[rows])
        options = {"engine": "openvino", "precision": "fp32", "device": "cpu"}
        found = extract(dataset, backbone, Runtime(cache_dir=cache, **options))
        digest = hashlib.sha256(repr((found.ids, found.errors, found.sha256)).encode())
        for cut in found.values:
            digest.update(found.values[cut].tobytes())
        return digest.hexdigest(), found.computed, found.warnings

    return call


def start(cache, photos, tiny, shard_rows=8, code=WORKER, **options):
    command = [sys.executable, "-c", code, cache, photos, tiny["weights"], str(shard_rows)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def finish(process):
    """What a worker printed at its end."""
    lines = process.communicate(timeout=600)[0].splitlines()
    assert process.returncode == 0
    return json.loads(lines[-1])


def committed(cache):
    return sum(info.rows for info in list_stores(cache))


# ---------------------------------------------------------------- death


def test_killed_at_any_moment_nothing_committed_is_lost(photos, template, tiny, look, tmp_path):
    started = time.perf_counter()
    right, computed, _ = look(shutil.copytree(template, tmp_path / "right"), photos)
    seconds = time.perf_counter() - started
    assert computed == 294
    moments, died = random.Random(0), 0
    for number in range(KILLS):
        cache = shutil.copytree(template, tmp_path / f"{number}")
        with Forked(WORKER, cache, photos, tiny["weights"], 8) as process:
            while not process.output and process.running:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 1.5 * seconds + 0.2))
            process.kill()
            code, output, errors = process.wait()
        assert output.startswith("start\n"), errors
        if code == -signal.SIGKILL:
            died += 1
        else:
            seconds *= 0.8  # so that enough die, however quick the machine has become
        there = committed(cache)
        digest, computed, warnings = look(cache, photos)
        assert (digest, warnings) == (right, ())
        assert computed <= 300 - there
        assert committed(cache) == 300
        shutil.rmtree(cache)
    assert died > KILLS // 3


@pytest.mark.parametrize("point", [*SHARD_POINTS, *FILE_POINTS])
def test_killed_at_each_step_of_a_commit(point, tmp_path):
    for repeat in range(REPEATS):
        cache = tmp_path / f"{repeat}"
        after = -1 if point in FILE_POINTS else repeat % 4
        with Forked(ADDER, cache, point, after) as process:
            code, output, errors = process.wait()
        assert (code, errors) == (-signal.SIGKILL, "")
        said = len(output.split())
        assert said == max(after, 0)
        store = Store.open(cache, {})
        assert store.problems == []
        visible = point in ("manifest-renamed", "manifest-done")
        assert len(store) == 3 * (said + visible)
        with Forked(ADDER, cache, "none", 0) as process:
            assert process.wait()[0] == 0
        store = Store.open(cache, {})
        names = [hashlib.sha256(b"%d" % i).digest() for i in range(12)]
        assert store.read("a", names)[:, 0].tolist() == [i // 3 for i in range(12)]
        assert [bool(store.error(n)) for n in names] == [False, False, True] * 4
        assert verify(cache) == (12, [])


def test_interrupted_it_says_how_to_go_on_and_does(template, tiny, tmp_path):
    photos = write_images(tmp_path / "photos/a", 3000)
    cache = shutil.copytree(template, tmp_path / "cache")
    command = [
        *(
            sys.executable,
            "-c",
            "import headstart.cli.app; headstart.cli.app.main()",
            "extract",
            photos,
        ),
        *("--backbone", "test_vit", "--weights", tiny["weights"], "--cache-dir", cache),
        *("--engine", "openvino", "--precision", "fp32", "--max-bad", "0.1", "--workers", "1"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while committed(cache) == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 130
    assert time.monotonic() - started < 5
    assert "interrupted; what was computed is kept: run the same command again" in stderr
    assert "Traceback" not in stderr
    there = committed(cache)
    assert 512 <= there < 3000
    done = subprocess.run([*command, "--json"], capture_output=True, check=True, text=True)
    result = json.loads(done.stdout)
    good = 3000 - len(result["unreadable"])
    assert good - there <= result["computed"] <= 3000 - there
    assert committed(cache) == 3000


# ---------------------------------------------------------------- no room, no peace


@pytest.mark.parametrize("point", [*SHARD_POINTS, *FILE_POINTS])
def test_a_full_disk_is_said_and_loses_nothing(point, few, template, look, tmp_path, monkeypatch):
    right = look(shutil.copytree(template, tmp_path / "right"), few)[0]
    for repeat in range(REPEATS):
        cache = shutil.copytree(template, tmp_path / f"{repeat}")
        look(cache, few, slice(20 * repeat % 40))
        if point in FILE_POINTS:
            next(cache.glob("features/*/key.json")).unlink()
        before = committed(cache)
        with monkeypatch.context() as patch:
            patch.setenv("HEADSTART_FAIL_AT", f"{point}:enospc")
            with pytest.raises(ResourceError, match="No space left on device; free space, or na"):
                look(cache, few)
        assert committed(cache) >= before
        assert list(cache.rglob("*.partial")) == []
        digest, computed, warnings = look(cache, few)
        assert (digest, warnings) == (right, ())
        assert computed <= 40 - before


@pytest.mark.parametrize("limit", [1, 2000, 15_000])
def test_no_file_can_be_larger(limit, few, template, cache, look):
    right = look(shutil.copytree(template, cache.parent / "right"), few)[0]
    look(cache, few, slice(20))
    before = committed(cache)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(ResourceError, match="File too large"):
            look(cache, few)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert committed(cache) >= before
    assert look(cache, few)[::2] == (right, ())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_a_failed_sync_is_fatal_for_its_file(number, call, few, template, cache, look, monkeypatch):
    right = look(shutil.copytree(template, cache.parent / "right"), few)[0]
    sync, calls = os.fsync, []

    def refuse(handle):
        calls.append(handle)
        if len(calls) == call:
            raise OSError(number, os.strerror(number))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(ResourceError, match=os.strerror(number)):
            look(cache, few)
    assert look(cache, few)[::2] == (right, ())


def test_features_that_are_no_numbers_are_not_kept(few, template, cache, engine, look, monkeypatch):
    _, made = engine

    class Broken:
        cuts, micro_batch = made.cuts, made.micro_batch

        def run(self, pixels):
            found = made.run(pixels)
            found["head"][0, 0] = np.nan
            return found

    with monkeypatch.context() as patch:
        patch.setattr(headstart.features.extraction, "make_engine", lambda *_, **__: Broken())
        with pytest.raises(VerificationError, match="NaN or infinite features at head"):
            look(cache, few)
    assert committed(cache) == 0


def test_several_writers_give_what_one_gives(photos, template, tiny, look, tmp_path):
    right = look(shutil.copytree(template, tmp_path / "right"), photos)[0]
    for number in range(ROUNDS):
        cache = shutil.copytree(template, tmp_path / f"{number}")
        with contextlib.ExitStack() as stack:
            words = (WORKER, cache, photos, tiny["weights"], 8)
            processes = [stack.enter_context(Forked(*words)) for _ in range(WRITERS)]
            for process in processes:
                code, output, errors = process.wait(timeout_s=3600)
                assert code == 0, errors
                digest, _, warnings, _ = json.loads(output.splitlines()[-1])
                assert (digest, warnings) == (right, [])
        digest, computed, warnings = look(cache, photos)
        assert (digest, computed, warnings) == (right, 0, ())
        assert list(cache.rglob("*.partial")) == []


def test_32_file_handles_are_enough(photos, template, tiny, look, tmp_path):
    right = look(shutil.copytree(template, tmp_path / "right"), photos)[0]
    cache = shutil.copytree(template, tmp_path / "cache")
    few = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))\n"
    for computed in (294, 0):  # 38 shards
        found = finish(start(cache, photos, tiny, code=few + WORKER))
        assert found[:3] == [right, computed, []]


COMMAND = [sys.executable, "-m", "headstart"]

# The command with 32 file handles, so many megabytes of addresses, and two processors, on whose number
# depends how many addresses the libraries reserve.
LIMITED = """if True:
    import os, resource, sys
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    if int(sys.argv[1]):
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) * 2**20,) * 2)
    os.execv(sys.executable, [sys.executable, "-m", "headstart", *sys.argv[2:]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS knows no limit of addresses")
@pytest.mark.parametrize("megabytes", [0, 1100, 1500, 2500])
def test_a_cold_extraction_with_few_handles_and_little_memory(megabytes, few, tmp_path):
    """Import, conversion and compilation of the built-in network included: right, or one line."""
    words = ["extract", few, "--cache-dir", tmp_path / "cache", "--json"]
    command = [sys.executable, "-c", LIMITED, str(megabytes), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        assert (megabytes > 0, done.returncode, done.stdout) == (True, 5, "")
        (line,) = done.stderr.splitlines()
        assert re.match("error: (out of memory|no more threads)", line)
    again = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=300)
    found = json.loads(again.stdout)
    assert (again.returncode, found["images"], len(found["unreadable"])) == (0, 40, 1)
    assert done.returncode or found["computed"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="macOS knows no limit of addresses")
def test_out_of_memory_is_said_and_loses_nothing(few, template, tiny, look, tmp_path):
    photos = shutil.copytree(few, tmp_path / "photos")
    Image.new("L", (7000, 7000)).save(photos / "a/zz.png")  # 49 MB, 245 as RGB
    right = look(shutil.copytree(template, tmp_path / "right"), photos)[0]
    cache = shutil.copytree(template, tmp_path / "cache")
    done = finish(start(cache, photos, tiny, code=STARVED))
    assert "out of memory while decoding an image" in done[0]
    assert done[1] >= 32  # of 41 were committed
    assert done[2] == right


class Clock:
    """Jumps by up to a year, forwards and backwards, whenever it is read."""

    def __init__(self):
        self._jumps, self._time_ns = random.Random(0), time.time_ns

    def time_ns(self):
        return self._time_ns() + self._jumps.randrange(-(10**9), 10**9) * 31_556_952

    def time(self):
        return self.time_ns() / 1e9


def test_a_clock_that_jumps_changes_nothing(few, template, look, tmp_path, monkeypatch):
    right = look(shutil.copytree(template, tmp_path / "right"), few)[0]
    photos = shutil.copytree(few, tmp_path / "few")
    files = sorted(photos.glob("a/*.ppm"))
    for number, file in enumerate(files):
        moment = time.time() + (number - 20) * 30 * 24 * 3600
        os.utime(file, (moment, moment))
    clock = Clock()
    monkeypatch.setattr(time, "time", clock.time)
    monkeypatch.setattr(time, "time_ns", clock.time_ns)
    cache = shutil.copytree(template, tmp_path / "cache")
    for computed in (39, 0, 0):
        assert look(cache, photos) == (right, computed, ())
    # Another content of the same size, at the same time: seen by the time of change, or read anyway.
    info, data = files[3].stat(), bytearray(files[3].read_bytes())
    data[-1] ^= 255
    files[3].write_bytes(data)
    os.utime(files[3], ns=(info.st_atime_ns, info.st_mtime_ns))
    digest, computed, warnings = look(cache, photos)
    assert (digest != right, computed, warnings) == (True, 1, ())
    assert committed(cache) == 41


# ---------------------------------------------------------------- many


def test_a_thousand_classes_of_two_images(tiny, tmp_path, cli):
    rng = np.random.default_rng(0)
    for number in range(1000):
        folder = tmp_path / f"photos/{number}"
        folder.mkdir(parents=True)
        for copy in range(2):
            pixels = rng.integers(0, 256, 12 * 12 * 3, dtype=np.uint8).tobytes()
            (folder / f"{copy}.ppm").write_bytes(b"P6 12 12 255\n" + pixels)
    options = [word for name, value in tiny.items() for word in (f"--{name}", value)]
    code, out, stderr = cli("fit", tmp_path / "photos", "-o", tmp_path / "run", *options, "--json")
    assert (code, "Traceback" in stderr) == (0, False)
    assert len(json.loads(out)["metrics"]) > 0
    config = json.loads((tmp_path / "run/config.json").read_text(encoding="utf-8"))
    assert len(config["label_names"]) == config["num_classes"] == 1000


def test_many_files_take_little_time_each(template, tiny, tmp_path):
    """Of all images but a few the bytes are the same, so what is measured is the care of files."""
    photos = write_images(tmp_path / "photos/a", 100)
    for number in range(100, FILES):
        shutil.copy(photos / f"a/{number % 100:05}.ppm", photos / f"a/{number:06}.ppm")
    cache = shutil.copytree(template, tmp_path / "cache")
    for computed in (98, 0):
        started = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = finish(start(cache, photos, tiny, shard_rows=512))
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime
        assert found[1:3] == [computed, []]
        assert seconds < 60 + FILES / 100
    assert committed(cache) == 100


# ---------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def stored(few, template, engine, tmp_path_factory):
    """A cache with the features of a few images in five shards."""
    cache = shutil.copytree(template, tmp_path_factory.mktemp("stored") / "cache")
    backbone, made = engine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(headstart.features.extraction, "make_engine", lambda *_, **__: made)
        patch.setattr(headstart.features.shards, "SHARD_ROWS", 8)
        options = {"engine": "openvino", "precision": "fp32", "device": "cpu"}
        extract(load_dataset(few), backbone, Runtime(cache_dir=cache, **options))
    return cache


def retyped(data, rng):
    """The same rows as float64, of the same length by dropping half of them."""
    length = int.from_bytes(data[:8], "little")
    return data[:8] + data[8 : 8 + length].replace(b"F32", b"I32") + data[8 + length :]


def with_nan(data, rng):
    place = len(data) - 4 * rng.randrange(1, 100)
    return data[:place] + np.float32(np.nan).tobytes() + data[place + 4 :]


def flipped(data, rng):
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


HARMS = {
    "flip": (".safetensors", flipped),
    "header flip": (".safetensors", lambda d, rng: flipped(d[:200], rng) + d[200:]),
    "truncation": (".safetensors", lambda d, rng: d[: rng.randrange(1, len(d))]),
    "zero length": (".safetensors", lambda d, rng: b""),
    "growth": (".safetensors", lambda d, rng: d + b"\0" * rng.randrange(1, 9)),
    "wrong dtype": (".safetensors", retyped),
    "NaN rows": (".safetensors", with_nan),
    "zeros": (".safetensors", lambda d, rng: bytes(len(d))),
    "manifest flip": (".json", flipped),
    "manifest truncation": (".json", lambda d, rng: d[: rng.randrange(len(d))]),
    "manifest of text": (".json", lambda d, rng: rng.choice([b"[]", b"3", b'"x"', b"null"])),
}


def shards_of(cache):
    return sorted(cache.glob("features/*/*.safetensors"))


def check_healed(harmed, cache, few, look, stored):
    """Harmed shards are named, put aside and computed again, and the result is the right one."""
    right, _, _ = look(stored, few)
    digest, computed, warnings = look(cache, few)
    assert digest == right
    assert computed > 0
    assert len(warnings) == len(harmed)
    for shard in harmed:
        assert any(f"damaged shard {shard.name} moved to" in w for w in warnings)
        assert list((cache / "quarantine").glob(f"*{shard.stem}*"))
    assert look(cache, few)[1:] == (0, ())
    assert committed(cache) == 40


@pytest.mark.parametrize("number", range(DAMAGES))
def test_damaged_shards_are_put_aside_and_computed_again(number, stored, few, look, tmp_path):
    cache = shutil.copytree(stored, tmp_path / "cache")
    rng = random.Random(number)
    shard = rng.choice(shards_of(cache))
    suffix, harm = list(HARMS.values())[number % len(HARMS)]
    file = shard.with_suffix(suffix)
    file.write_bytes(harm(file.read_bytes(), rng))
    check_healed([shard], cache, few, look, stored)


def test_swapped_and_missing_shards_are_computed_again(stored, few, look, tmp_path):
    cache = shutil.copytree(stored, tmp_path / "cache")
    first, second, third, *_ = shards_of(cache)
    first.rename(tmp_path / "first")
    second.rename(first)
    (tmp_path / "first").rename(second)
    third.unlink()
    check_healed([first, second, third], cache, few, look, stored)


def test_a_shard_of_another_store_is_not_taken(stored, few, look, engine, tmp_path):
    """Sound, with its manifest entry, but computed by something else."""
    cache = shutil.copytree(stored, tmp_path / "cache")
    shards = shards_of(cache)
    names = [hashlib.sha256(p.read_bytes()).digest() for p in sorted(few.glob("a/*.ppm"))]
    other = Store.open(cache, {"other": 1})
    columns = {cut.name: np.ones((40, cut.channels), np.float32) for cut in engine[0].cuts}
    other.add(names, columns, [""] * 40)
    (foreign,) = other.folder.glob("*.safetensors")
    for suffix in (".safetensors", ".json"):
        for shard in shards:
            shard.with_suffix(suffix).unlink()
        foreign.with_suffix(suffix).rename(shards[0].with_name(foreign.stem + suffix))
    check_healed([foreign], cache, few, look, stored)


# ---------------------------------------------------------------- memory


def measure_memory(counts, template, tiny, tmp_path):
    peaks = []
    for count in counts:
        photos = write_images(tmp_path / f"{count}/a", count)
        cache = shutil.copytree(template, tmp_path / f"cache-{count}")
        peaks.append(finish(start(cache, photos, tiny, shard_rows=512))[3])
    assert peaks[1] - peaks[0] <= 100


def test_memory_does_not_grow_with_the_images(template, tiny, tmp_path):
    measure_memory(MEMORY, template, tiny, tmp_path)


@pytest.mark.slow
def test_memory_does_not_grow_with_many_images(template, tiny, tmp_path):
    measure_memory([1000, 20_000], template, tiny, tmp_path)
