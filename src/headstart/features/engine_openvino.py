"""The engine for CPUs: OpenVINO, which runs its own graph of a built-in network and converts others."""

import contextlib
import hashlib
import importlib.util
import json
import os
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import EngineRefused, ResourceError, one_line
from headstart.features.engine import EngineChoice
from headstart.files import hash_file, write_atomically
from headstart.networks.backbones import Backbone
from headstart.networks.lite import GRAPH, build_lite_graph, covers_cuts
from headstart.networks.openvino_library import import_openvino
from headstart.parallel import count_cpus
from headstart.process import find_shortage

if TYPE_CHECKING:
    import openvino

__all__ = [
    "OpenVinoEngine",
    "best_precision",
    "computes_bf16",
    "describe_graph",
    "has_own_graph",
    "make",
    "refuses",
]

_FIRST_USE = threading.Lock()


def refuses(backbone: Backbone, device: str, precision: str) -> str:
    """Refuse all devices but CPUs; whether it can take a network shows when it is made."""
    if device != "cpu":
        return f"engine 'openvino' runs on a CPU, not on {device}; use --engine torch"
    if precision == "fp16":
        return "engine 'openvino' has no fp16 on a CPU; use --precision bf16 or fp32"
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed; pip install openvino, or use --engine torch"
    return ""


def best_precision(device: str) -> tuple[str, str]:
    """Choose bf16 where the CPU computes in it, else fp32."""
    return ("bf16", "this CPU computes in bf16") if computes_bf16() else ("fp32", "")


def computes_bf16() -> bool:
    """Ask OpenVINO whether this CPU computes in bf16."""
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def describe_graph(backbone: Backbone) -> str:
    """Name the version of the graph that is built here, or "traced" for one converted from PyTorch."""
    return GRAPH if has_own_graph(backbone) else "traced"


def make(
    backbone: Backbone,
    choice: EngineChoice,
    cuts: tuple[str, ...],
    pooled: bool,
    threads: int,
    cache_dir: Path,
) -> "OpenVinoEngine":
    """Start the engine; converted and compiled networks are kept in the cache."""
    return OpenVinoEngine(backbone, cuts, choice, pooled, min(threads, count_cpus()), cache_dir)


class OpenVinoEngine:
    """OpenVINO on a CPU, with one stream a thread: threads do not wait for one another, and an image's
    numbers do not depend on how many threads there are."""

    def __init__(
        self,
        backbone: Backbone,
        cuts: tuple[str, ...],
        choice: EngineChoice,
        pooled: bool,
        threads: int,
        cache_dir: Path,
    ) -> None:

        self.cuts, self.micro_batch = cuts, choice.micro_batch
        self._compiled = _compile(backbone, cuts, choice, pooled, threads, cache_dir)
        self._lock = threading.Lock()
        self._local = threading.local()
        # The first use of OpenVINO's Python layer can deadlock two threads (seen with 2026.4), so one
        # thread goes through it alone.
        with _FIRST_USE:
            self.run(np.zeros((1, *backbone.preprocessing.input_px, 3), dtype=np.uint8))

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Run uint8 (n, H, W, 3), n up to `micro_batch`; give float32 (n, D), or (n, …) unpooled, by cut."""
        if not hasattr(self._local, "request"):
            with self._lock:
                self._local.request = self._compiled.create_infer_request()
            self._local.input = self._local.request.get_input_tensor(0).data
        request = self._local.request
        # Copied into the request's own memory: OpenVINO must hold no memory of NumPy, which it could
        # release only while it holds Python's global lock.
        self._local.input[: len(pixels)] = pixels
        self._local.input[len(pixels) :] = pixels[-1]
        request.start_async()
        request.wait()
        return {
            cut: request.get_output_tensor(i).data[: len(pixels)].copy()
            for i, cut in enumerate(self.cuts)
        }


def _compile(
    backbone: Backbone,
    cuts: tuple[str, ...],
    choice: EngineChoice,
    pooled: bool,
    threads: int,
    cache_dir: Path,
) -> "openvino.CompiledModel":
    """Compile the network for OpenVINO.

    Raises:
        EngineRefused: OpenVINO cannot take the network.
        ResourceError: the cache is full or cannot be written.
    """
    core = import_openvino().Core()
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[choice.precision],
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
    }
    caching: dict[str, Any] = {}
    if has_own_graph(backbone):  # made and compiled in half a second, so not cached
        model = build_lite_graph(
            backbone.name, backbone.state, cuts, backbone.preprocessing,
            pooled=pooled, micro_batch=choice.micro_batch,
        )  # fmt: skip
    else:
        model = core.read_model(_convert(backbone, cuts, choice, pooled, cache_dir))
        caching = {"CACHE_DIR": str(cache_dir / "openvino")}
    try:
        return core.compile_model(model, "CPU", {**settings, **caching})
    except RuntimeError as exc:
        _raise_shortage(exc)
        reason = exc
    try:
        if not caching:
            raise reason
        core.compile_model(model, "CPU", settings)
    except RuntimeError as exc:
        _raise_shortage(exc)
        raise EngineRefused(f"OpenVINO cannot compile {backbone.name}: {one_line(exc)}") from exc
    raise _full_cache(cache_dir) from reason  # it compiles where nothing has to be written


def has_own_graph(backbone: Backbone) -> bool:
    """Whether OpenVINO runs a graph that is built here, not one converted from PyTorch."""
    return covers_cuts(backbone.name, [cut.name for cut in backbone.cuts])


def _raise_shortage(exc: Exception) -> None:
    """Raise ResourceError for what the machine lacks: it says nothing about the network."""
    if shortage := find_shortage(exc):
        raise ResourceError(shortage) from exc


def _full_cache(cache_dir: Path) -> ResourceError:
    return ResourceError(
        f"{cache_dir}: a compiled network cannot be written; free space, or name another place "
        "with --cache-dir"
    )


def _convert(
    backbone: Backbone, cuts: tuple[str, ...], choice: EngineChoice, pooled: bool, cache_dir: Path
) -> Path:
    """Find the network in OpenVINO's format in the cache, or convert it."""
    folder = cache_dir / "backbones" / backbone.fingerprint
    # The list of cut points does not change an output, but the compiled network differs, so each list
    # has its own file.
    text = f"{choice.version} {choice.micro_batch} {pooled} {' '.join(cuts)}"
    path = folder / f"openvino-{hashlib.sha256(text.encode()).hexdigest()[:16]}.xml"
    if _is_whole(path):
        return path
    try:
        model = _trace(backbone, cuts, choice, pooled)
    except (MemoryError, OSError):  # of the machine, not of the network
        raise
    except Exception as exc:  # the converter raises many kinds on an operation that it lacks
        _raise_shortage(exc)
        raise EngineRefused(f"OpenVINO cannot take {backbone.name}: {one_line(exc)}") from exc
    # Under another name first, the .xml last, so that a pair is whole or not there.
    part = folder / f".{path.stem}.{os.getpid()}.{threading.get_ident()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        import_openvino().save_model(model, f"{part}.xml", compress_to_fp16=False)
        sums = {kind: hash_file(Path(f"{part}{kind}")) for kind in (".bin", ".xml")}
        for kind in sums:
            os.replace(f"{part}{kind}", path.with_suffix(kind))
        write_atomically(path.with_suffix(".sums.json"), json.dumps(sums).encode())
    except (OSError, RuntimeError) as exc:  # OpenVINO's own streams raise the latter
        for kind in (".bin", ".xml"):
            with contextlib.suppress(OSError):
                Path(f"{part}{kind}").unlink(missing_ok=True)
        raise _full_cache(cache_dir) from exc
    return path


def _trace(
    backbone: Backbone, cuts: tuple[str, ...], choice: EngineChoice, pooled: bool
) -> "openvino.Model":
    """Convert PyTorch's trace of the network to OpenVINO.

    The converter's front end is called directly, since `openvino.convert_model` around it reports its use
    where the program has imported OpenVINO by itself.
    """
    openvino = import_openvino()
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from headstart.networks.graphs import FeatureNetwork

    points = [(name, backbone.cut(name).axis) for name in cuts]
    network = FeatureNetwork(backbone.network, points, backbone.preprocessing, pooled=pooled).eval()
    height, width = backbone.preprocessing.input_px
    shape = (choice.micro_batch, height, width, 3)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch announces changes to its own tracer
        example = torch.zeros(shape, dtype=torch.uint8)
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(network, example_input=(example,))
        model = frontend.convert(frontend.load(decoder))
    model.inputs[0].get_node().set_element_type(openvino.Type.u8)
    model.reshape(list(shape))
    return model


def _is_whole(path: Path) -> bool:
    """Check that a converted network is as it was written; a flipped bit would change features."""
    try:
        sums = json.loads(path.with_suffix(".sums.json").read_bytes())
        return all(hash_file(path.with_suffix(kind)) == sums[kind] for kind in (".bin", ".xml"))
    except (OSError, ValueError, KeyError, TypeError):
        return False
