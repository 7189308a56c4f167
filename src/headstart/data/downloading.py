"""Takes the name of a known data set, gives its files on this machine: fetched, resumed, and checked.

What is fetched is kept as NAME.part until all of it is there and its checksum is right; so a file that has
its name is whole, and a cut connection costs nothing. Only https is spoken, also after a redirect, and plain
http only with this machine itself. Proxies are those of the environment: https_proxy and no_proxy.
"""

import contextlib
import errno
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from headstart.choices import choose
from headstart.data.known import KNOWN, KnownFile, folder_of
from headstart.errors import InputError, ResourceError, UsageError, one_line
from headstart.files import check_writable, hash_file, sync_folder, translate_errors
from headstart.parallel import Progress, no_progress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["download"]

MAX_ATTEMPTS = 5
FIRST_WAIT_S = 1.0  # and twice as long before every attempt after the second
TIMEOUT_S = 30.0
CHUNK_BYTES = 2**18
MB = 10**6
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# What a server answers that may answer otherwise a moment later.
NO_SUCH_PART = 416
PASSING = (408, 425, 429, 500, 502, 503, 504)
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")
ADVICE = "name another place with --to"


class _CutError(Exception):
    """The connection ended, or never came about; what has come is kept, and another attempt may do."""


class _NoPartError(_CutError):
    """The server has nothing from there on, so what has come is of no use."""


def download(
    name: str, to: str | os.PathLike[str] | None = None, *, progress: Progress = no_progress
) -> Path:
    """Fetch a data set that is known by name, unless it is there; `fit` and others then take its name.

    A part that is there from an earlier attempt is continued where the server allows that.

    Args:
        name: a key of `KNOWN`, which `headstart download` lists.
        to: folder for the files; by default `datasets/NAME` in `default_cache_dir()`, where it is found by
            its name.
        progress: called with megabytes (10^6 bytes) that have come, and how many there are.

    Returns:
        The file to load, or the folder of several.

    Raises:
        UsageError: an unknown name.
        InputError: the server refuses, leads to an address that is not https, or has another file than the
            known one; or the connection was cut `MAX_ATTEMPTS` times.
        ResourceError: the folder cannot be written, or the disk is too small.
    """
    known = choose("data set", name, KNOWN)
    if to is not None and not os.fspath(to):
        raise UsageError("to is an empty name; name a folder")
    folder = folder_of(name) if to is None else Path(to)
    check_writable(folder, advice=ADVICE)
    missing = [file for file in known.files if not _is_there(folder / file.name, file)]
    begun = {file.name: _count_bytes(_part_of(folder / file.name)) for file in missing}
    _check_space(folder, sum(max(0, file.size - begun[file.name]) for file in missing))
    done = known.size - sum(file.size for file in missing)
    for file in missing:
        before = done

        def tell(count: int, before: int = before) -> None:
            progress(f"downloading {name}, MB", (before + count) // MB, known.size // MB)

        path = folder / file.name
        with translate_errors(folder, advice=ADVICE), _alone_at(_part_of(path)):
            _fetch(path, file, tell)
        done += file.size
    return known.place(folder)


def _is_there(path: Path, file: KnownFile) -> bool:
    """Whether a file is there already.

    Raises:
        InputError: another one is there by that name, which may be somebody's.
    """
    if not os.path.lexists(path):
        return False
    if path.is_file() and path.stat().st_size == file.size and _is_right(path, file):
        return True
    raise InputError(
        f"{path}: is there, and is not the file that is known; move or remove it, or {ADVICE}"
    )


def _fetch(path: Path, file: KnownFile, tell: Callable[[int], None]) -> None:
    """Get one file, in several attempts where the connection is cut.

    Raises:
        InputError, ResourceError: as `download` says.
    """
    part, wait_s = _part_of(path), FIRST_WAIT_S
    with _translate_full(path.parent, file.size), _open_part(part) as kept:
        if kept.seek(0, os.SEEK_END) > file.size:
            kept.truncate(0)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if kept.seek(0, os.SEEK_END) == file.size:
                break
            try:
                _continue(kept, file, tell)
            except _CutError as exc:
                if attempt == MAX_ATTEMPTS:
                    have = kept.seek(0, os.SEEK_END)
                    raise InputError(
                        f"{file.url}: {exc}, {MAX_ATTEMPTS} times; {have / MB:,.1f} of "
                        f"{file.size / MB:,.1f} MB are kept, and the same command continues"
                    ) from exc
                time.sleep(wait_s)
                wait_s *= 2
        kept.flush()
        os.fsync(kept.fileno())
    if not _is_right(part, file):
        part.unlink()
        raise InputError(
            f"{file.url}: what came has another checksum than the known {file.checksum}, and was removed; "
            "run the same command again, or it was changed there"
        )
    with translate_errors(path.parent, advice=ADVICE):
        os.replace(part, path)
        sync_folder(path.parent)


def _continue(kept: BinaryIO, file: KnownFile, tell: Callable[[int], None]) -> None:
    """Append what is missing, or all of it where the server begins anew.

    Raises:
        _CutError: the connection ended before the file did.
        InputError: the server refuses, or has a file of another size.
    """
    have = kept.seek(0, os.SEEK_END)
    try:
        asked = _ask(file.url, have)
    except _NoPartError:
        kept.truncate(0)
        raise
    with asked as answer:
        total = answer.headers.get("Content-Length")
        if answer.status == 206:
            found = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != have:
                kept.truncate(0)
                raise _CutError("the server sent another part than was asked for")
            total = found[2]
        elif have:  # it does not know ranges, and sends all of it
            have = kept.seek(0)
            kept.truncate()
        if total is not None and total != str(file.size):
            raise InputError(
                f"{file.url}: has {total[:20]} bytes, and the known file has {file.size}; "
                "it was changed there"
            )
        while have < file.size:
            try:
                data = answer.read(min(CHUNK_BYTES, file.size - have))
            except (OSError, http.client.HTTPException) as exc:
                raise _CutError(_tell_reason(exc)) from exc
            if not data:
                raise _CutError("the connection ended early")
            kept.write(data)
            kept.flush()
            have += len(data)
            tell(have)


def _ask(url: str, have: int) -> Any:
    """The answer of the server, from byte `have` on where it can.

    Raises:
        _CutError: none came, or one that may be otherwise a moment later.
        _NoPartError: it has no such part.
        InputError: it refuses, or its certificate is not to be trusted.
    """
    _check_address(url, url)
    headers = {"Accept-Encoding": "identity", "User-Agent": "headstart"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        return _make_opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as exc:
        exc.close()
        reason = f"the server answers {exc.code} {one_line(Exception(exc.reason))}"
        if exc.code == NO_SUCH_PART and have:
            raise _NoPartError(reason) from exc
        if exc.code in PASSING:
            raise _CutError(reason) from exc
        raise InputError(f"{url}: {reason}; the file may have moved") from exc
    except (OSError, http.client.HTTPException) as exc:  # URLError is an OSError
        cause = getattr(exc, "reason", exc)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise InputError(
                f"{url}: the server's certificate is not to be trusted ({cause.verify_message}); check the "
                "clock, the proxy and the system's certificates"
            ) from exc
        raise _CutError(_tell_reason(cause)) from exc
    except ValueError as exc:
        raise InputError(f"{url}: cannot be asked: {one_line(exc)}; check the proxy") from exc


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where an address leads, as far as that is allowed."""

    def http_error_302(
        self, req: Any, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        target = headers.get("location") or headers.get("uri")
        if target is not None:
            url = urllib.parse.urljoin(req.full_url, target)
            try:
                _check_address(url, req.full_url)
            except InputError:
                fp.close()
                raise
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _make_opener() -> urllib.request.OpenerDirector:
    """One that speaks nothing but http and https; the usual one reads files and speaks FTP too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _check_address(url: str, before: str) -> None:
    """Refuse all but https, and but http with this machine where that was asked for.

    Raises:
        InputError: it is another one.
    """
    if not (_is_https(url) or (_is_local(url) and _is_local(before))):
        led = "" if url == before else f"{before} leads to "
        raise InputError(f"{led}{url[:200]}: refused, since only https is spoken")


def _is_https(url: str) -> bool:
    return urllib.parse.urlsplit(url).scheme == "https"


def _is_local(url: str) -> bool:
    address = urllib.parse.urlsplit(url)
    return address.scheme == "http" and address.hostname in LOOPBACK


def _tell_reason(exc: object) -> str:
    if isinstance(exc, TimeoutError):
        return f"no answer in {TIMEOUT_S:.0f} s"
    if isinstance(exc, OSError) and exc.strerror:
        return f"no connection ({exc.strerror})"
    return f"no connection ({one_line(Exception(exc))})"


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _count_bytes(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _open_part(part: Path) -> BinaryIO:
    """Open what came before, to read and append; never through a link to somebody's file."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(part, flags, 0o666), "r+b")


@contextlib.contextmanager
def _alone_at(part: Path) -> Iterator[None]:
    """Keep a second process from the part of a file while the first is at it; on Windows nothing does.

    Raises:
        ResourceError: another one is at it, or was a moment ago.
    """
    if fcntl is None:
        yield
        return
    with _open_part(part) as own:
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(own.fileno()), os.stat(part))
        except (BlockingIOError, FileNotFoundError):  # the latter where it is whole by now
            is_ours = False
        except OSError:  # a file system without locks
            is_ours = True
        if not is_ours:
            raise ResourceError(
                f"{part}: another download of it is running or has just ended; wait for it, and run the same "
                f"command again, or {ADVICE}"
            )
        yield


def _is_right(path: Path, file: KnownFile) -> bool:
    algorithm, _, digest = file.checksum.partition(":")
    return hash_file(path, algorithm) == digest


def _check_space(folder: Path, needed: int) -> None:
    """Find out whether there is room before hours of download.

    Raises:
        ResourceError: there is not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _make_full(folder, needed, f", {free / MB:,.1f} MB are free")


def _make_full(folder: Path, needed: int, free: str = "") -> ResourceError:
    return ResourceError(
        f"{folder}: no space left: {needed / MB:,.1f} MB are needed{free}; free space, or {ADVICE}"
    )


@contextlib.contextmanager
def _translate_full(folder: Path, needed: int) -> Iterator[None]:
    """A full disk as one line that says how much is needed, and the system's other errors as usual."""
    with translate_errors(folder, advice=ADVICE):
        try:
            yield
        except (InputError, ResourceError):
            raise
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _make_full(folder, needed) from exc
            raise
