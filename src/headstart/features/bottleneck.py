"""Takes files of bottleneck features, as courses hand them out, gives their arrays; and writes the same.

A file is a pickle, or a .npz, of a dict with `features`, N x H x W x D or N x D, and `labels`, N or N x 1.
A pickle is interpreted and never executed. What is written is read by NumPy of any age, under Python 2 too.

Shape letters: N images, D features, H W places of which the mean is taken.
"""

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.arrays import FloatND, IntN
from headstart.data.array_names import name_labels
from headstart.data.images import open_regular, peek
from headstart.data.members import ZIP_MAGICS
from headstart.data.numpy_files import read_arrays
from headstart.data.unpickling import MAX_PICKLE_BYTES, read_pickle
from headstart.errors import BadImageError, InputError, ResourceError
from headstart.files import translate_errors, write_atomically

__all__ = ["Bottleneck", "name_bottleneck", "read_bottleneck", "write_bottleneck"]

FEATURES, LABELS = "features", "labels"
# VGG16's last convolution, 7 x 7 x 512, has 25,088 where it is not pooled.
MAX_WIDTH = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class Bottleneck:
    """The features of labelled images, as a file has them.

    Attributes:
        features: float32 (N, D), finite; the mean over H x W.
        labels: N names of classes; a number is its own name.
        shape: of an image's features in the file, (D,) or (H, W, D).
    """

    features: FloatND
    labels: tuple[str, ...]
    shape: tuple[int, ...]


def name_bottleneck(network: str, dataset: str, per_class: int | None) -> tuple[str, str]:
    """Give the names of the files with the features of the training and of the validation images.

    Args:
        per_class: images of each class in the former; None for all.
    """
    count = "" if per_class is None else f"_{per_class}"
    return (
        f"{network}_{dataset}{count}_bottleneck_features_train.p",
        f"{network}_{dataset}_bottleneck_features_validation.p",
    )


def read_bottleneck(path: Path) -> Bottleneck:
    """Read a pickle or a .npz of features and labels.

    Raises:
        InputError: it has not both, or they are no such arrays or of different lengths, or features are
            not finite; or the file is damaged, too large, or asks for more than arrays.
        ResourceError: out of memory.
    """
    try:
        arrays = _read(path)
    except BadImageError as exc:
        raise InputError(f"{path}: {exc}") from exc
    for name in (FEATURES, LABELS):
        if name not in arrays:
            there = ", ".join(str(key)[:40] for key in list(arrays)[:8]) or "nothing"
            raise InputError(
                f"{path}: no {name} in it; it has {there}, and needs a dict of features and labels"
            )
    try:
        matrix, shape = _to_matrix(f"{path}, {FEATURES}", arrays[FEATURES])
    except MemoryError as exc:
        raise ResourceError(f"{path}: out of memory while reading") from exc
    named = name_labels(f"{path}, {LABELS}", arrays[LABELS], len(matrix))
    labels = tuple(label for label in named if isinstance(label, str))
    if len(labels) < len(named):
        raise InputError(
            f"{path}, {LABELS}: several labels an image, and a head on features is for one; headstart fit "
            "IMAGES trains on several"
        )
    return Bottleneck(matrix, labels, shape)


def _read(path: Path) -> Mapping[Any, Any]:
    with open_regular(path) as (file, info):
        if peek(path, 4).startswith(ZIP_MAGICS):
            return read_arrays(path, (FEATURES, LABELS))
        value = read_pickle(file, info.st_size, str(path))
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: a pickle of a {type(value).__name__}; expected a dict with features and labels"
        )
    return {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in value.items()}


def _to_matrix(where: str, value: Any) -> tuple[FloatND, tuple[int, ...]]:
    """Give (float32 (N, D), the shape of a row as it was)."""
    if not isinstance(value, np.ndarray) or value.ndim not in (2, 4) or not value.size:
        given = (
            f"shape {' x '.join(map(str, value.shape)) or 'none'}"
            if isinstance(value, np.ndarray)
            else f"type {type(value).__name__}"
        )
        raise InputError(
            f"{where}: of {given}; expected an array of images x features, or of images x height x width x "
            "features"
        )
    if value.dtype.kind != "f":
        images = value.dtype == np.uint8 and value.ndim == 4
        advice = (
            "these may be images, which headstart fit FILE trains on" if images else "save floats"
        )
        raise InputError(f"{where}: of type {value.dtype}, and features are floats; {advice}")
    if value.shape[-1] > MAX_WIDTH:
        raise InputError(
            f"{where}: {value.shape[-1]:,} features an image, and {MAX_WIDTH:,} are allowed; pool them"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told below
        pooled = value if value.ndim == 2 else value.mean(axis=(1, 2), dtype=np.float64)
        matrix = np.ascontiguousarray(pooled, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise InputError(
            f"{where}: row {bad[0]} has features that are NaN or infinite as float32; remove it, or "
            "extract the features again"
        )
    return matrix, value.shape[1:]


def write_bottleneck(path: Path, features: FloatND, labels: IntN) -> None:
    """Write features (N, D) and labels (N,) as a pickle: float32 N x 1 x 1 x D, and int64 N.

    Raises:
        InputError: it would be larger than such a file may be.
        ResourceError: it cannot be written; what was there is untouched.
    """
    arrays = {FEATURES: features[:, None, None, :].astype("<f4"), LABELS: labels.astype("<i8")}
    # Bytes above 127 take two in a pickle of protocol 2.
    if 2 * sum(array.nbytes for array in arrays.values()) > MAX_PICKLE_BYTES:
        raise InputError(
            f"{path}: the features of {len(features):,} images could take more than "
            f"{MAX_PICKLE_BYTES >> 30} GiB; take fewer with --per-class, or --export them as .npz"
        )
    with translate_errors(path.parent, advice="choose another folder"):
        write_atomically(path, _to_pickle(arrays))


def _to_pickle(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Write {name: array} as Python 3 does in protocol 2, but by NumPy's names of before version 2."""
    parts = [b"\x80\x02}("]
    for name, array in arrays.items():
        parts += [_text(name), *_list_parts(array)]
    return b"".join([*parts, b"u."])


def _list_parts(array: NDArray[Any]) -> Iterator[bytes]:
    # _reconstruct(ndarray, (0,), b"b"), then its state: version, shape, type, order of C, bytes.
    yield b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _bytes(b"b")
    yield b"\x87R(K\x01(" + b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"t"
    # dtype(code, False, True), then its state: version, byte order, no fields.
    code = f"{array.dtype.kind}{array.dtype.itemsize}"
    yield b"cnumpy\ndtype\n" + _text(code) + b"\x89\x88\x87R(K\x03" + _text("<")
    yield b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + _bytes(array.tobytes()) + b"tb"


def _bytes(data: bytes) -> bytes:
    return b"c_codecs\nencode\n" + _text(data.decode("latin-1")) + _text("latin1") + b"\x86R"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data
