"""Measure an exported model at the settings that a server can have."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from keras_bn._tensorflow import require_tensorflow
from keras_bn.errors import KerasBNError
from keras_bn.profiling.measurement import Measurement, Setting
from keras_bn.profiling.plan import Plan

_CLIENTS = (1, 4, 16)
_BATCH_SIZES = (1, 4, 16)


def profile(
    base_path: str | os.PathLike[str],
    seconds: float = 120.0,
    *,
    in_process: bool = False,
    progress: bool = True,
) -> Plan:
    """Measure an exported model over threads, batch sizes and clients, and plan its server.

    The newest version in float32 and the newest in bfloat16, if there is one, are measured with 1, 2, 4 and
    so on threads up to the number of cores, for 1, 4 and 16 clients, with batches of up to 1, 4 and 16
    requests. If `tensorflow_model_server` is on PATH and keras-bn-serving is installed, this server is
    queried over gRPC. Otherwise a TensorFlow session of a fresh process takes its place, and batches are put
    together without a queue. The plan says which of the two was measured.

    Args:
        base_path: Folder of the model's versions, or one version.
        seconds: Time limit in seconds. Settings that do not fit into it are left out. Loading a version
            and a measurement that has begun are not interrupted. The start of a fresh process is not
            counted.
        in_process: If True, do not look for a real server.
        progress: If True, show a progress bar on standard error.

    Returns:
        A `Plan` with the measurements and the best settings. It prints as a table.

    Raises:
        KerasBNError: If the folder holds no version; if the time is not positive; if the version has no
            warm-up request, and its inputs cannot be made up; or if TensorFlow is not installed.
    """
    require_tensorflow("keras_bn.profiling")
    if not seconds > 0:
        raise KerasBNError(f"seconds must be above 0; got {seconds!r}.")
    from keras_bn.profiling import in_process as session
    from keras_bn.profiling import model_server

    real = model_server.is_installed() and not in_process
    through = model_server if real else session
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    groups = list(_groups(_versions(Path(base_path)), cores, server_per_batch_size=real))
    end = time.monotonic() + seconds
    left = sum(len(settings) for _, _, settings in groups)
    measurements: list[Measurement] = []
    with tqdm(total=left, desc="profile", unit="setting", disable=not progress) as bar:
        for path, first, settings in groups:
            if measurements and time.monotonic() > end:
                break
            begun = time.monotonic()
            with through.engine(path, first) as measure:
                if not real:  # to start Python takes longer than to load a version
                    end += time.monotonic() - begun
                for setting in settings:
                    if measurements and time.monotonic() > end:
                        break
                    share = max(0.0, end - time.monotonic()) / left
                    measurements.append(measure(setting, 0.8 * share))
                    left -= 1
                    bar.update()
    order = sorted(measurements, key=lambda each: _key(each.setting))
    return Plan(through.NAME, cores, tuple(order))


def _key(setting: Setting) -> tuple[bool, int, int, int]:
    return setting.precision != "float32", setting.threads, setting.batch_size, setting.clients


def _groups(
    versions: dict[str, Path], cores: int, *, server_per_batch_size: bool
) -> Iterator[tuple[Path, Setting, list[Setting]]]:
    """The runs: a version, the setting that it is loaded with, and the settings to measure with it."""
    threads = sorted({*(2**power for power in range(cores.bit_length())), cores} & set(range(1, cores + 1)))
    for precision, path in versions.items():
        for count in threads:
            settings = [
                Setting(precision, count, size, clients)
                for size in _BATCH_SIZES
                for clients in _CLIENTS
                if size <= clients
            ]
            if server_per_batch_size:
                for size in _BATCH_SIZES:
                    of_size = [setting for setting in settings if setting.batch_size == size]
                    yield path, of_size[-1], of_size
            else:
                yield path, settings[0], settings


def _versions(base: Path) -> dict[str, Path]:
    """The newest version of each precision."""
    if (base / "saved_model.pb").exists():
        return {_precision(base): base}
    numbered = [child for child in base.iterdir() if child.name.isdecimal()] if base.is_dir() else []
    found = {}
    for version in sorted(numbered, key=lambda child: int(child.name)):
        if (version / "saved_model.pb").exists():
            found[_precision(version)] = version
    if not found:
        raise KerasBNError(
            f"{base} holds no version of a model; give the folder that keras_bn.export wrote into."
        )
    return found


def _precision(version: Path) -> str:
    from keras_bn.saving.record import read_record

    try:
        return str(read_record(version).get("precision", "float32"))
    except (OSError, KerasBNError):
        return "float32"  # written by another tool
