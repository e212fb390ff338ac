"""The command line: one request to a model server, with the answer as JSON on standard output."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import click
import numpy as np

from keras_bn_serving.client.client import Client
from keras_bn_serving.client.metadata import Signature
from keras_bn_serving.wire.dtypes import numpy_dtype
from keras_bn_serving.wire.errors import InvalidArgumentError, ServingError

_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")


class _Failed(click.ClickException):
    """One line for what went wrong, with the exit code of every command that could not run."""

    exit_code = 2


@click.command(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("data", metavar="[INPUT]", required=False)
@click.option(
    "--url",
    default="http://localhost:8501",
    show_default=True,
    envvar="TF_SERVING_URL",
    show_envvar=True,
    help="Server: http://HOST:8501 (REST) or grpc://HOST:8500; https://, grpcs://, unix:/PATH.",
)
@click.option("--model", required=True, help="Name of the model on the server.")
@click.option("--signature", help="Name of the signature to call.  [default: serving_default]")
@click.option("--version", type=int, help="Version of the model.  [default: the newest]")
@click.option("--label", help="Label of a version, instead of its number.")
@click.option("--output", "outputs", multiple=True, help="Output to print, instead of all. May be repeated.")
@click.option(
    "--method",
    type=click.Choice(["predict", "classify", "regress"]),
    default="predict",
    show_default=True,
    help="classify and regress take JSON examples: '[{\"x\": 1.0}]'.",
)
@click.option(
    "--scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Factor for the pixels (0 to 255) of an image that is sent as numbers.",
)
@click.option("--status", "ask", flag_value="status", help="Print the state of the versions instead.")
@click.option("--metadata", "ask", flag_value="metadata", help="Print the signatures instead.")
@click.option(
    "--wait", type=float, metavar="SECONDS", help="First wait until the model (or --version) is up."
)
@click.option(
    "--timeout", type=float, default=10.0, show_default=True, metavar="SECONDS", help="For the call."
)
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="File to write instead of printing: .npy for one output, .npz for several.",
)
@click.option("--ca", type=click.Path(exists=True), help="PEM file of the certificate authorities to trust.")
@click.option("--cert", type=click.Path(exists=True), help="PEM file of the client's certificate.")
@click.option("--key", type=click.Path(exists=True), help="PEM file of the client's key.")
def query(
    data: str | None,
    url: str,
    model: str,
    timeout: float,
    wait: float | None,
    ask: str | None,
    ca: str | None,
    cert: str | None,
    key: str | None,
    **request: Any,
) -> None:
    """Ask a model server for a prediction and print it as JSON.

    INPUT is JSON text, the path of a .json, .npy or .npz file, - for JSON on standard input, or an image
    file. Give several inputs as a JSON object or an .npz file, by name. An image is a batch of one. If the
    model takes strings, the file is sent as it is. Otherwise it is decoded to pixels, which needs Pillow, and
    not resized.

    \b
    Examples:
      keras-bn query --model digits '[[0.0, 0.5, 1.0]]'
      keras-bn query --model digits --url grpc://localhost:8500 batch.npy
      keras-bn query --model vgg --signature serving_image cat.jpg
      keras-bn query --model digits --metadata            print inputs and outputs
      keras-bn query --model digits --status --wait 60    wait until it is available

    The exit code is 0 for an answer and 2 otherwise.
    """
    if ask is None and data is None:
        raise click.UsageError("INPUT is missing; --help lists its forms.")
    try:
        with Client(url, model=model, timeout=timeout, ca=ca, cert=cert, key=key) as client:
            if wait is not None:
                client.wait_until_ready(wait, version=request["version"])
            answer = _inform(client, ask, request) if ask else _infer(client, str(data), request)
    except ServingError as error:
        raise _Failed(f"{error.code}: {error}") from error
    if request["save"] and not ask:
        _save(request["save"], answer)
    else:
        click.echo(_to_json(answer))


def _inform(client: Client, ask: str, request: Mapping[str, Any]) -> Any:
    if ask == "status":
        return [dataclasses.asdict(entry) for entry in client.status(version=request["version"])]
    return dataclasses.asdict(client.metadata(version=request["version"], label=request["label"]))


def _infer(client: Client, data: str, request: Mapping[str, Any]) -> Any:
    where = {name: request[name] for name in ("signature", "version", "label")}
    if request["method"] != "predict":
        return getattr(client, request["method"])(_read_json(data), **where)
    if pathlib.Path(data).suffix.lower() in _IMAGES:
        metadata = client.metadata(version=where["version"], label=where["label"])
        value = _read_image(pathlib.Path(data), metadata.signature(where["signature"]), request["scale"])
    else:
        value = _read_array(data)
    names = request["outputs"]
    return client.predict(value, outputs=names[0] if len(names) == 1 else names or None, **where)


def _read_array(data: str) -> Any:
    if not data.endswith((".npy", ".npz")):
        return _read_json(data)
    try:
        loaded = np.load(data, allow_pickle=False)
        return dict(loaded) if data.endswith(".npz") else loaded
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{data} cannot be read: {error}") from error


def _read_json(data: str) -> Any:
    source, text = "INPUT", data
    try:
        if data == "-":
            source, text = "standard input", sys.stdin.read()
        elif data.endswith(".json"):
            source, text = data, pathlib.Path(data).read_text()
        return json.loads(text)
    except OSError as error:
        raise click.UsageError(f"{data} cannot be read: {error.strerror}") from error
    except ValueError as error:
        known = "JSON, nor the name of a .json, .npy, .npz or image file" if source == "INPUT" else "JSON"
        raise click.UsageError(f"{source} is not {known}: {error}") from error


def _read_image(path: pathlib.Path, signature: Signature, scale: float) -> Any:
    """A batch of one: the file itself for a string input, else its pixels (height, width, channels)."""
    if not path.is_file():
        raise click.UsageError(f"{path} cannot be read: no such file")
    if len(signature.inputs) != 1:
        raise InvalidArgumentError("an image is one input, and this signature has several: use JSON or .npz")
    (spec,) = signature.inputs.values()
    if spec.dtype == "DT_STRING":
        return [path]
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise _Failed(f"to decode {path} for a model of numbers, pip install pillow") from error
    channels = spec.shape[-1] if spec.shape else None
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise click.UsageError(f"{path} cannot be read as an image: {error}") from error
    if scale != 1.0:
        pixels = pixels.astype(numpy_dtype(spec.dtype)) * numpy_dtype(spec.dtype).type(scale)
    return pixels[None, ..., None] if pixels.ndim == 2 else pixels[None]


def _save(path: pathlib.Path, answer: Any) -> None:
    try:
        with path.open("wb") as file:
            if isinstance(answer, dict):
                np.savez(file, **answer)
            else:
                np.save(file, answer)
    except OSError as error:
        raise _Failed(f"{path} cannot be written: {error.strerror}") from error


def _to_json(answer: Any) -> str:
    from keras_bn_serving.wire.json_values import dumps

    return dumps(_printable(answer)).decode("utf-8")


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    if isinstance(value, np.ndarray) and (value.dtype == object or value.ndim == 0):
        return _printable(value.tolist())
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value
