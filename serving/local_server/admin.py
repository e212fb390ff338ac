"""Endpoints that TF Serving's users miss, outside of its namespace and only on demand: health, readiness,
models."""

from __future__ import annotations

import json
from typing import Any

from tensorflow_serving.apis import get_model_status_pb2

from serving.local_server.manager import AVAILABLE, Manager

_state_name = get_model_status_pb2.ModelVersionStatus.State.Name


def answer(path: str, manager: Manager[Any]) -> tuple[int, bytes] | None:
    """The status and JSON body for an admin path, None for any other.

    `/healthz` is 200 while the process answers; `/readyz` is 200 when every model has an available version,
    else 503; `/models` lists the models with the states of their versions and their labels.
    """
    if path not in ("/healthz", "/readyz", "/models"):
        return None
    models = {name: manager.status(name) for name in manager.names()}
    ready = all(any(version.state == AVAILABLE for version in versions) for versions in models.values())
    if path == "/healthz":
        return 200, b'{"status": "alive"}'
    if path == "/readyz":
        return (200, b'{"status": "ready"}') if ready else (503, b'{"status": "not ready"}')
    listing = [
        {
            "name": name,
            "versions": [
                {"version": version.number, "state": _state_name(version.state)} for version in versions
            ],
            "labels": manager.labels(name),
        }
        for name, versions in models.items()
    ]
    return 200, json.dumps({"models": listing}, indent=1).encode()
