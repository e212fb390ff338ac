"""The REST form of the calls; the answers are literally what TF Serving 2.20 writes."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_bn_serving.client.exchange import Target
from keras_bn_serving.client.metadata import Signature, TensorSpec, VersionStatus
from keras_bn_serving.client.rest import RestCodec, loads
from keras_bn_serving.wire.errors import InternalError, InvalidArgumentError, UnimplementedError

CODEC = RestCodec()
MODEL = Target("m")


def signature(dtype="DT_FLOAT", shape=(None,), out=None):
    spec = TensorSpec(dtype, shape)
    return Signature({"x": spec}, out or {"y": spec})


def sent(array, dtype="DT_FLOAT"):
    exchange = CODEC.predict(MODEL, None, signature(dtype), {"x": array}, ())
    return json.loads(exchange.body)["inputs"]["x"]


def answered(body, dtype="DT_FLOAT", shape=(None,)):
    return CODEC.predict(MODEL, None, signature(dtype, shape), {"x": np.zeros(1)}, ()).read(body)["y"]


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=3)))
def test_float32_survives_the_text_to_the_bit(array):
    read = np.asarray(sent(array), np.float32)
    np.testing.assert_array_equal(read, array)
    finite = ~np.isnan(array)
    np.testing.assert_array_equal(np.signbit(read[finite]), np.signbit(array[finite]))


def test_nonfinite_numbers_are_bare_words_and_read_back():
    array = np.float32([np.nan, np.inf, -np.inf, 0.1])
    assert CODEC.predict(MODEL, None, signature(), {"x": array}, ()).body == (
        b'{"inputs":{"x":[NaN,Infinity,-Infinity,0.1]}}'
    )
    body = b'{\n    "outputs": [\n        NaN,\n        Infinity,\n        -Infinity,\n        0.1\n    ]\n}'
    np.testing.assert_array_equal(answered(body), array)


def test_layouts_that_orjson_does_not_take():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert sent(array.T) == array.T.tolist()
    assert sent(array[:, ::2]) == array[:, ::2].tolist()
    assert sent(np.float32(2.5)) == 2.5
    assert np.float16(sent(np.float16([0.1]), "DT_HALF")) == np.float16([0.1])
    assert sent(np.zeros((2, 0), np.float32)) == [[], []]
    with pytest.raises(InvalidArgumentError, match=r"cannot carry the shape \(0, 3\) of input 'x': use gRPC"):
        sent(np.zeros((0, 3), np.float32))
    with pytest.raises(InvalidArgumentError, match="cannot carry the complex input 'x'"):
        sent(np.complex64([1j]), "DT_COMPLEX64")


def test_strings_travel_as_base64_and_come_as_either():
    strings = np.array([[b"\xff\x00"], [b"text"]], object)
    assert sent(strings, "DT_STRING") == [[{"b64": "/wA="}], [{"b64": "dGV4dA=="}]]
    body = b'{"outputs": [["hello"], [{"b64": "//4="}]]}'
    assert answered(body, "DT_STRING").tolist() == [[b"hello"], [b"\xff\xfe"]]
    # A string output that is not UTF-8 is passed on as it is, inside what should be JSON.
    assert answered(b'{"outputs": ["\xff\xfe"]}', "DT_STRING").tolist() == [b"\xff\xfe"]
    assert answered(b'{"outputs": "s"}', "DT_STRING", ()).tolist() == b"s"


@given(st.lists(st.binary(max_size=9), min_size=1))
def test_any_bytes_are_encoded(values):
    array = np.empty(len(values), object)
    array[:] = values
    assert [base64.b64decode(item["b64"]) for item in sent(array, "DT_STRING")] == values


def test_outputs_have_the_dtypes_of_the_signature():
    assert answered(b'{"outputs": [1, -3]}', "DT_INT8").dtype == np.int8
    assert answered(b'{"outputs": [18446744073709551615, 1]}', "DT_UINT64").tolist() == [2**64 - 1, 1]
    assert answered(b'{"outputs": [9007199254740993]}', "DT_INT64").tolist() == [2**53 + 1]
    assert answered(b'{"outputs": [true, false]}', "DT_BOOL").tolist() == [True, False]
    assert answered(b'{"outputs": 1e+06}', "DT_FLOAT", ()) == np.float32(1e6)
    assert answered(b'{"outputs": []}', shape=(None, 4)).shape == (0, 4)
    with pytest.raises(InternalError, match=r"output 'y' should be int64 .*the server sent 1.5"):
        answered(b'{"outputs": [1.5]}', "DT_INT64")


def test_several_outputs_come_by_name_and_are_filtered_here():
    specs = {"a": TensorSpec("DT_FLOAT", (None,)), "b": TensorSpec("DT_INT32", (None,))}
    body = b'{"outputs": {"b": [1], "a": [2.0]}}'
    for wanted in ((), ("b",)):
        exchange = CODEC.predict(MODEL, None, signature(out=specs), {"x": np.zeros(1)}, wanted)
        assert {key: value.tolist() for key, value in exchange.read(body).items()} == (
            {"b": [1]} if wanted else {"a": [2.0], "b": [1]}
        )


def test_paths_and_signature_names():
    for target, path in [
        (Target("m"), "/v1/models/m"),
        (Target("m", version=3), "/v1/models/m/versions/3"),
        (Target("a/b:c ø+", label="x/y"), "/v1/models/a%2Fb%3Ac%20%C3%B8%2B/labels/x%2Fy"),
    ]:
        assert CODEC.status(target).path == path
        assert CODEC.metadata(target).path == f"{path}/metadata"
        assert CODEC.examples("regress", target, None, [{}], None).path == f"{path}:regress"
    assert RestCodec("/proxy/").status(MODEL).path == "/proxy/v1/models/m"
    body = json.loads(CODEC.predict(MODEL, "other", signature(), {"x": np.zeros(1)}, ()).body)
    assert body["signature_name"] == "other"


def test_examples_keep_how_numbers_are_written():
    exchange = CODEC.examples("classify", MODEL, None, [{"f": 2.0, "i": [2, 3], "s": b"\xff"}], {"c": True})
    assert exchange.body == b'{"examples":[{"f":[2.0],"i":[2,3],"s":[{"b64":"/w=="}]}],"context":{"c":[1]}}'
    answer = b'{"results": [[["", 3.0], ["x", 0.5]]\n    ]\n}'
    assert exchange.read(answer) == [[("", 3.0), ("x", 0.5)]]
    regression = CODEC.examples("regress", MODEL, None, [{"f": np.nan}], None)
    assert b"NaN" in regression.body
    np.testing.assert_array_equal(regression.read(b'{\n    "results": [NaN]\n}'), np.float32([np.nan]))


def test_status():
    body = b"""{"model_version_status": [
     {"version": "2", "state": "END", "status": {"error_code": "NOT_FOUND", "error_message": "gone"}},
     {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]}\n"""
    assert CODEC.status(MODEL).read(body) == [
        VersionStatus(2, "END", "NOT_FOUND", "gone"),
        VersionStatus(1, "AVAILABLE"),
    ]


def test_metadata():
    tensor = {
        "name": "x:0",
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "3", "name": ""}],
            "unknown_rank": False,
        },
    }
    unknown = {"name": "y:0", "dtype": "DT_STRING", "tensor_shape": {"dim": [], "unknown_rank": True}}
    definition = {
        "inputs": {"x": tensor, "d": tensor},
        "outputs": {"y": unknown},
        "method_name": "tensorflow/serving/predict",
        "defaults": {"d": {}},
    }
    body = {
        "model_spec": {"name": "m", "signature_name": "", "version": "123"},
        "metadata": {"signature_def": {"signature_def": {"serving_default": definition}}},
    }
    metadata = CODEC.metadata(MODEL).read(json.dumps(body).encode())
    assert (metadata.name, metadata.version) == ("m", 123)
    found = metadata.signature(None)
    assert found.inputs["x"] == TensorSpec("DT_FLOAT", (None, 3))
    assert found.inputs["d"].has_default
    assert found.outputs["y"] == TensorSpec("DT_STRING", None)
    with pytest.raises(InvalidArgumentError, match="no signature 'other'; it offers serving_default"):
        metadata.signature("other")
    with pytest.raises(InvalidArgumentError, match="REST does not know default inputs: pass d"):
        CODEC.predict(MODEL, None, found, {"x": np.zeros((1, 3))}, ())


def test_what_rest_cannot_do_says_so():
    with pytest.raises(UnimplementedError, match="over gRPC only"):
        CODEC.reload({})


@pytest.mark.parametrize("body", [b"<html>not TF Serving</html>", b"", b"[1]", b'{"predictions": [1]}'])
def test_an_answer_of_another_kind_is_shown(body):
    with pytest.raises(InternalError) as caught:
        answered(body)
    assert body.decode() in str(caught.value)


def test_json_numbers_beyond_orjson():
    assert loads(b'{"a": 1e999}') == {"a": float("inf")}


@pytest.mark.parametrize(
    "value", ["null", "[null]", "[1.0, null]", "[true]", '["1.5"]', "{}", '[{"b64": "AA=="}]']
)
@pytest.mark.parametrize("dtype", ["DT_FLOAT", "DT_INT32", "DT_UINT64", "DT_DOUBLE"])
def test_what_is_no_number_is_not_taken_for_one(value, dtype):
    exchange = CODEC.predict(MODEL, None, signature(dtype), {"x": np.zeros(1)}, ())
    with pytest.raises(InternalError, match=r"output 'y' should be .*, and the server sent|cannot be read"):
        exchange.result(b'{"outputs": %s}' % value.encode())


@pytest.mark.parametrize("value", ["[1]", "[0.0]", "null", '["true"]'])
def test_what_is_no_boolean_is_not_taken_for_one(value):
    exchange = CODEC.predict(MODEL, None, signature("DT_BOOL"), {"x": np.zeros(1)}, ())
    with pytest.raises(InternalError, match="output 'y' should be bool"):
        exchange.result(b'{"outputs": %s}' % value.encode())


def test_a_refusal_of_a_dtype_that_json_has_not_points_to_grpc():
    assert (
        "use a grpc:// address"
        in CODEC.predict(MODEL, None, signature("DT_HALF"), {"x": np.zeros(1)}, ()).hint
    )
    assert CODEC.predict(MODEL, None, signature("DT_FLOAT"), {"x": np.zeros(1)}, ()).hint == ""
