"""Population statistics on Beam's DirectRunner, in one process and in two."""

import keras
import numpy as np
import pytest

import keras_bn

beam = pytest.importorskip("apache_beam", reason="needs the extra beam")

from keras_bn.beam import EstimateStatistics  # noqa: E402

X = np.random.default_rng(0).normal(3, 2, (70, 5)).astype("float32")
BATCHES = [X[i : i + 8] for i in range(0, len(X), 8)]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, activation="tanh"),
            keras_bn.BatchNormalization(name="first"),
            keras.layers.Dense(3, activation="tanh"),
            keras.layers.BatchNormalization(name="second"),
        ]
    )
    path = tmp_path_factory.mktemp("beam") / "model.keras"
    model.save(path)
    return path


def estimated(tmp_path, function, **options):
    """What the pipeline computes, by way of a file, as processes of their own would."""
    target = str(tmp_path / "all.stats")
    options = beam.options.pipeline_options.PipelineOptions(runner="DirectRunner", **options)
    with beam.Pipeline(options=options) as pipeline:
        batches = pipeline | beam.Create(BATCHES)
        batches | beam.CombineGlobally(function) | beam.Map(lambda statistics: statistics.save(target))
    return keras_bn.PopulationStatistics.load(target)


def one_pass(model_file, **options):
    model = keras.models.load_model(model_file)
    return keras_bn.recalibrate(model, X, batch_size=8, progress=False, **options).model


def assert_equal(result, expected):
    for one, other in zip(result.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "options",
    [
        {"direct_num_workers": 1},
        pytest.param(
            {"direct_num_workers": 2, "direct_running_mode": "multi_processing"}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_bits_are_those_of_one_pass(model_file, tmp_path, options):
    statistics = estimated(tmp_path, EstimateStatistics(model_file), **options)
    model = keras.models.load_model(model_file)
    result = keras_bn.recalibrate(model, statistics=statistics).model
    assert_equal(result, one_pass(model_file, estimator="batch"))


def test_the_sequential_estimator_takes_a_pipeline_per_level(model_file, tmp_path):
    statistics = None
    for level in range(2):
        function = EstimateStatistics(model_file, estimator="sequential", statistics=statistics)
        statistics = estimated(tmp_path, function)
        assert statistics.level == level
    result = statistics.apply(keras.models.load_model(model_file)).model
    for one, other in zip(result.get_weights(), one_pass(model_file).get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)  # compiled in other pieces
