"""Takes `Features`, writes them as a table for other programs: .npz or .parquet."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headstart.choices import choose
from headstart.data.dataset import Dataset
from headstart.errors import ResourceError, UsageError, printable
from headstart.features.extraction import Features

__all__ = ["check_export", "export_features"]


def check_export(path: Path) -> None:
    """Check before the work that `export_features` can write there.

    Raises:
        UsageError: another suffix, or pyarrow is not installed.
        ResourceError: there is no such folder.
    """
    choose("export format", path.suffix.lower(), EXPORTERS)
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            "Parquet needs pyarrow: pip install 'headstart[parquet]', or export to .npz"
        )
    if not path.absolute().parent.is_dir():
        raise ResourceError(f"{path}: cannot be written: no such folder; make it first")


def export_features(features: Features, dataset: Dataset, path: Path) -> None:
    """Write features with ids and labels as .parquet or .npz, for DuckDB, Polars, pandas, NumPy.

    A row an image: id, label, split, group, sha256, error, and a float32 vector for each cut point.

    Raises:
        UsageError: another suffix, or pyarrow is not installed.
        ResourceError: the file cannot be written.
    """
    check_export(path)
    write = EXPORTERS[path.suffix.lower()]
    labels = [printable(name) for name in dataset.label_names()]
    # Names that are not valid text would make the file unreadable, so they are escaped.
    texts = {
        "id": [printable(i) for i in features.ids],
        "label": labels,
        "split": list(dataset.splits),
        "group": [printable(g) for g in dataset.groups],
        "sha256": list(features.sha256),
        "error": list(features.errors),
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(part, texts, features)
        os.replace(part, path)
    except OSError as exc:
        raise ResourceError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        part.unlink(missing_ok=True)


def _export_npz(path: Path, texts: dict[str, list[str]], features: Features) -> None:
    arrays: dict[str, Any] = {k: np.array(v, dtype=np.str_) for k, v in texts.items()}
    arrays.update({f"features {cut}": features.values[cut] for cut in features.values})
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def _export_parquet(path: Path, texts: dict[str, list[str]], features: Features) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {k: pyarrow.array(v, pyarrow.string()) for k, v in texts.items()}
    for cut, matrix in features.values.items():
        flat = pyarrow.array(np.ascontiguousarray(matrix).reshape(-1))
        columns[cut] = pyarrow.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
    parquet.write_table(pyarrow.table(columns), path)


EXPORTERS: dict[str, Callable[[Path, dict[str, list[str]], Features], None]] = {
    ".parquet": _export_parquet,
    ".npz": _export_npz,
}
