"""The command in a process of its own that starts in milliseconds.

It is forked from a server that has imported everything and has no threads, where a start of Python
with PyTorch takes seconds. Tests of the start itself use `subprocess`.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
# What a training imports; and pytest, which is the main module that each process looks at.
FORKS.set_forkserver_preload(
    ["pytest", "headstart.cli.app", "headstart.runs.fitting", "headstart.training.loop",
     "headstart.features.engine_openvino", "timm", "openvino", "sklearn.metrics"]
)  # fmt: skip


def main(arguments, environment, outputs):
    """The body of the process."""
    for number, path in enumerate(outputs, start=1):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.update(environment)
    sys.argv = ["headstart", *arguments]
    import headstart.cli.app

    headstart.cli.app.main()


class Command:
    """`headstart` with these arguments, started at once; killed when the block that holds it ends."""

    def __init__(self, *arguments, **environment):
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [str(Path(self._folder.name) / name) for name in ("out", "err")]
        words = [str(word) for word in arguments]
        self._process = FORKS.Process(target=main, args=(words, environment, self._outputs))
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

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def wait(self, timeout_s=120):
        """(exit code or minus the signal, stdout, stderr) at its end."""
        began = time.monotonic()
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, f"runs after {time.monotonic() - began:.0f} s"
        return self._process.exitcode, *(Path(path).read_text() for path in self._outputs)


def run_command(*arguments, **environment):
    """(exit code or minus the signal, stdout, stderr) of `headstart` with these arguments."""
    with Command(*arguments, **environment) as command:
        return command.wait()
