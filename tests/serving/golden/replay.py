"""Replaying the golden vectors: what a server answers, held against what tensorflow_model_server 2.20.0
answered."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.serving.golden import compare, wire
from tests.serving.golden.process import Server, accepts

_FILE = Path(__file__).with_name("golden.jsonl.gz")
_START_SECONDS = 60


def load() -> list[dict[str, Any]]:
    """All vectors and setups."""
    with gzip.open(_FILE, "rt") as lines:
        return [json.loads(line) for line in lines]


class Stage:
    """The folders and the server of one setup, sequence or startup, and the names that stand for them."""

    def __init__(self, vector: dict[str, Any], models: Path, folder: Path, kind: str = "local") -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._names = {"MODELS": str(models), "TMP": str(folder)}
        for name, text in vector.get("files", {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.fill_in(text))
        for step in vector.get("before", []):
            self.on_disk(step)
        self.server = Server(self.fill_in(vector["flags"]), folder, bare=vector.get("bare", False), kind=kind)

    def fill_in(self, value: Any) -> Any:
        """`value` with the names in its strings replaced by what they stand for."""
        if isinstance(value, str):
            return re.sub(r"\$\{(MODELS|TMP)\}", lambda match: self._names[match[1]], value)
        if isinstance(value, list):
            return [self.fill_in(item) for item in value]
        if isinstance(value, dict):
            return {key: self.fill_in(item) for key, item in value.items()}
        return value

    def put_back(self, data: bytes) -> bytes:
        """`data` with the names back in the place of the folders."""
        for name in ("TMP", "MODELS"):
            data = data.replace(self._names[name].encode(), f"${{{name}}}".encode())
        return data

    def on_disk(self, step: dict[str, Any]) -> bool:
        """Take a step that changes files; False if it is no such step."""
        step = self.fill_in(step)
        if step["op"] == "copy":
            target = Path(step["dst"])
            aside = self.folder / f".copy-{time.monotonic_ns()}"
            shutil.copytree(step["src"], aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            aside.rename(target)
        elif step["op"] == "move":
            Path(step["src"]).rename(step["dst"])
        elif step["op"] == "remove":
            path = Path(step["path"])
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif step["op"] == "mkdir":
            Path(step["path"]).mkdir(parents=True)
        elif step["op"] == "write":
            path = Path(step["path"])
            aside = path.with_name(f".{path.name}.new")
            aside.write_text(step["text"])
            aside.rename(path)
        else:
            return False
        return True

    def request(self, vector: dict[str, Any], kind: str) -> list[str]:
        """Send the request of a `rest` or `grpc` vector or step; the differences of the answer."""
        request = vector["request"]
        if "request_base64" not in request:
            request = self.fill_in(request)
        if kind == "rest":
            return compare.rest(vector, wire.rest(self.server.rest_address, request), self.put_back)
        return compare.grpc(vector, wire.grpc_call(self.server.address, request), self.put_back)

    def until(self, step: dict[str, Any]) -> list[str]:
        """Repeat a request until its answer holds what is wanted; then compare the whole answer."""
        deadline, body = time.monotonic() + step["timeout"], b""
        while time.monotonic() < deadline:
            body = wire.rest(self.server.rest_address, step["request"])["body"]
            if _contains(json.loads(body), step["want"]):
                return self.request(step, "rest") if "response" in step else []
            time.sleep(0.02)
        return [f"never {json.dumps(step['want'])}, last {body!r}"]


def _contains(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(
            key in value and _contains(value[key], wanted[key]) for key in wanted
        )
    if isinstance(wanted, list):
        return isinstance(value, list) and len(value) == len(wanted) and all(map(_contains, value, wanted))
    return value == wanted


def setup(
    setup: dict[str, Any], vectors: Iterable[dict[str, Any]], models: Path, folder: Path, kind: str = "local"
) -> dict[str, list[str]]:
    """The differences of every vector that is to be tried on one server, by id."""
    stage = Stage(setup, models, folder, kind)
    with stage.server as server:
        if not server.wait_for_ports(_START_SECONDS):
            return {vector["id"]: [f"no server: {server.stderr.read_text()[-2000:]}"] for vector in vectors}
        for step in setup.get("settle", []):
            stage.until(step)
        return {vector["id"]: _guarded(stage, vector) for vector in vectors}


def _guarded(stage: Stage, vector: dict[str, Any]) -> list[str]:
    try:
        return stage.request(vector, vector["kind"])
    except (OSError, ValueError) as error:
        return [f"no answer: {error!r}"]


def sequence(vector: dict[str, Any], models: Path, folder: Path, kind: str = "local") -> list[str]:
    """The differences met on the way through a sequence."""
    stage = Stage(vector, models, folder, kind)
    differences: list[str] = []
    with stage.server as server:
        if vector.get("wait", True) and not server.wait_for_ports(_START_SECONDS):
            return [f"no server: {server.stderr.read_text()[-2000:]}"]
        for number, step in enumerate(vector["steps"], 1):
            try:
                found = _step(stage, step)
            except (OSError, ValueError) as error:
                found = [repr(error)]
            differences += [f"step {number} ({step['op']}): {difference}" for difference in found]
    return differences


def _step(stage: Stage, step: dict[str, Any]) -> list[str]:
    op, server = step["op"], stage.server
    if stage.on_disk(step):
        return []
    if op in ("rest", "grpc"):
        return stage.request(step, op)
    if op == "until":
        return stage.until(step)
    if op == "sleep":
        time.sleep(step["seconds"])
        return []
    if op == "metrics":
        return _metrics(stage, step)
    found = {
        "running": lambda: {"running": server.exit_code() is None},
        "ready": lambda: {"ready": server.wait_for_ports(_START_SECONDS)},
        "connect": lambda: {"grpc": accepts(server.port), "rest": accepts(server.rest_port)},
    }[op]()
    return [] if found == step["response"] else [f"{found} instead of {step['response']}"]


def _metrics(stage: Stage, step: dict[str, Any]) -> list[str]:
    text = stage.put_back(wire.rest(stage.server.rest_address, step["request"])["body"]).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in kinds}
    values: dict[str, float] = {}
    for name, pairs, value in re.findall(r"^([\w:]+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        family = name if name in kinds else re.sub(r"_(bucket|sum|count)$", "", name)
        labels[family] |= set(re.findall(r'(\w+)="', pairs))
        counted = kinds[family] == "counter" or name == f"{family}_count"
        if counted and family in step["values"]:
            ordered = ",".join(sorted(re.findall(r'\w+="(?:[^"\\]|\\.)*"', pairs)))
            values[f"{name}{{{ordered}}}"] = float(value)
    differences = []
    for name, family in step["response"]["families"].items():
        found = {"type": kinds.get(name), "labels": sorted(labels.get(name, ()))}
        if found != family:
            differences.append(f"{name} is {found} instead of {family}")
    if values != step["response"]["values"]:
        differences.append(f"values {values} instead of {step['response']['values']}")
    return differences


def startup(vector: dict[str, Any], models: Path, folder: Path, kind: str = "local") -> list[str]:
    """The differences between how a server starts, or fails to, and what a vector expects."""
    stage, expected = Stage(vector, models, folder, kind), vector["response"]
    differences = []
    with stage.server as server:
        code = _watch(stage, vector)
        if code != expected["exit"]:
            differences.append(
                f"exit {code} instead of {expected['exit']}: {server.stderr.read_text()[-500:]}"
            )
    return differences + _unsaid(stage, expected)


def _unsaid(stage: Stage, expected: dict[str, Any]) -> list[str]:
    """What the server should have written, and has not."""
    differences = []
    for stream in ("stdout", "stderr"):
        file = getattr(stage.server, stream)
        raw = file.read_bytes() if file.exists() else b""
        text = compare.collapse(stage.put_back(raw).decode(errors="replace"))
        differences += [
            f"{stream} without {part!r}"
            for part in expected[f"{stream}_has"]
            if compare.collapse(part) not in text
        ]
    return differences


def _watch(stage: Stage, vector: dict[str, Any]) -> int | None:
    """The exit code of a server that should end, or None for one that is well after the time it was
    watched, and has been given time to say what it should."""
    server = stage.server
    watched = time.monotonic() + vector.get("alive_s", _START_SECONDS)
    # A server that has opened its ports has said what it says at the start; only one that waits is watched to
    # the end.
    while server.exit_code() is None:
        if server.stderr.exists() and b"Entering the event loop" in server.stderr.read_bytes():
            break
        late = time.monotonic() - watched
        if late > _START_SECONDS or (late > 0 and not _unsaid(stage, vector["response"])):
            break
        time.sleep(0.05)
    return server.exit_code()
