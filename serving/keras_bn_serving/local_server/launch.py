"""Starting a local server from Python, in a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from keras_bn_serving.wire.errors import ServingError


class LocalServer:
    """A running server. Use it as a context manager, or call `stop`.

    Attributes:
        port: TCP port of the gRPC API on the loopback interface.
        rest_port: TCP port of the REST API there.
        process: the server's process.
    """

    def __init__(self, arguments: list[str], port: int, rest_port: int, environment: dict[str, str]) -> None:
        self.port = port
        self.rest_port = rest_port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
        command = [sys.executable, "-m", "keras_bn_serving.local_server", *arguments]
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )

    @property
    def output(self) -> str:
        """What the server has written to stdout and stderr so far."""
        # pread leaves the file's position alone, at which the server goes on writing.
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def wait(self, timeout: float) -> None:
        """Return once both ports accept connections, which they do when the models are loaded.

        Raises:
            ServingError: the server ended, or was not up in time; with what it wrote.
        """
        deadline = time.monotonic() + timeout
        while not (_accepts(self.port) and _accepts(self.rest_port)):
            code = self.process.poll()
            if code is not None or time.monotonic() > deadline:
                output = self.output[-4000:]
                self.stop()
                what = (
                    f"is not up after {timeout:g} seconds" if code is None else f"ended with exit code {code}"
                )
                raise ServingError(f"The local model server {what}; it wrote:\n{output}")
            time.sleep(0.02)

    def stop(self, timeout: float = 30.0) -> int:
        """End the server: SIGTERM, and SIGKILL after `timeout` seconds. Returns the exit code."""
        self.process.terminate()
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._log.close()
        return code

    def __enter__(self) -> "LocalServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def launch(
    model_base_path: str | Path = "",
    model_name: str = "default",
    *,
    timeout: float = 60.0,
    environment: Mapping[str, str] | None = None,
    **flags: object,
) -> LocalServer:
    """Start a model server on free loopback ports and wait until its models are AVAILABLE.

    Args:
        model_base_path: the folder that holds the model's version folders (made absolute).
        model_name: the name it is served under.
        timeout: seconds to wait.
        environment: variables to add to the server's environment.
        **flags: any other flag of the server, by its name: `enable_batching=True`,
            `model_config_file="models.config"`. `port` and `rest_api_port` are chosen if they are not given.

    Returns:
        The server, a context manager that stops it.

    Raises:
        ServingError: the server could not start; with what it wrote.
    """
    with socket.create_server(("localhost", 0)) as one, socket.create_server(("localhost", 0)) as other:
        flags = {"port": one.getsockname()[1], "rest_api_port": other.getsockname()[1], **flags}
    if model_base_path:
        flags |= {"model_base_path": os.path.abspath(model_base_path), "model_name": model_name}
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    ports = int(str(flags["port"])), int(str(flags["rest_api_port"]))
    server = LocalServer(arguments, *ports, dict(environment or {}))
    server.wait(timeout)
    return server


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
        return True
    return False
