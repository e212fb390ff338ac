"""The error that ends a command with one line."""

import click


class CommandError(click.ClickException):
    """The command could not run, or with `exit_code` 1 a check said no: one line, no traceback."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
