"""Lists the known networks, and the layers of one; needs no weights."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.choices import choose
from headstart.errors import UsageError
from headstart.files import default_cache_dir, write_quietly
from headstart.networks.backbones import make_preprocessing
from headstart.networks.lite import LITE
from headstart.networks.weights import find_torch_file
from headstart.parallel import Progress, no_progress

if TYPE_CHECKING:
    from headstart.networks.architectures import PretrainedCfg
    from headstart.networks.graphs import Layer

__all__ = ["BackboneInfo", "list_backbones", "list_layers"]

LIBRARIES = ("timm", "torchvision", "headstart")
# Counting the parameters of a network takes a quarter of a second, so a long list goes without.
COUNTED = 30


def list_layers(
    name: str, *, input_px: int | None = None, freeze_until: str | None = None
) -> tuple[list["Layer"], str]:
    """List every layer of a network in the order of the data, with its shapes; needs no weights.

    Args:
        name: as `load_backbone` takes it.
        input_px: height and width of the images; the network's own by default.
        freeze_until: a layer's name or index; those before it count as not trainable.

    Returns:
        (layers, "" or a sentence that tells why less than asked would be frozen).

    Raises:
        UsageError: no such network or layer, or one that cannot serve.
    """
    from headstart.networks.architectures import find_network
    from headstart.networks.building import find_classifier, get_config, sketch_network
    from headstart.networks.graphs import find_cuts, find_layers, resolve_cut

    size = None if input_px is None else (input_px, input_px)
    sketch = sketch_network(name, input_px=size)
    name = find_network(name)[1]
    config = get_config(sketch)
    size = make_preprocessing(name, config).input_px
    cuts = find_cuts(sketch, name, find_classifier(sketch, name), size)
    place, notice = (None, "") if freeze_until is None else resolve_cut(sketch, size, freeze_until)
    return find_layers(sketch, size, cuts=[c[0] for c in cuts], freeze_until=place), notice


@dataclasses.dataclass(frozen=True)
class BackboneInfo:
    """A network that `load_backbone` may be asked for.

    Attributes:
        name: architecture, or architecture and tag.
        library: "timm", "torchvision" or "headstart".
        parameters: how many numbers it has, the classifier's included; None where not counted.
        input_px: its own (height, width).
        licence: of its weights, or "unknown" or "none".
        weights: "built in" (with a package), "to install", "on this machine", "to download" or "none".
    """

    name: str
    library: str
    parameters: int | None
    input_px: tuple[int, int]
    licence: str
    weights: str


def list_backbones(
    pattern: str = "",
    *,
    library: str | None = None,
    local: bool = False,
    max_parameters: float | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
) -> list[BackboneInfo]:
    """List networks by name without building any. A few of timm's cannot be cut, as `list_layers` says.

    Args:
        pattern: a part of the name, or one with * and ?; with a dot, of names with tags.
        library: only those of "timm", "torchvision" or "headstart".
        local: only those whose weights are on this machine.
        max_parameters: only those with no more. Counting takes a quarter of a second a network when it
            is done for the first time; else only lists of at most 30 are counted.
        cache_dir: where counts are kept; `default_cache_dir()` by default.
        progress: called with how many are counted.

    Raises:
        UsageError: an unknown library.
    """
    from headstart.networks.architectures import list_networks, pretrained_config

    if library is not None:
        choose("library", library, dict.fromkeys(LIBRARIES))
    found = []
    for name, home in list_networks(pattern):
        if library not in (None, home):
            continue
        config = pretrained_config(name)
        status = _find_status(name, config)
        if not local or status in ("built in", "on this machine"):
            size = (int(config.input_size[1]), int(config.input_size[2]))
            licence = str(config.license or "unknown")
            found.append(BackboneInfo(name, home, None, size, licence, status))
    found.sort(key=lambda info: info.name)
    count = max_parameters is not None or len(found) <= COUNTED
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    sizes = _count_all([info.name for info in found], count, cache, progress)
    found = [dataclasses.replace(info, parameters=sizes.get(info.name)) for info in found]
    if max_parameters is None:
        return found
    return [i for i in found if i.parameters is not None and i.parameters <= max_parameters]


def _find_status(name: str, config: "PretrainedCfg") -> str:
    """Find where the weights are, without building the network."""
    variant = LITE.get(str(config.architecture))
    if variant is not None and name.partition(".")[2] in ("", "in1k"):
        return "built in" if importlib.util.find_spec(variant.package) else "to install"
    if config.hf_hub_id:
        import huggingface_hub

        filename = config.hf_hub_filename or "model.safetensors"
        kept = isinstance(huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename), str)
        return "on this machine" if kept else "to download"
    if config.url:
        return "on this machine" if find_torch_file(config.url).is_file() else "to download"
    return "none"


def _count_all(
    names: list[str], build: bool, cache: Path, progress: Callable[[str, int, int], None]
) -> dict[str, int]:
    """Give {name: parameters} as far as they are known or, with `build`, can be counted."""
    from headstart.networks.building import count_parameters

    path = cache / "backbones" / f"parameters-timm-{importlib.metadata.version('timm')}.json"
    try:
        known = {str(k): int(v) for k, v in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        known = {}
    missing = [n for n in names if n not in known] if build else []
    try:
        for done, name in enumerate(missing):
            progress("networks", done, len(missing))
            with contextlib.suppress(UsageError):
                known[name] = count_parameters(name)
    finally:
        if missing:
            progress("networks", len(missing), len(missing))
            write_quietly(path, json.dumps(known).encode())
    return known
