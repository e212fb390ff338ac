"""`keras-bn recalibrate` and `keras-bn merge`: statistics from data, in one job or in many."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import click

from keras_bn_cli.options import (
    import_option,
    layers_option,
    model_argument,
    optional_data_options,
    output_options,
)
from keras_bn_cli.quiet import imported
from keras_bn_cli.surgery import rewrite_model


class _Shard(click.ParamType):  # type: ignore[type-arg]  # older releases of click take no argument
    """`I/N` as (I, N)."""

    name = "I/N"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The pair, or a usage error."""
        found = re.fullmatch(r"(\d+)/(\d+)", value) if isinstance(value, str) else None
        if found is None or not int(found[1]) < int(found[2]):
            self.fail(f"{value!r} is not I/N with I from 0 to N - 1, such as 0/8 or 7/8.", param, ctx)
        return int(found[1]), int(found[2])


@click.command()
@model_argument
@optional_data_options
@layers_option
@click.option(
    "--estimator",
    type=click.Choice(("sequential", "batch")),
    default="sequential",
    show_default=True,
    help="Normalize in earlier layers by population statistics or by the moments of each batch.",
)
@click.option(
    "--prior",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="N",
    help="Mix in the model's statistics, counted as N values per channel.",
)
@click.option("--shard", type=_Shard(), help="Use only the I-th of N shards of the data, counted from 0.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write the statistics of the shard to.",
)
@click.option(
    "--statistics",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Merged statistics. They are applied, or with --data the next level is estimated.",
)
@import_option
@output_options
def recalibrate(
    model_file: Path,
    data: Path | None,
    preprocessing: str,
    batch_size: int,
    layers: tuple[str, ...],
    estimator: Literal["sequential", "batch"],
    prior: float,
    shard: tuple[int, int] | None,
    save: Path | None,
    statistics: Path | None,
    **options: Any,
) -> None:
    """Re-estimate the population statistics from data, with the weights frozen.

    Use it after training with small batches, after averaging weights, or for data of another domain. Cut data
    that is too large for one job into shards, and merge their statistics.

    \b
      keras-bn recalibrate model.keras --data train.npy -o recalibrated.keras
      keras-bn recalibrate model.keras --data images/ --estimator batch --shard 3/8 --save part-3.stats
      keras-bn merge part-*.stats -o all.stats
      keras-bn recalibrate model.keras --statistics all.stats -o recalibrated.keras
    """
    if data is None and statistics is None:
        raise click.UsageError("Give --data to estimate from, or --statistics to apply.")
    if shard is not None and save is None:
        raise click.UsageError("--shard needs --save, the file for the statistics of the shard.")

    def operate(keras_bn: Any, model: Any) -> Any:
        from keras_bn_cli.files import check_writable, read_data

        if save is not None:
            check_writable(save)
        examples, size = (None, None) if data is None else read_data(data, model, preprocessing, batch_size)
        return keras_bn.recalibrate(
            model,
            examples,
            prior=prior,
            layers=list(layers) or None,
            estimator=estimator,
            batch_size=size,
            shard=shard,
            save=save,
            statistics=statistics,
        )

    if save is not None and options["output"] is None:
        options["dry_run"] = True  # the file of statistics is the result
    rewrite_model(model_file, operate=operate, **options)
    if save is not None:
        click.echo(f"Wrote {save}.", err=True)


@click.command()
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(exists=True, path_type=Path)
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write the merged statistics to.",
)
def merge(files: tuple[Path, ...], output: Path) -> None:
    """Merge the statistics of shards that `recalibrate --shard` wrote, in any order.

    \b
      keras-bn merge part-*.stats -o all.stats
    """
    keras_bn = imported()
    from keras_bn_cli.files import check_writable

    check_writable(output)
    merged = keras_bn.merge(files)
    merged.save(output)
    click.echo(merged)
    if merged.missing_shards:
        click.echo(f"Shards still missing: {', '.join(map(str, merged.missing_shards))}.", err=True)
    elif merged.remaining_levels:
        level, levels = merged.level + 2, len(merged.levels)
        click.echo(f"Estimate level {level} of {levels} with --statistics {output}.", err=True)
    click.echo(f"Wrote {output}.", err=True)
