"""The cost of a retrofit, and its benefit in further training.

`python -m benchmarks.retrofit [--fast]` prints the time of calibration beside one plain `predict` over the
same data, the memory it takes as the data grows, and how many steps a network with and without retrofitted
BN needs to reach an accuracy on scikit-learn's digits at 1, 5 and 30 times the learning rate.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_bn
from benchmarks.timing import interleaved, machine, pin_threads, table

BASE_RATE = 0.01
FACTORS = (1, 5, 30)
TARGET = 0.97


def main(arguments: list[str]) -> None:
    fast = "--fast" in arguments
    pin_threads()
    print(machine())
    print("\nOne calibration against one `Model.predict` over the same data, medians of seconds.\n")
    print(table(["network", "examples", "predict", "calibration", "ratio"], [calibration_row(fast)]))
    print("\nPeak memory of a process that retrofits on that many examples from a generator.\n")
    print(table(["examples", "peak MB"], [[str(n), peak_memory(n)] for n in (64, 256, 1024)]))
    print(
        f"\nSteps of SGD, batches of 32, to {TARGET:.0%} test accuracy on digits, from a network trained on "
        "200 of the 1400 images; median (lowest to highest) over the seeds, - where it was not reached.\n"
    )
    print(table(["learning rate", "original", "retrofitted"], fine_tuning_rows(fast)))


def calibration_row(fast: bool) -> list[str]:
    """A VGG16 in full width; the time of a retrofit less that of the same on a single example."""
    side, examples = (64, 64) if fast else (224, 64)
    model = keras.applications.VGG16(weights=None, input_shape=(side, side, 3))
    images = np.random.default_rng(0).normal(size=(examples, side, side, 3)).astype("float32")
    options = {"batch_size": 32, "check_data": images[:1]}  # the check of the outputs costs both the same
    runs: dict[str, Callable[[], object]] = {
        "predict": lambda: model.predict(images, batch_size=32, verbose=0),
        "retrofit": lambda: _retrofit(model, images, **options),
        "retrofit on one": lambda: _retrofit(model, images[:1], **options),
    }
    seconds = interleaved(runs, rounds=3, warmup=1)
    calibration = seconds["retrofit"] - seconds["retrofit on one"]
    return [
        f"VGG16 at {side}x{side}",
        str(examples),
        *(f"{t:.2f}" for t in (seconds["predict"], calibration, calibration / seconds["predict"])),
    ]


def peak_memory(examples: int) -> str:
    """Peak resident megabytes of a process of its own that retrofits a VGG16 on so many examples."""
    code = f"from benchmarks import retrofit; retrofit.retrofit_from_generator({examples})"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return f"{int(output.split()[-1]) / 1024:.0f}"


def retrofit_from_generator(examples: int) -> None:
    """Retrofit on batches that are made as they are asked for, and print the peak memory in kilobytes."""
    model = keras.applications.VGG16(weights=None, input_shape=(64, 64, 3), classes=10)
    rng = np.random.default_rng(0)
    batches = (rng.normal(size=(32, 64, 64, 3)).astype("float32") for _ in range(examples // 32))
    _retrofit(model, batches)
    # Not getrusage: its maximum starts at what the parent process held.
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def fine_tuning_rows(fast: bool) -> list[list[str]]:
    """A row per learning rate: the steps of the original and of the retrofitted network to the target."""
    seeds, steps = (2, 300) if fast else (5, 600)
    reached: dict[tuple[int, str], list[int | None]] = {}
    for seed in range(seeds):
        data = digits(seed)
        original = pretrained(seed, data)
        # Over some hundred steps an average of momentum 0.99 would still be that of the start.
        retrofitted = _retrofit(original, data[0][:256], layer_arguments={"momentum": 0.9})
        variants = {"original": original, "retrofitted": retrofitted}
        weights = {name: model.get_weights() for name, model in variants.items()}
        for factor in FACTORS:
            for name, model in variants.items():
                model.set_weights(weights[name])
                found = steps_to_target(model, data, factor * BASE_RATE, steps, seed)
                reached.setdefault((factor, name), []).append(found)
    names = ("original", "retrofitted")
    return [
        [f"{factor} x {BASE_RATE:g}", *(_summary(reached[factor, n]) for n in names)] for factor in FACTORS
    ]


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels, split anew for each seed."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    images = (images[order].reshape(-1, 8, 8, 1) / 16).astype("float32")
    labels = labels[order]
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def pretrained(seed: int, data: tuple[np.ndarray, ...]) -> keras.Model:
    """A small VGG without BN, trained on 200 images."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    stack = [keras.Input((8, 8, 1))]
    for filters in (16, 32):
        stack += [layers.Conv2D(filters, 3, padding="same", activation="relu") for _ in range(2)]
        stack.append(layers.MaxPooling2D())
    stack += [layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)]
    model = keras.Sequential(stack)
    model.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data[0][:200], data[1][:200], batch_size=20, epochs=12, verbose=0)
    return model


def steps_to_target(
    model: keras.Model, data: tuple[np.ndarray, ...], learning_rate: float, steps: int, seed: int
) -> int | None:
    """Steps of SGD until the test accuracy, looked at every ten steps, reaches the target; None if never."""
    train_images, train_labels, test_images, test_labels = data
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss, jit_compile=False)
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        batch = rng.choice(len(train_images), 32, replace=False)
        model.train_on_batch(train_images[batch], train_labels[batch])
        if step % 10 == 0:
            predicted = model.predict_on_batch(test_images).argmax(-1)
            if np.mean(predicted == test_labels) >= TARGET:
                return step
    return None


def _retrofit(model: keras.Model, data: object, **options: Any) -> keras.Model:
    return keras_bn.retrofit(model, data, progress=False, **options).model


def _summary(reached: list[int | None]) -> str:
    found = sorted(step for step in reached if step is not None)
    if not found:
        return "-"
    missed = f", - for {len(reached) - len(found)}" if len(found) < len(reached) else ""
    return f"{statistics.median(found):g} ({found[0]} to {found[-1]}{missed})"


if __name__ == "__main__":
    main(sys.argv[1:])
