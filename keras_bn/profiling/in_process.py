"""A version in a TensorFlow session, as a stand-in for a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from keras_bn.errors import KerasBNError
from keras_bn.profiling.measurement import Measurement, Setting
from keras_bn.saving.examples import batch_size, generated

NAME = "a TensorFlow session in a process of its own"


@contextmanager
def engine(path: Path, setting: Setting) -> Iterator[Callable[[Setting, float], Measurement]]:
    """Load a version with the threads of `setting`; what is yielded measures a setting for some seconds.

    The session is in a fresh process, so that its memory does not depend on what this process has loaded.
    It includes Python.

    A batch is put together without waiting: of 16 clients and batches of 4, four threads ask for 4 rows each.
    A server's queue costs more than that, so batching looks better here than it is.
    """
    command = [sys.executable, "-m", "keras_bn.profiling.session_process", str(path), str(setting.threads)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=_environment(),
        )
        questions, answers = process.stdin, process.stdout
        assert questions is not None and answers is not None

        def answer() -> str:
            line = answers.readline()
            if not line:
                process.wait()
                log.seek(0)
                said = " ".join(log.read().strip().splitlines()[-1:])
                raise KerasBNError(f"{path} could not be run: {said.rpartition('KerasBNError: ')[2]}")
            return line

        def measure(asked: Setting, seconds: float) -> Measurement:
            with suppress(BrokenPipeError):
                print(json.dumps({"setting": asdict(asked), "seconds": seconds}), file=questions, flush=True)
            found = json.loads(answer())
            return Measurement(**{**found, "setting": Setting(**found["setting"])})

        try:
            answer()
            yield measure
        finally:
            process.kill()
            process.communicate()


def _environment() -> dict[str, str]:
    """This process's environment, with the folders that it imports from."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def requests(path: Path, rows: int) -> dict[str, np.ndarray]:
    """Inputs of `rows` examples for the default signature of a version.

    They are the rows of its warm-up request, repeated, or made up if it has none.
    """
    from keras_bn.saving import request_log, warm_up
    from keras_bn.saving.record import EXTRA
    from keras_bn.saving.session import signature_inputs

    inputs = signature_inputs(path)
    count = batch_size(inputs) or rows
    file = path / EXTRA / warm_up.FILE
    for request in request_log.read(file) if file.exists() else ():
        if request.keys() == inputs.keys() and all(map(len, filter(np.ndim, request.values()))):
            return {
                name: np.resize(values, (count, *values.shape[1:])) if values.ndim else values
                for name, values in request.items()
            }
    try:
        return next(generated(inputs, count))
    except KerasBNError as error:
        raise KerasBNError(
            f"{error} Examples are given to keras_bn.export, as `examples` or `warmup`."
        ) from error


def resident(process: int) -> int:
    """The resident memory of a process in bytes, 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
