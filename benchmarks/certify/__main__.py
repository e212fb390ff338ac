"""The certificate: `python -m benchmarks.certify [--only PATTERN] [--quick]`; `make certify` runs all of it.

Every family of keras.applications and KerasHub that has BN, and models as people write them, go through
every function on models. The results go to `results.json` beside this file and to the page
`docs/certificate.md`. With `--only`, results of other models stay as they were.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import date
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import keras

from benchmarks.certify import check, families, page
from benchmarks.certify.user_models import USER_MODELS

RESULTS = Path(__file__).with_name("results.json")

# Small models that differ in kind; two minutes on two cores.
QUICK = (
    *("KerasHub/ResNetV2", "KerasHub/MobileNet", "KerasHub/EfficientNetV2"),
    *(
        "yours/own layer without get_config",
        "yours/subclassed model",
        "yours/siamese",
        "yours/TimeDistributed(cnn)",
    ),
    *("yours/shared BN", "yours/LoRA", "yours/dictionary of layers"),
)


def models() -> Iterator[tuple[str, Any]]:
    """Names, `KerasHub/MobileNet`, and functions that make a model and its inputs."""
    for name, make in families.KERAS_HUB.items():
        yield f"KerasHub/{name}", lambda make=make: _with_inputs(make(), 6)
    for name, make in USER_MODELS.items():
        yield f"yours/{name}", make
    for name, make in families.APPLICATIONS.items():
        yield f"keras.applications/{name}", lambda make=make: _with_inputs(make(), 6)


def certify(
    make: Any,
    functions: Any = check.FUNCTIONS,
    done: Callable[[str, dict[str, Any], int], None] = lambda name, outcome, called: None,
) -> dict[str, Any]:
    """One model's results, as they stand in the file; `done` is called after each function."""
    keras.utils.set_random_seed(1)
    start = time.perf_counter()
    subject = check.Subject(*make())
    results = {}
    for name in functions:
        results[name] = asdict(check.attempt(name, subject))
        done(name, results[name], subject.called)
    return {
        "layers": len(subject.layers),
        "called": subject.called,
        "seconds": round(time.perf_counter() - start, 1),
        "date": date.today().isoformat(),
        "functions": results,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.certify", description="Write the certificate."
    )
    parser.add_argument(
        "--only", metavar="PATTERN", help="only models whose name matches, such as 'KerasHub/*'"
    )
    parser.add_argument("--quick", action="store_true", help="only a few small models of each kind")
    parser.add_argument("--functions", nargs="+", choices=check.FUNCTIONS, default=list(check.FUNCTIONS))
    options = parser.parse_args(arguments)
    chosen = {
        name: make
        for name, make in models()
        if (not options.only or fnmatch(name, options.only)) and (not options.quick or name in QUICK)
    }
    if not chosen:
        parser.error(
            f"no model matches {options.only!r}; there are {', '.join(name for name, _ in models())}"
        )
    faults = 0
    for name, make in chosen.items():
        found = certify(make, options.functions, partial(_print, name))
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        kept = results.get(name, {}).get("functions", {})
        results[name] = found | {"functions": kept | found["functions"]}
        faults += sum(len(outcome["faults"]) for outcome in found["functions"].values())
        ordered = {known: results[known] for known, _ in models() if known in results}
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
        page.write(ordered, [known for known, _ in models()])
        keras.backend.clear_session()
        gc.collect()
    return 1 if faults else 0


def _print(name: str, function: str, outcome: dict[str, Any], called: int) -> None:
    said = outcome["refused"] or "; ".join(outcome["faults"]) or "; ".join(outcome["reasons"])
    done = f"{outcome['done']} of {called}"
    print(f"{name:40} {function:12} {done:12} {outcome['seconds']:6.1f} s  {said[:300]}", flush=True)


def _with_inputs(model: keras.Model, count: int) -> tuple[keras.Model, Any]:
    return model, families.photographs_for(model, count)


if __name__ == "__main__":
    sys.exit(main())
