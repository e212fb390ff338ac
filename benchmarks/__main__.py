"""Every benchmark of speed and memory, one after the other, and its results into `benchmarks/RESULTS.md`.

    python -m benchmarks            all of them; `make bench` installs the peers first
    python -m benchmarks layer      one of them: its section is replaced, the others stay
    python -m benchmarks "layer --backend torch"

Run it on a machine with nothing else to do: only ratios within one table mean something.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
TITLES = {
    "layer": "The layer: training, inference, whole steps, memory",
    "layer --backend torch": "The layer on PyTorch",
    "layer --backend jax": "The layer on JAX",
    "layer --backend tensorflow": "The layer on TensorFlow in the same tables",
    "retrofit": "Retrofit: calibration, memory, and training on",
    "recalibrate": "Recalibration and inspection beside `predict`, on every backend",
    "freeze": "Fine-tuning with frozen statistics: a training step",
    "shards": "Population statistics in shards",
    "export": "Exported networks at batch size 1",
    "custom_layers": "Exports of networks written with custom layers",
    "profile_operations": "Exported networks: share of time by operation",
    "engines": "Networks through the engines of the local server",
    "serving": "The local server",
}
HEAD = """# Benchmarks

Each section is the output of its command. In a table all candidates took turns in one run, with pinned
threads and after a warm-up; times are medians. Other machines give other times and, less so, other ratios.
"""


def main(names: list[str]) -> int:
    if unknown := set(names) - set(TITLES):
        print(f"No benchmark {', '.join(sorted(unknown))}; there are {', '.join(TITLES)}.", file=sys.stderr)
        return 2
    sections = _sections()
    for name in names or TITLES:
        command = f"python -m benchmarks.{name}"
        print(f"\n$ {command}", flush=True)
        run = subprocess.run(
            [sys.executable, *command.split()[1:]], stdout=subprocess.PIPE, text=True, check=False
        )
        print(run.stdout)
        if run.returncode:
            print(f"{command} failed; its section is left as it was.", file=sys.stderr)
            return 1
        sections[name] = f"## {TITLES[name]}\n\n`{command}`, {date.today()}.\n\n{run.stdout.strip()}\n"
        RESULTS.write_text(
            "\n".join([HEAD, *(sections[name] for name in TITLES if name in sections)]), encoding="utf-8"
        )
    return 0


def _sections() -> dict[str, str]:
    """The sections of the results there are, by the name of their benchmark."""
    if not RESULTS.exists():
        return {}
    parts = re.split(r"^(?=## )", RESULTS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        name: part.rstrip() + "\n"
        for name, title in TITLES.items()
        for part in parts
        if part.startswith(f"## {title}\n")
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
