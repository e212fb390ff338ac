"""Models to serve, and servers that serve them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

from tests.serving.golden import make_models
from tests.serving.golden.process import Server
from tests.serving.local_server import fault_table


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `three/{1,2,3}` (x + version), `examples/1`, `two/1`, `slow/1`, `scalar_out/1`,
    `echo_*/1`, `warm/1`."""
    folder = tmp_path_factory.mktemp("models")
    for version in (1, 2, 3):
        make_models.write_graph(str(folder / "three" / str(version)), make_models.add_const(version))
    for build in (make_models.examples, make_models.two, make_models.slow, make_models.scalar_out):
        make_models.write_graph(str(folder / build.__name__ / "1"), build)
    for name in ("f32", "str", "i32"):
        path = str(folder / f"echo_{name}" / "1")
        make_models.write_graph(path, make_models.echo(make_models.ECHO[name]))
    make_models.write_graph(str(folder / "warm" / "1"), make_models.add_const(1))
    records = [make_models.warmup_record("x", [1.0, 2.0], make_models.tf.float32)]
    make_models.write_warmup(str(folder / "warm" / "1"), records)
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with the given flags, waits for their ports, and ends them with the test."""
    servers: list[Server] = []

    def run(wait: bool = True, **flags: object) -> Server:
        arguments = [f"--{name}={value}" for name, value in flags.items()]
        folder = tmp_path / f"server-{len(servers)}"
        servers.append(Server(arguments, folder))
        if wait:
            assert servers[-1].wait_for_ports(60), servers[-1].stderr.read_text()
        return servers[-1]

    yield run
    for server in servers:
        server.kill()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the faults cost."""
    if fault_table.ROWS:
        terminalreporter.section("faults")
        terminalreporter.write_line(fault_table.text())
