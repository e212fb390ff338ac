"""Observation: what goes into every BN layer, wherever it is called, on every backend.

The oracle is an eager run of the model with its own record of what each layer was given.
"""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bn
import keras_bn.surgery._compiled
from keras_bn.errors import KerasBNError
from keras_bn.surgery.normalizations import batch_normalizations

L = keras.layers
RANDOM = np.random.default_rng(0)


def array(tensor):
    return np.array(ops.convert_to_numpy(tensor), float)


def normal(*shape):
    return RANDOM.normal(2, 3, shape).astype("float32")


@keras.saving.register_keras_serializable(package="tests")
class Unit(L.Layer):
    """A layer of one's own: sublayers without names, in attributes and lists, one of them never called."""

    def __init__(self, units=4, depth=2, **kwargs):
        super().__init__(**kwargs)
        self.units, self.depth = units, depth
        self.dense = [L.Dense(units) for _ in range(depth)]
        self.norms = [L.BatchNormalization() for _ in range(depth)]

    def build(self, shape):
        for dense, norm in zip(self.dense, self.norms, strict=True):
            dense.build(shape)
            shape = (*shape[:-1], self.units)
            norm.build(shape)

    def call(self, x, training=None):
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = ops.relu(norm(dense(x), training=training))
        return x

    def get_config(self):
        return {**super().get_config(), "units": self.units, "depth": self.depth}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.unit, self.bn, self.head = Unit(), keras_bn.BatchNormalization(), L.Dense(2)

    def call(self, x, training=None):
        return self.head(self.bn(self.unit(x, training=training), training=training))


@keras.saving.register_keras_serializable(package="tests")
class Cell(L.Layer):
    """The cell of a recurrent layer, with BN of its input and, if asked for, of its state."""

    def __init__(self, units=4, of_state=False, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        self.of_state = of_state
        self.kernel, self.bn = L.Dense(units), L.BatchNormalization(name="bn")

    def build(self, shape):
        self.kernel.build(shape)
        self.bn.build((shape[0], self.units))

    def call(self, x, states, training=None):
        h = self.kernel(x) + (states[0] if self.of_state else 0)
        h = ops.tanh(self.bn(h, training=training)) + (0 if self.of_state else states[0])
        return h, [h]

    def get_config(self):
        return {**super().get_config(), "units": self.units, "of_state": self.of_state}


def in_a_list():
    return keras.Sequential([keras.Input((6,)), Unit(), L.Dense(3), L.BatchNormalization()]), normal(40, 6)


def subclassed():
    model = Subclassed()
    x = normal(40, 6)
    model(x)
    return model, x


def shared_block():
    """A block called twice, and a nested model called twice."""
    block = Unit()
    tower_input = keras.Input((6,))
    tower = keras.Model(tower_input, L.BatchNormalization()(L.Dense(6)(tower_input)))
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    model = keras.Model([a, b], L.Concatenate()([block(tower(a)), block(tower(b))]))
    return model, [normal(40, 6), 2 * normal(40, 6)]


def over_time():
    """A network applied to every step of a sequence, of known and of unknown length."""
    cnn = keras.Sequential([keras.Input((5, 3)), L.Conv1D(4, 2), L.BatchNormalization(), L.Flatten()])
    inputs = keras.Input((None, 5, 3))
    x = L.TimeDistributed(cnn)(inputs)
    x = L.TimeDistributed(L.BatchNormalization())(x)
    return keras.Model(inputs, L.GlobalAveragePooling1D()(x)), normal(20, 7, 5, 3)


def with_mask():
    inputs = keras.Input((5, 3))
    x = L.Masking()(inputs)
    x = L.BatchNormalization()(L.Dense(4)(x))
    x = keras.Sequential([keras.Input((5, 4)), L.Dropout(0.5), L.BatchNormalization()])(x)
    data = normal(20, 5, 3)
    data[:, 3:] = 0
    return keras.Model(inputs, L.LSTM(2)(x)), data


def recurrent():
    model = keras.Sequential([keras.Input((7, 3)), L.RNN(Cell(4)), L.Dense(3), L.BatchNormalization()])
    return model, normal(12, 7, 3)


MODELS = [in_a_list, subclassed, shared_block, over_time, with_mask, recurrent]


def oracle(model, data):
    """Mean, variance and count of what every BN layer is given, from an eager run that records it."""
    inputs = {}
    found = batch_normalizations(model)

    def recording(layer, call):
        def record(x, *args, **kwargs):
            mask = kwargs.get("mask")
            values = array(x)
            axes = tuple(range(values.ndim - 1))
            kept = values[array(mask) > 0] if mask is not None else values.reshape(-1, values.shape[-1])
            assert layer.axis in (-1, len(axes))
            inputs.setdefault(layer, []).append(kept)
            return call(x, *args, **kwargs)

        return record

    for each in found:
        each.layer.call = recording(each.layer, each.layer.call)
    try:
        with keras_bn.surgery._compiled.step_by_step():
            model(data, training=False)
    finally:
        for each in found:
            del each.layer.call
    return {layer: np.concatenate(values) for layer, values in inputs.items()}


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("limit", [2 << 30, 0])
def test_statistics_are_those_of_an_eager_run(make, limit):
    """The fixed point of the sequential estimator, found by an independent run of the result."""
    if make is over_time and keras.backend.backend() == "jax":
        pytest.skip("Keras's TimeDistributed hides its values from any eager run under jax.vmap")
    model, data = make()
    weights = [array(v) for v in model.variables]
    result = keras_bn.recalibrate(model, data, batch_size=8, memory_limit=limit, progress=False)
    assert {row.action for row in result.report.rows} == {"recalibrated"}
    expected = oracle(result.model, data)
    for each in batch_normalizations(result.model):
        values = expected[each.layer]
        ddof = 1 if isinstance(each.layer, keras_bn.BatchNormalization) else 0
        # Both run in float32, compiled or not; the inputs are of order 1 to 10.
        np.testing.assert_allclose(array(each.layer.moving_mean), values.mean(0), rtol=0, atol=3e-5)
        np.testing.assert_allclose(
            array(each.layer.moving_variance), values.var(0, ddof=ddof), rtol=3e-5, atol=3e-5
        )
    for before, variable in zip(weights, model.variables, strict=True):
        np.testing.assert_array_equal(before, array(variable))


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_inspect_reports_every_layer(make):
    model, data = make()
    fitted = keras_bn.recalibrate(model, data, progress=False).model
    before = [array(v) for v in fitted.variables]
    report = keras_bn.inspect(fitted, data, progress=False)
    for layer in report.layers:
        assert layer.mean_shift.max() < 1e-3 and np.abs(np.log(layer.variance_ratio)).max() < 0.1, layer.layer
    for value, variable in zip(before, fitted.variables, strict=True):
        np.testing.assert_array_equal(value, array(variable))
    for layer in fitted._flatten_layers():
        assert "call" not in vars(layer)


def test_the_estimators_agree_where_all_data_is_one_batch():
    for make in (in_a_list, subclassed):
        model, data = make()
        found = [
            keras_bn.recalibrate(model, data, estimator=e, batch_size=40, progress=False).model
            for e in ("batch", "sequential")
        ]
        for one, other in zip(*(batch_normalizations(m) for m in found), strict=True):
            if isinstance(one.layer, keras_bn.BatchNormalization):
                continue  # normalizes by m / (m - 1) times the variance
            np.testing.assert_allclose(
                array(one.layer.moving_mean), array(other.layer.moving_mean), rtol=0, atol=2e-5
            )


def test_a_state_that_comes_back_has_no_sequence():
    model = keras.Sequential([keras.Input((7, 3)), L.RNN(Cell(4, of_state=True)), L.Dense(2)])
    with pytest.raises(KerasBNError, match=r"its own output comes back to it.*estimator='batch'"):
        keras_bn.recalibrate(model, normal(12, 7, 3), progress=False)
    result = keras_bn.recalibrate(model, normal(12, 7, 3), estimator="batch", progress=False)
    assert result.report.rows[0].action == "recalibrated"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("estimator", ["batch", "sequential"])
def test_in_place_is_rolled_back(error, estimator):
    model, data = subclassed()
    before = [array(v).tobytes() for v in model.variables]

    def failing():
        yield data[:8]
        yield data[8:16]
        raise error

    with pytest.raises(error):
        keras_bn.recalibrate(model, failing(), in_place=True, estimator=estimator, progress=False)
    assert [array(v).tobytes() for v in model.variables] == before
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
    result = keras_bn.recalibrate(model, data, in_place=True, estimator=estimator, progress=False)
    assert result.model is model and [array(v).tobytes() for v in model.variables] != before


@pytest.mark.filterwarnings("error:The data is a single:UserWarning")
def test_a_warning_that_is_an_error_leaves_the_model_as_it_was():
    model, data = subclassed()
    before = [array(v).tobytes() for v in model.variables]
    with pytest.raises(UserWarning, match="single example"):
        keras_bn.recalibrate(model, data[:1], in_place=True, progress=False)
    assert [array(v).tobytes() for v in model.variables] == before


@pytest.mark.parametrize("estimator", ["batch", "sequential"])
@pytest.mark.parametrize("chosen", ["*", L.BatchNormalization, lambda layer: True])
def test_layers_without_names_of_their_own_are_chosen(chosen, estimator):
    model, data = in_a_list()
    report = keras_bn.recalibrate(model, data, layers=chosen, estimator=estimator, progress=False).report
    assert [row.action for row in report.rows] == ["recalibrated"] * 3


@pytest.mark.parametrize("estimator", ["batch", "sequential"])
def test_a_model_from_a_file(tmp_path, estimator):
    model, data = in_a_list()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    new = [keras_bn.recalibrate(m, data, estimator=estimator, progress=False).model for m in (model, loaded)]
    for one, other in zip(*(m.variables for m in new), strict=True):
        np.testing.assert_array_equal(array(one), array(other))


def test_a_layer_that_is_never_called():
    unit = Unit(depth=1)
    unit.spare = L.BatchNormalization(name="spare")
    unit.spare.build((None, 4))
    model = keras.Sequential([keras.Input((6,)), unit])
    rows = keras_bn.recalibrate(model, normal(40, 6), progress=False).report.rows
    assert [(row.action, row.reason) for row in rows[1:]] == [("left alone", "is never called")]


def test_rows_carry_their_figures():
    model, data = in_a_list()
    row = keras_bn.recalibrate(model, data, progress=False).report.rows[0]
    assert row.figures["values_per_channel"] == 40
    assert row.figures["largest_mean_shift"] > 0


def test_a_prior_is_merged_by_counts():
    model, data = in_a_list()
    layer = batch_normalizations(model)[0].layer
    layer.moving_mean.assign(np.full(4, 0.5))
    layer.moving_variance.assign(np.full(4, 2.0))
    new = batch_normalizations(keras_bn.recalibrate(model, data, prior=10, progress=False).model)[0].layer
    plain = batch_normalizations(keras_bn.recalibrate(model, data, progress=False).model)[0].layer
    mean, variance = array(plain.moving_mean), array(plain.moving_variance)
    np.testing.assert_allclose(array(new.moving_mean), 0.2 * 0.5 + 0.8 * mean, rtol=1e-5)
    expected = 0.2 * 2 + 0.8 * variance + 0.16 * (mean - 0.5) ** 2
    np.testing.assert_allclose(array(new.moving_variance), expected, rtol=1e-5)
    kept = batch_normalizations(keras_bn.recalibrate(model, data, prior=np.inf, progress=False).model)[0]
    np.testing.assert_array_equal(array(kept.layer.moving_mean), np.full(4, 0.5, "float32"))


def test_a_torch_data_loader():
    torch = pytest.importorskip("torch")
    model, data = in_a_list()
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(data), torch.zeros(len(data)))
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    found = keras_bn.recalibrate(model, loader, progress=False).model
    expected = keras_bn.recalibrate(model, data, batch_size=8, progress=False).model
    for one, other in zip(found.variables, expected.variables, strict=True):
        np.testing.assert_allclose(array(one), array(other), rtol=1e-6, atol=1e-6)


class Convolution:
    """No layer, so Keras does not track what it holds."""

    def __init__(self, filters):
        self.dense, self.bn = L.Dense(filters), L.BatchNormalization(name="held")

    def __call__(self, x):
        return self.bn(self.dense(x))


class Holder(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.part = Convolution(4)

    def call(self, x):
        return keras.ops.relu(self.part(x))


@pytest.mark.parametrize("estimator", ["sequential", "batch"])
def test_a_layer_that_keras_does_not_track_is_observed(estimator):
    model, data = keras.Sequential([keras.Input((6,)), Holder(), L.Dense(2)]), normal(40, 6)
    result = keras_bn.recalibrate(model, data, estimator=estimator, progress=False).model
    expected = array(model.layers[0].part.dense(data)).mean(0)
    np.testing.assert_allclose(array(result.layers[0].part.bn.moving_mean), expected, rtol=1e-5, atol=1e-6)
    (layer,) = keras_bn.inspect(model, data, progress=False).layers
    assert not layer.unseen
