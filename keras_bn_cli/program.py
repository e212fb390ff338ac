"""The program `keras-bn`: its commands, and what becomes of an error.

Exit codes: 0 done, 1 a check said no, 2 the command could not run, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from keras_bn_cli.command_error import CheckSaidNo, CommandError
from keras_bn_cli.demo_command import demo
from keras_bn_cli.drift import drift
from keras_bn_cli.export import export
from keras_bn_cli.inspect import inspect
from keras_bn_cli.profile import profile
from keras_bn_cli.query import query
from keras_bn_cli.recalibrate import merge, recalibrate
from keras_bn_cli.serve import serve
from keras_bn_cli.surgery import convert, fold, freeze, retrofit, unfreeze


class Program(click.Group):
    """The commands in the order in which they are used. A user's mistake is reported in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order in which they were added."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, with errors of the input turned into exit codes and one line each."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except Exception as error:
            if (command_error := _explained(error)) is None:
                raise
            raise command_error from error


def _explained(error: Exception) -> click.ClickException | None:
    """The error as one line, or None if it is a fault of this package rather than of its input.

    A class is looked up among the modules that are loaded: an error of another one cannot have been raised.
    """
    if isinstance(error, OSError):
        return CommandError(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    if (ours := sys.modules.get("keras_bn.errors")) and isinstance(error, ours.KerasBNError):
        return (CheckSaidNo if isinstance(error, ours.CheckFailedError) else CommandError)(str(error))
    if (serving := sys.modules.get("keras_bn_serving.wire.errors")) and isinstance(
        error, serving.ServingError
    ):
        return CommandError(str(error))
    if (tensorflow := sys.modules.get("tensorflow")) and isinstance(error, tensorflow.errors.OpError):
        return CommandError(f"TensorFlow: {str(error.message).partition(chr(10))[0]}")  # a trace follows
    return None


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keras-bn", prog_name="keras-bn")
def program() -> None:
    """Batch normalization for Keras: insert, repair, fold, export and serve.

    \b
    From a trained model to production:
      keras-bn retrofit vgg.keras --data images/ -o vgg_bn.keras
      keras-bn inspect vgg_bn.keras
      keras-bn export vgg_bn.keras models/vgg
      keras-bn serve models/vgg
      keras-bn query --model vgg cat.jpg

    \b
    Exit codes: 0 done; 1 a check said no; 2 the command could not run; 130 interrupted.
    """


for command in (
    demo,
    convert,
    retrofit,
    recalibrate,
    merge,
    fold,
    freeze,
    unfreeze,
    inspect,
    export,
    drift,
    profile,
    serve,
    query,
):
    program.add_command(command)
