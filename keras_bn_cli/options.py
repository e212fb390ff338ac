"""Options that several commands of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PREPROCESSINGS = ("none", "unit", "caffe", "tf", "torch")


def options(*options: Callable[..., Any]) -> Callable[[Any], Any]:
    """One decorator that adds several options, in their order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


model_argument = click.argument(
    "model_file", metavar="MODEL.keras", type=click.Path(exists=True, path_type=Path)
)
import_option = click.option(
    "--import",
    "modules",
    metavar="MODULE",
    multiple=True,
    help="Module to import first, which registers the model's custom layers. May be repeated.",
)
output_options = options(
    click.option("-o", "--output", type=click.Path(path_type=Path), help="The .keras file to write."),
    click.option("--overwrite", is_flag=True, help="Replace the output if it exists."),
    click.option("--dry-run", is_flag=True, help="Do the work and report it, but write nothing."),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
)
_data_options = options(
    click.option(
        "--preprocessing",
        type=click.Choice(PREPROCESSINGS),
        default="none",
        show_default=True,
        help="Scaling of the images in a folder: none, to [0, 1], or as in keras.applications.",
    ),
    click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True),
)
layers_option = click.option(
    "--layers",
    metavar="PATTERN",
    multiple=True,
    help="Only layers whose name matches, such as 'block5_*'. May be repeated.",
)
_DATA_HELP = "Examples: a .npy or .npz file, or a folder of images."
data_options = options(
    click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help=_DATA_HELP),
    _data_options,
)
optional_data_options = options(
    click.option("--data", type=click.Path(exists=True, path_type=Path), help=_DATA_HELP), _data_options
)
