"""`keras-bn query`, which is the serving package's own command."""

from __future__ import annotations

from typing import Any

import click

from keras_bn_cli.command_error import CommandError


class _Query(click.Command):
    """Imported when it is called or its help is shown, so the list of commands does not wait for it."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            from keras_bn_serving.client.command import query
        except ModuleNotFoundError as error:
            raise CommandError(
                f"query needs keras-bn-serving ({error}); install it: pip install keras-bn-serving"
            ) from error
        return query.make_context(*args, **kwargs)


query = _Query("query", short_help="Ask a model server for a prediction and print it as JSON.")
