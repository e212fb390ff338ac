"""The fake client is the client, less the network."""

import asyncio

import numpy as np
import pytest

from keras_bn_serving.client import Client, Signature, TensorSpec, VersionStatus
from keras_bn_serving.client.testing import AsyncFakeClient, FakeClient, FakeModel
from keras_bn_serving.wire.errors import (
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnimplementedError,
)

VECTOR = TensorSpec("DT_FLOAT", (None,))
SIGNATURE = Signature({"x": VECTOR}, {"y": VECTOR, "n": TensorSpec("DT_INT64", ())})


def double(inputs):
    return {"y": inputs["x"] * 2, "n": len(inputs["x"])}


MODELS = {"double": FakeModel(SIGNATURE, double, version=3)}


def mean_of_doubled(client: Client, values) -> float:
    """What a user's code looks like."""
    client.wait_until_ready(1)
    return float(client.predict(values, outputs="y").mean())


def test_a_users_code_runs_on_it():
    client = FakeClient(MODELS, "double")
    assert mean_of_doubled(client, [1, 2]) == 3.0
    answer = client.predict([1, 2])
    assert (answer["y"].dtype, answer["n"].dtype) == (np.float32, np.int64)
    assert client.status() == [VersionStatus(3, "AVAILABLE")]
    assert client.metadata().signatures == {"serving_default": SIGNATURE}


def test_mistakes_are_refused_as_by_the_client():
    client = FakeClient(MODELS, "double")
    with pytest.raises(InvalidArgumentError, match="input 'x' should be float32"):
        client.predict(["a"])
    with pytest.raises(InvalidArgumentError, match="no output 'z'"):
        client.predict([1], outputs="z")
    for wrong in ({"model": "none"}, {"version": 2}):
        with pytest.raises(NotFoundError, match="Servable not found"):
            client.predict([1], **wrong)
    for call in (lambda: client.classify({"x": 1}), lambda: client.reload({})):
        with pytest.raises(UnimplementedError):
            call()


def test_a_model_may_fail():
    def fail(inputs):
        raise ResourceExhaustedError("out of memory")

    with FakeClient({"default": FakeModel(SIGNATURE, fail)}) as client, pytest.raises(ResourceExhaustedError):
        client.predict([1])


def test_an_error_of_the_function_is_its_own():
    with pytest.raises(ZeroDivisionError):
        FakeClient({"default": FakeModel(SIGNATURE, lambda inputs: 1 / 0)}).predict([1])
    with pytest.raises(KeyError, match="'y'"):
        FakeClient({"default": FakeModel(SIGNATURE, lambda inputs: {})}).predict([1])


def test_asyncio():
    async def ask():
        async with AsyncFakeClient(MODELS, "double") as client:
            return await client.predict([1, 2], outputs="n")

    assert asyncio.run(ask()) == 2
