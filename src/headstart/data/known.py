"""The table of data sets that are known by name: where their files are, how large, with which checksum.

A checksum is one that is published: by Keras (CIFAR), TensorFlow Datasets (MNIST, Fashion-MNIST, flowers,
beans, rock-paper-scissors), or torchvision (GTSRB and EuroSAT, whose SHA-256 is not published, so MD5).
"""

import dataclasses
from pathlib import Path

from headstart.files import default_cache_dir

__all__ = ["KNOWN", "KnownData", "KnownFile", "find_downloaded", "folder_of"]


@dataclasses.dataclass(frozen=True)
class KnownFile:
    """A file of a known data set.

    Attributes:
        name: under which it is kept; several archives are read by their names, as splits.
        url: its address.
        size: in bytes.
        checksum: "sha256:" or "md5:", and the hex digest.
    """

    name: str
    url: str
    size: int
    checksum: str


@dataclasses.dataclass(frozen=True)
class KnownData:
    """A data set that is known by name.

    Attributes:
        title: what its images show, in a few words.
        form: a key of `FORMS`, by which it is read.
        licence: "not stated" where its authors name none.
        source: address of the page that describes it.
        files: all that is needed.
    """

    title: str
    form: str
    licence: str
    source: str
    files: tuple[KnownFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def place(self, folder: Path) -> Path:
        """What to load, where the files lie in a folder: the one file, or the folder."""
        return folder / self.files[0].name if len(self.files) == 1 else folder

    def is_in(self, folder: Path) -> bool:
        """Whether all files lie there; a file has its name once its checksum was right."""
        return all((folder / file.name).is_file() for file in self.files)


def find_downloaded(name: str) -> Path | None:
    """Give what to load for a name; None for one that is unknown, or not downloaded to the cache."""
    known = KNOWN.get(name)
    if known is None:
        return None
    folder = folder_of(name)
    return known.place(folder) if known.is_in(folder) else None


def folder_of(name: str) -> Path:
    """Where a known data set is kept by default."""
    return default_cache_dir() / "datasets" / name


def _list_files(base: str, *files: tuple[str, str, int, str]) -> tuple[KnownFile, ...]:
    """Files below one address: (name, name there, size, checksum)."""
    return tuple(KnownFile(name, base + there, size, sum_) for name, there, size, sum_ in files)


def _list_idx(base: str, *files: tuple[str, int, str]) -> tuple[KnownFile, ...]:
    """MNIST's files: (name, size, SHA-256)."""
    return _list_files(
        base, *((name, name, size, f"sha256:{digest}") for name, size, digest in files)
    )


KNOWN = {
    "beans": KnownData(
        title="leaves of beans, two diseases",
        form="archive",
        licence="MIT",
        source="https://github.com/AI-Lab-Makerere/ibean",
        files=_list_files(
            "https://storage.googleapis.com/ibeans/",
            (
                "train.zip",
                "train.zip",
                143_812_152,
                "sha256:284fe8456ce20687f4367ae7ad94a64577e7f9fde2c2c6b1c74340ab5dc82715",
            ),
            (
                "validation.zip",
                "validation.zip",
                18_504_213,
                "sha256:90b7aa1c26d91d9afff07a30bbc67a5ea34f1f1397f068d8675be09d7d0c602d",
            ),
            (
                "test.zip",
                "test.zip",
                17_708_541,
                "sha256:ca67b15d960d1e2fd9d23fd8498ce86818ead90755c630a43baf19ec4af09312",
            ),
        ),
    ),
    "cifar10": KnownData(
        title="10 kinds of animals and vehicles, 32 px",
        form="cifar",
        licence="not stated",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        files=_list_files(
            "https://www.cs.toronto.edu/~kriz/",
            (
                "cifar-10-python.tar.gz",
                "cifar-10-python.tar.gz",
                170_498_071,
                "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            ),
        ),
    ),
    "cifar100": KnownData(
        title="100 kinds of things, 32 px",
        form="cifar",
        licence="not stated",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        files=_list_files(
            "https://www.cs.toronto.edu/~kriz/",
            (
                "cifar-100-python.tar.gz",
                "cifar-100-python.tar.gz",
                169_001_437,
                "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            ),
        ),
    ),
    "eurosat": KnownData(
        title="10 kinds of land from space, 64 px",
        form="archive",
        licence="MIT",
        source="https://github.com/phelber/EuroSAT",
        files=_list_files(
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/",
            (
                "EuroSAT.zip",
                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                94_280_567,
                "md5:c8fa014336c82ac7804f0398fcb19387",
            ),
        ),
    ),
    "fashion-mnist": KnownData(
        title="10 kinds of clothes, 28 px, grey",
        form="idx",
        licence="MIT",
        source="https://github.com/zalandoresearch/fashion-mnist",
        files=_list_idx(
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            (
                "train-images-idx3-ubyte.gz",
                26_421_880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                29_515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                4_422_102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                5_148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
    ),
    "flowers": KnownData(
        title="5 kinds of flowers, photographs",
        form="archive",
        licence="CC BY, of each image",
        source="https://www.tensorflow.org/datasets/catalog/tf_flowers",
        files=_list_files(
            "https://storage.googleapis.com/download.tensorflow.org/example_images/",
            (
                "flower_photos.tgz",
                "flower_photos.tgz",
                228_813_984,
                "sha256:4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
            ),
        ),
    ),
    "gtsrb": KnownData(
        title="43 kinds of traffic signs, the training images",
        form="archive",
        licence="not stated",
        source="https://benchmark.ini.rub.de/gtsrb_dataset.html",
        files=_list_files(
            "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/",
            (
                "GTSRB-Training_fixed.zip",
                "GTSRB-Training_fixed.zip",
                187_490_228,
                "md5:513f3c79a4c5141765e10e952eaa2478",
            ),
        ),
    ),
    "mnist": KnownData(
        title="handwritten digits, 28 px, grey",
        form="idx",
        licence="not stated",
        source="http://yann.lecun.com/exdb/mnist",
        files=_list_idx(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            (
                "train-images-idx3-ubyte.gz",
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                28_881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                4_542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
    ),
    "rock-paper-scissors": KnownData(
        title="hands that play, drawn by computer",
        form="archive",
        licence="see its source",
        source="https://www.tensorflow.org/datasets/catalog/rock_paper_scissors",
        files=_list_files(
            "https://storage.googleapis.com/download.tensorflow.org/data/",
            (
                "train.zip",
                "rps.zip",
                200_682_221,
                "sha256:c2403444395842ad04c53612bad54b574443eae17a0723117a2ff87b9d72194f",
            ),
            (
                "test.zip",
                "rps-test-set.zip",
                29_516_758,
                "sha256:c27ab9fa43ce40b2e453de711365b477f4424586edf0388116674fd320f07503",
            ),
        ),
    ),
}
