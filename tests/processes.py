"""Python programs in processes of their own, forked from one that has Keras and TensorFlow loaded.

Importing them takes seconds, and the tests want some hundred processes: Python's own fork server pays once.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras

context = multiprocessing.get_context("forkserver")
_SERVER = ["keras_bn_serving.local_server.server"] if keras.backend.backend() == "tensorflow" else []
context.set_forkserver_preload(["keras_bn", *_SERVER])


class Program:
    """The script at `path`, started with `arguments` and more variables in its environment."""

    def __init__(self, path: Path, arguments: Sequence[object] = (), **environment: str) -> None:
        self._output = tempfile.NamedTemporaryFile("r")  # noqa: SIM115 - open as long as the process
        words = [str(path), *map(str, arguments)]
        self._process = context.Process(target=_run, args=(words, self._output.name, environment))
        self._process.start()

    def wait(self, timeout: float) -> None:
        """Wait for its end, and see that it succeeded."""
        self._process.join(timeout)
        assert self._process.exitcode == 0, f"{self._process.exitcode}: {self._output.read()}"

    def kill(self) -> None:
        """End it, if it still runs."""
        self._process.kill()
        self._process.join()


def _run(words: list[str], output: str, environment: Mapping[str, str]) -> None:
    file = os.open(output, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.environ.update(environment)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
