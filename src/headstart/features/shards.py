"""Takes computed rows, writes them to the store in shards; says which rows still need computing."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from headstart.errors import VerificationError
from headstart.features.store import Store

__all__ = ["Claims", "RowWriter"]

# A shard is committed when it has this many rows or is this old: a killed process loses no more than that.
SHARD_ROWS = 512
SHARD_SECONDS = 15.0


class Claims:
    """Says whether a row needs no work: it is in the store, or another thread computes it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._claimed: set[bytes] = set()
        self._lock = threading.Lock()

    def __call__(self, name: bytes) -> bool:
        with self._lock:
            if name in self._claimed or name in self._store:
                return True
            self._claimed.add(name)
            return False


class RowWriter:
    """Collects rows and commits them to the store in shards, in a thread of its own."""

    def __init__(self, store: Store, most: int | None = None) -> None:
        """Make it; a shard has at most `most` rows, `SHARD_ROWS` by default."""
        self._store, self._most = store, SHARD_ROWS if most is None else most
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="headstart-write")
        self._writing: Future[None] | None = None
        self._clear()

    def _clear(self) -> None:
        self._names: list[bytes] = []
        self._errors: list[str] = []
        self._values: list[dict[str, np.ndarray]] = []
        self._since = time.monotonic()

    def add_name(self, name: bytes, error: str) -> None:
        """Add a row, good or with the reason why it has no values."""
        self._names.append(name)
        self._errors.append(error)

    def add_values(self, outputs: dict[str, np.ndarray]) -> None:
        """Add the values of the good rows among those named since the last call."""
        for cut, values in outputs.items():
            if not np.isfinite(values).all():
                raise VerificationError(
                    f"the network gave NaN or infinite features at {cut}; use --precision fp32"
                )
        if outputs:
            self._values.append(outputs)

    def commit_if_due(self) -> None:
        """Start to write a shard if it is large or old enough."""
        old = time.monotonic() - self._since > SHARD_SECONDS
        if len(self._names) >= self._most or (self._names and old):
            self._commit()

    def close(self) -> None:
        """Write what is left and wait until everything is on disk."""
        try:
            self._commit()
            self._wait()
        finally:
            self._pool.shutdown()

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _commit(self) -> None:
        self._wait()  # at most one shard is written while another is collected
        good = np.array([not e for e in self._errors], dtype=bool)
        complete = sum(len(next(iter(v.values()))) for v in self._values)
        if self._names and complete == good.sum():  # not when a batch was lost to an error
            self._writing = self._pool.submit(
                _write_rows, self._store, self._names, self._errors, good, self._values
            )
        self._clear()


def _write_rows(
    store: Store,
    names: list[bytes],
    errors: list[str],
    good: np.ndarray,
    values: list[dict[str, np.ndarray]],
) -> None:
    columns = {}
    for cut in values[0] if values else ():
        found = np.concatenate([v[cut] for v in values])
        columns[cut] = found
        if len(found) < len(good):
            columns[cut] = np.zeros((len(good), *found.shape[1:]), dtype=found.dtype)
            columns[cut][good] = found
    store.add(names, columns, errors)
