"""Inspection: every fault that was put into a model is found, and a sound model has none."""

import json
import re

import keras
import numpy as np
import pytest

import keras_bn
from keras_bn.errors import KerasBNError
from tests.surgery import people

L = keras.layers
RANDOM = np.random.default_rng(0)
DATA = RANDOM.normal(3, 2, (64, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def sound():
    """Recalibrated on DATA, so that its statistics are the data's."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 3)),
            L.Conv1D(16, 3, name="conv"),
            L.BatchNormalization(name="first"),
            L.ReLU(),
            keras_bn.BatchNormalization(momentum=None, name="second"),
            L.GlobalAveragePooling1D(),
            L.Dense(4, name="dense"),
        ],
        name="net",
    )
    return keras_bn.recalibrate(model, DATA, progress=False).model


def array(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor), float)


def inspected(model, data=None, **options):
    return keras_bn.inspect(model, data, progress=False, **options)


def changed(model, layer, **weights):
    """A copy with other values in some channels of a layer."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for name, function in weights.items():
        weight = getattr(copy.get_layer(layer), name)
        weight.assign(function(array(weight)))
    return copy


def at(index, value):
    def put(values):
        values[index] = value
        return values

    return put


def test_a_sound_model_is_healthy(sound):
    for report in (inspected(sound), inspected(sound, DATA)):
        assert report.healthy
        assert [layer.problems + layer.warnings for layer in report.layers] == [[], []]
    assert [layer.fold for layer in report.layers] == ["into conv", "into dense"]


def test_the_statistics_against_the_data(sound):
    first, second = inspected(sound, DATA).layers
    inputs = array(sound.get_layer("conv")(DATA)).reshape(-1, 16)
    # The inputs are of order 10 in float32, of which the rows are reduced in float32 too.
    np.testing.assert_allclose(first.data.mean, inputs.mean(0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(first.data.variance, inputs.var(0), rtol=1e-5)
    assert first.data.count == second.data.count == 64 * 6
    assert first.mean_shift.max() < 1e-5 and abs(first.variance_ratio - 1).max() < 1e-5
    # Percentiles come from a sample, and BN keeps their order where gamma is positive, as here.
    for values in (first.data.before, first.data.after):
        assert values.shape == (3, 16) and (np.diff(values, axis=0) > 0).all()
    np.testing.assert_allclose(
        first.data.after, (first.data.before - first.mean) * first.scale, rtol=0, atol=1e-9
    )
    assert second.momentum is None


def test_another_domain(sound):
    report = inspected(sound, DATA * 3 + 20)
    assert not report.healthy and report.change > 0.1
    assert any("means off by" in problem for problem in report.layers[0].problems)
    assert any("variances off by a factor of 9" in problem for problem in report.layers[0].problems)


def test_the_change_is_what_recalibration_brings(sound):
    x = DATA[:32] + 1
    new = keras_bn.recalibrate(sound, x, estimator="batch", progress=False).model
    old, new = array(sound(x)), array(new(x))
    expected = float(np.abs(old - new).max() / np.abs(old).max())
    assert inspected(sound, x).change == pytest.approx(expected, rel=1e-4)


FAULTS = {
    "NaN or infinity in gamma": ({"gamma": at(2, np.nan)}, False),
    "NaN or infinity in mean, variance": (
        {"moving_mean": at(0, np.inf), "moving_variance": at(1, np.nan)},
        False,
    ),
    "negative variance": ({"moving_variance": at(0, -0.5)}, False),
    "statistics never updated": (
        {"moving_mean": np.zeros_like, "moving_variance": np.ones_like},
        False,
    ),
    "all channels dead": ({"gamma": np.zeros_like}, False),
    "2 exploding channel(s)": ({"gamma": at([3, 4], 1e5)}, False),
    "3 dead channel(s)": ({"gamma": at([0, 5, 6], 0.0)}, True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(sound, fault):
    changes, healthy = FAULTS[fault]
    report = inspected(changed(sound, "first", **changes))
    assert report.healthy == healthy
    assert fault in report.layers[0].problems + report.layers[0].warnings
    assert fault in str(report)
    assert report.layers[1].problems == []
    json.loads(report.to_json())
    if "NaN" in fault:
        assert inspected(changed(sound, "first", **changes), DATA).to_dict() == report.to_dict()
    assert fault in report.to_html()


def test_channels_by_number(sound):
    first = inspected(changed(sound, "first", gamma=at([0, 5], [0.0, 1e5]))).layers[0]
    assert (first.dead, first.exploding) == ([0], [5])


def test_a_channel_whose_inputs_vary_less_than_epsilon_is_dead(sound):
    assert inspected(changed(sound, "first", moving_variance=at(4, 1e-14))).layers[0].dead == [4]


def test_training_mode():
    x = keras.Input((3,))
    model = keras.Model(x, L.BatchNormalization(name="bn")(x, training=True))
    layer = inspected(model).layers[0]
    assert "called with training=True" in layer.problems and layer.fold.startswith("no: ")


def test_why_a_layer_does_not_fold():
    model = keras.Sequential([keras.Input((3,)), L.ReLU(name="relu"), L.BatchNormalization(), L.ReLU()])
    assert inspected(model).layers[0].fold.startswith("no: before it, relu (ReLU) lies between")


def test_the_model_stays(sound):
    before = sound.get_weights()
    inspected(sound, DATA)
    for old, new in zip(before, sound.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not any("call" in vars(layer) for layer in sound._flatten_layers())


def test_a_generator(sound):
    whole = inspected(sound, DATA, batch_size=16)
    parts = inspected(sound, (DATA[i : i + 16] for i in range(0, 64, 16)))
    for name in ("layers", "change", "examples"):
        assert parts.to_dict()[name] == whole.to_dict()[name]
    assert (parts.data, whole.data) == ("a generator", "an array of shape (64, 8, 3)")
    assert inspected(sound, DATA, batch_size=16, steps=2).layers[0].data.count == 32 * 6


def test_two_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([a, b], L.BatchNormalization(name="bn")(L.Concatenate()([a, b])))
    report = inspected(model, [np.ones((6, 3)), RANDOM.normal(size=(6, 3))])
    assert "3 channel(s) constant on the data" in report.layers[0].warnings


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATA[:0], "no batch has an example"),
        (DATA[:, :, :2], "which takes"),
        (DATA * np.nan, "NaN or infinity"),
    ],
)
def test_bad_data(sound, data, message):
    with pytest.raises(KerasBNError, match=message):
        inspected(sound, data)


def test_nothing_to_inspect():
    with pytest.raises(KerasBNError, match="no batch normalization layer"):
        inspected(keras.Sequential([keras.Input((3,)), L.Dense(2)]))


def test_a_large_change_of_the_output_is_not_healthy(sound):
    """Each layer may be within its limits, and the output far off all the same."""
    deviation = np.sqrt(array(sound.get_layer("second").moving_variance))
    shifted = changed(sound, "second", moving_mean=lambda mean: mean + 0.4 * deviation)
    report = inspected(shifted, DATA)
    assert not any(layer.problems for layer in report.layers)
    assert report.change > 0.25 and not report.healthy
    assert "statistics do not fit the data; recalibrate would change" in report.summary
    assert "keras_bn.recalibrate" in report.advice and report.advice in str(report)
    assert "not healthy" in report.to_html() and report.advice in report.to_html()
    repaired = inspected(keras_bn.recalibrate(shifted, DATA, progress=False).model, DATA)
    assert repaired.healthy and repaired.advice == ""


@keras.saving.register_keras_serializable(package="tests")
class Block(L.Layer):
    """Layers without names of their own; one is never called."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.bn, self.spare = L.Dense(units), L.BatchNormalization(), L.BatchNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.bn.build((*shape[:-1], 4))
        self.spare.build((*shape[:-1], 4))

    def call(self, x):
        return self.bn(self.dense(x))


def test_layers_inside_a_layer_and_one_that_is_never_called():
    model = keras.Sequential([keras.Input((6,)), Block(), L.Dense(2)])
    x = RANDOM.normal(3, 2, (64, 6)).astype("float32")
    fitted = keras_bn.recalibrate(model, x, progress=False).model
    report = inspected(fitted, x)
    called, spare = report.layers
    assert called.shape == (None, 4) and called.problems == called.warnings == []
    values = array(fitted.layers[0].dense(x))
    np.testing.assert_allclose(called.data.mean, values.mean(0), rtol=0, atol=1e-5)
    assert spare.warnings == ["is never called"] and spare.problems == [] and spare.data is None
    assert report.healthy


@pytest.mark.parametrize("factor", [255, 1 / 255])
def test_data_of_another_scale(sound, factor):
    report = inspected(sound, DATA * factor)
    assert any("is the data scaled as in training" in note for note in report.notes)
    assert not inspected(sound, DATA).notes


def test_few_examples(sound):
    assert "single example" in inspected(sound, DATA[:1]).notes[0]
    assert "fewer values per channel than there are channels" in inspected(sound, DATA[:2]).notes[0]


def test_a_subclassed_model():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.bn = L.Dense(4), L.BatchNormalization(name="bn")

        def call(self, x):
            return self.bn(self.hidden(x))

    net = Net()
    x = RANDOM.normal(3, 2, (64, 6)).astype("float32")
    net(x)
    (layer,) = inspected(net, x).layers
    values = array(net.hidden(x))
    np.testing.assert_allclose(layer.data.mean, values.mean(0), rtol=0, atol=1e-5)
    assert layer.layer == "bn"


def test_in_a_notebook(sound):
    page = inspected(sound)._repr_html_()
    assert page.startswith("<p>net: 2 batch") and "<td>first</td>" in page


def test_the_page_says_what_it_rests_on_and_shows_whole_whiskers(sound):
    """A whisker reaches to the farthest channel, and the axis as far."""
    far = changed(sound, "first", moving_mean=at(0, 1000.0))
    report = inspected(far, DATA)
    page = report.to_html()
    assert f"64 examples of an array of shape (64, 8, 3), {report.date}." in page
    largest = report.layers[0].mean_shift.max()
    ticks = [float(text) for text in re.findall(r'text-anchor="end">([0-9.e+]+)<', page)]
    assert max(ticks) >= 0.99 * largest
    # The columns of the terminal, in its order.
    assert re.findall("<th>(.*?)</th>", page) == re.split(" {2,}", str(report).splitlines()[1])


class Resized(L.Layer):
    """Makes a layer in its call whose `training` is True by default, and takes no `training` itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.Sequential([L.Dense(3), L.BatchNormalization(name="inner")])

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(L.Resizing(2, 2)(x))


def test_a_layer_whose_insides_would_train_is_observed_at_inference():
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, L.BatchNormalization(name="last")(Resized()(inputs)))
    x = np.random.default_rng(0).normal(3, 2, (8, 4, 4, 3)).astype("float32")
    before = [np.array(w) for w in model.weights]
    report = keras_bn.inspect(model, x, progress=False)
    met = array(keras.Model(inputs, model.get_layer("last").input)(x, training=False)).reshape(-1, 3)
    np.testing.assert_allclose(report.layers[-1].data.mean, met.mean(0), rtol=1e-5)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_layer_that_cannot_be_copied_by_its_configuration():
    inputs = keras.Input((8, 3))
    model = keras.Model(inputs, L.BatchNormalization(name="bn")(people.Misconfigured(L.Dense(4))(inputs)))
    (before,) = inspected(model).layers
    assert before.layer == "bn"
    (after,) = inspected(model, DATA).layers
    assert after.layer == "bn" and not inspected(model, DATA).healthy
