"""The process around a command: its standard streams, its signals, and how it ends.

Light, since it comes before whatever is slow to import.
"""

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from headstart.errors import ResourceError

__all__ = [
    "catch_signals",
    "check_address_space",
    "find_shortage",
    "give_up_output",
    "leave",
    "run_process",
]

INTERRUPTED, TERMINATED, READER_GONE = 130, 143, 141

START_LIMIT_S = 2  # seconds between two looks at threads that start, which takes milliseconds


class _Terminated(BaseException):
    """SIGTERM, so that whatever is open is closed."""


def run_process(run: Callable[[], int]) -> NoReturn:
    """End the process with the exit code that `run` gives, or with that of the signal that ended it."""
    _open_streams()
    catch_signals()
    with contextlib.suppress(RuntimeError):  # no more threads: whatever needs one will say so
        threading.Thread(target=_end_if_a_start_hangs, daemon=True, name="headstart-watch").start()
    code = 1
    try:
        code = run()
    except KeyboardInterrupt:
        _end_interrupted()
    except _Terminated:
        leave(TERMINATED)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        give_up_output()
        code = READER_GONE
    # Nothing is left to be closed: a signal while threads end must not become a traceback.
    signal.signal(signal.SIGINT, lambda *_: _exit(INTERRUPTED))
    signal.signal(signal.SIGTERM, lambda *_: _exit(TERMINATED))
    sys.exit(code)


def leave(code: int) -> NoReturn:
    """End now that everything is committed, without waiting for a network that is being compiled."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    _exit(code)


def _exit(code: int) -> NoReturn:
    dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
    with contextlib.suppress(OSError):
        if os.isatty(2) and not dumb and os.name == "posix":
            os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(code)


def give_up_output() -> None:
    """Let what is buffered for stdout go nowhere, since it cannot be written at exit either."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---------------------------------------------------------------- streams


class _Messages(io.FileIO):
    """Standard error: what cannot be written there is lost, and ends no work."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data).cast("B"))


def _open_streams() -> None:
    """Have all three streams, whatever the process was started with, in the encodings documented."""
    # In the order of their numbers: a closed one must not be taken by the next file that is opened.
    # What is written to a closed stdout is a result that got lost, so it must fail.
    for name, flags, mode in (
        ("stdin", os.O_RDONLY, "r"),
        ("stdout", os.O_RDONLY, "w"),
        ("stderr", os.O_WRONLY, "w"),
    ):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file or a pipe gets UTF-8, as documented; a terminal keeps its own encoding.
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    buffer = getattr(sys.stderr, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # one and the same where Python runs unbuffered
    if type(raw) is io.FileIO:  # neither a test's stream nor the console of Windows
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Messages(raw.fileno(), "w", closefd=False)),
            encoding=sys.stderr.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )


# ---------------------------------------------------------------- signals


def catch_signals() -> None:
    """Have SIGINT and SIGTERM end the process without a traceback from here on."""
    signal.signal(signal.SIGINT, _on_interrupt)
    signal.signal(signal.SIGTERM, _on_terminate)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        _end_interrupted()
    signal.signal(signal.SIGINT, lambda *_: _exit(INTERRUPTED))
    raise KeyboardInterrupt


def _on_terminate(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        _exit(TERMINATED)
    raise _Terminated


def _end_if_a_start_hangs() -> None:
    """End the process where a thread died of a lack of memory before its first line.

    Python then waits for ever for it to start (seen with 3.11). What is committed stays.
    """
    while True:
        time.sleep(START_LIMIT_S)
        unborn = _find_unborn()
        for _ in range(2):  # a thread that merely waits for its turn is born between two looks
            if unborn:
                time.sleep(START_LIMIT_S)
                unborn &= _find_unborn()
        if unborn:
            with contextlib.suppress(OSError):
                os.write(2, f"error: {_OUT_OF_MEMORY}\n".encode())
            leave(ResourceError.exit_code)


def _find_unborn() -> set[threading.Thread]:
    """The threads that were started and have not run yet."""
    return {thread for thread in threading.enumerate() if not thread.is_alive()}


def _is_importing(frame: FrameType | None) -> bool:
    """Whether an import is going on: an exception there gets lost, or becomes one of another kind."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end_interrupted() -> NoReturn:
    kept = "; what was computed is kept: run the same command again to go on"
    sys.stderr.write(f"interrupted{'' if sys.argv[1:2] == ['predict'] else kept}\n")
    leave(INTERRUPTED)


# ---------------------------------------------------------------- what the machine lacks

_THREADS = ("can't start new thread", "resource temporarily unavailable")
_MEMORY = (
    "allocate memory", "bad_alloc", "failed to map segment", "unable to allocate", "out of memory",
)  # fmt: skip

_OUT_OF_MEMORY = "out of memory; close other programs or use fewer --workers"

# What the libraries underneath need on two cores; with less they crash or wait for ever (seen at 400 MiB).
LEAST_ADDRESS_SPACE = 2**30


def check_address_space() -> None:
    """Refuse to start where a limit leaves the libraries too little to be loaded.

    Raises:
        ResourceError: `ulimit -v` is below `LEAST_ADDRESS_SPACE`.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise ResourceError(
            f"out of memory: the address space is limited to {limit >> 20} MiB, and at least "
            f"{LEAST_ADDRESS_SPACE >> 20} MiB are needed; raise ulimit -v"
        )


def find_shortage(exc: BaseException) -> str:
    """What the machine is short of, for people; "" where an error has another reason.

    Libraries tell a lack of threads or memory by errors of many kinds, in words of their own.
    """
    text = str(exc).lower()
    if isinstance(exc, RuntimeError | OSError) and any(words in text for words in _THREADS):
        return "no more threads can be started; close other programs, or raise ulimit -u and -v"
    told = isinstance(exc, RuntimeError | ImportError | OSError | SystemError)
    short = isinstance(exc, MemoryError) or (told and any(words in text for words in _MEMORY))
    return _OUT_OF_MEMORY if short else ""
