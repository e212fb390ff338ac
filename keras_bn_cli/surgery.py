"""The commands that rewrite a model: convert, retrofit, fold, freeze, unfreeze."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keras_bn_cli.options import (
    data_options,
    import_option,
    layers_option,
    model_argument,
    optional_data_options,
    output_options,
)
from keras_bn_cli.quiet import imported

if TYPE_CHECKING:
    from keras_bn.surgery.report import SurgeryResult


def rewrite_model(
    model_file: Path,
    modules: tuple[str, ...],
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    operate: Callable[[Any, Any], SurgeryResult],
) -> None:
    """Load the model, call `operate(keras_bn, model)`, print the report and write the result."""
    if output is None and not dry_run:
        raise click.UsageError("Give an output with -o OUT.keras, or --dry-run to write nothing.")
    keras_bn = imported()
    from keras_bn_cli.files import check_output, import_modules, load_model, save_model

    if output is not None:
        check_output(output, overwrite)
    import_modules(modules)
    result = operate(keras_bn, load_model(model_file))
    click.echo(result.report.to_json() if as_json else str(result.report))
    if output is not None and not dry_run:
        save_model(result.model, output)
        click.echo(f"Wrote {output}.", err=True)


_TARGETS = ("BatchNormalization", "BatchRenormalization", "keras", "frozen", "group")


@click.command()
@model_argument
@click.option(
    "--to",
    type=click.Choice(_TARGETS),
    default="BatchNormalization",
    show_default=True,
    help="The new layer: keras_bn's BN, Keras's BN, BN with frozen statistics, or group normalization.",
)
@optional_data_options
@import_option
@output_options
def convert(
    model_file: Path, to: str, data: Path | None, preprocessing: str, batch_size: int, **options: Any
) -> None:
    """Replace the normalization layers, by default every Keras BN layer by keras_bn's.

    The outputs are preserved, except with --to group. There, each channel keeps its mean and deviation over
    the data.

    \b
      keras-bn convert resnet.keras -o resnet_bn.keras
      keras-bn convert resnet.keras --to group --data images.npy -o resnet_gn.keras
    """

    def operate(keras_bn: Any, model: Any) -> SurgeryResult:
        from keras_bn_cli.files import read_data

        examples, size = (None, None) if data is None else read_data(data, model, preprocessing, batch_size)
        target = getattr(keras_bn, to) if to.startswith("Batch") else to
        return keras_bn.convert(model, target, data=examples, batch_size=size)

    rewrite_model(model_file, operate=operate, **options)


@click.command()
@model_argument
@data_options
@layers_option
@click.option(
    "--position",
    type=click.Choice(("before_activation", "after_activation")),
    default="before_activation",
    show_default=True,
)
@click.option(
    "--drop-bias", is_flag=True, help="Absorb the bias of each layer, which BN makes redundant, into beta."
)
@click.option(
    "--remove-dropout", is_flag=True, help="Remove Dropout layers, since BN makes them less necessary."
)
@click.option(
    "--l2-factor",
    type=float,
    default=1.0,
    show_default=True,
    help="Factor for the L2 regularization of weights.",
)
@import_option
@output_options
def retrofit(
    model_file: Path,
    data: Path,
    preprocessing: str,
    batch_size: int,
    layers: tuple[str, ...],
    position: str,
    drop_bias: bool,
    remove_dropout: bool,
    l2_factor: float,
    **options: Any,
) -> None:
    """Insert BN into a trained network without changing its outputs.

    A BN layer is inserted between every convolution or dense layer, except output layers, and its activation.
    The statistics come from the data. Then continue training.

    \b
      keras-bn retrofit vgg16.keras --data images/ --preprocessing caffe -o vgg16_bn.keras
    """

    def operate(keras_bn: Any, model: Any) -> SurgeryResult:
        from keras_bn_cli.files import read_data

        examples, size = read_data(data, model, preprocessing, batch_size)
        return keras_bn.retrofit(
            model,
            examples,
            layers=list(layers) or None,
            position=position,
            drop_bias=drop_bias,
            remove_dropout=remove_dropout,
            l2_factor=l2_factor,
            batch_size=size,
        )

    rewrite_model(model_file, operate=operate, **options)


@click.command()
@model_argument
@import_option
@output_options
def fold(model_file: Path, **options: Any) -> None:
    """Fold BN into the convolutions and dense layers around it, for inference.

    \b
      keras-bn fold model.keras -o model_folded.keras
    """
    rewrite_model(model_file, operate=lambda keras_bn, model: keras_bn.fold(model), **options)


@click.command()
@model_argument
@layers_option
@import_option
@output_options
def freeze(model_file: Path, layers: tuple[str, ...], **options: Any) -> None:
    """Freeze the population statistics, so that fine-tuning costs no more than without BN.

    A BN layer is computed together with the convolution or dense layer before it. Train the result, then
    restore the original layers with `keras-bn unfreeze`.

    \b
      keras-bn freeze resnet.keras -o resnet_frozen.keras
    """
    rewrite_model(
        model_file, operate=lambda keras_bn, model: keras_bn.freeze(model, list(layers) or None), **options
    )


@click.command()
@model_argument
@import_option
@output_options
def unfreeze(model_file: Path, **options: Any) -> None:
    """Undo `keras-bn freeze`: restore the original layers with the trained weights.

    \b
      keras-bn unfreeze resnet_frozen.keras -o resnet.keras
    """
    rewrite_model(model_file, operate=lambda keras_bn, model: keras_bn.unfreeze(model), **options)
