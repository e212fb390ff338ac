"""Recalibration: the statistics of the network as it is used, from any cut of the data."""

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.datasets import load_digits

import keras_bn
from keras_bn.errors import KerasBNError
from keras_bn.surgery.normalizations import batch_normalizations

L = keras.layers
F64 = {"dtype": "float64"}
BOTH = [L.BatchNormalization, keras_bn.BatchNormalization]


# Only on TensorFlow do all of Keras's layers compute in float64 where they are asked to.
TIGHT = 1e-12 if keras.backend.backend() == "tensorflow" else 1e-5


def network(layer_class=L.BatchNormalization, dtype="float64", dropout=0.5):
    """Three levels of BN, two layers of which stand side by side, in a nested model and beside a Dropout."""
    keras.utils.set_random_seed(0)
    k = {"dtype": dtype}
    inner_input = keras.Input((8, 4), **k)
    a = layer_class(name="a", **k)(L.Conv1D(4, 3, padding="same", **k)(inner_input))
    b = layer_class(name="b", **k)(L.Dense(4, activation="tanh", **k)(inner_input))
    inner = keras.Model(inner_input, L.Add(**k)([L.ReLU(**k)(a), b]), name="inner")
    x = keras.Input((8, 3), name="x", **k)
    y = layer_class(name="first", **k)(L.Dense(4, activation="relu", **k)(x))
    y = L.Dropout(dropout, **k)(inner(y))
    y = layer_class(name="last", **k)(L.GlobalAveragePooling1D(**k)(y))
    model = keras.Model(x, L.Dense(2, **k)(y))
    random = np.random.default_rng(0)
    for call in batch_normalizations(model):
        for weight in call.layer.trainable_weights:
            weight.assign(random.uniform(0.5, 2, weight.shape))
    return model


DATA = np.random.default_rng(1).normal([1, -2, 3], [1, 2, 0.5], (23, 8, 3))


def statistics(model):
    layers = {call.path: call.layer for call in batch_normalizations(model)}
    return {path: [np.array(bn.moving_mean), np.array(bn.moving_variance)] for path, bn in layers.items()}


def assert_same(found, expected, rtol=TIGHT):
    assert found.keys() == expected.keys()
    for path in expected:
        for a, b in zip(found[path], expected[path], strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol, err_msg=path)


def recalibrated(model, data=DATA, **options):
    return keras_bn.recalibrate(model, data, progress=False, **options).model


def observed(model, path, data):
    """Inputs of a BN layer, from a model that ends there."""
    outer, _, name = path.rpartition("/")
    if outer:
        nested = model.get_layer(outer)
        data = keras.Model(model.inputs, model.layers[model.layers.index(nested) - 1].output)(data)
        model = nested
    return ops.convert_to_numpy(keras.Model(model.inputs, model.get_layer(name).input)(data))


@pytest.mark.parametrize("layer_class", BOTH)
def test_sequential_statistics_are_those_of_the_network_at_inference(layer_class):
    """The fixed point that defines the estimator, checked layer by layer on the result."""
    result = recalibrated(network(layer_class))
    for path, (mean, variance) in statistics(result).items():
        values = observed(result, path, DATA)
        axes = tuple(range(values.ndim - 1))
        np.testing.assert_allclose(mean, values.mean(axes), rtol=0, atol=TIGHT)
        ddof = 0 if layer_class is L.BatchNormalization else 1  # our default is the unbiased variance
        np.testing.assert_allclose(
            variance, values.reshape(-1, values.shape[-1]).var(0, ddof=ddof), rtol=TIGHT
        )


@pytest.mark.parametrize("layer_class", BOTH)
def test_sequential_does_not_depend_on_the_cut(layer_class):
    model = network(layer_class)
    whole = statistics(recalibrated(model, batch_size=len(DATA)))
    for size in (1, 10):
        assert_same(statistics(recalibrated(model, batch_size=size)), whole)
    order = np.random.default_rng(0).permutation(len(DATA))
    assert_same(statistics(recalibrated(model, DATA[order], batch_size=7)), whole)


@pytest.mark.parametrize("layer_class", BOTH)
def test_the_estimators_agree_where_all_data_is_one_batch(layer_class):
    biased = {} if layer_class is L.BatchNormalization else {"unbiased_variance": False}
    model = network(lambda **k: layer_class(**biased, **k))
    batchwise = statistics(recalibrated(model, estimator="batch", batch_size=len(DATA)))
    assert_same(batchwise, statistics(recalibrated(model)), rtol=max(1e-9, TIGHT))


def test_batchwise_depends_on_the_cut_after_the_first_level_only():
    model = network()
    small = statistics(recalibrated(model, estimator="batch", batch_size=2))
    large = statistics(recalibrated(model, estimator="batch", batch_size=23))
    assert_same({"first": small.pop("first")}, {"first": large.pop("first")})
    for path in small:
        assert np.abs(small[path][0] - large[path][0]).max() > 1e-3


def test_batchwise_is_what_training_sees():
    """The cumulative average of equal batches' means is the mean of all."""
    model = network(lambda **k: keras_bn.BatchNormalization(momentum=None, **k), dropout=0.0)
    data = DATA[:20]
    found = statistics(recalibrated(model, data, estimator="batch", batch_size=5))
    for i in range(0, 20, 5):
        model(data[i : i + 5], training=True)
    for call in batch_normalizations(model):
        np.testing.assert_allclose(found[call.path][0], call.layer.moving_mean, rtol=0, atol=1e-6)


def test_the_donor_stays_and_only_statistics_change():
    model = network()
    model.compile("adam", "mse")
    model.get_layer("first").trainable = False
    before = model.get_weights()
    config = model.get_config()
    result = recalibrated(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.get_config() == config == result.get_config()
    assert result.compiled and not result.get_layer("first").trainable
    assert not any("call" in vars(layer) for m in (model, result) for layer in m._flatten_layers())
    for old, new in zip(model.trainable_weights, result.trainable_weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("pattern", ["inner/*", ["a", "b"], lambda layer: layer.name in "ab"])
def test_part_of_the_layers(pattern):
    model = network()
    result = keras_bn.recalibrate(model, DATA, layers=pattern, progress=False)
    old, new = statistics(model), statistics(result.model)
    for path in ("first", "last"):
        np.testing.assert_array_equal(old[path], new[path])
    for path in ("inner/a", "inner/b"):
        assert np.abs(np.subtract(old[path], new[path])).max() > 0.01
    actions = {row.layer: row.action for row in result.report.rows}
    assert actions == {
        "first": "left alone", "inner/a": "recalibrated", "inner/b": "recalibrated", "last": "left alone"
    }  # fmt: skip


class Pieces(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return DATA[index::5], None


@pytest.mark.parametrize("estimator", ["sequential", "batch"])
@pytest.mark.parametrize(
    "source",
    [
        lambda: (DATA[i : i + 5] for i in range(0, 23, 5)),
        lambda: [{"x": DATA[i : i + 5]} for i in range(0, 23, 5)].__iter__(),
    ],
    ids=["generator", "dictionaries"],
)
def test_sources_of_data(source, estimator):
    model = network()
    expected = statistics(recalibrated(model, batch_size=5, estimator=estimator))
    assert_same(statistics(recalibrated(model, source(), estimator=estimator)), expected)


def test_a_dataset_by_index():
    assert_same(statistics(recalibrated(network(), Pieces())), statistics(recalibrated(network())))


def test_an_axis_of_length_one_may_be_left_out():
    model = keras.Sequential([keras.Input((1,)), L.Dense(3), L.BatchNormalization(name="bn")])
    x = DATA[:, 0, 0]
    assert_same(statistics(recalibrated(model, x)), statistics(recalibrated(model, x[:, None])))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="sparse tensors of TensorFlow")
def test_inputs_may_be_sparse():
    tf = pytest.importorskip("tensorflow")
    x = np.maximum(DATA[:, 0], 0).astype("float32")
    sparse = tf.data.Dataset.from_tensor_slices(tf.sparse.from_dense(x)).batch(5)
    model = keras.Sequential([keras.Input((3,), sparse=True), L.Dense(3), L.BatchNormalization(name="bn")])
    assert_same(statistics(recalibrated(model, sparse)), statistics(recalibrated(model, x)), rtol=1e-6)


def test_the_data_is_read_once():
    walks = []

    class Counted(Pieces):
        def __getitem__(self, index):
            walks.append(index)
            return super().__getitem__(index)

    recalibrated(network(), Counted())
    # One look at the first batch; what three levels need of the rest is kept.
    assert walks == [0, *range(5)]


def test_interrupt_and_failure_leave_the_donor_as_it_was():
    model = network()
    before = [w.copy() for w in model.get_weights()]

    def interrupted():
        yield DATA[:5]
        raise KeyboardInterrupt

    for data, error in ((interrupted(), KeyboardInterrupt), (iter([DATA, DATA * np.nan]), KerasBNError)):
        with pytest.raises(error):
            recalibrated(model, data, estimator="batch")
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
        assert not any("call" in vars(layer) for layer in model._flatten_layers())


@pytest.mark.parametrize("layer_class", BOTH)
def test_masked_positions_do_not_count(layer_class):
    model = keras.Sequential([keras.Input((5, 2)), L.Masking(), layer_class(name="bn")])
    data = np.random.default_rng(0).normal(size=(6, 5, 2)).astype("float32")
    data[:, 3:] = 0
    mean, _ = statistics(recalibrated(model, data))["bn"]
    np.testing.assert_allclose(mean, data[:, :3].mean((0, 1)), rtol=0, atol=1e-6)
    report = keras_bn.recalibrate(model, data * 0, progress=False).report
    assert (report.rows[0].action, report.rows[0].reason) == ("left alone", "the mask leaves no value")


def test_calls_of_a_shared_layer_are_pooled():
    bn = L.BatchNormalization(name="bn", **F64)
    a, b = keras.Input((2,), name="a", **F64), keras.Input((2,), name="b", **F64)
    model = keras.Model({"a": a, "b": b}, [bn(a), bn(b)])
    data = {"a": np.zeros((6, 2)), "b": np.ones((6, 2))}
    mean, variance = statistics(recalibrated(model, data))["bn"]
    np.testing.assert_array_equal([mean, variance], [[0.5, 0.5], [0.25, 0.25]])


def test_a_layer_that_feeds_itself_has_no_sequence():
    bn = L.BatchNormalization(name="bn")
    x = keras.Input((2,))
    model = keras.Model(x, bn(L.Dense(2)(bn(x))))
    with pytest.raises(KerasBNError, match="'bn' is called several times and its own output comes back"):
        recalibrated(model, np.ones((4, 2)))
    recalibrated(model, np.ones((4, 2)), estimator="batch")


def test_renormalization_of_keras_gets_its_own_averages_too():
    model = keras.Sequential([keras.Input((2,)), L.BatchNormalization(renorm=True, name="bn")])
    bn = recalibrated(model, np.array([[1.0, 2.0], [3.0, 6.0]])).get_layer("bn")
    np.testing.assert_allclose(bn.renorm_mean, [2, 4])
    np.testing.assert_allclose(bn.renorm_stddev, np.sqrt([1 + 1e-3, 4 + 1e-3]), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "ema"}, "estimator='ema': it must be 'sequential' or 'batch'"),
        ({"layers": "nothing*"}, "matches none of the layers"),
        ({"layers": lambda layer: False}, "matches none of the layers"),
        ({"data": DATA[:, :, :2]}, "which takes"),
        ({"data": DATA[:0]}, "no batch has an example"),
        ({"steps": 9}, "ended after 1 of steps=9"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(KerasBNError, match=message):
        recalibrated(network(), **options)


def test_inputs_that_are_not_finite():
    model = keras.Sequential([keras.Input((2,)), L.Dense(2), L.BatchNormalization(name="bn")])
    model.layers[0].kernel.assign(np.full((2, 2), np.nan))
    with pytest.raises(KerasBNError, match="inputs of 'bn' are not finite"):
        recalibrated(model, np.ones((4, 2)))


def test_no_layer_and_no_graph():
    with pytest.raises(KerasBNError, match="has no batch normalization layer"):
        recalibrated(keras.Sequential([keras.Input((2,)), L.Dense(2)]))
    with pytest.raises(KerasBNError, match="not built"):
        recalibrated(keras.Sequential([L.BatchNormalization()]))


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = (images[order] / 16).reshape(-1, 8, 8, 1).astype("float32"), labels[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def trained(digits, batch_size, epochs, momentum):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(16, 3, use_bias=False),
            L.BatchNormalization(momentum=momentum),
            L.ReLU(),
            L.Conv2D(32, 3, strides=2, use_bias=False),
            L.BatchNormalization(momentum=momentum),
            L.ReLU(),
            L.Flatten(),
            L.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), loss, metrics=["accuracy"])
    model.fit(digits[0], digits[1], batch_size=batch_size, epochs=epochs, verbose=0)
    return model


@pytest.mark.parametrize("estimator", ["sequential", "batch"])
def test_it_repairs_a_network_trained_at_batch_size_two(digits, estimator):
    """Its moving averages, with a momentum of 0.999 over 600 steps, are half of what they began with."""
    model = trained(digits, batch_size=2, epochs=1, momentum=0.999)
    before, _ = model.evaluate(digits[2], digits[3], verbose=0)
    after, _ = recalibrated(model, digits[0], estimator=estimator).evaluate(digits[2], digits[3], verbose=0)
    assert after < 0.9 * before


@pytest.mark.parametrize("estimator", ["sequential", "batch"])
def test_it_moves_a_network_to_another_domain(digits, estimator):
    """AdaBN: images of less contrast on a brighter ground, without their labels; 42% right becomes 97%."""
    model = trained(digits, batch_size=32, epochs=5, momentum=0.9)
    train, test = 0.4 * digits[0] + 0.5, 0.4 * digits[2] + 0.5
    at_home = model.evaluate(digits[2], digits[3], verbose=0)[1]
    abroad = model.evaluate(test, digits[3], verbose=0)[1]
    moved = recalibrated(model, train, estimator=estimator).evaluate(test, digits[3], verbose=0)[1]
    assert abroad < 0.7 and moved > at_home - 0.02


def test_each_layer_runs_once_for_each_batch():
    """However many levels of BN there are: a chain of eight, of four batches."""

    class Counted(L.Dense):
        calls = 0

        def call(self, inputs, training=None):
            Counted.calls += not isinstance(inputs, keras.KerasTensor)
            return super().call(inputs, training=training)

    stack = [layer for _ in range(8) for layer in (Counted(4), L.BatchNormalization())]
    model = keras.Sequential([keras.Input((4,)), *stack])
    Counted.calls = 0
    recalibrated(model, np.random.default_rng(0).normal(size=(64, 4)).astype("float32"), batch_size=16)
    # Besides, one batch is run to learn the shapes, and one to compare the outputs before and after.
    assert Counted.calls <= 8 * (4 + 3)


def test_data_passes_through_the_preprocessor_of_a_task():
    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    converter = hub.layers.ResNetImageConverter(height=16, width=16, scale=1 / 255.0)
    task = hub.models.ResNetImageClassifier(
        backbone=backbone,
        num_classes=2,
        preprocessor=hub.models.ResNetImageClassifierPreprocessor(converter),
    )
    x = np.random.default_rng(0).uniform(0, 255, (8, 16, 16, 3)).astype("float32")
    found = statistics(recalibrated(task, x))
    task.preprocessor = None
    assert_same(found, statistics(recalibrated(task, x / 255)), rtol=1e-4)
