"""Batches: the inputs of whatever Model.predict takes, and one clear error for what it does not."""

import keras
import numpy as np
import pytest

from keras_bn.data import batches
from keras_bn.errors import KerasBNError

tf = pytest.importorskip("tensorflow")  # its data sets are read on every backend
X = np.arange(14, dtype="float32").reshape(7, 2)


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1)])


@pytest.fixture(scope="module")
def two_inputs():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    return keras.Model({"a": a, "b": b}, keras.layers.Concatenate()([a, b]))


class Pairs(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[3 * index : 3 * index + 3], np.zeros(3)


class Endless(Pairs):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return X


SOURCES = {
    "array": (lambda: X, 3, 3, True),
    "tensor": (lambda: tf.constant(X), 3, 3, True),
    "dataset": (lambda: tf.data.Dataset.from_tensor_slices(X).batch(3), None, 3, True),
    "dataset of pairs": (lambda: tf.data.Dataset.from_tensor_slices((X, X)).batch(3), None, 3, True),
    "pydataset": (Pairs, None, 3, True),
    "list of batches in a generator": (lambda: (X[i : i + 3] for i in (0, 3, 6)), None, None, False),
    "list of pairs": (lambda: [(X[i : i + 3], np.float32(0)) for i in (0, 3, 6)], None, 3, True),
    "generator of pairs": (lambda: ((X[i : i + 3], 0) for i in (0, 3, 6)), None, None, False),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same(model, name):
    make, batch_size, total, reiterable = SOURCES[name]
    found = batches(model, make(), batch_size)
    assert (found.total, found.reiterable) == (total, reiterable)
    for _ in range(2 if reiterable else 1):
        taken = [np.asarray(batch) for batch in found]
        assert [len(batch) for batch in taken] == [3, 3, 1]
        np.testing.assert_array_equal(np.concatenate(taken), X)


def test_data_is_not_iterated_before_it_is_read(model):
    """A `DataLoader` starts its worker processes each time."""

    class Loader:
        started = 0

        def __iter__(self):
            self.started += 1
            return iter([X])

    loader = Loader()
    found = batches(model, loader)
    assert found.reiterable and not loader.started
    for _ in found:
        assert loader.started == 1


def test_tensors_of_pytorch_are_read_on_every_backend(model):
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, requires_grad=True)
    for each in (x, x.to(torch.bfloat16)):  # its seven bits are enough for these integers
        (batch,) = batches(model, each)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(keras.ops.cast(batch, "float32")), X)


def test_steps(model):
    assert [len(batch) for batch in batches(model, X, 3, steps=2)] == [3, 3]
    assert batches(model, X, 3, steps=2).total == 2
    repeated = tf.data.Dataset.from_tensors(X).repeat()
    assert len(list(batches(model, repeated, steps=4))) == 4
    assert len(list(batches(model, Endless(), steps=4))) == 4


def test_several_inputs(two_inputs):
    inputs = {"a": X, "b": np.ones((7, 3))}
    shapes = [{name: v.shape for name, v in batch.items()} for batch in batches(two_inputs, inputs, 4)]
    assert shapes == [{"a": (4, 2), "b": (4, 3)}, {"a": (3, 2), "b": (3, 3)}]
    assert len(list(batches(two_inputs, [X, np.ones((7, 3))], 4))) == 2


def test_the_keys_of_a_dictionary_of_inputs_need_not_be_their_names():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    model = keras.Model({"first": a, "b": b}, keras.layers.Concatenate()([a, b]))
    (batch,) = batches(model, {"first": X, "b": np.ones((7, 3))})
    assert batch["first"].shape == (7, 2)
    with pytest.raises(KerasBNError, match=r"has no \['first'\]; the model's inputs are \['first', 'b'\]"):
        list(batches(model, {"a": X, "b": np.ones((7, 3))}))


def test_a_trailing_axis_of_one_may_be_left_out():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    assert [batch.shape for batch in batches(model, np.ones(5), 3)] == [(3,), (2,)]


@pytest.mark.parametrize("empty", [X[:0], (X[:0], X[:0])])
def test_batches_without_examples_are_passed_over(model, empty):
    found = batches(model, iter([empty, X, empty, X[:3]]), steps=2)
    assert [len(batch) for batch in found] == [7, 3]


@pytest.mark.parametrize("words", [np.array([["a"], ["b"]]), np.array([["a"], ["b"]], object)])
def test_strings_are_for_a_model_that_takes_them(words):
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    assert [batch.shape for batch in batches(model, words)] == [(2, 1)]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (3, {}, "data is a int; pass what Model.predict takes"),
        ("images/", {}, "data is a str; pass what Model.predict takes"),
        ("images/", {"batch_size": 2}, "data is a str; pass what Model.predict takes"),
        (X.tolist(), {}, "data is a list of Python float values; convert it to an array"),
        ({"x": X.tolist()}, {}, "data is a dict of Python float values; convert it to an array"),
        (iter([X.tolist()]), {}, r"Batch 0 .* is a list of 7; it must be x, \(x, y\)"),
        (iter([X[:1].tolist()]), {}, "Batch 0 .* has 2 array"),
        (iter([([1.0], 0)]), {}, "Batch 0 .* has a float for 'x'; convert it to an array"),
        (np.array(1.0), {}, "data has 0-d arrays only"),
        (np.array(1.0), {"batch_size": 2}, "data has 0-d arrays only"),
        (X.astype(str), {}, "Batch 0 .* dtype <U.* for 'x', which takes float32"),
        (X.astype("S"), {}, "dtype |S"),
        (X.astype(object), {}, "dtype object"),
        (X.astype(complex), {}, "dtype complex128"),
        (tf.constant(X.astype(str)), {}, "Batch 0 .* dtype object for 'x', which takes float32"),
        (X[:0], {}, "no batch has an example"),
        (iter([]), {}, "There is no data"),
        (iter([X[:0], X[:0]]), {}, "There is no data"),
        (iter([X[:0], np.full_like(X, np.inf)]), {}, "Batch 1 .* NaN or infinity"),
        (np.ones((4, 3)), {}, r"Batch 0 .* shape \(4, 3\) for 'x', which takes \(None, 2\)"),
        (tf.data.Dataset.from_tensor_slices(X), {}, "check the batch dimension"),
        ([X, X], {}, "has 2 array"),
        ({"y": X}, {}, r"has no \['x'\]"),
        (np.array([[1, np.nan]]), {}, "Batch 0 .* NaN or infinity in 'x'"),
        (iter([X, X * np.inf]), {}, "Batch 1 .* NaN or infinity in 'x'"),
        (X, {"steps": 2}, "ended after 1 of steps=2"),
        (iter([X]), {"steps": 2}, "ended after 1 of steps=2"),
        (X, {"steps": 0}, "steps=0"),
        (X, {"batch_size": 0}, "batch_size=0"),
        (X, {"batch_size": 2.0}, "batch_size=2.0: it must be an integer"),
        (X, {"batch_size": "2"}, "batch_size='2': it must be an integer"),
        (X, {"steps": True}, "steps=True: it must be an integer"),
        (X, {"steps": 1.5}, "steps=1.5: it must be an integer"),
        (iter([X]), {"batch_size": 2}, "batch_size=2 was given with a list_iterator"),
        (tf.data.Dataset.from_tensors(X).repeat(), {}, "repeats without end"),
        (Endless(), {}, "repeats without end"),
    ],
)
def test_bad_data(model, data, options, message):
    with pytest.raises(KerasBNError, match=message):
        list(batches(model, data, **options))


def test_arrays_of_different_lengths(two_inputs):
    with pytest.raises(KerasBNError, match=r"\[6, 7\] examples"):
        batches(two_inputs, {"a": X, "b": np.ones((6, 3))})


def test_the_order_of_a_dictionary_is_the_models_and_other_keys_are_dropped():
    b, a = keras.Input((3,), name="b"), keras.Input((2,), name="a")
    model = keras.Model([b, a], keras.layers.Concatenate()([b, a]))
    data = {"row": np.arange(7), "a": X, "b": np.ones((7, 3))}
    (batch,) = batches(model, data)
    assert [leaf.shape for leaf in batch] == [(7, 3), (7, 2)]


def test_an_optional_input_may_be_none():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b", optional=True)
    model = keras.Model([a, b], keras.layers.Identity()(a))
    (batch,) = batches(model, [X, None])
    assert batch[1] is None
    with pytest.raises(KerasBNError, match="has a NoneType for 'a'"):
        list(batches(model, [None, X]))


def test_a_batch_size_from_a_first_call_binds_nobody():
    model = keras.Sequential([keras.layers.Dense(1)])
    model(X[:1])
    assert [len(batch) for batch in batches(model, X, 3)] == [3, 3, 1]


def test_pandas():
    pandas = pytest.importorskip("pandas")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    frame = pandas.DataFrame(X, index=range(7, 0, -1))
    np.testing.assert_array_equal(np.concatenate(list(batches(model, frame, 3))), X)
