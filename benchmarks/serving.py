"""What the local server costs: over calling the model in process, over an empty handler, beside TensorFlow
Serving.

    python -m benchmarks.serving [--requests 1500] [--seconds 1.5] [--memory-requests 10000]

Loopback, batch size 1, all servers up at once and asked in turns: the local server with each of its engines,
and tensorflow_model_server if it is on PATH. With wrk on PATH, the throughput without the cost of a Python
client is measured too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson

from benchmarks.servers import (
    FLOOR,
    IMAGE,
    LARGE_MIB,
    Rest,
    Running,
    ServerFlags,
    as_base64,
    export_models,
    over_grpc,
    photograph,
    resident_mib,
    servers,
    start,
    states,
    with_engines,
)
from benchmarks.timing import machine, table
from keras_bn.saving.session import servable
from keras_bn_serving.local_server.json_reader import parse

SCALAR = b'{"instances": [1.0]}'
CLIENTS = (1, 8, 64)
TEXT = """
"local" runs the models with TensorFlow, "local, OpenVINO" with OpenVINO, but for files of images, which
TensorFlow decodes in both. The floor is a handler that does nothing in the same HTTP and gRPC stacks.
"""
Servers = dict[str, Running]
Candidates = dict[str, Callable[[], object]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--requests", type=int, default=1500, help="requests of each latency")
    arguments.add_argument("--seconds", type=float, default=1.5, help="length of each throughput measurement")
    arguments.add_argument(
        "--memory-requests", type=int, default=10_000, help="requests before memory is read again"
    )
    options = arguments.parse_args()
    print(machine())
    print(TEXT)
    imports()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_models(folder)
        flags = with_engines()
        with servers(folder, flags) as found:
            one_request(folder, found, options.requests)
            reading()
            one_image(found)
            many_clients(found, options.seconds)
            memory(found, options.memory_requests)
        hot_swap(folder / "large", flags)


def imports() -> None:
    measure = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
    rows = []
    for module in (
        "keras_bn_serving.client",
        "keras_bn_serving.client.http_transport",
        "keras_bn_serving.client.grpc_transport",
    ):
        command = [sys.executable, "-c", measure.format(module)]
        runs = [float(subprocess.check_output(command, text=True)) for _ in range(3)]
        rows.append([f"`{module}`", f"{np.median(runs):.2f}"])
    print("\nImport of the client, seconds of processor time\n\n" + table(["", "seconds"], rows))


def latencies(candidates: Candidates, rounds: int) -> dict[str, tuple[float, float]]:
    """p50 and p99 in milliseconds of candidates that take turns, after a tenth as many turns."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(-rounds // 10, rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: _p50_p99(values) for name, values in seconds.items()}


def _p50_p99(seconds: list[float]) -> tuple[float, float]:
    p50, p99 = 1e3 * np.percentile(seconds, (50, 99))
    return float(p50), float(p99)


def one_request(folder: Path, found: Servers, rounds: int) -> None:
    import tensorflow as tf

    signature = tf.saved_model.load(str(folder / "scalar" / "1")).signatures["serving_default"]
    x = np.float32([1.0])
    candidates: Candidates = {"in process": lambda: signature(x=tf.constant(x))["y"].numpy()}
    for name, server in found.items():
        candidates[f"gRPC, {name}"] = over_grpc(server.port, "scalar", x)
        candidates[f"REST, {name}"] = Rest(server.rest_port, "scalar", SCALAR)
    with servable(folder / "scalar" / "1", "serving_default") as session:
        candidates["in process, by a session"] = lambda: session.run({"x": x})
        times = latencies(candidates, rounds)
    in_process, _ = times["in process"]
    rows = []
    for name, (p50, p99) in times.items():
        floor = f"{name.partition(',')[0]}, {FLOOR}"
        has_floor = floor in times and name != floor
        over = f"{(p50 - in_process) / times[floor][0]:.2f}" if has_floor else ""
        rows.append([name, f"{p50:.2f}", f"{p99:.2f}", over])
    print(
        "\nOne client, scalar model, milliseconds. Overhead: what p50 is above calling the SavedModel in "
        "process\n"
    )
    print(table(["", "p50", "p99", "overhead / floor"], rows))


def reading() -> None:
    """The reader alone, on both ways to write a float32: as the double it equals, and with its own digits."""
    image = np.random.default_rng(0).random(IMAGE, np.float32)
    texts = {
        "json.dumps(image.tolist())": json.dumps({"instances": [image.tolist()]}).encode(),
        "shortest digits (orjson)": orjson.dumps(
            {"instances": image[None]}, option=orjson.OPT_SERIALIZE_NUMPY
        ),
    }
    rows = []
    for name, body in texts.items():
        readers: Candidates = {
            "json": lambda body=body: np.asarray(json.loads(body)["instances"], np.float32),
            "ours": lambda body=body: parse(body),
        }
        # Processor time: both are pure computation, which a busy machine stretches unevenly.
        taken: dict[str, list[float]] = {reader: [] for reader in readers}
        for _ in range(41):
            for reader, read in readers.items():
                started = time.process_time()
                read()
                taken[reader].append(time.process_time() - started)
        theirs, ours = (1e3 * float(np.median(values)) for values in taken.values())
        rows.append([name, f"{len(body) / 1e6:.2f}", f"{theirs:.1f}", f"{ours:.1f}", f"{theirs / ours:.1f}"])
    header = ["text", "MB", "json.loads + numpy.asarray", "the server's reader", "times faster"]
    print(
        "\nA 224x224x3 image of JSON into an array, milliseconds of processor time\n\n" + table(header, rows)
    )


def one_image(found: Servers) -> None:
    image, file = np.random.default_rng(0).random(IMAGE, np.float32), photograph()
    body, zipped = json.dumps({"instances": [image.tolist()]}).encode(), as_base64(file)
    sizes = {"JSON": len(body), "tensor_content": image.nbytes, "image_bytes": len(file)}
    candidates: Candidates = {}
    for name, server in found.items():
        if name != FLOOR:
            candidates[f"REST, JSON, {name}"] = Rest(server.rest_port, "image", body)
            candidates[f"REST, image_bytes, {name}"] = Rest(server.rest_port, "image", zipped)
            candidates[f"gRPC, tensor_content, {name}"] = over_grpc(server.port, "image", image[None])
            candidates[f"gRPC, image_bytes, {name}"] = over_grpc(server.port, "image", file)
    rows = [[name, f"{p50:.1f}", f"{p99:.1f}"] for name, (p50, p99) in latencies(candidates, 60).items()]
    carried = ", ".join(f"{size / 1e6:.2f} MB as {form}" for form, size in sizes.items())
    print(f"\nOne client, a 224x224x3 image ({carried}), milliseconds\n\n" + table(["", "p50", "p99"], rows))


def hot_swap(large: Path, flags: ServerFlags) -> None:
    """Two new versions, one after the other, while a client asks the model without a pause."""
    rows = []
    for name in flags:
        base = large.parent / f"swapped by {name}"
        shutil.copytree(large, base)
        with contextlib.ExitStack() as stack:
            server = start(stack, name, model_name="large", model_base_path=base, **flags[name])
            ask = Rest(server.rest_port, "large", SCALAR)
            for version in (2, 3):
                shutil.copytree(large / "1", large.parent / "aside")
                before = peak = resident_mib(server.pid)
                (large.parent / "aside").rename(base / str(version))
                seen: dict[str, float] = {}  # states of the new version: when they were first seen
                slowest = 0.0
                found: dict[int, str] = {}
                while found.get(version - 1) != "END":
                    started = time.perf_counter()
                    ask()
                    slowest = max(slowest, time.perf_counter() - started)
                    peak = max(peak, resident_mib(server.pid))
                    found = states(server.rest_port, "large")
                    seen.setdefault(found.get(version, ""), time.perf_counter())
                after = resident_mib(server.pid)
                load = 1e3 * (seen["AVAILABLE"] - seen.get("LOADING", seen["AVAILABLE"]))
                figures = load, 1e3 * slowest, before, peak, after
                rows.append([name, f"{version - 1} to {version}", *(f"{figure:.0f}" for figure in figures)])
    print(f"\nHot swap of a model with {LARGE_MIB} MiB of weights, under requests that never pause\n")
    header = ["server", "version", "load ms", "slowest request ms", "MiB before", "at most", "after"]
    print(table(header, rows))


def throughput(make: Callable[[], Callable[[], object]], clients: int, seconds: float) -> list[str]:
    """Requests a second, p50 and p99 in milliseconds, with that many clients (threads of one process)."""
    taken: list[float] = []
    runs = [make() for _ in range(clients)]
    stop = time.perf_counter() + seconds

    def ask(run: Callable[[], object]) -> None:
        while (started := time.perf_counter()) < stop:
            run()
            taken.append(time.perf_counter() - started)

    threads = [threading.Thread(target=ask, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p50, p99 = _p50_p99(taken)
    return [f"{len(taken) / seconds:.0f}", f"{p50:.2f}", f"{p99:.2f}"]


def many_clients(found: Servers, seconds: float) -> None:
    rows = []
    for clients in CLIENTS:
        for name, server in found.items():
            for api, make in (
                ("REST", lambda server=server: Rest(server.rest_port, "scalar", SCALAR)),
                ("gRPC", lambda server=server: over_grpc(server.port, "scalar", np.float32([1.0]))),
            ):
                rows.append([str(clients), api, name, *throughput(make, clients, seconds)])
    print(
        "\nScalar model; the clients are threads of one Python process, which is part of what is measured\n"
    )
    header = ["clients", "API", "server", "requests/s", "p50 ms", "p99 ms"]
    print(table(header, rows))
    if shutil.which("wrk"):
        rows = [
            [str(clients), "REST", name, *wrk(server.rest_port, clients, seconds)]
            for clients in CLIENTS
            for name, server in found.items()
        ]
        print("\nThe same asked by wrk, a client in C\n\n" + table(header, rows))


def wrk(port: int, clients: int, seconds: float) -> list[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method, wrk.body = 'POST', '{SCALAR.decode()}'")
        script.flush()
        command = [
            "wrk",
            "-t1",
            f"-c{clients}",
            f"-d{max(1, round(seconds))}s",
            "--latency",
            "-s",
            script.name,
        ]
        url = f"http://localhost:{port}/v1/models/scalar:predict"
        printed = subprocess.check_output([*command, url], text=True)
    assert "Non-2xx" not in printed, printed
    (rate,) = re.findall(r"Requests/sec: +([0-9.]+)", printed)
    units = {"us": 1e-3, "ms": 1, "s": 1e3}
    found = [re.search(rf"{share}% +([0-9.]+)([a-z]+)", printed) for share in (50, 99)]
    return [f"{float(rate):.0f}", *(f"{float(hit[1]) * units[hit[2]]:.2f}" for hit in found if hit)]


def memory(found: Servers, requests: int) -> None:
    rows = []
    for name, server in found.items():
        if name != FLOOR:
            runs = [
                Rest(server.rest_port, "scalar", SCALAR),
                over_grpc(server.port, "scalar", np.float32([1.0])),
            ]
            sizes = []
            for count in (1000, requests):
                for number in range(count):
                    runs[number % 2]()
                sizes.append(resident_mib(server.pid))
            rows.append([name, *(f"{size:.0f}" for size in sizes), f"{sizes[1] - sizes[0]:+.1f}"])
    print(f"\nResident MiB after 1,000 more requests, and after {requests:,} more\n")
    print(table(["server", "1,000", f"{requests:,}", "growth"], rows))


if __name__ == "__main__":
    main()
