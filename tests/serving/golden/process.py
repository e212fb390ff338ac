"""A model server as a process of its own: ours, forked from one that has TensorFlow loaded, or a real one."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.process
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests import processes

REAL_BINARY = shutil.which("tensorflow_model_server")
# host:grpc_port:rest_port of one that runs already, on the models and the configuration of the setup `main`.
REAL_HOST = os.environ.get("TFSERVING_HOST", "")


def _serve(arguments: list[str], stdout: str, stderr: str) -> None:
    for descriptor, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    from keras_bn_serving.local_server.server import run

    sys.exit(run(arguments))


class Server:
    """A server that was started with `arguments`, on ports of its own unless `bare`; its output is beside
    `folder`.

    `kind` says which: `local`, the same with the engine `openvino`, the real one's `binary`,
    or the real one that runs already at `host`.
    `command` starts a local one otherwise than by forking.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        bare: bool = False,
        kind: str = "local",
        command: Sequence[str] = (),
    ) -> None:
        self.host, self._ports = "localhost", (0, 0)
        self.stdout, self.stderr = folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err"
        self._ports_file = folder.parent / f"{folder.name}.ports"
        if kind == "binary" and not bare:
            self._ports = _reserved_port(), _reserved_port()
            arguments = [*arguments, f"--port={self._ports[0]}", f"--rest_api_port={self._ports[1]}"]
        elif not bare:
            arguments = [*arguments, "--port=0", f"--ports_file={self._ports_file}"]
        if kind == "openvino":
            arguments = [*arguments, "--engine=openvino"]
        self._process: subprocess.Popen | multiprocessing.process.BaseProcess | None = None
        if kind == "host":
            self.host, port, rest_port = REAL_HOST.split(":")
            self._ports = int(port), int(rest_port)
        elif kind == "binary" or command:
            # The real one's lines of INFO are among what the vectors expect.
            environment = {
                name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"
            }
            with open(self.stdout, "wb") as out, open(self.stderr, "wb") as err:
                whole = [*(command or [str(REAL_BINARY)]), *arguments]
                self._process = subprocess.Popen(whole, stdout=out, stderr=err, env=environment)
        else:
            child = (arguments, str(self.stdout), str(self.stderr))
            self._process = processes.context.Process(target=_serve, args=child)
            self._process.start()

    @property
    def port(self) -> int:
        """The port of the gRPC API; 0 while it is not known, which it is once the server is up."""
        return self._chosen()[0]

    @property
    def rest_port(self) -> int:
        """The port of the REST API, likewise."""
        return self._chosen()[1]

    def _chosen(self) -> tuple[int, int]:
        if not self._ports[0] and self._ports_file.exists():
            ports = json.loads(self._ports_file.read_text())
            self._ports = ports["port"], ports["rest_api_port"]
        return self._ports

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    @property
    def address(self) -> tuple[str, int]:
        """Where the gRPC API is."""
        return self.host, self.port

    @property
    def rest_address(self) -> tuple[str, int]:
        """Where the REST API is."""
        return self.host, self.rest_port

    def exit_code(self) -> int | None:
        """The exit code, None while the server runs."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        return self._process.exitcode if self._process else None

    def wait_for_exit(self, timeout: float) -> int | None:
        """The exit code, None if the server still runs after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.exit_code() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.exit_code()

    def wait_for_ports(self, timeout: float) -> bool:
        """Whether both ports accept connections within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.exit_code() is None:
            if accepts(self.port, self.host) and accepts(self.rest_port, self.host):
                return True
            time.sleep(0.02)
        return False

    def kill(self) -> None:
        """End the server without ceremony."""
        if self._process is None:
            return
        if self.exit_code() is None:
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait() if isinstance(self._process, subprocess.Popen) else self._process.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def accepts(port: int, host: str = "localhost") -> bool:
    """Whether something listens on a port (on 0, which stands for none yet, nothing does)."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _reserved_port() -> int:
    """A port for a server that cannot choose one itself.

    A connection that was closed from the listening side leaves the port in TIME_WAIT: for a minute the kernel
    gives it to nobody who asks for any port, while a server may ask for it by its number.
    """
    with socket.create_server(("localhost", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            listener.accept()[0].close()
            client.recv(1)
        return int(listener.getsockname()[1])
