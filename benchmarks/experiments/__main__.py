"""The command line of the experiments.

Exit codes: 0 done, 1 the work could not be done (one line says why), 2 the command was not understood,
130 interrupted (the same command resumes).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import click

from keras_bn.errors import KerasBNError

RESULTS = Path(__file__).parent / "results"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.option(
    "--fast/--full", default=True, help="Settings that take seconds, or those of the results shown."
)
@click.option("--data", default="digits", show_default=True, help="digits or mnist.")
@click.option("--seeds", type=click.IntRange(min=1), help="Runs of every variant [default: the setting's].")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the results.")
def main(name: str, fast: bool, data: str, seeds: int | None, output: Path | None) -> None:
    """Run the experiment NAME ("list" shows them, "all" runs them) and write its results and figure.

    Results go to benchmarks/experiments/results, those of the fast setting to its folder "fast". Every run is
    saved as soon as it is done; after an interruption the same command resumes.
    """
    try:
        if name == "list":
            _list()
            return
        _require("matplotlib")
        output = output or (RESULTS / "fast" if fast else RESULTS)
        for each in _names(name):
            _run(each, fast, data, seeds, output)
    except KerasBNError as error:
        raise click.ClickException(str(error)) from error


def _list() -> None:
    from benchmarks.experiments.registry import EXPERIMENTS

    for name, line in EXPERIMENTS.items():
        click.echo(f"{name:<20} {line}")


def _names(name: str) -> list[str]:
    from benchmarks.experiments.registry import EXPERIMENTS

    return list(EXPERIMENTS) if name == "all" else [name]


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise KerasBNError(f"{package} is not installed: pip install 'keras-bn[experiments]'.")


def _run(name: str, fast: bool, data_name: str, seeds: int | None, output: Path) -> None:
    from benchmarks.experiments import data, plots, registry
    from benchmarks.experiments.experiment import run_experiment
    from benchmarks.experiments.results import Results

    experiment = registry.load(name)
    settings = experiment.fast if fast else experiment.full
    seeds = seeds or settings["seeds"]
    command = f"python -m benchmarks.experiments {name} --{'fast' if fast else 'full'} --data {data_name}"
    stem = name if data_name == "digits" else f"{name}-{data_name}"
    examples = data.load(data_name)
    results = Results(output / f"{stem}.json", name, data_name, settings, f"{command} --seeds {seeds}")
    if len(results):
        click.echo(f"{name}: resuming, {results.path} has {_count(len(results), 'run')} already", err=True)
    try:
        run_experiment(experiment, results, examples, seeds)
    except KeyboardInterrupt:
        click.echo(
            f"{name}: interrupted; the same command resumes after {_count(len(results), 'run')}", err=True
        )
        sys.exit(130)
    table = experiment.table(results)
    results.summarise(table)
    written = plots.save(experiment.draw(results), output / stem)
    click.echo(f"{name} ({data_name}, {_count(results.seeds, 'seed')})\n{table}")
    click.echo("\n".join(str(path) for path in (results.path, *written)) + "\n")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


if __name__ == "__main__":
    main()
