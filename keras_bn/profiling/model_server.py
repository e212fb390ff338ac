"""A version in a real tensorflow_model_server, asked over gRPC."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keras_bn.errors import KerasBNError
from keras_bn.profiling.in_process import requests, resident
from keras_bn.profiling.measurement import Measurement, Setting, ask, measured
from keras_bn.profiling.server_settings import batching, flags

BINARY = "tensorflow_model_server"
NAME = f"{BINARY}, over gRPC on this machine"
_START_SECONDS = 120.0


def is_installed() -> bool:
    """Whether the binary is on PATH and the client for it can be imported."""
    try:
        import keras_bn_serving.client  # noqa: F401
    except ImportError:
        return False
    return shutil.which(BINARY) is not None


@contextmanager
def engine(path: Path, setting: Setting) -> Iterator[Callable[[Setting, float], Measurement]]:
    """Serve a version with the threads and the batch size of `setting`; what is yielded measures a
    setting."""
    from keras_bn_serving.client import Client

    with tempfile.TemporaryDirectory() as folder:
        base, log = Path(folder) / "model", Path(folder) / "log"
        base.mkdir()
        (base / "1").symlink_to(path.resolve(), target_is_directory=True)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [
            BINARY,
            f"--port={port}",
            "--rest_api_port=0",
            "--model_name=model",
            f"--model_base_path={base}",
            *flags(setting.threads, setting.clients),
        ]
        if setting.batch_size > 1:
            parameters = Path(folder) / "batching.config"
            parameters.write_text(batching(setting.batch_size, setting.threads), encoding="utf-8")
            command += ["--enable_batching=true", f"--batching_parameters_file={parameters}"]
        with log.open("wb") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            with Client(f"grpc://127.0.0.1:{port}", model="model", timeout=60.0) as client:
                try:
                    client.wait_until_ready(timeout=_START_SECONDS)
                except Exception as error:
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    what = f"{BINARY} did not serve {path}: {error}. It said last: {last}."
                    raise KerasBNError(what) from error
                request = requests(path, 1)

                def measure(asked: Setting, seconds: float) -> Measurement:
                    latencies, throughput = ask(lambda: client.predict(request), asked.clients, seconds)
                    return measured(asked, latencies, throughput, resident(server.pid))

                yield measure
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()
            server.wait()
