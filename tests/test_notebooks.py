"""The notebooks: they run in a fresh kernel, and the repository has them with their outputs."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"(?:/home/|/root/|/tmp/|/work/|/Users/|[A-Z]:\\\\)\w")


def _execute(path):
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.execute(path)


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _check_outputs(notebook):
    for cell in _code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text
            data = output.get("data", {})
            text = [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
            assert not MACHINE.search(" ".join(text)), cell.source


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path):
    executed = _execute(path)  # raises where a cell does
    _check_outputs(executed)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_with_the_outputs_of_one_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    _check_outputs(notebook)
    assert [cell.execution_count for cell in _code(notebook)] == list(range(1, len(_code(notebook)) + 1))
    assert any("image/png" in output.get("data", {}) for cell in _code(notebook) for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_figures_say_in_words_what_they_show(path):
    for cell in _code(nbformat.read(path, as_version=4)):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert cell.metadata["mystnb"]["image"]["alt"], cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_links_into_the_repository_lead_somewhere(path):
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (FOLDER / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_needs_no_file_beside_it_and_says_how_to_install(path):
    cells = nbformat.read(path, as_version=4).cells
    assert "In Colab" in cells[0].source and "%pip install" in cells[0].source
    assert ".mplstyle" not in "\n".join(cell.source for cell in cells)


def test_missing_nbclient_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nbclient", None)
    with pytest.raises(SystemExit, match=r"nbclient is not installed: pip install 'keras-bn\[notebooks\]'"):
        runpy.run_path(str(FOLDER / "execute.py"), run_name="__main__")


def test_together_they_are_small_enough_to_keep():
    assert len(NOTEBOOKS) == 6
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 3e6
