"""Archives of every kind that is read, with whatever is in them."""

import bz2
import gzip
import io
import lzma
import tarfile
import warnings
import zipfile

import pytest

try:
    from backports import zstd
except ImportError:
    zstd = None

COMPRESS = {
    "tar": lambda data: data,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": lambda data: zstd.compress(data),
}
NEEDS_ZSTD = pytest.mark.skipif(zstd is None, reason="needs backports.zstd")
TARS = [pytest.param(k, marks=NEEDS_ZSTD if k == "tar.zst" else ()) for k in COMPRESS]
KINDS = [*TARS, "stored.zip", "deflated.zip"]

# {name: bytes}; a name that ends with / is a folder, and other members are made by `tar` alone.
TREE = {"cats/1.png": b"cat one", "cats/deep/2": b"cat two" * 99, "dogs/1.png": b"dog"}


def tar(files, *infos):
    """The bytes of a tar of files and of other members, with what the latter hold, if anything."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            made.addfile(info, io.BytesIO(data))
        for info in infos:
            made.addfile(info, io.BytesIO(bytes(info.size)))
    return stream.getvalue()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zipped(files, method=zipfile.ZIP_DEFLATED):
    """The bytes of a zip of {name or ZipInfo: bytes}."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as made:
        warnings.simplefilter("ignore")  # of duplicate names
        for name, data in files.items() if isinstance(files, dict) else files:
            made.writestr(name, data)
    return stream.getvalue()


def pack(kind, files):
    if kind.endswith("zip"):
        return zipped(files, zipfile.ZIP_STORED if kind == "stored.zip" else zipfile.ZIP_DEFLATED)
    return COMPRESS[kind](tar(files))


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
