"""A model server as a process of its own: ours, forked from one that has TensorFlow loaded, or a real one.

Importing TensorFlow takes seconds, and the vectors want some eighty servers: Python's own fork server pays
once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REAL_BINARY = shutil.which("tensorflow_model_server")
# host:grpc_port:rest_port of one that runs already, on the models and the configuration of the setup `main`.
REAL_HOST = os.environ.get("TFSERVING_HOST", "")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["keras_bn_serving.local_server.server"])


def _serve(arguments: list[str], stdout: str, stderr: str) -> None:
    for descriptor, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    from keras_bn_serving.local_server.server import run

    sys.exit(run(arguments))


class Server:
    """A server that was started with `arguments`, on ports of its own unless `bare`; its output is beside
    `folder`.

    `kind` says which: `local`, the real one's `binary`, or the real one that runs already at `host`.
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
        self.host, (self.port, self.rest_port) = "localhost", _free_ports(2)
        self.stdout, self.stderr = folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err"
        if not bare:
            arguments = [*arguments, f"--port={self.port}", f"--rest_api_port={self.rest_port}"]
        self._process: subprocess.Popen | multiprocessing.process.BaseProcess | None = None
        if kind == "host":
            self.host, port, rest_port = REAL_HOST.split(":")
            self.port, self.rest_port = int(port), int(rest_port)
        elif kind == "binary" or command:
            with open(self.stdout, "wb") as out, open(self.stderr, "wb") as err:
                whole = [*(command or [str(REAL_BINARY)]), *arguments]
                self._process = subprocess.Popen(whole, stdout=out, stderr=err)
        else:
            child = (arguments, str(self.stdout), str(self.stderr))
            self._process = _context.Process(target=_serve, args=child)
            self._process.start()

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
    """Whether something listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("localhost", 0))
        return [listener.getsockname()[1] for listener in listeners]
