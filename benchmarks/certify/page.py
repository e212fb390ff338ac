"""The certificate as a page of the documentation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "certificate.md"

HEAD = """# Certificate

What each function does to the batch normalization (BN) of the networks that people have: families of KerasHub
and keras.applications that have BN, and models as people write them. `make certify` runs it and writes this
page.

An oracle that shares no code with the package checks every result. It runs models eagerly, with a hook in
every BN layer, and computes in float64 with NumPy:

- `convert`, `fold`, `retrofit`, `freeze` and `export` keep the outputs. `unfreeze` gives every weight back to
  the bit.
- `recalibrate` gives every BN layer the mean and variance of its own inputs, and moves nothing else.
- `inspect` reports the mean and variance of what each BN layer meets on the data.
- `convert` and `recalibrate` keep the class of the model.
- The model that a function is given is the same afterwards, to the bit.

"BN" counts the BN layers that a model calls; a number in parentheses counts those that it holds but never
calls. The other cells count the layers that a function handled. "6 + 4" folded layers are 6 that were
absorbed by another layer and 4 that became a multiply-add. "Inserted" is what `retrofit` adds behind layers
that had no BN. The last column has the seconds of the whole row on two cores of a busy machine, most of which
are compilation. Weights are random, and the statistics of the BN layers are set near to those of the data.
"""

TITLES = {
    "KerasHub": "KerasHub",
    "yours": "Models as people write them",
    "keras.applications": "keras.applications",
}
NOTES = {
    "KerasHub": "Backbones of small configurations.",
    "yours": "The code of each is in `benchmarks/certify/user_models.py` and `user_layers.py`.",
    "keras.applications": "The smallest member of each family.",
}
COLUMNS = {
    "convert": "Converted",
    "recalibrate": "Recalibrated",
    "fold": "Folded",
    "retrofit": "Inserted",
    "inspect": "Inspected",
    "freeze": "Frozen",
    "export": "Exported",
}

# How a reason goes on after the name of a layer.
_ABOUT_A_LAYER = "has another consumer|pads with zeros|is quantized|has LoRA"


def write(results: dict[str, Any], names: Iterable[str] = ()) -> None:
    """Write the page of these results; `names` are those of all models, of which some may have none."""
    missing = [name for name in names if name not in results]
    parts = [HEAD + (f"\nNot run yet: {', '.join(missing)}.\n" if missing else "")]
    for group, title in TITLES.items():
        own = {
            name.split("/", 1)[1]: found for name, found in results.items() if name.split("/", 1)[0] == group
        }
        if own:
            parts.append(f"## {title}\n\n{NOTES[group]}\n\n{_table(own)}{_remarks(own)}")
    PAGE.write_text("\n".join(parts))


def _table(own: dict[str, Any]) -> str:
    functions = [name for name in COLUMNS if any(name in found["functions"] for found in own.values())]
    head = ["Model", "BN", *(COLUMNS[name] for name in functions), "s"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for name, found in own.items():
        cells = [_cell(function, found["functions"].get(function)) for function in functions]
        unused = found["layers"] - found["called"]
        layers = f"{found['called']}" + (f" ({unused})" if unused else "")
        lines.append(_line([name, layers, *cells, f"{found['seconds']:.0f}"]))
    return "".join(lines)


def _cell(function: str, outcome: dict[str, Any] | None) -> str:
    if outcome is None:
        return ""
    if outcome["faults"]:
        return "**fault**"
    if outcome["refused"]:
        return "none" if function == "retrofit" and "nothing to retrofit" in outcome["refused"] else "refused"
    if function == "export":
        return "yes"
    if function == "fold" and outcome["affine"]:
        return f"{outcome['done'] - outcome['affine']} + {outcome['affine']}"
    return str(outcome["done"])


def _remarks(own: dict[str, Any]) -> str:
    """What was not handled and why, faults first; models for which a function says the same share a line."""
    models: dict[tuple[str, str], list[str]] = {}
    for name, found in own.items():
        for function, outcome in found["functions"].items():
            said = Counter({f"**fault**: {fault}": 1 for fault in outcome["faults"]})
            if outcome["refused"] and "nothing to retrofit" not in outcome["refused"]:
                said[f"refused: {outcome['refused']}"] = 1
            for reason, count in outcome["reasons"].items():
                said[_without_names(reason)] += count
            for text, count in said.items():
                number = f" ({count})" if outcome["reasons"] else ""
                models.setdefault((function, text), []).append(f"{name}{number}")
    ordered = sorted(models, key=lambda key: ("**fault**" not in key[1], list(COLUMNS).index(key[0])))
    lines = [
        f"- `{function}`: {_escaped(text).rstrip('.')}. *{'; '.join(models[function, text])}.*\n"
        for function, text in ordered
    ]
    return f"\nWhat was not handled, or is a multiply-add, and why:\n\n{''.join(lines)}" if lines else ""


def _without_names(reason: str) -> str:
    """A reason with the class of each layer in the place of its name, so that equal ones can be counted."""
    reason = re.sub(r"[^\s;,]+(?: \(call \d+\))? \((?!call)(\w+)\)", r"\1", reason)
    return re.sub(rf"[^\s;,]+(?: \(call \d+\))? (?={_ABOUT_A_LAYER})", "a layer ", reason)


def _escaped(text: str) -> str:
    plain = text.removeprefix("**fault**")
    return text[: len(text) - len(plain)] + " ".join(plain.split()).replace("*", "\\*").replace("<", "&lt;")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
