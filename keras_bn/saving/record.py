"""The record of an export, a small JSON document inside the version with its settings and measurements."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_bn.errors import KerasBNError

EXTRA = "assets.extra"  # what TensorFlow Serving reads beside the SavedModel
RECORD = "keras_bn_export.json"


def write_record(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write `entries` into the record of the version in `folder`, and keep the existing ones."""
    file = folder / EXTRA / RECORD
    file.parent.mkdir(exist_ok=True)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**known, **entries}, indent=2), encoding="utf-8")


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of the version in `folder`.

    Raises:
        KerasBNError: If there is none, or if it is damaged.
    """
    file = Path(folder) / EXTRA / RECORD
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise KerasBNError(
            f"{folder} has no {EXTRA}/{RECORD}; give the version folder that keras_bn.export returned."
        ) from error
    except (ValueError, TypeError) as error:
        raise KerasBNError(f"{file} is damaged ({error}); export the model again.") from error
