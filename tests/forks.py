"""Python code in a process of its own that starts in milliseconds.

It is forked from a server that has imported everything and has no threads, where a start of Python
with PyTorch takes seconds. Tests of the start itself, or of a process's memory, use `subprocess`.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
# What a training imports; and pytest, which is the main module that each process looks at.
SERVER.set_forkserver_preload(
    ["pytest", "headstart.cli.app", "headstart.runs.fitting", "headstart.training.loop",
     "headstart.features.engine_openvino", "timm", "openvino", "sklearn.metrics"]
)  # fmt: skip

COMMAND = "import headstart.cli.app; headstart.cli.app.main()"


def work(code, arguments, environment, outputs):
    """The body of the process."""
    for number, path in enumerate(outputs, start=1):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})


def read(path):
    """The text of an output, "" where a kill came before the process had made it."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


class Forked:
    """A process that runs the code with these arguments; killed when the block that holds it ends."""

    def __init__(self, code, *arguments, **environment):
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("out", "err")]
        words = [str(word) for word in arguments]
        outputs = [str(path) for path in self._outputs]
        self._process = SERVER.Process(target=work, args=(code, words, environment, outputs))
        self._process.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.join()
        self._process.close()
        self._folder.cleanup()

    @property
    def running(self):
        return self._process.is_alive()

    @property
    def output(self):
        """What it has written to stdout so far."""
        return read(self._outputs[0])

    def kill(self):
        """Nothing where it has ended by itself."""
        self._process.kill()

    def wait(self, timeout_s=120):
        """(exit code or minus the signal, stdout, stderr) at its end."""
        began = time.monotonic()
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, f"runs after {time.monotonic() - began:.0f} s"
        return self._process.exitcode, *map(read, self._outputs)


def run_command(*arguments, **environment):
    """(exit code or minus the signal, stdout, stderr) of `headstart` with these arguments."""
    with Forked(COMMAND, *arguments, **environment) as command:
        return command.wait()
