"""`keras-bn profile`."""

from __future__ import annotations

from pathlib import Path

import click

from keras_bn_cli.quiet import imported


@click.command()
@click.argument("base_path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--seconds", type=click.FloatRange(1), default=120, show_default=True, help="Time limit, in seconds."
)
@click.option("--in-process", is_flag=True, help="Do not use the tensorflow_model_server on PATH.")
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Also write a chart to this SVG file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.option(
    "--deployment",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Also write the setting into the deployment files of this folder, such as serving or a copy of it.",
)
@click.option(
    "--optimum",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="The setting that --deployment writes.",
)
def profile(
    base_path: Path,
    seconds: float,
    in_process: bool,
    svg: Path | None,
    as_json: bool,
    deployment: Path | None,
    optimum: str,
) -> None:
    """Measure an exported model on this machine and plan its server.

    Runs the newest version (in float32 and, if exported, bfloat16) with several numbers of threads, batch
    sizes and clients. Prints a table, and the settings with the lowest latency and with the highest
    throughput: flags and batching fields for tensorflow_model_server, and resources of its container. The
    model runs in the tensorflow_model_server on PATH if there is one, and otherwise in a session of a fresh
    process.

    \b
      keras-bn profile models/vgg --svg plan.svg
      keras-bn profile models/vgg --deployment serving --optimum throughput
    """
    imported()
    from keras_bn.profiling.profile import profile as measure

    plan = measure(base_path, seconds, in_process=in_process)
    if svg is not None:
        svg.write_text(plan.to_svg(), encoding="utf-8")
        click.echo(f"Wrote {svg}.", err=True)
    if deployment is not None:
        from keras_bn.profiling.deployment import write_setting

        chosen = plan.for_latency if optimum == "latency" else plan.for_throughput
        for file in write_setting(deployment, chosen):
            click.echo(f"Wrote {file}.", err=True)
    click.echo(plan.to_json() if as_json else str(plan))
