"""Recalibration in shards: equal to one pass, whatever the order, and refused where the parts do not fit."""

import pickle
import random as order

import keras
import numpy as np
import pytest

import keras_bn
from keras_bn import KerasBNError, PopulationStatistics
from keras_bn.surgery.normalizations import set_statistics

BATCH = 8
X = np.random.default_rng(0).normal(3, 2, (75, 6, 6, 3)).astype("float32")  # nine batches of 8, one of 3


class Block(keras.layers.Layer):
    """BN inside a layer, without a name of its own."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = keras.layers.Conv2D(filters, 3, padding="same")
        self.bn = keras.layers.BatchNormalization()

    def call(self, x, training=None):
        return keras.ops.relu(self.bn(self.conv(x), training=training))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


def build():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            Block(4),
            keras.layers.Conv2D(5, 3),
            keras_bn.BatchNormalization(name="bn"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )


@pytest.fixture
def model():
    return build()


def statistics_of(model):
    return [np.asarray(v) for v in model.non_trainable_variables]


def shards(model, folder, count, data=X, **options):
    files = []
    for i in range(count):
        files.append(folder / f"part-{options.get('statistics') is not None}-{i}.stats")
        options = {"batch_size": BATCH, "progress": False, **options}
        keras_bn.recalibrate(model, data, shard=(i, count), save=files[-1], **options)
    return files


# Ten batches are compiled on TensorFlow, five are not, whatever the number of shards.
@pytest.mark.parametrize(("count", "size"), [(1, BATCH), (3, BATCH), (8, BATCH), (1, 15), (5, 15)])
def test_shards_give_the_bits_of_one_pass_in_any_order(model, tmp_path, count, size):
    options = {"estimator": "batch", "batch_size": size}
    whole = keras_bn.recalibrate(model, X, progress=False, **options).model
    files = shards(model, tmp_path, count, **options)
    order.Random(count).shuffle(files)
    merged = keras_bn.merge(files)
    result = keras_bn.recalibrate(model, statistics=merged).model
    for one, other in zip(statistics_of(result), statistics_of(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_sequential_estimator_takes_one_job_per_level(model, tmp_path):
    whole = keras_bn.recalibrate(model, X, batch_size=BATCH, progress=False).model
    first = keras_bn.merge(shards(model, tmp_path, 4))
    assert (len(first.levels), first.level, first.remaining_levels) == (2, 0, 1)
    with pytest.raises(KerasBNError, match="statistics of 1 of 2 levels are missing"):
        first.apply(model)
    second = keras_bn.merge(shards(model, tmp_path, 4, statistics=first))
    assert second.remaining_levels == 0
    result = second.apply(model).model
    for one, other in zip(statistics_of(result), statistics_of(whole), strict=True):
        # The same float32 arithmetic compiled in other pieces: some units in the last place.
        np.testing.assert_allclose(one, other, rtol=1e-5)
    with pytest.raises(KerasBNError, match="already have every level"):
        keras_bn.recalibrate(model, X, shard=(0, 4), statistics=second, progress=False)


def test_data_that_is_a_shard_already(model, tmp_path):
    files = []
    for i, part in enumerate((X[:40], X[40:])):
        files.append(tmp_path / f"{i}.stats")
        keras_bn.recalibrate(
            model,
            part,
            shard=(i, 2),
            presharded=True,
            save=files[-1],
            estimator="batch",
            batch_size=BATCH,
            progress=False,
        )
    whole = keras_bn.recalibrate(model, X, estimator="batch", batch_size=BATCH, progress=False).model
    for one, other in zip(
        statistics_of(keras_bn.merge(files).apply(model).model), statistics_of(whole), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_generator_is_read_once_and_its_batches_are_dealt_out(model, tmp_path):
    def batches():
        yield from (X[i : i + BATCH] for i in range(0, len(X), BATCH))

    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.stats")
        keras_bn.recalibrate(
            model, batches(), shard=(i, 3), save=files[-1], estimator="batch", progress=False
        )
    assert keras_bn.merge(files).moments["bn"].count == len(X) * 4 * 4


def test_the_donor_is_left_alone(model, tmp_path):
    before = [np.asarray(w) for w in model.weights]
    merged = keras_bn.merge(shards(model, tmp_path, 2, estimator="batch"))
    keras_bn.recalibrate(model, statistics=merged)
    for one, other in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(one, np.asarray(other))
    keras_bn.recalibrate(model, statistics=merged, in_place=True)
    assert any((a != np.asarray(b)).any() for a, b in zip(before, model.weights, strict=True))


def test_an_interrupt_while_statistics_are_applied_changes_nothing(model, tmp_path, monkeypatch):
    before = [np.asarray(w) for w in model.weights]
    merged = keras_bn.merge(shards(model, tmp_path, 2, estimator="batch"))
    done = []

    def interrupted(*arguments):
        done.append(set_statistics(*arguments))
        if len(done) == 2:
            raise KeyboardInterrupt
        return done[-1]

    monkeypatch.setattr("keras_bn.surgery.shards.set_statistics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keras_bn.recalibrate(model, statistics=merged, in_place=True)
    for one, other in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(one, np.asarray(other))


def test_a_prior_is_merged_when_the_statistics_are_applied(model, tmp_path):
    """The advice of the error for a shard, followed."""
    with pytest.raises(KerasBNError, match="they apply to merged statistics"):
        keras_bn.recalibrate(model, X, prior=100, shard=(0, 2), estimator="batch", progress=False)
    merged = keras_bn.merge(shards(model, tmp_path, 2, estimator="batch"))
    options = {"estimator": "batch", "batch_size": BATCH, "progress": False}
    expected = statistics_of(keras_bn.recalibrate(model, X, prior=100, **options).model)
    assert any(
        (a != b).any() for a, b in zip(expected, statistics_of(merged.apply(model).model), strict=True)
    )
    for result in (merged.apply(model, prior=100), keras_bn.recalibrate(model, prior=100, statistics=merged)):
        for one, other in zip(statistics_of(result.model), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(KerasBNError, match="prior"):
        merged.apply(model, prior=-1)


def test_layers_choose_what_is_estimated(model, tmp_path):
    merged = keras_bn.merge(shards(model, tmp_path, 2, estimator="batch", layers="bn"))
    result = keras_bn.recalibrate(model, statistics=merged).model
    np.testing.assert_array_equal(result.layers[0].bn.moving_mean, model.layers[0].bn.moving_mean)
    assert (np.asarray(result.get_layer("bn").moving_mean) != 0).all()


def test_weights_that_changed_between_are_refused(model, tmp_path):
    files = shards(model, tmp_path, 2, estimator="batch")
    model.layers[1].bias.assign(np.ones(5))
    keras_bn.recalibrate(
        model, X, shard=(1, 2), save=files[1], estimator="batch", batch_size=BATCH, progress=False
    )
    with pytest.raises(KerasBNError, match="weights of the model differ"):
        keras_bn.merge(files)
    model.layers[1].bias.assign(np.zeros(5))
    merged = keras_bn.merge(shards(model, tmp_path, 2, estimator="batch"))
    model.layers[1].bias.assign(np.ones(5))
    with pytest.raises(KerasBNError, match="weights of the model differ"):
        merged.apply(model)


def test_options_of_layers_that_differ_are_refused():
    """The same weights in another network: the statistics of its layers are others."""

    def net(activation, epsilon):
        keras.utils.set_random_seed(0)
        layers = [keras.Input((5,)), keras.layers.Dense(4, activation=activation)]
        return keras.Sequential([*layers, keras.layers.BatchNormalization(epsilon=epsilon, name="bn")])

    x = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")

    def part(i, *options):
        return keras_bn.recalibrate(net(*options), x, shard=(i, 2), progress=False).statistics

    assert keras_bn.merge([part(0, "relu", 1e-3), part(1, "relu", 1e-3)]).missing_shards == ()
    for options in (("tanh", 1e-3), ("relu", 1e-2)):
        with pytest.raises(KerasBNError, match="options of its layers"):
            keras_bn.merge([part(0, "relu", 1e-3), part(1, *options)])


def test_statistics_of_a_loaded_model_are_those_of_the_original(model, tmp_path):
    model.save(tmp_path / "model.keras")
    custom = {"Block": Block}
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects=custom)
    parts = [
        keras_bn.recalibrate(each, X, shard=(i, 2), estimator="batch", progress=False).statistics
        for i, each in enumerate((model, loaded))
    ]
    merged = keras_bn.merge(parts)
    for each in (model, loaded):
        assert merged.apply(each).model is not each


def test_the_statistics_of_a_shard_need_no_file(model, tmp_path):
    """They are the value that the file holds, and go through pickle, as Ray and Spark send them."""
    result = keras_bn.recalibrate(model, X, shard=(1, 2), save=tmp_path / "1", progress=False)
    new_model, report = result
    assert (new_model, report) == (result.model, result.report)
    saved = PopulationStatistics.load(tmp_path / "1")
    sent = pickle.loads(pickle.dumps(result.statistics))
    for other in (saved, sent):
        assert vars(other) | {"moments": None} == vars(result.statistics) | {"moments": None}
        for path, moments in result.statistics.moments.items():
            np.testing.assert_array_equal(other.moments[path].mean, moments.mean)
            np.testing.assert_array_equal(other.moments[path].variance, moments.variance)


def test_statistics_of_another_model_are_refused(model, tmp_path):
    merged = keras_bn.merge(shards(model, tmp_path, 2, estimator="batch"))
    other = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="other")])
    with pytest.raises(KerasBNError, match="of different models, one of 2 and one of 1 BN layers"):
        merged.apply(other)
    with pytest.raises(KerasBNError, match="different estimators"):
        keras_bn.recalibrate(model, X, statistics=merged, progress=False)


class Cell(keras.layers.Layer):
    """A recurrent cell whose normalization sees its own output again."""

    state_size = 4

    def __init__(self):
        super().__init__()
        self.dense, self.bn = keras.layers.Dense(4), keras.layers.BatchNormalization(name="bn")

    def build(self, shape):
        self.dense.build((shape[0], shape[-1] + 4))
        self.bn.build((shape[0], 4))

    def call(self, x, states, training=None):
        h = self.bn(self.dense(keras.ops.concatenate([x, states[0]], -1)), training=training)
        return h, [h]


def test_a_layer_that_feeds_itself_has_no_levels():
    x = keras.Input((5, 3))
    model = keras.Model(x, keras.layers.RNN(Cell(), unroll=True)(x))
    data = np.random.default_rng(0).normal(size=(16, 5, 3)).astype("float32")
    with pytest.raises(KerasBNError, match=r"bn' is called several times in one layer.*'batch'"):
        keras_bn.recalibrate(model, data, shard=(0, 1), progress=False)
    keras_bn.recalibrate(model, data, shard=(0, 1), estimator="batch", progress=False)


def test_a_missing_shard_is_named(model, tmp_path):
    merged = keras_bn.merge(shards(model, tmp_path, 3, estimator="batch")[:2])
    with pytest.raises(KerasBNError, match="Shards 2 of 3 are missing"):
        keras_bn.recalibrate(model, statistics=merged)


@pytest.mark.parametrize("shard", [(3, 3), (-1, 3), (0,), 3, "a", (0.5, 2), (True, 2)])
def test_a_wrong_shard_is_refused(model, shard):
    with pytest.raises(KerasBNError, match=r"give \(i, n\)"):
        keras_bn.recalibrate(model, X, shard=shard)


def test_more_shards_than_batches_are_refused(model, tmp_path):
    with pytest.raises(KerasBNError, match="fewer batches than shards"):
        keras_bn.recalibrate(
            model, X[:8], shard=(2, 3), save=tmp_path / "x", batch_size=BATCH, progress=False
        )
    assert not list(tmp_path.iterdir())


def test_neither_data_nor_statistics(model):
    with pytest.raises(KerasBNError, match="Give the data"):
        keras_bn.recalibrate(model)


def test_the_report_says_what_comes_next(model, tmp_path):
    report = keras_bn.recalibrate(
        model, X, shard=(0, 2), save=tmp_path / "0", batch_size=BATCH, progress=False
    ).report
    assert [row.action for row in report.rows] == ["observed", "left alone"]
    assert "for level 2 of 2" in report.notes[1]
    assert PopulationStatistics.load(tmp_path / "0").shards == (2, frozenset([0]))


def test_the_file_is_small(model, tmp_path):
    (file,) = shards(model, tmp_path, 1, estimator="batch")
    assert file.stat().st_size < 10_000
