"""Takes the name of a network, finds the file of its weights: a package's, a cache's, or a download."""

import logging
import os
import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from headstart.errors import InputError
from headstart.files import hash_file
from headstart.networks.lite import LITE, find_packaged_file

__all__ = ["find_torch_file", "find_weights"]

CONNECT_TIMEOUT_S = 5.0


def find_weights(name: str, weights: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """Find the file, and say where it came from."""
    tag = name.partition(".")[2]
    if weights is not None:
        if not Path(weights).is_file():
            raise InputError(f"{weights}: no such weights file")
        return Path(weights), os.fspath(weights)
    from headstart.networks.architectures import pretrained_config

    config = pretrained_config(name)
    if config.architecture in LITE and tag in ("", "in1k"):  # under another spelling
        return find_packaged_file(config.architecture)
    if config.hf_hub_id:
        return _hub_file(name, config)
    if config.url:
        return _url_file(name, config.url)
    raise InputError(
        f"there are no pre-trained weights of {config.architecture}; train it from random ones with "
        "--strategy scratch, or in Python with random_weights=True, or give --weights FILE"
    )


def _hub_file(name: str, config: Any) -> tuple[Path, str]:
    """Get the weights from the Hugging Face cache or hub."""
    import huggingface_hub

    filename = config.hf_hub_filename or "model.safetensors"
    origin = f"huggingface.co/{config.hf_hub_id}"
    cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename)
    if isinstance(cached, str):
        return Path(cached), origin
    if not _answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co")):
        raise _missing(name, filename, origin)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(huggingface_hub.hf_hub_download(config.hf_hub_id, filename)), origin
    except Exception as exc:  # the client raises its own, its transport's and the system's errors
        raise _missing(name, filename, origin) from exc


def _url_file(name: str, url: str) -> tuple[Path, str]:
    """Get the weights from torch's cache or their address; the digits in the name are of the SHA-256."""
    import torch

    path = find_torch_file(url)
    sums = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not path.is_file():
        if not _answers(url):
            raise _missing(name, path.name, url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), sums and sums[1], progress=False)
        except Exception as exc:  # of the transport, the system, or the checksum
            raise _missing(name, path.name, url) from exc
    if sums and not hash_file(path).startswith(sums[1]):
        raise InputError(f"{path}: damaged (not the checksum in its name); remove it")
    return path, url


def find_torch_file(url: str) -> Path:
    """Give the file in which torch keeps a download from an address."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urllib.parse.urlsplit(url).path).name


def _missing(name: str, filename: str, origin: str) -> InputError:
    return InputError(
        f"the weights of {name} are not on this machine and cannot be downloaded: get {filename} "
        f"from {origin} and give it as --weights FILE"
    )


def _answers(url: str) -> bool:
    """Say whether a download is worth trying; the hub's own client retries for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if urllib.request.getproxies():
        return True
    address = urllib.parse.urlsplit(url)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True
