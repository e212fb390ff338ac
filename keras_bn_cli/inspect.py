"""`keras-bn inspect`."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

import click

from keras_bn_cli.options import import_option, model_argument, optional_data_options
from keras_bn_cli.quiet import imported


@click.command()
@model_argument
@optional_data_options
@click.option("--saved-model", is_flag=True, help="MODEL is the version folder of an exported SavedModel.")
@click.option(
    "--html", metavar="FILE", help="Also write the report as one HTML page. With -, print the page instead."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@import_option
def inspect(
    model_file: Path,
    data: Path | None,
    preprocessing: str,
    batch_size: int,
    saved_model: bool,
    html: str | None,
    as_json: bool,
    modules: tuple[str, ...],
) -> None:
    """Show a model's BN layers and whether they are healthy.

    For an exported SavedModel, check that it runs in inference mode. The data, if given, is then a .npy or
    .npz file of two or more examples. Exits with 1 if something is wrong and with 2 if the model could not be
    inspected.

    \b
      keras-bn inspect model.keras --data validation.npy --html report.html
      keras-bn inspect --saved-model models/vgg/1
    """
    if saved_model or model_file.is_dir():
        if html is not None:
            raise click.UsageError("--html is for Keras models; the check of a SavedModel has no page.")
        _check_saved_model(model_file, data, as_json)
        return
    if html == "-" and as_json:
        raise click.UsageError("--html - and --json both print to standard output; give --html a file.")
    keras_bn = imported()
    from keras_bn_cli.files import check_writable, import_modules, load_model, read_data

    if html not in (None, "-"):
        check_writable(Path(html))
    import_modules(modules)
    model = load_model(model_file)
    examples, size = (None, None) if data is None else read_data(data, model, preprocessing, batch_size)
    report = keras_bn.inspect(model, examples, batch_size=size)
    if data is not None:
        report = replace(report, data=str(data))
    if html == "-":
        click.echo(report.to_html())
    else:
        click.echo(report.to_json() if as_json else str(report))
        if not as_json and "keras_bn.recalibrate" in report.advice:
            click.echo(f"On the command line: {_recalibration(model_file, data, preprocessing)}")
    if html not in (None, "-"):
        Path(html).write_text(report.to_html(), encoding="utf-8")
        click.echo(f"Wrote {html}.", err=True)
    sys.exit(0 if report.healthy else 1)


def _recalibration(model_file: Path, data: Path | None, preprocessing: str) -> str:
    """The command that follows the report's advice."""
    source = "DATA" if data is None else shlex.quote(str(data))
    scaling = "" if preprocessing == "none" else f" --preprocessing {preprocessing}"
    model = shlex.quote(str(model_file))
    return f"keras-bn recalibrate {model} --data {source}{scaling} -o recalibrated.keras"


def _check_saved_model(folder: Path, data: Path | None, as_json: bool) -> None:
    keras_bn = imported()
    from keras_bn_cli.files import read_arrays

    check = keras_bn.verify_inference_mode(folder, None if data is None else read_arrays(data))
    click.echo(json.dumps(asdict(check)) if as_json else check)
