"""What Sphinx would misread in docstrings that are written to be read as plain text."""

import inspect
import re

import keras
from sphinx.util.inspect import stringify_signature

SECTION = re.compile(r"[A-Z][\w ]*:$")
ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")


def keep_formulas(app, what, name, obj, options, lines):
    """Mark an indented block as literal: as a quotation its lines would be joined."""
    result, in_section = [], False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if line and not indented:
            following = lines[number + 1] if number + 1 < len(lines) else ""
            in_section = bool(SECTION.match(line)) and following.startswith(" ")
        starts_block = (
            indented and not in_section and number and not lines[number - 1].strip()
        )
        if starts_block and not _in_block(result):
            result += ["::", ""]
        result.append(line)
    lines[:] = result


def _in_block(lines):
    return next(
        (line.startswith("    ") for line in reversed(lines) if line.strip()), False
    )


def readable_signature(app, what, name, obj, options, signature, return_annotation):
    """A layer's arguments, which Keras hides behind `*args`; aliases by their names."""
    of_keras = (keras.layers.Layer, keras.callbacks.Callback)
    if what == "class" and issubclass(obj, of_keras):
        parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
        arguments = inspect.Signature(parameters)
        return stringify_signature(arguments, unqualified_typehints=True), None
    return tuple(
        text and ALIAS.sub(r"\1", text) for text in (signature, return_annotation)
    )


def skip_unsaid(app, what, name, obj, skip, options):
    """Leave out a named tuple's fields, which Python documents by their numbers."""
    unsaid = str(getattr(obj, "__doc__", "")).startswith("Alias for field number")
    return True if unsaid else None


def setup(app):
    # Before napoleon (500), which turns sections into field lists.
    app.connect("autodoc-process-docstring", keep_formulas, priority=400)
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("autodoc-skip-member", skip_unsaid)
    return {"parallel_read_safe": True}
