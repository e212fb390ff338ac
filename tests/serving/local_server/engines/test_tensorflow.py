"""A SavedModel in a session: fed whatever is sent, and stopped when its time is up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_bn_serving.local_server.engines.engine import Options
from keras_bn_serving.local_server.engines.tensorflow import TensorFlow
from keras_bn_serving.wire.errors import DeadlineExceededError, ServingError
from tests.serving.golden import make_models


def _executor(path: Path) -> TensorFlow:
    return TensorFlow(str(path / "1"), Options(session=tf.compat.v1.ConfigProto()))


@pytest.fixture(scope="module")
def three(models: Path) -> Iterator[TensorFlow]:
    executor = _executor(models / "three")
    yield executor
    executor.close()


@pytest.mark.parametrize(
    ("data", "disabled"),
    [
        (None, False),
        (b"", False),
        (b"\x0a\x02\x18\x01", True),
        (b"\x0a\x02\x18\x00", False),
        (b"junk", False),
    ],
)
def test_a_version_may_leave_out_the_optimizer(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None, disabled: bool
) -> None:
    shutil.copytree(models / "three" / "1", tmp_path / "1")
    if data is not None:
        (tmp_path / "1" / "assets.extra").mkdir(exist_ok=True)
        (tmp_path / "1" / "assets.extra" / "saved_model_config.pb").write_bytes(data)
    configs = []
    session = tf.compat.v1.Session

    def spy(*, graph: tf.Graph, config: tf.compat.v1.ConfigProto) -> tf.compat.v1.Session:
        configs.append(config)
        return session(graph=graph, config=config)

    monkeypatch.setattr(tf.compat.v1, "Session", spy)
    given = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1)
    TensorFlow(str(tmp_path / "1"), Options(session=given)).close()
    (config,) = configs
    assert config.intra_op_parallelism_threads == 1
    assert config.graph_options.rewrite_options.disable_meta_optimizer == disabled
    assert not given.graph_options.rewrite_options.disable_meta_optimizer, "other versions keep theirs"


@pytest.mark.parametrize("shape", [(), (2,), (0,), (2, 3), (1, 1, 1, 2)])
def test_shapes_of_the_signature_do_not_bind(three: TensorFlow, shape: tuple[int, ...]) -> None:
    """The signature says [-1]; the graph adds whatever it is fed, as in tensorflow_model_server."""
    x = np.ones(shape, np.float32)
    (y,) = three.run({"x:0": x}, ["y:0"])
    np.testing.assert_array_equal(y, x + 1)
    assert y.dtype == np.float32


@pytest.mark.parametrize(
    ("feeds", "fetches", "error"),
    [
        (
            {"x:0": np.array([True])},
            ["y:0"],
            "INVALID_ARGUMENT: Expects arg[0] to be float but bool is provided",
        ),
        (
            {"x:0": np.float32([1])},
            [],
            "INVALID_ARGUMENT: Must specify at least one target to fetch or execute.",
        ),
        (
            {"x:0": np.float32([1])},
            ["z:0"],
            "INVALID_ARGUMENT: \"The name 'z:0' refers to a Tensor which does not exist. "
            "The operation, 'z', does not exist in the graph.\"",
        ),
        (
            {"x:0": np.float32([1])},
            ["y:7"],
            "OUT_OF_RANGE: \"The name 'y:7' refers to a Tensor which does not exist. "
            "The operation, 'y', exists but only has 1 outputs.\"",
        ),
    ],
)
def test_errors_are_the_runtime_s(
    three: TensorFlow, feeds: dict[str, np.ndarray], fetches: list[str], error: str
) -> None:
    with pytest.raises(ServingError) as raised:
        three.run(feeds, fetches)
    assert raised.value.status == error


_OPERATIONS = {  # and the shape of their input
    "Conv1D": ((8, 3), lambda x: tf.nn.conv1d(x, tf.ones((3, 3, 4)), 1, "SAME")),
    "Conv2D": ((8, 8, 3), lambda x: tf.nn.conv2d(x, tf.ones((3, 3, 3, 4)), 1, "SAME")),
    "Conv3D": ((4, 4, 4, 3), lambda x: tf.nn.conv3d(x, tf.ones((3, 3, 3, 3, 4)), [1] * 5, "SAME")),
    "DepthwiseConv2dNative": (
        (8, 8, 3),
        lambda x: tf.nn.depthwise_conv2d(x, tf.ones((3, 3, 3, 2)), [1] * 4, "SAME"),
    ),
    "Conv2DBackpropFilter": (
        (8, 8, 3),
        lambda x: tf.raw_ops.Conv2DBackpropFilter(
            input=x, filter_sizes=[3, 3, 3, 1], out_backprop=x[..., :1], strides=[1] * 4, padding="SAME"
        ),
    ),
    "MaxPool3D": ((4, 4, 4, 3), lambda x: tf.nn.max_pool3d(x, 2, 2, "VALID")),
}


@pytest.mark.parametrize("in_function", [False, True], ids=["graph", "function"])
@pytest.mark.parametrize("name", _OPERATIONS)
def test_ranks_that_would_end_the_process_are_refused(tmp_path: Path, name: str, in_function: bool) -> None:
    """Each of these operations aborts on a lower rank, so a missing check ends this test's process too."""
    shape, operation = _OPERATIONS[name]

    def build() -> dict:
        x = tf.compat.v1.placeholder(tf.float32, [None, *shape], "x")
        y = tf.function(operation)(x) if in_function else operation(x)
        return {
            "serving_default": make_models.sig({"image": x}, {"y": tf.identity(y, "y")}),
            "other": make_models.sig({"image": x}, {"y": y}),
        }

    make_models.write_graph(str(tmp_path / "1"), build)
    executor = _executor(tmp_path)
    rank = 1 + len(shape)
    for other in {*range(8)} - {rank}:
        wrong = np.zeros([2] * other, np.float32)
        with pytest.raises(ServingError) as raised:
            executor.run({"x:0": wrong}, ["y:0"])
        assert raised.value.status == (
            f"INVALID_ARGUMENT: Input image must have rank {rank}, as its signature says, "
            f"but has rank {other} (shape {[2] * other})"
        )
    assert executor.run({"x:0": np.zeros((2, *shape), np.float32)}, ["y:0"])[0].size
    executor.close()


def test_a_run_is_cancelled_when_its_time_is_up(models: Path) -> None:
    executor = _executor(models / "slow")
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        executor.run({"n:0": np.int32([2**31 - 1])}, ["y:0"], timeout_ms=100)
    assert time.monotonic() - started < 60, "it was not run to its end, which takes an hour"
    executor.close()


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "NOT_FOUND"),
        ({"saved_model.pb": b"no such thing"}, "DATA_LOSS"),
        ({"saved_model.pb": b""}, "NOT_FOUND"),
    ],
)
def test_folders_that_hold_no_model(tmp_path: Path, files: dict[str, bytes], code: str) -> None:
    (tmp_path / "1").mkdir()
    for name, data in files.items():
        (tmp_path / "1" / name).write_bytes(data)
    with pytest.raises(ServingError) as raised:
        _executor(tmp_path)
    assert raised.value.code == code
