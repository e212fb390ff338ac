"""The results of an experiment as one JSON file, which grows run by run and so can be resumed."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bn.errors import KerasBNError


class Results:
    """The runs of one experiment with one setting on one data set.

    Opening a file that exists resumes it: runs it has are not made again. It must have been made with the
    same settings (the number of seeds may differ), else KerasBNError says what differs and the file stays as
    it is.

    Args:
        path: the JSON file.
        name: the experiment.
        data: the data set's name.
        settings: what the runs are made with.
        command: what the reader would type to make them again.
    """

    def __init__(self, path: Path, name: str, data: str, settings: dict[str, Any], command: str) -> None:
        self.path, self.name = path, name
        self.settings = json.loads(json.dumps(settings))
        self._head = {"experiment": name, "data": data, "command": command, "settings": self.settings}
        self._runs: dict[tuple[str, int], dict[str, Any]] = {}
        if path.exists():
            self._resume()

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._runs

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def variants(self) -> list[str]:
        """The names of what was compared, in the order in which they were run."""
        return list(dict.fromkeys(variant for variant, _ in self._runs))

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len({seed for _, seed in self._runs})

    def of(self, variant: str) -> list[dict[str, Any]]:
        """The results of `variant`, a dict for every seed."""
        return [run["result"] for (name, _), run in self._runs.items() if name == variant]

    def values(self, variant: str, *keys: str) -> np.ndarray:
        """The entry under `keys` of every seed's result as one array, seeds first; None becomes NaN."""
        found = []
        for result in self.of(variant):
            for key in keys:
                result = result[key]
            found.append(result)
        return np.array(found, "float64")

    def add(self, variant: str, seed: int, result: dict[str, Any]) -> None:
        """Keep a run and save all of them; the file is replaced at once, never half-written."""
        self._runs[variant, seed] = {"versions": _versions(), "result": _plain(result)}
        self._save()

    def summarise(self, table: str) -> None:
        """Keep the summary beside the runs it was made from."""
        self._head["summary"] = table.splitlines()
        self._save()

    def _save(self) -> None:
        head = json.dumps(self._head, indent=2)[:-2]
        runs = ",\n".join(
            "    " + json.dumps({"variant": variant, "seed": seed, **run})
            for (variant, seed), run in self._runs.items()
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".json.part")
        unfinished.write_text(f'{head},\n  "runs": [\n{runs}\n  ]\n}}\n')
        os.replace(unfinished, self.path)

    def _resume(self) -> None:
        try:
            document = json.loads(self.path.read_text())
            runs = {
                (run["variant"], run["seed"]): {"versions": run["versions"], "result": run["result"]}
                for run in document["runs"]
            }
            found = {"data": document["data"], **document["settings"]}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise KerasBNError(
                f"{self.path} does not hold an experiment's results; delete it or choose another --output."
            ) from error
        wanted = {"data": self._head["data"], **self.settings}
        differing = [
            f"{key} {found.get(key)!r} instead of {wanted.get(key)!r}"
            for key in sorted(found.keys() | wanted.keys())
            if key != "seeds" and found.get(key) != wanted.get(key)
        ]
        if differing:
            raise KerasBNError(
                f"{self.path} holds runs with {'; '.join(differing)}; delete it or choose another --output."
            )
        self._runs = runs


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }


def _plain(value: Any) -> Any:
    """`value` for JSON: NumPy's numbers become Python's, of six digits; what is not finite becomes None."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.integer) else value
