"""The check of inference mode, on SavedModels made with and without this package."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_bn
from keras_bn.saving.batch_independence import largest_change


def save(path, call, *specs):
    """Save a function the way anyone might, as `serving_default`."""
    module = tf.Module()
    module.call = tf.function(call, input_signature=[tf.TensorSpec(*spec) for spec in specs])
    tf.saved_model.save(module, str(path), signatures=module.call)
    return path


def archive(path, model, training, batch_size=None):
    exported = keras.export.ExportArchive()
    exported.track(model)
    spec = tf.TensorSpec([batch_size, *model.inputs[0].shape[1:]], tf.float32, name="x")
    exported.add_endpoint("serving_default", lambda x: model(x, training=training), [spec])
    exported.write_out(str(path), verbose=False)
    return path


def normalized(*middle):
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3)(inputs)
    for layer in middle:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


@pytest.mark.parametrize("bn", [layers.BatchNormalization, keras_bn.BatchNormalization])
def test_tells_inference_from_training(tmp_path, bn):
    model = normalized(bn())
    check = keras_bn.verify_inference_mode(archive(tmp_path / "inference", model, training=False))
    assert check.difference <= check.tolerance < check.spread
    assert (check.signature, check.examples) == ("serving_default", 4)
    with pytest.raises(keras_bn.KerasBNError, match="depends on the other rows"):
        keras_bn.verify_inference_mode(archive(tmp_path / "training", model, training=True))


def test_keras_export_is_in_inference_mode(tmp_path):
    normalized(layers.BatchNormalization(), layers.Dropout(0.5)).export(tmp_path / "m", verbose=False)
    assert keras_bn.verify_inference_mode(tmp_path / "m").spread > 0


def test_dropout_left_on(tmp_path):
    model = normalized(layers.Dropout(0.5))
    with pytest.raises(keras_bn.KerasBNError, match=r"the same request differently each time .* dropout"):
        keras_bn.verify_inference_mode(archive(tmp_path / "m", model, training=True))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x - tf.reduce_mean(x, 0),
        lambda x: x + tf.cast(tf.range(tf.shape(x)[0]), x.dtype)[:, None],
        lambda x: tf.roll(x, 1, 0),
        lambda x: x * (1 + 1e-3 * tf.reduce_max(x)),
    ],
    ids=["mean of the batch", "place in the batch", "another example", "one part in a thousand"],
)
def test_any_dependence_on_the_batch_is_found(tmp_path, call):
    path = save(tmp_path / "m", call, ([None, 3], tf.float32, "x"))
    with pytest.raises(keras_bn.KerasBNError, match="depends on the other rows"):
        keras_bn.verify_inference_mode(path)


MIXING = {
    "batch statistics": lambda x: (x - tf.reduce_mean(x, 0)) / (1e-3 + tf.math.reduce_std(x, 0)),
    "statistics of batch and height": lambda x: x - tf.reduce_mean(x, [0, 1], keepdims=True),
    "statistics of all axes": lambda x: x - tf.reduce_mean(x),
    "the batch's variance alone": lambda x: x / (1e-3 + tf.math.reduce_std(x, 0)),
    "softmax over the batch": lambda x: tf.nn.softmax(x, axis=0),
    "the batch's maximum": lambda x: x / tf.reduce_max(x),
    "the batch's largest magnitude": lambda x: x / tf.reduce_max(tf.abs(x), axis=0),
    "the row before": lambda x: x + 0.01 * tf.roll(x, 1, 0),
    "the next row's sign": lambda x: x * (1 + 0.1 * tf.sign(tf.roll(x, -1, 0))),
    "the smallest": lambda x: x + tf.reduce_min(x, axis=0),
    "the sum of a large batch": lambda x: tf.cumsum(x, 0),
}


@pytest.mark.parametrize("batch_size", [None, 2, 5])
@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_rows_is_found_at_open_and_fixed_batch_sizes(tmp_path, name, batch_size):
    path = save(tmp_path / "m", MIXING[name], ([batch_size, 4, 3], tf.float32, "x"))
    with pytest.raises(
        keras_bn.KerasBNError, match=r"depends on the other rows .* The cause is a layer in training mode"
    ):
        keras_bn.verify_inference_mode(path)


def test_a_count_of_integers_is_found(tmp_path):
    def vocabulary(x):
        return tf.reduce_sum(x, 1) + tf.cast(tf.size(tf.unique(tf.reshape(x, [-1]))[0]), x.dtype)

    path = save(tmp_path / "m", vocabulary, ([2, 5], tf.int64, "x"))
    with pytest.raises(keras_bn.KerasBNError, match="depends on the other rows"):
        keras_bn.verify_inference_mode(path)


WORDS = np.array(["a bc d", "efg", "", "hi jk"])


@pytest.mark.parametrize("batch_size", [None, 4])
def test_padding_to_the_longest_row_is_no_dependence(tmp_path, batch_size):
    def lengths(x):
        words = tf.strings.split(x).to_tensor("")
        return {"words": words, "lengths": tf.cast(tf.strings.length(words), tf.float32)}

    path = save(tmp_path / "m", lengths, ([batch_size], tf.string, "x"))
    check = keras_bn.verify_inference_mode(path, WORDS)
    assert check.difference == 0.0 < check.spread


def test_a_dependence_of_padded_outputs_is_found(tmp_path):
    def centered(x):
        lengths = tf.cast(tf.strings.length(tf.strings.split(x)), tf.float32).to_tensor()
        return lengths - tf.reduce_mean(lengths)

    path = save(tmp_path / "m", centered, ([None], tf.string, "x"))
    with pytest.raises(keras_bn.KerasBNError, match="depends on the other rows"):
        keras_bn.verify_inference_mode(path, WORDS)


def test_masked_logits_may_be_minus_infinity(tmp_path):
    specs = ([None, 3], tf.float32, "x")
    honest = save(tmp_path / "honest", lambda x: tf.where(x > 0.1, x, -np.inf), specs)
    check = keras_bn.verify_inference_mode(honest)
    assert check.difference == 0.0 < check.spread <= 1.0
    mixing = save(tmp_path / "mixing", lambda x: tf.where(x > tf.reduce_mean(x, 0), x, -np.inf), specs)
    with pytest.raises(keras_bn.KerasBNError, match="depends on the other rows"):
        keras_bn.verify_inference_mode(mixing)
    for value in (np.inf, np.nan):
        broken = save(tmp_path / str(value), lambda x, v=value: tf.where(x > 0.1, x, v), specs)
        with pytest.raises(keras_bn.KerasBNError, match="is not finite"):
            keras_bn.verify_inference_mode(broken)


def test_a_scalar_input_is_no_row(tmp_path):
    specs = ([None, 3], tf.float32, "x"), ([], tf.float32, "temperature")
    honest = save(tmp_path / "honest", lambda x, t: tf.nn.softmax(x / t), *specs)
    for examples in (None, {"x": np.eye(3), "temperature": 0.5}):
        assert keras_bn.verify_inference_mode(honest, examples).difference < 1e-6
    mixing = save(tmp_path / "mixing", lambda x, t: tf.nn.softmax(x / t, 0), *specs)
    with pytest.raises(keras_bn.KerasBNError, match="depends on the other rows"):
        keras_bn.verify_inference_mode(mixing)
    alone = save(tmp_path / "alone", lambda t: t[None], ([], tf.float32, "temperature"))
    with pytest.raises(keras_bn.KerasBNError, match="no input with an axis of examples"):
        keras_bn.verify_inference_mode(alone)


def test_training_mode_of_a_fixed_batch_size(tmp_path):
    model = normalized(layers.BatchNormalization())
    with pytest.raises(keras_bn.KerasBNError, match="depends on the other rows"):
        keras_bn.verify_inference_mode(archive(tmp_path / "m", model, training=True, batch_size=4))


def test_integers_are_replaced_too(tmp_path):
    def largest_first(x):
        return tf.cast(x, tf.float32) / tf.cast(tf.reduce_max(x), tf.float32)

    path = save(tmp_path / "m", largest_first, ([3, 4], tf.uint8, "x"))
    with pytest.raises(keras_bn.KerasBNError, match="depends on the other rows"):
        keras_bn.verify_inference_mode(path)


def test_one_example_at_a_time_has_no_other_rows(tmp_path):
    path = save(tmp_path / "m", lambda x: 2 * x, ([1, 3], tf.float32, "x"))
    with pytest.warns(UserWarning, match=r"one example at a time, .* No fused normalization"):
        check = keras_bn.verify_inference_mode(path)
    assert (check.examples, check.difference) == (1, 0.0)


def test_training_mode_of_one_example_at_a_time_is_named(tmp_path):
    def normalized(x):
        ones = tf.ones(3)
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=ones, offset=ones, mean=ones, variance=ones, is_training=True, name="live"
        )[0]

    path = save(tmp_path / "m", normalized, ([1, 4, 4, 3], tf.float32, "x"))
    with pytest.warns(UserWarning, match="These operations normalize in that way: live"):
        keras_bn.verify_inference_mode(path)


@pytest.mark.parametrize("limit", [100.0, -100.0])
def test_what_only_far_larger_rows_cause_is_found(tmp_path, limit):
    def flagged(x):
        return x + tf.cast(tf.reduce_max(x / limit) > 1, tf.float32)

    path = save(tmp_path / "m", flagged, ([None, 3], tf.float32, "x"))
    with pytest.raises(keras_bn.KerasBNError, match="depends on the other rows"):
        keras_bn.verify_inference_mode(path)


def test_values_that_a_model_refuses_are_left_out(tmp_path):
    def embedded(x):
        with tf.control_dependencies([tf.debugging.assert_less_equal(tf.abs(x), 1.0)]):
            return tf.identity(x)

    path = save(tmp_path / "m", embedded, ([None, 3], tf.float32, "x"))
    examples = np.random.default_rng(0).uniform(-1, 1, (4, 3))
    assert keras_bn.verify_inference_mode(path, examples).difference == 0.0


def test_a_fixed_batch_size_is_kept_and_more_examples_are_cut(tmp_path):
    path = save(tmp_path / "m", lambda x: 2 * x, ([3, 2], tf.float32, "x"))
    assert keras_bn.verify_inference_mode(path).examples == 3
    assert keras_bn.verify_inference_mode(path, np.eye(7, 2)).examples == 3


def test_a_state_is_named_as_a_cause(tmp_path):
    inputs = keras.Input(batch_shape=(3, 5, 2))
    model = keras.Model(inputs, layers.GRU(4, stateful=True)(inputs))
    model.export(tmp_path / "m", verbose=False)
    for examples in (None, np.random.default_rng(0).normal(size=(3, 5, 2))):
        with pytest.raises(keras_bn.KerasBNError, match="a state is kept from one request to the next"):
            keras_bn.verify_inference_mode(tmp_path / "m", examples)


def test_size_of_the_batch_is_no_neighbour_but_is_found(tmp_path):
    path = save(tmp_path / "m", lambda x: x * tf.cast(tf.shape(x)[0], x.dtype), ([None, 3], tf.float32, "x"))
    with pytest.raises(keras_bn.KerasBNError, match="depends on the other rows"):
        keras_bn.verify_inference_mode(path)


def test_tolerance_is_that_of_the_narrowest_float(tmp_path):
    def rounded(x):
        return tf.cast(tf.cast(x, tf.float16) * 3, tf.float32)

    half = keras_bn.verify_inference_mode(save(tmp_path / "half", rounded, ([None, 3], tf.float32, "x")))
    single = keras_bn.verify_inference_mode(
        save(tmp_path / "single", lambda x: x * 3, ([None, 3], tf.float32, "x"))
    )
    assert half.tolerance > single.tolerance


def test_inputs_of_every_kind_are_made_up(tmp_path):
    def call(i, u, b, f):
        embedded = tf.gather(tf.random.stateless_normal([2, 3], [0, 0]), i)
        return {
            "embedded": embedded * tf.cast(b, tf.float32)[:, None, None],
            "bytes": tf.cast(u, tf.float32) / 255,
            "open": tf.reduce_sum(f, [1, 2]),
            "class": tf.argmax(f[:, 0], -1),
        }

    path = save(
        tmp_path / "m",
        call,
        ([None, 5], tf.int64, "i"),
        ([None, 4], tf.uint8, "u"),
        ([None], tf.bool, "b"),
        ([None, None, 3], tf.float64, "f"),
    )
    assert keras_bn.verify_inference_mode(path).spread > 0.1


def test_fixed_batch_size_is_compared_in_order_only(tmp_path):
    path = save(tmp_path / "m", lambda x: x * 2, ([3, 2], tf.float32, "x"))
    assert keras_bn.verify_inference_mode(path).examples == 3
    path = save(tmp_path / "mean", lambda x: x - x[:1], ([3, 2], tf.float32, "x"))
    with pytest.raises(keras_bn.KerasBNError, match="depends on the other rows"):
        keras_bn.verify_inference_mode(path)


def test_made_up_inputs_that_do_not_fit(tmp_path):
    def call(words):
        tf.debugging.assert_greater(words, 100)
        return tf.cast(words, tf.float32)

    path = save(tmp_path / "m", call, ([None, 2], tf.int32, "words"))
    with pytest.raises(keras_bn.KerasBNError, match="failed on generated inputs; pass examples"):
        keras_bn.verify_inference_mode(path)
    assert keras_bn.verify_inference_mode(path, np.arange(200, 206).reshape(3, 2)).examples == 3


def test_strings_cannot_be_made_up(tmp_path):
    path = save(tmp_path / "m", lambda s: tf.strings.length(s), ([None], tf.string, "s"))
    with pytest.raises(keras_bn.KerasBNError, match="input 's' takes strings"):
        keras_bn.verify_inference_mode(path)
    assert keras_bn.verify_inference_mode(path, ["a", "bcd"]).spread == 1


def test_same_output_for_every_example_is_said(tmp_path):
    path = save(tmp_path / "m", lambda x: x * 0 + 1, ([None, 2], tf.float32, "x"))
    with pytest.warns(UserWarning, match="gave every example nearly the same output"):
        assert keras_bn.verify_inference_mode(path).spread == 0


def test_second_try_has_larger_numbers(tmp_path):
    path = save(tmp_path / "m", lambda x: tf.nn.relu(x - 2), ([None, 2], tf.float32, "x"))
    assert keras_bn.verify_inference_mode(path).spread > 0.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: x / 0, "output 'output_0' .* is not finite"),
        (lambda x: tf.reduce_sum(x), r"has shape \(\) for 4 examples"),
    ],
)
def test_outputs_that_prove_nothing(tmp_path, call, message):
    with pytest.raises(keras_bn.KerasBNError, match=message):
        keras_bn.verify_inference_mode(save(tmp_path / "m", call, ([None, 2], tf.float32, "x")))


@pytest.mark.parametrize(
    "examples, message",
    [
        (np.zeros((1, 2)), "one cannot be seen to change another"),
        (np.zeros((3, 5)), r"input 'x' have shape \(3, 5\); the model takes \(None, 2\)"),
        ({"y": np.zeros((3, 2))}, "examples must be given for the inputs x; got y"),
        (np.full((3, 2), "one"), "examples for input 'x' are not float32"),
    ],
)
def test_examples_that_do_not_fit(tmp_path, examples, message):
    path = save(tmp_path / "m", lambda x: x * 2, ([None, 2], tf.float32, "x"))
    with pytest.raises(keras_bn.KerasBNError, match=message):
        keras_bn.verify_inference_mode(path, examples)


def test_examples_of_several_inputs(tmp_path):
    path = save(
        tmp_path / "m", lambda x, y: x + y, ([None, 2], tf.float32, "x"), ([None, 2], tf.float32, "y")
    )
    x = np.eye(2)
    assert keras_bn.verify_inference_mode(path, {"y": x, "x": x}).examples == 2
    with pytest.raises(keras_bn.KerasBNError, match="examples differ in number"):
        keras_bn.verify_inference_mode(path, {"x": x, "y": np.zeros((3, 2))})
    with pytest.raises(
        keras_bn.KerasBNError, match="examples must be given for the inputs x, y; got one array"
    ):
        keras_bn.verify_inference_mode(path, x)


def test_no_saved_model(tmp_path):
    with pytest.raises(keras_bn.KerasBNError, match="holds no SavedModel"):
        keras_bn.verify_inference_mode(tmp_path)


def test_corrupt_saved_model(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\xffnot a model")
    with pytest.raises(keras_bn.KerasBNError, match="cannot be loaded"):
        keras_bn.verify_inference_mode(tmp_path)


def test_missing_signature(tmp_path):
    path = save(tmp_path / "m", lambda x: x * 2, ([None, 2], tf.float32, "x"))
    with pytest.raises(keras_bn.KerasBNError, match=r"no signature 'classify'; it has .*serving_default"):
        keras_bn.verify_inference_mode(path, signature="classify")


def test_change_is_relative_to_the_largest_output_and_exact_for_other_types():
    reference = {"x": np.array([[1.0], [-4.0]], np.float32), "class": np.array([1, 2])}
    changed = {"x": np.array([[1.0], [-3.0]], np.float32), "class": np.array([1, 2])}
    assert largest_change(changed, reference) == 0.25
    assert largest_change({**reference, "class": np.array([1, 3])}, reference) == 1.0
    assert largest_change(reference, reference) == 0.0
    assert largest_change({**reference, "x": np.array([[1.0, 0.0], [-4.0, 0.0]])}, reference) == 1.0
