"""Version folders as TensorFlow Serving reads them: a child whose whole name is an integer is a version."""

import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import tensorflow as tf

from keras_bn.errors import KerasBNError

_LARGEST = 2**63 - 1  # TensorFlow Serving holds versions in an int64


PathLike: TypeAlias = "str | os.PathLike[str]"


def check_target(base_path: PathLike, version: int | None) -> Path:
    """Return the folder of the versions, or raise the error that `publish` would raise."""
    if "://" in os.fspath(base_path):
        raise KerasBNError(
            f"base_path {base_path} is not a local folder; export to one and copy the version."
        )
    folder = Path(base_path)
    if folder.exists() and not folder.is_dir():
        raise KerasBNError(
            f"base_path {base_path} is a file; give the folder that holds the model's versions."
        )
    if version is not None:
        _check_free(folder, version)
    return folder


def publish(base_path: PathLike, version: int | None, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new folder, then rename it to `base_path/<version>` in one step.

    The folder is filled inside a hidden one in `base_path`, whose name no model server takes for a version.
    If `write` raises, nothing is left behind. An error of the disk is raised as a `KerasBNError`.
    """
    base = check_target(base_path, version)
    created = [folder for folder in (base, *base.parents) if not folder.exists()]
    try:
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".keras-bn-export-", dir=base) as hidden:
            # The inner folder has the permissions of any new folder; mkdtemp's own are for its owner alone,
            # and a model server usually runs as another user.
            folder = Path(hidden) / "version"
            folder.mkdir()
            write(folder)
            _flush(folder)
            published = _rename(folder, base, version)
        _flush_folder(base)
        return published
    except BaseException as error:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, (OSError, tf.errors.OpError)):
            # TensorFlow lists calls before the reason, and the operation and more calls after it.
            reason = str(getattr(error, "message", error)).partition("\n\t [[")[0].strip().rpartition("\n")[2]
            raise KerasBNError(f"could not write a version into {base}: {reason}.") from error
        raise


def _check_free(base: Path, version: int) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or not 0 <= version <= _LARGEST:
        raise KerasBNError(f"version must be an integer from 0 to {_LARGEST}, or None; got {version!r}.")
    taken = _versions(base)
    if version in taken:
        raise KerasBNError(
            f"version {version} exists already as {base / taken[version]}; a model server may be reading it, "
            "so export to another number, or to version=None for the next free one."
        )


def _versions(base: Path) -> dict[int, str]:
    """The children of `base` that a model server takes for versions: number -> name."""
    if not base.exists():
        return {}
    names = (child.name for child in base.iterdir())
    return {int(name): name for name in names if re.fullmatch(r"\s*[+-]?[0-9]+\s*", name)}


def _rename(folder: Path, base: Path, version: int | None) -> Path:
    while True:
        number = max((0, *_versions(base))) + 1 if version is None else version
        _check_free(base, number)
        try:
            return folder.rename(base / str(number))
        except OSError:
            # Another export may have taken the number since it was looked up; then there is a next one.
            if version is not None or number not in _versions(base):
                raise


def _flush(folder: Path) -> None:
    """Write every file to the disk, so that a crash after the rename cannot leave an empty version."""
    for path in folder.rglob("*"):
        if path.is_dir():
            _flush_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system, and not Windows, can flush a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
