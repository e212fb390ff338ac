"""Starting a local server from Python, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from keras_bn_serving.local_server import requirements
from keras_bn_serving.wire.errors import ServingError


class LocalServer:
    """A running server. Use it as a context manager, or call `stop`.

    Attributes:
        port: TCP port of the gRPC API on the loopback interface.
        rest_port: TCP port of the REST API on the loopback interface.
        process: The process of the server.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.port = self.rest_port = 0
        self._folder = tempfile.TemporaryDirectory()  # `stop` removes it
        self._ports_file = Path(self._folder.name) / "ports.json"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
        command = [sys.executable, "-m", "keras_bn_serving.local_server", *arguments]
        command.append(f"--ports_file={self._ports_file}")
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )

    @property
    def output(self) -> str:
        """The output of the server on stdout and stderr so far."""
        # pread leaves the file's position alone, at which the server goes on writing.
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def wait(self, timeout: float) -> None:
        """Wait until both ports are open, which is when the models are loaded.

        Raises:
            ServingError: If the server ended, or was not up in time. The message has its output.
        """
        deadline = time.monotonic() + timeout
        # The server writes the file once its ports are open, so the ports need not be chosen here, where
        # another process might take them meanwhile.
        while not self._ports_file.exists():
            code = self.process.poll()
            if code is not None or time.monotonic() > deadline:
                raise self._failed(
                    f"is not up after {timeout:g} seconds" if code is None else f"ended with exit code {code}"
                )
            time.sleep(0.02)
        ports = json.loads(self._ports_file.read_text())
        self.port, self.rest_port = ports["port"], ports["rest_api_port"]
        if not self.rest_port:
            raise self._failed("has no REST API")

    def _failed(self, what: str) -> ServingError:
        output = self.output[-4000:]
        self.stop()
        return ServingError(f"The local model server {what}; it wrote:\n{output}")

    def stop(self, timeout: float = 30.0) -> int:
        """End the server: SIGTERM, and SIGKILL after `timeout` seconds. Returns the exit code."""
        self.process.terminate()
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._log.close()
        self._folder.cleanup()
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
        ServingError: a package is missing, or the server could not start; with what it wrote.
    """
    requirements.check()
    flags = {"port": 0, "rest_api_port": 0, **flags}  # a port of 0 is chosen
    if model_base_path:
        flags |= {"model_base_path": os.path.abspath(model_base_path), "model_name": model_name}
    server = LocalServer([f"--{name}={value}" for name, value in flags.items()], environment or {})
    server.wait(timeout)
    return server
