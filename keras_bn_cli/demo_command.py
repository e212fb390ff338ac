"""`keras-bn demo`."""

from __future__ import annotations

from pathlib import Path

import click

from keras_bn_cli.quiet import imported


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo_output"),
    show_default=True,
    help="The folder to write the exported model to.",
)
def demo(output: Path) -> None:
    """Train, retrofit, fine-tune, export, serve and query on handwritten digits.

    Takes about a minute and needs scikit-learn (pip install 'keras-bn[demo]'). Exits with 1 and the reason if
    any figure that it prints is out of bounds.
    """
    imported()
    from keras_bn_cli.demo import run

    run(output)
