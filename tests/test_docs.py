"""The documentation: snippets run and print what the page shows, links lead somewhere, no name is missing."""

import contextlib
import doctest
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import pytest
from click.testing import CliRunner

import keras_bn
import keras_bn_serving
import keras_bn_serving.client
import keras_bn_serving.local_server
from keras_bn_cli.program import program
from keras_bn_serving.client import Client
from tests.ports import free_ports

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))

# A fenced block and, where one follows at once, the `text` block with what it prints.
SNIPPET = re.compile(r"^```(python|sh)\n(.*?)^```\n(?:\n*```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
OPTIONAL = {"apache_beam", "pyspark", "ray", "tf_keras", "torch"}
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # its workers run the interpreter of the tests
# They need an engine, a cluster, a browser or an installation of their own.
NOT_RUN = {"docker", "kubectl", "tensorboard", "pip", "make"}


class Snippet(NamedTuple):
    language: str
    code: str
    prints: str | None


def snippets(page):
    return [Snippet(*found) for found in SNIPPET.findall((DOCS / page).read_text(encoding="utf-8"))]


class Session:
    """One page's Python names, folder and model server."""

    def __init__(self):
        self.names = {}
        self.ports = {}
        self.server = None
        self.missing = set()

    def run(self, snippet):
        code = re.sub("850[01]", lambda port: self.ports.get(port[0], port[0]), snippet.code)
        printed = self._python(code) if snippet.language == "python" else self._shell(code)
        if snippet.prints and printed is not None:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert doctest.OutputChecker().check_output(snippet.prints, printed, flags), printed

    def _python(self, code):
        imports = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
        missing = {name for name in OPTIONAL & set(imports) if not importlib.util.find_spec(name)}
        self.missing |= missing
        if missing:
            return None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "snippet", "exec"), self.names)
        return printed.getvalue()

    def _shell(self, code):
        printed = ""
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:  # of the environment
                words.pop(0)
            if not words or words[0] in NOT_RUN:
                assert all((ROOT / word).exists() for word in words if word.startswith("serving/")), line
                continue
            if words[:2] == ["keras-bn", "serve"]:
                self._serve(words[2:])
            elif words[0] == "keras-bn":
                result = CliRunner().invoke(program, words[1:])
                assert result.exit_code == 0, result.output
                printed += result.stdout
            else:
                assert words[0] == "curl", f"how to run {line!r} here?"
                printed += subprocess.run(
                    [*words, "--silent", "--fail-with-body"], check=True, capture_output=True, text=True
                ).stdout
        return printed

    def _serve(self, arguments):
        self.ports = dict(zip(("8500", "8501"), map(str, free_ports(2)), strict=True))
        self.server = subprocess.Popen(
            [
                *(sys.executable, "-m", "keras_bn_cli", "serve"),
                *arguments,
                f"--port={self.ports['8500']}",
                f"--rest_api_port={self.ports['8501']}",
            ],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        with Client(f"http://127.0.0.1:{self.ports['8501']}", model=Path(arguments[0]).name) as client:
            client.wait_until_ready(timeout=60)

    def close(self):
        if self.server is not None:
            self.server.terminate()
            self.server.wait(timeout=20)


@pytest.fixture
def session(tmp_path, monkeypatch):
    """Fresh layer names, a folder of its own, and seeded weights where ImageNet's can't be downloaded."""
    keras.utils.clear_session()
    monkeypatch.chdir(tmp_path)
    for name in ("VGG16", "ResNet50"):
        real = getattr(keras.applications, name)
        monkeypatch.setattr(
            keras.applications, name, lambda real=real, **options: real(**options | {"weights": None})
        )
    session = Session()
    yield session
    session.close()


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)])
def test_snippets_run_and_print_what_the_page_shows(page, session):
    for snippet in snippets(page):
        session.run(snippet)
    if session.missing:
        pytest.skip(f"snippets for {', '.join(sorted(session.missing))} were not run: not installed")


def test_every_fenced_block_of_code_is_seen():
    # A block that the pattern misses (indented, another fence) would never run.
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        assert len(re.findall(r"^\s*[`~]{3,}\s*\{?(?:python|sh|bash|console)\b", text, re.MULTILINE)) == len(
            snippets(page)
        ), page


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; warnings, broken links among them, are errors."""
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", folder / "doctrees", DOCS, folder],
        capture_output=True,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    assert build.returncode == 0, build.stderr
    return folder


@pytest.mark.slow
def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="(https?:[^"]*)"', page.read_text()
        )
        assert not loaded, page


def test_links_lead_to_pages_and_anchors_that_exist(site):
    ids = {page: set(re.findall(r'\bid="([^"]+)"', page.read_text())) for page in site.rglob("*.html")}
    for page in ids:
        for target in re.findall(r'<a\b[^>]*?href="([^"]+)"', page.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), (page.name, target)
            if anchor and linked in ids:
                assert anchor in ids[linked], (page.name, target)


def test_the_api_pages_have_every_public_name(site):
    text = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    documented = set(re.findall(r'<dt\b[^>]*\bid="([\w.]+)"', text))
    for module in (keras_bn, keras_bn_serving, keras_bn_serving.client, keras_bn_serving.local_server):
        for name in module.__all__:
            full = {f"{module.__name__}.{name}", f"{getattr(module, name).__module__}.{name}"}
            assert full & documented, f"{module.__name__}.{name}"


def test_the_command_line_page_has_every_command():
    page = (DOCS / "api" / "command_line.md").read_text(encoding="utf-8")
    assert re.findall(r"\{command-help\} (\w+)", page) == list(program.commands)


def test_the_migration_table_has_the_defaults_of_each_package():
    page = (DOCS / "migration.md").read_text(encoding="utf-8")
    lines = [re.split(r" *\| *", line)[1:-1] for line in page.splitlines() if line.startswith("|")]
    table = {name: cells for name, *cells in lines}
    momentum, epsilon = (
        [float(cell.split(",")[0]) for cell in table[f"default {name}"]] for name in ("momentum", "epsilon")
    )
    layers = [keras_bn.BatchNormalization(), keras.layers.BatchNormalization()]
    if importlib.util.find_spec("tf_keras"):
        layers.append(importlib.import_module("tf_keras").layers.BatchNormalization())
    for layer, *stated in zip(layers, momentum, epsilon, strict=False):
        assert stated == [layer.momentum, layer.epsilon], layer
    if importlib.util.find_spec("torch"):
        layer = importlib.import_module("torch").nn.BatchNorm2d(1)
        assert [momentum[3], epsilon[3]] == [layer.momentum, layer.eps]
