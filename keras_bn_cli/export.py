"""`keras-bn export`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from keras_bn_cli.options import import_option, model_argument
from keras_bn_cli.quiet import imported


@click.command()
@model_argument
@click.argument("base_path", type=click.Path(file_okay=False, path_type=Path))
@click.option("--version", type=click.IntRange(0), help="Version number.  [default: the next free one]")
@click.option("--fold/--no-fold", default=True, show_default=True, help="Fold BN into neighboring layers.")
@click.option(
    "--image-bytes",
    type=click.Choice(("raw", "caffe", "tf", "torch")),
    help="Add a signature that takes JPEG or PNG files and scales their pixels in this way.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the version folder as JSON.")
@import_option
def export(
    model_file: Path,
    base_path: Path,
    version: int | None,
    fold: bool,
    image_bytes: str | None,
    as_json: bool,
    modules: tuple[str, ...],
) -> None:
    """Write a SavedModel that TF Serving serves, checked to be in inference mode.

    It appears as BASE_PATH/VERSION in one step, so a server that watches the folder never sees half of it.

    \b
      keras-bn export model.keras models/vgg
    """
    keras_bn = imported()
    from keras_bn_cli.files import import_modules, load_model

    import_modules(modules)
    model = load_model(model_file)
    folder = keras_bn.export(model, base_path, version=version, fold=fold, image_bytes=image_bytes)
    click.echo(json.dumps({"path": str(folder), "version": int(folder.name)}) if as_json else folder)
