"""Data sets known by name, fetched from a server on this machine that cuts, lies and leads astray."""

import errno
import hashlib
import http.server
import random
import re
import shutil
import sys
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

import headstart
from headstart.data import downloading
from headstart.data.known import KNOWN, KnownData, KnownFile
from headstart.data.loading import FORMS
from headstart.errors import InputError, ResourceError, UsageError

DATA = random.Random(0).randbytes(700_000)
CUT = 300_000


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends `DATA` in the way that `mode` says."""

    mode = "whole"
    seen: ClassVar[list] = []

    def log_message(self, *words):
        pass

    def do_GET(self):
        asked, mode = self.headers.get("Range"), type(self).mode
        self.seen.append((self.path, asked))
        if mode.startswith("to "):
            self.send_response(302)
            self.send_header("Location", mode[3:])
            self.end_headers()
            return
        if mode.isdigit():
            self.send_error(int(mode))
            return
        if mode == "no such part" and asked:
            self.send_error(416)
            return
        start = int(asked[6:-1]) if asked and mode != "no ranges" else 0
        body = DATA[start:] + (b"more" if mode == "larger" else b"")
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        is_cut = mode in ("cut", "stuck") or (mode == "no ranges" and not asked)
        if mode == "stuck" and asked:
            return
        self.wfile.write(body[:CUT] if is_cut else body)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A function that puts the data set `tiny` into the table, with its checksum and the server's address."""
    Handler.mode, Handler.seen = "whole", []
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(downloading, "FIRST_WAIT_S", 0)
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def put(digest="", host=f"127.0.0.1:{running.server_port}"):
        digest = digest or hashlib.sha256(DATA).hexdigest()
        file = KnownFile("a.zip", f"http://{host}/a.zip", len(DATA), f"sha256:{digest}")
        monkeypatch.setitem(KNOWN, "tiny", KnownData("noise", "archive", "none", "here", (file,)))

    put()
    yield put
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("mode", ["whole", "cut", "no ranges"])
def test_a_file_arrives_whole_whatever_the_connection_does(server, mode):
    Handler.mode = mode
    path = headstart.download("tiny")
    assert path.read_bytes() == DATA
    assert [p.name for p in path.parent.iterdir()] == ["a.zip"]
    if mode == "cut":
        assert [asked for _, asked in Handler.seen] == [None, "bytes=300000-", "bytes=600000-"]
    asked = len(Handler.seen)
    assert headstart.download("tiny") == path
    assert len(Handler.seen) == asked


def test_the_same_command_continues_what_was_given_up(server):
    Handler.mode = "stuck"
    with pytest.raises(
        InputError, match=r"0\.3 of 0\.7 MB are kept, and the same command continues"
    ):
        headstart.download("tiny")
    assert len(Handler.seen) == downloading.MAX_ATTEMPTS
    Handler.mode = "whole"
    assert headstart.download("tiny").read_bytes() == DATA
    assert Handler.seen[-1][1] == "bytes=300000-"


def test_a_part_that_the_server_does_not_know_is_begun_anew(server, tmp_path):
    part = tmp_path / "datasets/tiny/a.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(600_000))
    Handler.mode = "no such part"
    assert headstart.download("tiny").read_bytes() == DATA
    assert [asked for _, asked in Handler.seen] == ["bytes=600000-", None]


@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
def test_a_second_download_at_once_leaves_the_first_alone(server, tmp_path):
    import fcntl

    part = tmp_path / "datasets/tiny/a.zip.part"
    part.parent.mkdir(parents=True)
    with open(part, "wb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        first.write(DATA[:1000])
        first.flush()
        with pytest.raises(ResourceError, match=r"a.zip.part: another download of it is running"):
            headstart.download("tiny")
        assert part.read_bytes() == DATA[:1000]
    assert headstart.download("tiny").read_bytes() == DATA


def test_downloads_at_once_end_whole_or_in_one_line(server, tmp_path):
    def fetch(_):
        try:
            return headstart.download("tiny").read_bytes() == DATA
        except ResourceError:
            return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fetch, range(8)))
    assert headstart.download("tiny").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "datasets/tiny").iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://example.org/x", "data:,x"]
)
def test_no_other_scheme_is_followed(server, target):
    Handler.mode = f"to {target}"
    with pytest.raises(InputError, match="only https is spoken"):
        headstart.download("tiny")


@pytest.mark.parametrize(
    ("mode", "message"),
    [("404", "the server answers 404"), ("503", "503.*5 times"), ("larger", "has 700004 bytes")],
)
def test_a_server_that_has_something_else(server, mode, message):
    Handler.mode = mode
    with pytest.raises(InputError, match=message):
        headstart.download("tiny")


def test_what_has_another_checksum_is_removed(server, tmp_path):
    server("0" * 64)
    with pytest.raises(InputError, match="another checksum"):
        headstart.download("tiny")
    assert not list(tmp_path.rglob("a.zip*"))


def test_a_file_of_somebody_else_is_not_replaced(server, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.zip").write_text("mine")
    with pytest.raises(InputError, match="is not the file that is known"):
        headstart.download("tiny", tmp_path / "mine")
    assert (tmp_path / "mine" / "a.zip").read_text() == "mine"


def test_a_full_disk(server, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 0))
    with pytest.raises(ResourceError, match=r"0\.7 MB are needed"):
        headstart.download("tiny")
    monkeypatch.undo()


def test_a_disk_that_fills_meanwhile(server, monkeypatch):
    def fill(*words):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloading, "_continue", fill)
    with pytest.raises(ResourceError, match=r"no space left: 0\.7 MB are needed"):
        headstart.download("tiny")


def test_the_proxy_of_the_environment_is_asked(server, monkeypatch):
    host = KNOWN["tiny"].files[0].url.split("/")[2]
    server(host="localhost:1")
    monkeypatch.setenv("http_proxy", f"http://{host}")
    assert headstart.download("tiny").read_bytes() == DATA
    assert Handler.seen == [("http://localhost:1/a.zip", None)]


def test_names(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cifar10"):
        headstart.download("cifar-10")
    with pytest.raises(InputError, match="run headstart download tiny"):
        headstart.load_dataset("tiny")
    assert Handler.seen == []  # which loading does not ask for


def test_what_was_downloaded_is_loaded_by_its_name_unless_something_here_has_it(
    plant, server, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data = plant(tmp_path / "photos", {"blobs": 2, "plain": 2})
    path = headstart.download("tiny")
    shutil.make_archive(str(path.with_suffix("")), "zip", data)
    assert headstart.load_dataset("tiny").classes == ("blobs", "plain")
    plant(tmp_path / "tiny", {"stripes": 1, "plain": 1})
    found = headstart.load_dataset("tiny")
    assert found.classes == ("plain", "stripes")
    assert any("not the data set that was downloaded" in w for w in found.warnings)


def test_the_table():
    for name, known in KNOWN.items():
        assert known.form in FORMS, name
        assert len({file.name for file in known.files}) == len(known.files)
        for file in known.files:
            assert file.url.startswith("https://")
            assert file.size > 1000
            assert re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.checksum)


def test_the_command_lists_and_fetches(cli, server):
    code, shown, _ = cli("download", "--json")
    assert code == 0
    assert len(shown.splitlines()) == len(KNOWN)
    code, shown, told = cli("download", "tiny")
    assert code == 0
    assert shown.strip().endswith("a.zip")
    assert "headstart fit tiny" in told
    code, _, told = cli("download", "--to", "x")
    assert code == 2
