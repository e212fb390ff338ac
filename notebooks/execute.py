"""Run notebooks from top to bottom, each in a fresh kernel, and write what they print and draw into them."""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import nbformat
    from nbclient import NotebookClient
except ImportError as error:
    sys.exit(f"{error.name} is not installed: pip install 'keras-bn[notebooks]'.")

FOLDER = Path(__file__).parent
CELL_SECONDS = 300  # a limit for a cell that hangs, not for one that is slow


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook in `path` with new outputs; the file is left alone.

    Raises `nbclient.exceptions.CellExecutionError` with the cell and its traceback where a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        startup_timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        # TensorFlow's C++ log, of this machine's hardware, stays on the terminal; Python's warnings show.
        extra_arguments=["--IPKernelApp.capture_fd_output=False"],
        resources={"metadata": {"path": str(FOLDER)}},
    )
    return client.execute()


def main(names: list[str]) -> None:
    """Execute and rewrite the named notebooks, or all of them."""
    for path in [Path(name) for name in names] or sorted(FOLDER.glob("*.ipynb")):
        print(path.name, flush=True)
        executed = execute(path)
        # The interpreter's version would change the file on every machine.
        executed.metadata.pop("language_info", None)
        nbformat.write(executed, path)


if __name__ == "__main__":
    main(sys.argv[1:])
