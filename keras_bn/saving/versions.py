"""Version folders as TensorFlow Serving reads them: a child whose whole name is an integer is a version."""

import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from keras_bn.errors import KerasBNError

_LARGEST = 2**63 - 1  # TensorFlow Serving holds versions in an int64


def check_version(base_path: Path, version: int | None) -> None:
    """Raise `KerasBNError` where `publish` would have to refuse, before anything is computed or written."""
    if "://" in os.fspath(base_path):
        raise KerasBNError(
            f"base_path {base_path} is not a local folder; export to one and copy the version."
        )
    if base_path.exists() and not base_path.is_dir():
        raise KerasBNError(
            f"base_path {base_path} is a file; give the folder that holds the model's versions."
        )
    if version is None:
        return
    if not isinstance(version, int) or isinstance(version, bool) or not 0 <= version <= _LARGEST:
        raise KerasBNError(f"version must be an integer from 0 to {_LARGEST}, or None; got {version!r}.")
    taken = _versions(base_path)
    if version in taken:
        raise KerasBNError(
            f"version {version} exists already as {base_path / taken[version]}; a model server may be "
            "reading it, so export to another number, or to version=None for the next free one."
        )


def publish(base_path: Path, version: int | None, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new folder, then rename it to `base_path/<version>` in one step.

    The folder is filled inside a hidden one in `base_path`, whose name no model server takes for a version.
    If `write` raises, whatever it raises, nothing is left behind.
    """
    check_version(base_path, version)
    created = [folder for folder in (base_path, *base_path.parents) if not folder.exists()]
    try:
        base_path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".keras-bn-export-", dir=base_path) as hidden:
            # The inner folder has the permissions of any new folder; mkdtemp's own are for its owner alone,
            # and a model server usually runs as another user.
            folder = Path(hidden) / "version"
            folder.mkdir()
            write(folder)
            _flush(folder)
            published = _rename(folder, base_path, version)
        _flush_folder(base_path)
        return published
    except BaseException as error:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise KerasBNError(f"could not write a version into {base_path}: {error}.") from error
        raise


def _versions(base_path: Path) -> dict[int, str]:
    """The children of `base_path` that a model server takes for versions: number -> name."""
    if not base_path.exists():
        return {}
    names = (child.name for child in base_path.iterdir())
    return {int(name): name for name in names if re.fullmatch(r"\s*[+-]?[0-9]+\s*", name)}


def _rename(folder: Path, base_path: Path, version: int | None) -> Path:
    while True:
        check_version(base_path, version)
        number = max(0, *_versions(base_path), 0) + 1 if version is None else version
        try:
            return folder.rename(base_path / str(number))
        except OSError:
            # Another export may have taken the number since it was looked up.
            if version is not None or number not in _versions(base_path):
                raise


def _flush(folder: Path) -> None:
    """Put every file on the disk, so that a crash after the rename cannot leave an empty version."""
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
