"""The errors that end a command with one line and no traceback."""

import click


class CommandError(click.ClickException):
    """The command could not run."""

    exit_code = 2


class CheckSaidNo(click.ClickException):
    """The command ran a check, and its answer is no."""

    exit_code = 1
