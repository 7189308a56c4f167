"""Imports OpenVINO, the library that runs networks on CPUs, without its reports of who uses it.

Importing `openvino` looks up an analytics host and writes a client id to the home folder where no consent
is on record (seen with 2026.4). Its own code takes the package `openvino_telemetry` for optional, so it
is hidden while OpenVINO is imported for the first time.
"""

import importlib
import sys
import threading
from typing import Any

__all__ = ["import_openvino"]

_LOCK = threading.Lock()


def import_openvino() -> Any:
    """The module `openvino`; a program that has imported it before has the one it has.

    Raises:
        ImportError: it is not installed.
    """
    reporter = "openvino_telemetry"
    with _LOCK:
        if "openvino" in sys.modules:
            return sys.modules["openvino"]
        hidden = {n: sys.modules.pop(n) for n in list(sys.modules) if n.startswith(reporter)}
        sys.modules[reporter] = None  # type: ignore[assignment]  # Python's own mark of what is absent
        try:
            return importlib.import_module("openvino")
        finally:
            del sys.modules[reporter]
            sys.modules.update(hidden)
