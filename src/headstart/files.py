"""Files that survive a crash: written whole or not at all, hashed, read as JSON; and the place of the cache.

Every file is written under another name, synced and renamed, then its folder is synced (Pillai et al.,
All File Systems Are Not Created Equal, OSDI 2014, shows why each step is needed).
"""

import contextlib
import errno
import hashlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headstart.errors import InputError, ResourceError

__all__ = [
    "check_cache",
    "check_writable",
    "default_cache_dir",
    "fail_point",
    "hash_file",
    "read_bounded",
    "read_json",
    "sync_folder",
    "to_json_bytes",
    "translate_errors",
    "write_atomically",
    "write_quietly",
]

CACHE_ADVICE = "name another place with --cache-dir"


def default_cache_dir() -> Path:
    """HEADSTART_CACHE_DIR, else the system's folder for caches."""
    given = os.environ.get("HEADSTART_CACHE_DIR")
    if given:
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("headstart", appauthor=False))


def check_cache(cache_dir: str | os.PathLike[str] | None) -> None:
    """Find out whether a cache folder can be written before hours of work are to be kept there.

    Raises:
        ResourceError: it cannot be made or written.
    """
    check_writable(Path(cache_dir) if cache_dir is not None else default_cache_dir())


def check_writable(folder: Path, *, advice: str = CACHE_ADVICE) -> None:
    """Make a folder where there is none, and find out whether it can be written.

    Raises:
        ResourceError: it cannot be made or written.
    """
    with translate_errors(folder, advice=advice):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")


def fail_point(name: str) -> None:
    """For the tests: HEADSTART_FAIL_AT=NAME kills the process here, NAME:enospc fills the disk; with
    @N after it, at the Nth time alone, which the variable counts down to."""
    wanted = os.environ.get("HEADSTART_FAIL_AT", "")
    given, _, number = wanted.partition("@")
    point, _, how = given.partition(":")
    if point != name:
        return
    if number:
        left = int(number) - 1
        os.environ["HEADSTART_FAIL_AT"] = f"{given}@{left}" if left else ""
        if left:
            return
    if how == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), signal.SIGKILL)


def write_atomically(path: Path, data: bytes, *, kind: str = "file") -> None:
    """Write a file so that after a crash it has its old content or its new one, never a part.

    Raises:
        OSError: the file could not be written, or not be made durable; the old one is untouched.
    """
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.{time.monotonic_ns()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            fail_point(f"{kind}-written")
            os.fsync(file.fileno())
        fail_point(f"{kind}-synced")
        os.replace(temporary, path)
        fail_point(f"{kind}-renamed")
        sync_folder(path.parent)
        fail_point(f"{kind}-done")
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows, where a folder has no handle to sync
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def translate_errors(folder: Path, *, advice: str = CACHE_ADVICE) -> Iterator[None]:
    """The system's errors as one line that says what to do: free space on a full disk, or as advised."""
    try:
        yield
    except ResourceError:
        raise
    except OSError as exc:
        is_full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        what = f"free space, or {advice}" if is_full else advice
        raise ResourceError(f"{folder}: {exc.strerror or exc}; {what}") from exc


def write_quietly(path: Path, data: bytes) -> bool:
    """Failing to remember is no loss but of time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError:
        return False
    return True


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


MAX_JSON_BYTES = 64 * 2**20


def read_bounded(path: Path, most_bytes: int, excess: str) -> bytes:
    """Read a file that may come from anywhere; `excess` says what one is that is too large.

    Raises:
        InputError: missing, no regular file, too large, or unreadable.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing, or not a regular file")
    try:
        if path.stat().st_size <= most_bytes:
            return path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    raise InputError(f"{path}: {excess}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may come from anywhere.

    Raises:
        InputError: missing, no regular file, too large, or no JSON object.
    """
    data = read_bounded(path, MAX_JSON_BYTES, f"larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{path}: not JSON") from exc
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def to_json_bytes(value: Mapping[str, Any]) -> bytes:
    """As headstart writes its JSON files."""
    return (json.dumps(value, indent=2) + "\n").encode()
