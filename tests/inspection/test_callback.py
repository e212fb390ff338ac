"""The monitor recovers the statistics of the batches, records them, and warns once if something is wrong."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

from keras_bn import BatchNormalization, BatchNormalizationMonitor, BatchRenormalization, KerasBNError


def _fit(layer, x, monitor, epochs=1, batch_size=16):
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, x, epochs=epochs, batch_size=batch_size, shuffle=False, callbacks=[monitor], verbose=0)
    return [str(w.message) for w in caught if "layers" in str(w.message)]


def _healthy(size=4096, channels=8):
    return np.random.default_rng(0).normal(3, 2, (size, channels)).astype("float32")


@pytest.mark.parametrize(
    "layer",
    [
        lambda: BatchNormalization(momentum=0.9, unbiased_variance=False),
        lambda: BatchNormalization(momentum=None, unbiased_variance=False),
        lambda: BatchRenormalization(momentum=0.9),
        lambda: layers.BatchNormalization(momentum=0.9),
    ],
)
def test_recovers_the_statistics_of_the_batches(layer):
    x = _healthy(64)
    monitor = BatchNormalizationMonitor(every=2)
    _fit(layer(), x, monitor)
    (watched,) = monitor._watched
    batches = x.reshape(4, 16, 8)
    # A tenth of a float32's rounding error of the moving averages becomes a whole one.
    np.testing.assert_allclose(watched.means, batches.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(watched.variances, batches.var(1), rtol=1e-3)


def test_a_healthy_layer_is_left_in_peace():
    assert (
        _fit(BatchNormalization(momentum=0.9), _healthy(), BatchNormalizationMonitor(), batch_size=64) == []
    )


def test_far_statistics_are_reported_once_by_name():
    monitor = BatchNormalizationMonitor()
    found = _fit(
        BatchNormalization(momentum=0.999, name="slow"), _healthy(256), monitor, epochs=3, batch_size=64
    )
    assert len(found) == 1
    assert "statistics of 1 of 1 layers are far from those of the batches (worst: 'slow'" in found[0]


def test_small_batches_are_reported():
    found = _fit(
        BatchNormalization(momentum=0.5), _healthy(512), BatchNormalizationMonitor(far=1e9), batch_size=4
    )
    assert len(found) == 1
    assert "fewer than 8 independent values per channel" in found[0]


def test_the_effective_count_is_that_of_independent_values():
    monitor = BatchNormalizationMonitor(every=2)
    _fit(BatchNormalization(momentum=0.5), _healthy(64 * 64, 64), monitor, batch_size=64)
    # 63 pairs of 64 channels, of which the pairs share batches: the estimate scatters by a few percent.
    assert monitor._watched[0].summary()["effective_count"] == pytest.approx(64, rel=0.15)


@pytest.mark.parametrize("cause", ["constant input", "no gamma"])
def test_dead_channels_are_reported(cause):
    x = _healthy()
    layer = BatchNormalization(momentum=0.5, name="bn")
    layer.build((None, 8))
    if cause == "constant input":
        x[:, :2] = 1.5
    else:
        layer.gamma.assign([0.0, 0, 1, 1, 1, 1, 1, 1])
    found = _fit(layer, x, BatchNormalizationMonitor(), batch_size=64)
    assert len(found) == 1
    assert found[0].endswith("have a constant input or a gamma of 0 (worst: 'bn', 2 of 8).")


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="written by tf.summary")
def test_writes_to_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _fit(BatchNormalization(name="bn"), _healthy(256), BatchNormalizationMonitor(str(tmp_path)), epochs=2)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["tensors"])
    names = ("batch_mean", "batch_variance", "moving_mean", "moving_variance", "distance")
    assert tags == {f"bn/{n}" for n in (*names, "median_distance", "effective_count", "dead_channels")}
    assert len(events.Tensors("bn/distance")) == 2


def test_frozen_layers_and_models_without_are_refused():
    with pytest.raises(KerasBNError, match="nothing to monitor"):
        _fit(BatchNormalization(frozen_statistics=True), _healthy(64), BatchNormalizationMonitor())
    with pytest.raises(KerasBNError, match="nothing to monitor"):
        _fit(layers.Dense(8), _healthy(64), BatchNormalizationMonitor())
    with pytest.raises(KerasBNError, match=r"every must be at least 2.* 1"):
        BatchNormalizationMonitor(every=1)


def _network():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, use_bias=False),
            BatchNormalization(momentum=0.9, name="first"),
            layers.ReLU(),
            layers.Conv2D(8, 3, use_bias=False),
            BatchNormalization(momentum=0.9, name="second"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, activation="softmax"),
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_no_warning_in_a_healthy_run_whose_figures_are_in_the_logs(seed, tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x, labels = digits.images[..., None].astype("float32"), digits.target
    keras.utils.set_random_seed(seed)
    model = _network()
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callbacks = [BatchNormalizationMonitor(), logger]
        history = model.fit(x, labels, batch_size=32, epochs=3, callbacks=callbacks, verbose=0).history
    assert [str(w.message) for w in caught if "layers" in str(w.message)] == []
    names = ("bn_distance", "bn_effective_count", "bn_dead_channels")
    assert all(len(history[name]) == 3 for name in names)
    assert set(names) <= set((tmp_path / "log.csv").read_text().splitlines()[0].split(","))
    assert history["bn_dead_channels"][-1] == 0


def test_one_line_for_all_layers():
    model = keras.Sequential(
        [keras.Input((8,)), *(BatchNormalization(momentum=0.999, name=f"bn{i}") for i in range(3))]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = 100 * _healthy(256)
    with pytest.warns(UserWarning, match="3 of 3 layers|2 of 3 layers|1 of 3 layers") as caught:
        model.fit(x, x, callbacks=[BatchNormalizationMonitor()], verbose=0)
    assert len([w for w in caught if "layers" in str(w.message)]) == 1
