"""Which experiments there are. Each is a module of its own, imported only when it is run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from keras_bn.errors import KerasBNError

if TYPE_CHECKING:
    from benchmarks.experiments.experiment import Experiment

EXPERIMENTS = {
    "mnist_4_1": "the paper's section 4.1 and figure 1: sigmoid units learn sooner, their inputs stay put",
    "inception_4_2": "the paper's section 4.2 in small: higher learning rates, less of everything else",
    "lenet": "LeNet-5 with and without BN",
    "learning_rate_sweep": "which learning rates train a network with and without BN",
    "placement": "BN before or after the activation",
    "dropout": "BN, dropout, both, neither",
    "batch_size": "where BN fails as batches shrink, and what helps",
    "ema_vs_population": "moving averages against re-estimated population statistics, over training",
    "vgg_retrofit": "BN inserted into a trained VGG: exactly, and in two ways that break it",
    "domain_shift": "a trained network on shifted images: old statistics, new ones, and mixtures",
    "group_normalization": "BN of a trained network exchanged for group normalization, in three ways",
    "sequences": "sequences of variable length, with and without masks",
}


def load(name: str) -> Experiment:
    """The experiment called `name`; KerasBNError lists the known ones if there is none."""
    if name not in EXPERIMENTS:
        raise KerasBNError(f"There is no experiment {name!r}; the known ones are: {', '.join(EXPERIMENTS)}.")
    return importlib.import_module(f"benchmarks.experiments.{name}").EXPERIMENT
