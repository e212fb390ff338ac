"""Load time and memory of a version in a fresh process, which does what tensorflow_model_server does.

The process is `loading.cc`, built with g++ against the headers and libraries of the installed TensorFlow.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

COMPILER = "g++"


class Loading(NamedTuple):
    """What a version costs to load.

    Attributes:
        seconds: Time from the start of the load to the first answer.
        library: Resident memory before the load, which is TensorFlow itself, in MB.
        grown: What the version adds to it until it has answered once, in MB.
        milliseconds: Median latency of a run.
    """

    seconds: float
    library: float
    grown: float
    milliseconds: float

    @property
    def resident(self) -> float:
        """Resident memory after the first answer, in MB."""
        return self.library + self.grown


def build(folder: Path) -> Path | None:
    """The program in `folder`, or None without a compiler."""
    if shutil.which(COMPILER) is None:
        return None
    source, program = Path(__file__).with_suffix(".cc"), folder / "loading"
    libraries = Path(tf.sysconfig.get_lib())
    names = [
        next(libraries.glob(f"lib{name}.so.*")).name for name in ("tensorflow_cc", "tensorflow_framework")
    ]
    # Without --no-as-needed, the library that registers the session would be left out.
    linked = [
        f"-L{libraries}",
        f"-Wl,-rpath,{libraries}",
        "-Wl,--no-as-needed",
        *(f"-l:{name}" for name in names),
    ]
    command = [
        COMPILER,
        "-O1",
        "-w",
        *tf.sysconfig.get_compile_flags(),
        str(source),
        "-o",
        str(program),
        *linked,
    ]
    subprocess.run(command, check=True)
    return program


def load(program: Path, version: Path, threads: int = 2) -> Loading:
    """Load `version` in a fresh process."""
    command = [str(program), str(version), str(threads)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return Loading(*map(float, run.stdout.split()))
