"""The command line, `keras-bn`: one command a verb, over `.keras` files, exported models and model servers.

Exit codes: 0 done, 1 the work could not be done (one line says why), 2 the command was not understood.
"""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import keras_bn
from keras_bn.cli.files import check_writable, import_modules, load_model, read_arrays, read_data
from keras_bn.cli.options import import_option, model_argument, optional_data_options
from keras_bn.cli.surgery import convert, fold, recalibrate, retrofit
from keras_bn.errors import KerasBNError
from keras_bn_serving.client.command import query
from keras_bn_serving.wire.errors import ServingError


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
        except Exception as error:
            import tensorflow as tf

            if not isinstance(error, tf.errors.OpError):
                raise
            first_line = str(error.message).partition("\n")[0]  # the trace of the graph follows
            raise click.ClickException(f"TensorFlow: {first_line}") from error


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
    from keras_bn.cli.demo import run

    run(output)


for command in (convert, retrofit, recalibrate, fold):
    main.add_command(command)


@main.command()
@model_argument
@optional_data_options
@click.option("--saved-model", is_flag=True, help="MODEL is the version folder of an exported SavedModel.")
@click.option("--html", type=click.Path(path_type=Path), help="Also write the report as one HTML page.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@import_option
def inspect(
    model_file: Path,
    data: Path | None,
    preprocessing: str,
    batch_size: int,
    saved_model: bool,
    html: Path | None,
    as_json: bool,
    modules: tuple[str, ...],
) -> None:
    """Show a model's BN layers and whether they are healthy.

    Of an exported SavedModel, prove or disprove that it runs in inference mode; the data, if given, is a .npy
    or .npz file of two or more examples. Exits with 1 if something is wrong, so that CI can ask.

    \b
      keras-bn inspect model.keras --data validation.npy --html report.html
      keras-bn inspect --saved-model models/vgg/1
    """
    if saved_model or model_file.is_dir():
        proof = keras_bn.verify_inference_mode(model_file, None if data is None else read_arrays(data))
        click.echo(json.dumps(asdict(proof)) if as_json else proof)
        return
    if html is not None:
        check_writable(html)
    import_modules(modules)
    model = load_model(model_file)
    examples, size = (None, None) if data is None else read_data(data, model, preprocessing, batch_size)
    report = keras_bn.inspect(model, examples, batch_size=size)
    click.echo(report.to_json() if as_json else str(report))
    if html is not None:
        html.write_text(report.to_html(), encoding="utf-8")
        click.echo(f"Wrote {html}.", err=True)
    sys.exit(0 if report.healthy else 1)


@main.command()
@model_argument
@click.argument("base_path", type=click.Path(file_okay=False, path_type=Path))
@click.option("--version", type=click.IntRange(1), help="The version; the next free one by default.")
@click.option("--fold/--no-fold", default=True, show_default=True, help="Fold BN away first.")
@click.option(
    "--image-bytes",
    type=click.Choice(("raw", "caffe", "tf", "torch")),
    help="Add a signature that takes JPEG or PNG files, scaled so inside the graph.",
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
    """Write a SavedModel that TF Serving serves, proven to be in inference mode.

    It appears as BASE_PATH/VERSION in one step, so a server that watches the folder never sees half of it.

    \b
      keras-bn export model.keras models/vgg
    """
    import_modules(modules)
    model = load_model(model_file)
    folder = keras_bn.export(model, base_path, version=version, fold=fold, image_bytes=image_bytes)
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
    from keras_bn_serving.local_server.main import main as serve_main

    flags = list(arguments)
    if flags and not flags[0].startswith("-"):
        flags = _flags_for_folder(Path(flags[0]).resolve(), flags[1:])
    sys.exit(serve_main(flags))


def _flags_for_folder(base_path: Path, flags: list[str]) -> list[str]:
    """The flags that serve one folder, refusing at once what TF Serving would wait for or do without."""
    flags = [
        "--port=8500",
        "--rest_api_port=8501",
        f"--model_base_path={base_path}",
        f"--model_name={base_path.name}",
        "--fail_if_no_model_versions_found",
        *flags,
    ]
    ports = {name: port for name, _, port in (flag.partition("=") for flag in flags) if port.isdecimal()}
    for name in ("--port", "--rest_api_port"):
        if name in ports and int(ports[name]):
            _check_port(name, int(ports[name]))
    return flags


def _check_port(flag: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise KerasBNError(
                f"Port {port} cannot be used ({error}); choose another with {flag}=."
            ) from error


main.add_command(query)


if __name__ == "__main__":
    main()
