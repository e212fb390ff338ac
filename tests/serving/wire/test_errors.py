"""The tree of errors, and where it is imported from."""

import pickle

import pytest

import keras_bn_serving
from keras_bn_serving import errors
from keras_bn_serving.wire.errors import BY_CODE, ServingError, with_code


def test_a_class_for_each_code_and_no_value_errors():
    for code, cls in BY_CODE.items():
        error = with_code(code, "words")
        assert type(error) is cls
        assert (error.code, str(error), error.status) == (code, "words", f"{code}: words")
        assert not isinstance(error, ValueError | OSError | RuntimeError)
    assert len(set(BY_CODE.values())) == len(BY_CODE)


@pytest.mark.parametrize("code", BY_CODE)
def test_an_error_survives_pickling(code):
    error = pickle.loads(pickle.dumps(with_code(code, "words")))
    assert (type(error), str(error)) == (BY_CODE[code], "words")


def test_the_public_names():
    assert keras_bn_serving.ServingError is errors.ServingError is ServingError
    assert {getattr(errors, name) for name in errors.__all__} == set(BY_CODE.values())
