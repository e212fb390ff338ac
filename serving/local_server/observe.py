"""What is recorded of every request: TF Serving's metrics, and a line of JSON on demand."""

from __future__ import annotations

import datetime
import json
import sys
import time

from serving.local_server import metrics

# Of the gRPC methods, those that TF Serving counts.
_COUNTED = ("Predict", "Classify", "Regress")


class Observer:
    """Records requests.

    Args:
        log: whether to write a line of JSON to stderr for each.
    """

    def __init__(self, log: bool = False) -> None:
        self._log = log

    def __call__(self, entrypoint: str, api: str, model: str, code: str, started: float) -> None:
        """Record a request that has been answered.

        Args:
            entrypoint: `REST` or `GRPC`.
            api: the method: `predict`, `Predict`, empty for REST's GET requests.
            model: the model's name as the request has it.
            code: the name of the canonical status code.
            started: `time.perf_counter()` when the request came.
        """
        seconds = time.perf_counter() - started
        if entrypoint == "REST" or api in _COUNTED:
            metrics.REQUESTS.add(model, code)
            if code == "OK":
                metrics.REQUEST_LATENCY.observe(seconds * 1e6, model, api, entrypoint)
        if self._log:
            line = {
                "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
                "entrypoint": entrypoint,
                "api": api,
                "model": model,
                "status": code,
                "milliseconds": round(seconds * 1e3, 3),
            }
            sys.stderr.write(json.dumps(line) + "\n")
