"""Work in several threads: their number, the progress to report, and an ordered map."""

import collections
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

__all__ = [
    "PREPARING",
    "READING",
    "Progress",
    "T",
    "count_cpus",
    "count_threads",
    "map_ahead",
    "no_progress",
]

T = TypeVar("T")
R = TypeVar("R")


# Before the first images the network is loaded, and compiled where it was not yet.
PREPARING, READING = "preparing the network", "reading images"


class Progress(Protocol):
    """Called with what is going on, how much of it is done, and how much there is.

    A total of 0 is that of a stage without anything to count.
    """

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def no_progress(stage: str, done: int, total: int) -> None:
    """The `Progress` that shows nothing."""


def _do_nothing() -> None:
    pass


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    stop: Callable[[], None] = _do_nothing,
    pool: ThreadPoolExecutor | None = None,
) -> Generator[R, None, None]:
    """Ordered parallel map that starts at most a few items before they are asked for.

    `stop` is called at the end, also an early one, to free workers that wait for something. A `pool` that is
    given, of as many workers, is left open.
    """
    own = pool or ThreadPoolExecutor(max_workers=workers, thread_name_prefix="headstart")
    waiting: collections.deque[Future[R]] = collections.deque()
    try:
        for item in items:
            waiting.append(own.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the consumer stops early or is interrupted
        stop()
        for future in waiting:
            future.cancel()
        if pool is None:
            own.shutdown(wait=True, cancel_futures=True)


def count_threads(workers: int | None) -> int:
    """Count the threads that read images and run an engine: as given, else one more than CPUs, so
    that one reads while the others wait for their turn (3 to 5 % faster than one a CPU)."""
    return workers or count_cpus() + 1


def count_cpus() -> int:
    """Count the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
