"""The laws of surgery, on whatever backend Keras runs on."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_bn

IMAGES = np.random.default_rng(0).normal(2, 3, (24, 8, 8, 3)).astype("float32")
LABELS = np.arange(24, dtype="float32")


def plain():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv1")(inputs)
    x = layers.Conv2D(5, 3, activation="relu", name="conv2")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(x)))


def normalized():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv1")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="bn1")(x))
    x = layers.BatchNormalization(name="bn2")(layers.DepthwiseConv2D(3, name="depthwise")(x))
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(layers.ReLU()(x))))
    random = np.random.default_rng(1)
    model.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in model.weights])
    return model


def answers(model):
    return model.predict(IMAGES, verbose=0)


@pytest.fixture(params=["retrofit", "recalibrate", "fold", "convert", "freeze", "inspect"])
def surgery(request):
    """A function of the package, its donor and the donor as it was."""
    function = getattr(keras_bn, request.param)
    donor = plain() if request.param == "retrofit" else normalized()
    arguments = (IMAGES,) if request.param in ("retrofit", "recalibrate", "inspect") else ()
    return lambda: function(donor, *arguments), donor


def test_the_donor_is_left_alone(surgery):
    operate, donor = surgery
    weights, outputs, config = donor.get_weights(), answers(donor), donor.get_config()
    operate()
    assert donor.get_config() == config
    assert np.array_equal(answers(donor), outputs)
    for old, new in zip(weights, donor.get_weights(), strict=True):
        assert np.array_equal(old, new)


def test_retrofit_inserts_the_identity_to_the_bit():
    result = keras_bn.retrofit(plain(), IMAGES, progress=False)
    inserted = [layer for layer in result.model.layers if isinstance(layer, keras_bn.BatchNormalization)]
    assert len(inserted) == 2
    for layer in inserted:
        values = np.random.default_rng(2).normal(0, 100, (9, 5, 5, layer.gamma.shape[0])).astype("float32")
        assert np.array_equal(ops.convert_to_numpy(layer(values, training=False)), values)


def test_fold_is_exact():
    donor = normalized()
    folded = keras_bn.fold(donor).model
    assert not [layer for layer in folded.layers if isinstance(layer, layers.BatchNormalization)]
    expected = answers(donor)
    # A handful of float32 roundings in sums of some hundred terms.
    np.testing.assert_allclose(answers(folded), expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def far_from_zero(kind, ratio):
    """A network with BN, and data, whose means are `ratio` times their deviations where BN sees them."""
    random = np.random.default_rng(0)
    data = random.normal(size=(16, 6, 6, 64))
    if not kind.startswith("bias"):
        data += ratio * random.choice([-1, 1], 64)
    stack = {
        "dense, bn": [layers.Flatten(), layers.Dense(16), layers.BatchNormalization()],
        "conv, bn": [layers.Conv2D(16, 3, use_bias=False), layers.BatchNormalization()],
        "depthwise, bn": [layers.DepthwiseConv2D(3), layers.BatchNormalization()],
        "bias, bn": [
            layers.Conv2D(16, 3, bias_initializer=keras.initializers.Constant(ratio)),
            layers.BatchNormalization(),
        ],
        "bn, dense": [layers.BatchNormalization(), layers.Flatten(), layers.Dense(16)],
        "bn, conv": [layers.BatchNormalization(), layers.Conv2D(16, 3)],
        "bn, depthwise": [layers.BatchNormalization(), layers.DepthwiseConv2D(3)],
        "bn, bn, conv": [layers.BatchNormalization(), layers.BatchNormalization(), layers.Conv2D(16, 3)],
    }[kind]
    keras.utils.set_random_seed(0)
    model, data = keras.Sequential([keras.Input((6, 6, 64)), *stack]), data.astype("float32")
    return keras_bn.recalibrate(model, data, progress=False).model, data


FAR = ("dense, bn", "conv, bn", "depthwise, bn", "bias, bn", "bn, dense", "bn, conv", "bn, depthwise")


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends lack float64 layers")
@pytest.mark.parametrize("ratio", [30, 1e4])
@pytest.mark.parametrize("kind", [*FAR, "bn, bn, conv"])
def test_rounding_is_that_of_the_donor_where_means_are_far_larger_than_deviations(kind, ratio):
    """Means cancel in BN. What is made of it is as near to float64 as the donor in float32 is."""
    model, data = far_from_zero(kind, ratio)
    exact = keras.models.model_from_json(model.to_json().replace("float32", "float64"))
    exact.set_weights(model.get_weights())
    expected = np.asarray(exact(data.astype("float64")))
    size = np.abs(expected).max()

    def off(other):
        return np.sqrt(np.mean((np.asarray(other(data)) - expected) ** 2)) / size

    own = off(model)
    # Up to 100 deviations BN goes into the layer after it, where a sum of 2304 terms has the mean in each.
    allowed = max(3 * own, 3e-5 if ratio < 100 else 0)
    for function in (keras_bn.fold, keras_bn.freeze):
        result = function(model)
        assert off(result.model) <= allowed, (function.__name__, own)


def test_a_mean_that_would_cancel_in_the_sums_of_the_next_layer_is_subtracted_before():
    model, _ = far_from_zero("bn, dense", 1000)
    (row,) = keras_bn.fold(model).report.rows
    assert row.action == "multiply-add"
    assert "the means are 1e+03 times what BN makes of them" in row.reason
    model, _ = far_from_zero("bn, dense", 30)
    (row,) = keras_bn.fold(model).report.rows
    assert row.action == "folded"


@pytest.mark.parametrize("batch_size", [1, 7])
def test_statistics_do_not_depend_on_how_the_data_is_cut(batch_size):
    models = [
        keras_bn.recalibrate(normalized(), IMAGES, batch_size=size, estimator="sequential").model
        for size in (24, batch_size)
    ]
    for whole, cut in zip(*(model.get_weights() for model in models), strict=True):
        # Rows are reduced in float32; a batch of another size may run another kernel.
        np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-5)


class Pieces(keras.utils.PyDataset):
    """With labels and weights, read by two threads."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return IMAGES[index::3], LABELS[index::3], LABELS[index::3]


def tensorflow_dataset(*structure):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(structure if len(structure) > 1 else structure[0])


def data_loader(examples, **options):
    loading = pytest.importorskip("torch.utils.data")
    return loading.DataLoader(examples, batch_size=5, shuffle=True, **options)


def torch_examples(*arrays):
    torch = pytest.importorskip("torch")
    return torch.utils.data.TensorDataset(*map(torch.from_numpy, arrays))


FORMS = {
    "list of one array": lambda: [IMAGES],
    "dictionary": lambda: {"image": IMAGES, "label": LABELS},
    "tensor of the backend": lambda: ops.convert_to_tensor(IMAGES),
    "tensor of PyTorch": lambda: pytest.importorskip("torch").tensor(IMAGES, requires_grad=True),
    "tensor of TensorFlow": lambda: pytest.importorskip("tensorflow").constant(IMAGES),
    "tensor of JAX": lambda: pytest.importorskip("jax.numpy").asarray(IMAGES),
    "generator": lambda: (IMAGES[i : i + 5] for i in range(0, 24, 5)),
    "generator with labels": lambda: ((IMAGES[i::4], LABELS[i::4]) for i in range(4)),
    "PyDataset": lambda: Pieces(workers=2),
    "tf.data": lambda: tensorflow_dataset(IMAGES).batch(5),
    "tf.data, shuffled, with labels": lambda: tensorflow_dataset(IMAGES, LABELS).shuffle(24).batch(7),
    "tf.data of dictionaries": lambda: tensorflow_dataset({"image": IMAGES, "label": LABELS}).batch(5),
    "DataLoader, images alone": lambda: data_loader(torch_examples(IMAGES)),
    "DataLoader with labels and weights": lambda: data_loader(torch_examples(IMAGES, LABELS, LABELS)),
    "DataLoader of arrays": lambda: data_loader(list(zip(IMAGES, LABELS, strict=True))),
    "DataLoader of dictionaries": lambda: data_loader(
        [{"image": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True)]
    ),
    "DataLoader of dictionaries with labels": lambda: data_loader(
        [({"image": image}, label) for image, label in zip(IMAGES, LABELS, strict=True)]
    ),
    "DataLoader of doubles": lambda: data_loader(torch_examples(IMAGES.astype("float64"))),
}  # fmt: skip


@pytest.fixture(scope="module")
def expected():
    """The statistics that the same data gives as one array."""
    return keras_bn.recalibrate(normalized(), IMAGES, progress=False).model.get_weights()


@pytest.mark.parametrize("form", FORMS)
def test_statistics_do_not_depend_on_the_form_of_the_data(form, expected):
    found = keras_bn.recalibrate(normalized(), FORMS[form](), progress=False).model.get_weights()
    for weight, other in zip(found, expected, strict=True):
        # As above: another cut may run another kernel.
        np.testing.assert_allclose(weight, other, rtol=1e-5, atol=1e-5)


def test_convert_there_and_back_gives_the_same_model():
    donor = normalized()
    converted = keras_bn.convert(donor).model
    assert isinstance(converted.get_layer("bn1"), keras_bn.BatchNormalization)
    assert np.abs(answers(converted) - answers(donor)).max() <= 1e-5 * np.abs(answers(donor)).max()
    back = keras_bn.convert(converted, to="keras").model
    assert type(back.get_layer("bn1")) is layers.BatchNormalization
    assert np.array_equal(answers(back), answers(donor))
