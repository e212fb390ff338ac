"""The command line, `keras-bn`: one command a verb, over `.keras` files, exported models and model servers.

Exit codes: 0 done, 1 the work could not be done (one line says why), 2 the command was not understood.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import keras_bn
from keras_bn.cli_files import PREPROCESSINGS, check_output, import_modules, load_model, read_data
from keras_bn.errors import KerasBNError
from keras_bn.surgery.report import SurgeryResult
from serving.client.command import query
from serving.errors import ServingError


class _Verbs(click.Group):
    """Commands in the order of the work, and a user's mistake as one line instead of a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KerasBNError, ServingError) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"{error.strerror or error}: {error.filename or ''}") from error


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keras-bn", prog_name="keras-bn")
def main() -> None:
    """Batch normalization for Keras: put it in, repair it, fold it away, export and serve.

    \b
    A model's way to production:
      keras-bn retrofit vgg.keras --data images/ -o vgg_bn.keras
      keras-bn inspect vgg_bn.keras
      keras-bn export vgg_bn.keras models/vgg
      keras-bn serve models/vgg
      keras-bn query --help
    """


def _options(*options: Callable[..., Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_model = click.argument("model_file", metavar="MODEL.keras", type=click.Path(exists=True, path_type=Path))
_imports = click.option(
    "--import",
    "modules",
    metavar="MODULE",
    multiple=True,
    help="Import this module first: it registers the model's custom layers. May be repeated.",
)
_output = _options(
    click.option("-o", "--output", type=click.Path(path_type=Path), help="The .keras file to write."),
    click.option("--overwrite", is_flag=True, help="Replace the output if it exists."),
    click.option("--dry-run", is_flag=True, help="Do the work and report it, but write nothing."),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
)
_data_options = _options(
    click.option(
        "--preprocessing",
        type=click.Choice(PREPROCESSINGS),
        default="none",
        show_default=True,
        help="How a folder's images are scaled: not, to [0, 1], or as keras.applications does.",
    ),
    click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True),
)
_DATA_HELP = "Examples: a .npy or .npz file, or a folder of images."
_data = _options(
    click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help=_DATA_HELP),
    _data_options,
)
_optional_data = _options(
    click.option("--data", type=click.Path(exists=True, path_type=Path), help=_DATA_HELP), _data_options
)


def _surgery(
    model_file: Path,
    modules: tuple[str, ...],
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    operate: Callable[[Any], SurgeryResult],
) -> None:
    """Load, operate, report, write: what every verb that changes a model does."""
    if output is None and not dry_run:
        raise click.UsageError("Give an output with -o OUT.keras, or --dry-run to write nothing.")
    if output is not None:
        check_output(output, overwrite)
    import_modules(modules)
    result = operate(load_model(model_file))
    click.echo(result.report.to_json() if as_json else str(result.report))
    if output is not None and not dry_run:
        result.model.save(output)
        click.echo(f"Wrote {output}.", err=True)


@main.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo_output"),
    show_default=True,
    help="The folder the exported model is left under.",
)
def demo(output: Path) -> None:
    """Train, retrofit, fine-tune, export, serve and query on handwritten digits.

    Takes about a minute, needs scikit-learn (pip install 'keras-bn[demo]'), and exits with 1 and the reason
    if any figure it prints is not what it must be.
    """
    from keras_bn.demo import run

    run(output)


@main.command()
@_model
@_imports
@_output
def convert(model_file: Path, **options: Any) -> None:
    """Replace every Keras BN layer by keras_bn's; the outputs stay.

    \b
      keras-bn convert resnet.keras -o resnet_bn.keras
    """
    _surgery(model_file, operate=keras_bn.convert, **options)


@main.command()
@_model
@_data
@click.option("--drop-bias", is_flag=True, help="Absorb each layer's bias, redundant before BN, into beta.")
@_imports
@_output
def retrofit(
    model_file: Path, data: Path, preprocessing: str, batch_size: int, drop_bias: bool, **options: Any
) -> None:
    """Put BN into a trained network without changing its outputs.

    One BN goes between every convolution or dense layer (but the output layer) and its activation; the data
    gives the statistics. Then train on.

    \b
      keras-bn retrofit vgg16.keras --data images/ --preprocessing caffe -o vgg16_bn.keras
    """

    def operate(model: Any) -> SurgeryResult:
        examples, size = read_data(data, model, preprocessing, batch_size)
        return keras_bn.retrofit(model, examples, batch_size=size, drop_bias=drop_bias)

    _surgery(model_file, operate=operate, **options)


@main.command()
@_model
@_data
@_imports
@_output
def recalibrate(model_file: Path, data: Path, preprocessing: str, batch_size: int, **options: Any) -> None:
    """Re-estimate the population statistics from data, weights frozen.

    The remedy after training with small batches, averaging weights, or moving to another domain.

    \b
      keras-bn recalibrate model.keras --data train.npy -o model_recalibrated.keras
    """

    def operate(model: Any) -> SurgeryResult:
        examples, size = read_data(data, model, preprocessing, batch_size)
        return keras_bn.recalibrate(model, examples, batch_size=size)

    _surgery(model_file, operate=operate, **options)


@main.command()
@_model
@_imports
@_output
def fold(model_file: Path, **options: Any) -> None:
    """Absorb BN into the convolutions and dense layers around it, for inference.

    \b
      keras-bn fold model.keras -o model_folded.keras
    """
    _surgery(model_file, operate=keras_bn.fold, **options)


@main.command()
@_model
@_optional_data
@click.option("--html", type=click.Path(path_type=Path), help="Also write the report as one HTML page.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@_imports
def inspect(
    model_file: Path,
    data: Path | None,
    preprocessing: str,
    batch_size: int,
    html: Path | None,
    as_json: bool,
    modules: tuple[str, ...],
) -> None:
    """Show a model's BN layers and whether they are healthy.

    MODEL.keras may also be the version folder of an exported SavedModel: then its inference mode is proven or
    disproven. Exits with 1 if something is wrong, so that CI can ask.

    \b
      keras-bn inspect model.keras --data validation.npy --html report.html
      keras-bn inspect models/vgg/1
    """
    if model_file.is_dir():
        click.echo(keras_bn.verify_inference_mode(model_file))
        return
    import_modules(modules)
    model = load_model(model_file)
    examples = None if data is None else read_data(data, model, preprocessing, batch_size)[0]
    report = keras_bn.inspect(model, examples)
    click.echo(report.to_json() if as_json else str(report))
    if html is not None:
        html.write_text(report.to_html(), encoding="utf-8")
        click.echo(f"Wrote {html}.", err=True)
    sys.exit(0 if report.healthy else 1)


@main.command()
@_model
@click.argument("base_path", type=click.Path(file_okay=False, path_type=Path))
@click.option("--version", type=click.IntRange(1), help="The version; the next free one by default.")
@click.option("--fold/--no-fold", default=True, show_default=True, help="Fold BN away first.")
@click.option("--json", "as_json", is_flag=True, help="Print the version folder as JSON.")
@_imports
def export(
    model_file: Path,
    base_path: Path,
    version: int | None,
    fold: bool,
    as_json: bool,
    modules: tuple[str, ...],
) -> None:
    """Write a SavedModel that TF Serving serves, proven to be in inference mode.

    It appears as BASE_PATH/VERSION in one step, so a server that watches the folder never sees half of it.

    \b
      keras-bn export model.keras models/vgg
    """
    import_modules(modules)
    folder = keras_bn.export(load_model(model_file), base_path, version=version, fold=fold)
    click.echo(json.dumps({"path": str(folder), "version": int(folder.name)}) if as_json else folder)


@main.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(arguments: tuple[str, ...]) -> None:
    """Serve SavedModels on this machine over gRPC and REST, as TF Serving does.

    \b
      keras-bn serve models/vgg              gRPC on 8500, REST on 8501, named vgg
      keras-bn serve --model_config_file=models.config --rest_api_port=8501
      keras-bn serve --help                  every flag; they are tensorflow_model_server's
    """
    from serving.local_server.main import main as serve_main

    flags = list(arguments)
    if flags and not flags[0].startswith("-"):
        base_path = Path(flags.pop(0)).resolve()
        flags = [
            f"--model_base_path={base_path}",
            f"--model_name={base_path.name}",
            "--rest_api_port=8501",
            *flags,
        ]
    sys.exit(serve_main(flags))


main.add_command(query)
