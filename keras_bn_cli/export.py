"""`keras-bn export`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from keras_bn_cli.command_error import CommandError
from keras_bn_cli.elapsed import elapsed
from keras_bn_cli.options import import_option, model_argument
from keras_bn_cli.quiet import imported


@click.command()
@model_argument
@click.argument("base_path", type=click.Path(file_okay=False, path_type=Path))
@click.option("--version", type=click.IntRange(0), help="Version number.  [default: the next free one]")
@click.option("--fold/--no-fold", default=True, show_default=True, help="Fold BN into neighboring layers.")
@click.option(
    "--precision",
    type=click.Choice(("float32", "bfloat16")),
    default="float32",
    show_default=True,
    help="Precision of convolutions and matrix products.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="Largest allowed change of the outputs, relative to their scale. Above it, nothing is written.",
)
@click.option(
    "--examples",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A .npy or .npz file of inputs for the check, instead of random ones.",
)
@click.option(
    "--batching-parameters-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Batching configuration of the server. Adds a warm-up request for each allowed batch size.",
)
@click.option(
    "--image-bytes",
    type=click.Choice(("raw", "caffe", "tf", "torch")),
    help="Add a signature that takes JPEG or PNG files and scales their pixels in this way.",
)
@click.option(
    "--reference",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A .npy or .npz file of training data, for `keras-bn drift` to compare requests with.",
)
@click.option(
    "--fused", is_flag=True, help="Fuse operations of the graph now. Only TensorFlow can read the result."
)
@click.option("--json", "as_json", is_flag=True, help="Print the version folder as JSON.")
@import_option
def export(
    model_file: Path,
    base_path: Path,
    version: int | None,
    fold: bool,
    precision: str,
    tolerance: float | None,
    examples: Path | None,
    batching_parameters_file: Path | None,
    image_bytes: str | None,
    reference: Path | None,
    fused: bool,
    as_json: bool,
    modules: tuple[str, ...],
) -> None:
    """Write a SavedModel that TF Serving serves, checked to be in inference mode.

    The version appears as BASE_PATH/VERSION in one step, so a server that watches the folder never loads half
    of it.

    \b
      keras-bn export model.keras models/vgg
      keras-bn export model.keras models/vgg --precision bfloat16 --examples validation.npy
    """
    batch_sizes = _allowed_batch_sizes(batching_parameters_file) if batching_parameters_file else None
    keras_bn = imported()
    from keras_bn_cli.files import import_modules, load_model, read_arrays

    import_modules(modules)
    model = load_model(model_file)
    with elapsed(f"exporting {model_file.name}"):
        folder = keras_bn.export(
            model,
            base_path,
            version=version,
            fold=fold,
            precision=precision,
            tolerance=tolerance,
            examples=None if examples is None else read_arrays(examples),
            batch_sizes=batch_sizes,
            image_bytes=image_bytes,
            fused=fused,
            reference=None if reference is None else read_arrays(reference),
        )
    click.echo(json.dumps({"path": str(folder), "version": int(folder.name)}) if as_json else folder)


def _allowed_batch_sizes(file: Path) -> list[int]:
    """The allowed_batch_sizes of a batching configuration, in protobuf's text format."""
    text = re.sub(r"#.*", "", file.read_text(encoding="utf-8"))
    sizes: list[int] = []
    for numbers in re.findall(r"allowed_batch_sizes\s*:\s*(\d+|\[[\d\s,]*\])", text):
        sizes += map(int, re.findall(r"\d+", numbers))
    if not sizes:
        raise CommandError(
            f"{file} has no allowed_batch_sizes, so a batch may have any size; add them, or leave out "
            "--batching-parameters-file for a warm-up request of one example."
        )
    return sizes
