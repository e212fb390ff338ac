"""The OpenVINO engine: TensorFlow's answers to rounding, and TensorFlow's own where it cannot give them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_bn_serving.local_server import engines
from keras_bn_serving.local_server.engines.engine import Options
from keras_bn_serving.local_server.engines.tensorflow import TensorFlow
from keras_bn_serving.wire.errors import DeadlineExceededError, InvalidArgumentError, ServingError
from tests.serving.golden import make_models

pytest.importorskip("openvino")
from keras_bn_serving.local_server.engines import openvino

OPTIONS = Options(engine="openvino")
ROUNDING = 1e-6  # of the largest output: float32 sums of 27 products in another order
COARSE = 2e-2  # bfloat16 has 8 bits
RNG = np.random.default_rng(0)


def network(x: tf.Tensor) -> tf.Tensor:
    kernel = tf.constant(np.random.default_rng(1).normal(size=(3, 3, 3, 4)), tf.float32)
    return tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")), [1, 2])


def write(folder: Path, shape: list[int | None] | None = None, **signatures: Callable) -> str:
    def build() -> dict:
        x = tf.compat.v1.placeholder(tf.float32, shape or [None, 8, 8, 3], "x")
        return {
            key: make_models.sig({"x": x}, {"y": tf.identity(function(x), f"y_{key}")})
            for key, function in signatures.items()
        }

    make_models.write_graph(str(folder / "1"), build)
    return str(folder / "1")


def fetch(engine: engines.Engine, x: np.ndarray, key: str = "serving_default") -> np.ndarray:
    signature = engine.signatures[key]
    (feed,), (output,) = signature.inputs.values(), signature.outputs.values()
    return engine.run({feed.name: x}, [output.name])[0]


def by_tensorflow(engine: openvino.OpenVino) -> bool:
    """Whether TensorFlow's session was needed."""
    return engine._tensorflow is not None


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", ROUNDING), ("bfloat16", COARSE)])
def test_any_batch_gets_tensorflow_s_answer(tmp_path: Path, precision: str, tolerance: float) -> None:
    path = write(tmp_path, serving_default=network, doubled=lambda x: 2 * network(x))
    engine = openvino.OpenVino(path, Options("openvino", precision))
    reference = TensorFlow(path, Options())
    for key in ("serving_default", "doubled"):
        for batch in (1, 3, 3, 3, 3, 3, 1, 7):  # three of a size and it gets a network of its own
            x = RNG.normal(size=(batch, 8, 8, 3)).astype(np.float32)
            expected = fetch(reference, x, key)
            np.testing.assert_allclose(
                fetch(engine, x, key), expected, rtol=0, atol=tolerance * np.abs(expected).max()
            )
    assert not by_tensorflow(engine)
    engine.close()
    reference.close()


def test_answers_stay_when_later_requests_come(tmp_path: Path) -> None:
    """The arrays are the caller's: the next request through the same network does not write into them."""
    engine = openvino.OpenVino(write(tmp_path, serving_default=network), OPTIONS)
    first = fetch(engine, np.ones((1, 8, 8, 3), np.float32))
    kept = first.copy()
    fetch(engine, np.zeros((1, 8, 8, 3), np.float32))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("names", ["pqabc", "qpcba", "pqbca"])
def test_inputs_and_outputs_keep_their_places(tmp_path: Path, names: str) -> None:
    def build() -> dict:
        x, y = (tf.compat.v1.placeholder(tf.float32, [None, 3], name) for name in "yx")
        outputs = [tf.subtract(x, 2 * y), tf.exp(x), tf.exp(y)]
        return {
            "serving_default": make_models.sig(
                dict(zip(names[:2], (x, y), strict=True)), dict(zip(names[2:], outputs, strict=True))
            )
        }

    make_models.write_graph(str(tmp_path / "1"), build)
    engine = openvino.OpenVino(str(tmp_path / "1"), OPTIONS)
    reference = TensorFlow(str(tmp_path / "1"), Options())
    signature = engine.signatures["serving_default"]
    for batch in (1, 2):  # a network for one row, and one for any number of them
        feeds = {info.name: RNG.normal(size=(batch, 3)).astype("f4") for info in signature.inputs.values()}
        for keys in ("abc", "ca", "b"):
            fetches = [signature.outputs[key].name for key in keys]
            found, expected = engine.run(feeds, fetches), reference.run(feeds, fetches)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert not by_tensorflow(engine)


@pytest.mark.parametrize(
    "shape", [(8, 8, 3), (1, 8, 8, 4), (1, 4, 4, 3), (0, 8, 8, 3), (1, 1, 8, 8, 3)], ids=str
)
def test_other_shapes_are_tensorflow_s_to_judge(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path, serving_default=network)
    engine, reference = openvino.OpenVino(path, OPTIONS), TensorFlow(path, Options())

    def outcome(one: engines.Engine) -> object:
        try:
            return fetch(one, np.ones(shape, np.float32)).tolist()
        except ServingError as error:
            return error.status

    assert outcome(engine) == outcome(reference)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: tf.debugging.check_numerics(x, "no number"), "CheckNumerics"),
        (
            lambda x: tf.gather(x, tf.cast(x[0, 0, 0], tf.int32), axis=1),
            "GatherV2 with indices that are computed",
        ),
        (
            lambda x: x // 1 + tf.cast(7 // tf.cast(x[0, 0, 0, 0], tf.int32), tf.float32),
            "FloorDiv of integers by a divisor that may be 0",
        ),
        (
            lambda x: tf.cast(tf.strings.length(tf.strings.as_string(x)), tf.float32),
            "No conversion rule found for operations: AsString",
        ),
        (
            tf.function(lambda x: tf.debugging.check_numerics(x, "no number"), autograph=False),
            "CheckNumerics",
        ),
        (lambda x: tf.cast(x, tf.float64), "y is of type DT_DOUBLE"),
        (lambda x: tf.cast(tf.cast(x, tf.float64) / 3 - 1 / 3, tf.float32), " of type DT_DOUBLE"),
        (lambda x: tf.cast(tf.cast(255 * x, tf.int8), tf.float32), "Cast of type DT_INT8"),
        (
            lambda x: tf.cast(tf.cast(x, tf.int64) * 2**40 // 2**38, tf.float32),
            "of type DT_INT64",
        ),
        (
            lambda x: tf.ensure_shape(tf.reshape(x, [-1, 3]), [64, 3]),
            "EnsureShape of a tensor that is computed",
        ),
        (lambda x: x + 0 * tf.random.uniform([]), "RandomUniform that draws random numbers"),
        (lambda x: tf.unique(tf.reshape(x, [-1]))[0], "Unique that OpenVINO computes wrongly"),
        (
            lambda x: tf.math.unsorted_segment_sum(tf.reshape(x, [-1, 3]), [0] * 64, 1),
            "UnsortedSegmentSum that checks its input",
        ),
    ],
    ids=[
        *("numerics", "gather", "division", "unreadable", "in a function", "double"),
        *("float64", "int8", "int64", "shape", "random", "unique", "segments"),
    ],
)
def test_what_openvino_would_answer_otherwise_is_tensorflow_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, function: Callable, why: str
) -> None:
    path = write(tmp_path, serving_default=network, odd=function)
    with caplog.at_level(logging.WARNING):
        engine = openvino.OpenVino(path, OPTIONS)
    (record,) = [one for one in caplog.records if one.name == openvino.__name__]
    assert record.getMessage().startswith(f"Signature odd of {path} is served by TensorFlow, not OpenVINO: ")
    assert why in record.getMessage()
    x = np.ones((1, 8, 8, 3), np.float32)
    np.testing.assert_array_equal(fetch(engine, x, "odd"), fetch(TensorFlow(path, Options()), x, "odd"))
    assert len(engine._networks) == 1, "the other signature is OpenVINO's"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_gets_tensorflow_s_answer(tmp_path: Path, value: float) -> None:
    path = write(tmp_path, serving_default=network)
    engine, reference = openvino.OpenVino(path, OPTIONS), TensorFlow(path, Options())
    x = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    x[0, 3, 5, 1] = value
    expected = fetch(reference, x)
    assert not np.isfinite(expected[0]).all(), "the activation does not hide it"
    np.testing.assert_array_equal(fetch(engine, x), expected)


@pytest.mark.parametrize(
    ("aliases", "why"),
    [("pq", "p is the name of an input and of an output"), ("qr", "r is an output that is an input")],
)
def test_names_that_openvino_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, aliases: str, why: str
) -> None:
    def build() -> dict:
        x = tf.compat.v1.placeholder(tf.float32, [None, 3], "x")
        outputs = dict(zip(aliases, [2 * x, tf.identity(x)], strict=True))
        return {"serving_default": make_models.sig({"p": x}, outputs)}

    make_models.write_graph(str(tmp_path / "1"), build)
    engine = openvino.OpenVino(str(tmp_path / "1"), OPTIONS)
    assert why in caplog.text
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    outputs = engine.signatures["serving_default"].outputs
    found = engine.run({"x:0": x}, [outputs[alias].name for alias in aliases])
    np.testing.assert_array_equal(found, [2 * x, x])


def test_integers_divided_by_a_constant_are_openvino_s(tmp_path: Path) -> None:
    def divided(x: tf.Tensor) -> tf.Tensor:
        number = tf.cast(100 * x, tf.int32)
        return tf.cast(number // 7 + 3 * (number % -5) + tf.truncatediv(number, 3), tf.float32)

    engine = openvino.OpenVino(path := write(tmp_path, serving_default=divided), OPTIONS)
    x = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(fetch(engine, x), fetch(TensorFlow(path, Options()), x))
    assert not by_tensorflow(engine)


def test_state_is_tensorflow_s(tmp_path: Path) -> None:
    make_models.write_counter(str(tmp_path / "1"))
    engine = openvino.OpenVino(str(tmp_path / "1"), OPTIONS)
    assert engine._networks == []


@pytest.mark.parametrize("data", [None, b"", b"no such thing"])
def test_folders_that_hold_no_model_fail_as_with_tensorflow(tmp_path: Path, data: bytes | None) -> None:
    (tmp_path / "1").mkdir()
    if data is not None:
        (tmp_path / "1" / "saved_model.pb").write_bytes(data)
    codes = []
    for options in (Options(), OPTIONS):
        with pytest.raises(ServingError) as raised:
            engines.load(str(tmp_path / "1"), options)
        codes.append(raised.value.status)
    assert codes[0] == codes[1]


def test_a_run_is_cancelled_when_its_time_is_up(tmp_path: Path) -> None:
    def heavy(x: tf.Tensor) -> tf.Tensor:
        y = tf.reshape(x, [-1, 2048, 2048])
        for _ in range(40):
            y = tf.matmul(y, y) * 1e-3
        return tf.reduce_sum(y, [1, 2])

    path = write(tmp_path, [None, 2048, 2048, 1], other=heavy)
    engine = openvino.OpenVino(path, OPTIONS)
    x = np.ones((1, 2048, 2048, 1), np.float32)
    feed, output = engine.signatures["other"].inputs["x"], engine.signatures["other"].outputs["y"]
    with pytest.raises(DeadlineExceededError):
        engine.run({feed.name: x}, [output.name], timeout_ms=1)
    assert not by_tensorflow(engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(engine="onnx"), "--engine must be one of tensorflow, openvino; got onnx"),
        (Options(engine="openvino", precision="int8"), "--engine_precision must be one of float32, bfloat16"),
        (Options(precision="bfloat16"), "--engine_precision=bfloat16 needs --engine=openvino"),
    ],
)
def test_wrong_choices_are_refused(options: Options, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        engines.check(options)
