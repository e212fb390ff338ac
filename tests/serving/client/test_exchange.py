"""Whatever a server answers, the client gives a result or a ServingError."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_bn_serving.client.exchange import Target
from keras_bn_serving.client.grpc_codec import GrpcCodec
from keras_bn_serving.client.metadata import Signature, TensorSpec
from keras_bn_serving.client.rest import RestCodec
from keras_bn_serving.wire.errors import InternalError, ServingError

FLOAT, TEXT = TensorSpec("DT_FLOAT", (None,)), TensorSpec("DT_STRING", (None,))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("b64"), inner, max_size=3)
    ),
    max_leaves=8,
)


def exchanges(codec, spec):
    target, signature = Target("m"), Signature({"x": FLOAT}, {"y": spec})
    return {
        "outputs": codec.predict(target, None, signature, {"x": np.zeros(1, np.float32)}, ()),
        "results": codec.examples("classify", target, None, [{}], None),
        "results ": codec.examples("regress", target, None, [{}], None),
        "model_version_status": codec.status(target),
        "metadata": codec.metadata(target),
    }


def read(exchange, body: bytes) -> None:
    try:
        exchange.result(body)
    except ServingError as error:
        assert str(error)


@given(value=JSON, spec=st.sampled_from([FLOAT, TEXT, TensorSpec("DT_INT8", None)]))
@settings(deadline=None)
def test_any_json(value, spec):
    for key, exchange in exchanges(RestCodec(), spec).items():
        body = {key.strip(): value, "model_spec": value}
        read(exchange, json.dumps(body).encode())
        read(exchange, json.dumps(value).encode())


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes(body):
    for codec in (RestCodec(), GrpcCodec()):
        for exchange in exchanges(codec, FLOAT).values():
            read(exchange, body)


def test_a_nesting_beyond_the_stack():
    exchange = exchanges(RestCodec(), FLOAT)["outputs"]
    with pytest.raises(InternalError, match="RecursionError"):
        exchange.result(b'{"outputs": ' + b"[" * 100_000)


def test_the_message_shows_the_answer():
    exchange = exchanges(RestCodec(), FLOAT)["outputs"]
    with pytest.raises(InternalError, match=r"it begins b.{\"outputs\": \[\[1\], \[2, 3\]\]}"):
        exchange.result(b'{"outputs": [[1], [2, 3]]}')
