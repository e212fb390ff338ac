"""An experiment, which runs every variant with every seed and saves each run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
from tqdm import tqdm

from benchmarks.experiments.data import Data
from benchmarks.experiments.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Settings = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One question, asked of every variant with several seeds.

    Attributes:
        fast: settings for continuous integration; "seeds" among them is the number of seeds.
        full: settings of the published results, the same keys.
        variants: the names of what is compared, given the settings.
        run: trains one variant: `run(variant, seed, settings, data)` returns numbers and lists for JSON.
        draw: the figure of all runs.
        table: the summary of all runs, as lines of text.
    """

    fast: Settings
    full: Settings
    variants: Callable[[Settings], Sequence[str]]
    run: Callable[[str, int, Settings, Data], dict[str, Any]]
    draw: Callable[[Results], Figure]
    table: Callable[[Results], str]


def run_experiment(experiment: Experiment, results: Results, data: Data, seeds: int) -> None:
    """Make the runs that `results` does not have yet, each saved as soon as it is done."""
    wanted = [(variant, seed) for seed in range(seeds) for variant in experiment.variants(results.settings)]
    missing = [key for key in wanted if key not in results]
    with tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc=results.name, unit="run") as bar:
        for variant, seed in missing:
            bar.set_postfix_str(f"{variant}, seed {seed}")
            keras.utils.set_random_seed(seed)
            results.add(variant, seed, experiment.run(variant, seed, results.settings, data))
            keras.backend.clear_session()
            bar.update()
