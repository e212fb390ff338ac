"""`keras-bn drift`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from keras_bn_cli.options import import_option
from keras_bn_cli.quiet import imported


@click.command()
@click.argument("path", metavar="BASE_PATH", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("data", metavar="DATA", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--model",
    "model_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The .keras file that was exported, to compare the inputs of its BN layers as well.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Rate of false alarms.",
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@import_option
def drift(
    path: Path,
    data: Path,
    model_file: Path | None,
    alpha: float,
    batch_size: int,
    as_json: bool,
    modules: tuple[str, ...],
) -> None:
    """Compare a sample of requests with the reference data of an exported model.

    BASE_PATH is a model that was exported with --reference. DATA is a .npy or .npz file, or a request log of
    TF Serving.
    Exits with 1 if the data has drifted.

    \b
      keras-bn export model.keras models/vgg --reference train.npy
      keras-bn drift models/vgg requests.npy
    """
    keras_bn = imported()
    from keras_bn_cli.files import import_modules, load_model, read_arrays

    import_modules(modules)
    sample = read_arrays(data) if data.suffix in (".npy", ".npz") else str(data)
    if model_file is None:
        report = keras_bn.drift(path, sample, alpha=alpha)
    else:
        report = keras_bn.drift(
            path, sample, model=load_model(model_file), alpha=alpha, batch_size=batch_size
        )
    click.echo(json.dumps(report.to_dict()) if as_json else str(report))
    sys.exit(1 if report.drifted else 0)
