"""`keras-bn serve`: one folder, or the models that tensorflow_model_server's flags select."""

from __future__ import annotations

import contextlib
import difflib
import errno
import socket
import sys
from pathlib import Path
from types import ModuleType

import click

from keras_bn_cli.command_error import CommandError
from keras_bn_cli.quiet import held_back

_INSTALL = "install it: pip install 'keras-bn-serving[server]'"


class _Serve(click.Command):
    """Its options are the server's flags, which one module lists for both."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Flags, as for tensorflow_model_server"):
            formatter.write_dl(
                [(f"--{name}={_shown(default)}", text) for name, default, text in _flags_module().described()]
            )


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


@click.command(
    cls=_Serve,
    no_args_is_help=True,
    options_metavar="[--FLAG=VALUE]...",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
)
@click.argument("folder", required=False)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED, metavar="")
def serve(folder: str | None, flags: tuple[str, ...]) -> None:
    """Serve SavedModels on this machine over gRPC and REST, as TF Serving does.

    FOLDER holds the versions of one model, as `keras-bn export` writes them. The model is named after the
    folder, gRPC listens on port 8500 and REST on port 8501. Without FOLDER, the flags select the models.
    Ctrl-C stops the server.

    \b
      keras-bn serve models/vgg
      keras-bn serve models/vgg --rest_api_port=9000 --enable_batching
      keras-bn serve --model_config_file=models.config --rest_api_port=8501
    """
    if folder is None or folder.startswith("-"):
        arguments = [*([] if folder is None else [folder]), *flags]
    else:
        arguments = _flags_for_folder(Path(folder).resolve(), list(flags))
    _check_flags(arguments)
    try:
        with held_back():
            import tensorflow  # noqa: F401
    except ModuleNotFoundError as error:
        raise CommandError(f"serve needs TensorFlow ({error}); {_INSTALL}") from error
    from keras_bn_serving.local_server.main import main

    sys.exit(2 if main(arguments) else 0)


def _flags_module() -> ModuleType:
    """The module that lists and reads the server's flags."""
    try:
        from keras_bn_serving.local_server import flags
    except ModuleNotFoundError as error:
        raise CommandError(f"serve needs keras-bn-serving ({error}); {_INSTALL}") from error
    return flags


def _flags_for_folder(folder: Path, flags: list[str]) -> list[str]:
    """The flags that serve one folder. A folder without a version is refused, while TF Serving would wait."""
    if folder.is_file():
        raise click.UsageError(f"{folder} is a file; export it first: keras-bn export {folder} models/NAME")
    if not folder.is_dir():
        raise click.UsageError(f"The folder {folder} does not exist.")
    if (folder / "saved_model.pb").exists():
        raise click.UsageError(
            f"{folder} is one version of a model; give the folder that holds the versions, {folder.parent}."
        )
    if not any(child.name.isdecimal() for child in folder.iterdir()):
        raise click.UsageError(f"{folder} holds no version; write one: keras-bn export MODEL.keras {folder}")
    return [
        "--port=8500",
        "--rest_api_port=8501",
        f"--model_base_path={folder}",
        f"--model_name={folder.name}",
        "--fail_if_no_model_versions_found",
        *flags,
    ]


def _check_flags(arguments: list[str]) -> None:
    """Refuse flags that the server would only warn about, and ports that are in use."""
    server_flags = _flags_module()
    try:
        flags, unsupported, unknown = server_flags.parse(arguments)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for argument in unknown:
        name = argument.partition("=")[0]
        if name.removeprefix("--") in {known for known, *_ in server_flags.described()}:
            raise click.UsageError(f"{name} needs a value, written {name}=VALUE.")
        close = difflib.get_close_matches(name, [f"--{known}" for known, *_ in server_flags.described()], 1)
        hint = f" Did you mean {close[0]}?" if close else " See keras-bn serve --help."
        raise click.UsageError(f"No such flag: {argument}.{hint}")
    if unsupported:
        raise click.UsageError(f"--{unsupported[0]} is not supported by the local server.")
    for flag in ("port", "rest_api_port"):
        if number := getattr(flags, flag):
            _check_port(flags.host, number, flag)


def _check_port(host: str, port: int, flag: str) -> None:
    try:
        addresses = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise click.UsageError(f"--host={host}, --{flag}={port}: {error}") from error
    for family, kind, protocol, _, address in addresses:
        with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except (OSError, OverflowError) as error:
                if getattr(error, "errno", None) == errno.EADDRNOTAVAIL and len(addresses) > 1:
                    continue  # a name that also stands for an address which this machine does not have
                raise CommandError(
                    f"Port {port} of {host} cannot be used ({error}); choose another with --{flag}=."
                ) from error
