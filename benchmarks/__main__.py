"""`python -m benchmarks` runs every comparison, each in a process of its own, and rewrites RESULTS.md."""

import subprocess
import sys
from pathlib import Path

PARTS = {
    "layer": "The layer",
    "export": "Export",
    "retrofit": "Retrofit",
    "serving": "Serving",
}
RESULTS = Path(__file__).with_name("RESULTS.md")


def main(names: list[str]) -> None:
    parts = []
    for name in names:
        print(f"benchmarks.{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        parts.append(f"# {PARTS[name]}\n\n{output.strip()}\n")
    RESULTS.write_text("\n".join(parts))


if __name__ == "__main__":
    main(sys.argv[1:] or list(PARTS))
