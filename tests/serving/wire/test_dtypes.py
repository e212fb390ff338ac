"""The table of data types against TensorFlow's."""

import sys

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from keras_bn_serving.wire.dtypes import BY_NAME, BY_NUMBER, dtype_name, name_of, numpy_dtype
from keras_bn_serving.wire.errors import UnimplementedError


@pytest.mark.parametrize("name", BY_NAME)
def test_an_entry_is_tensorflows(name):
    entry = BY_NAME[name]
    assert BY_NUMBER[entry.number] is entry
    assert types_pb2.DataType.Name(entry.number) == dtype_name(entry.number) == name
    assert np.dtype(tf.dtypes.as_dtype(entry.number).as_numpy_dtype) == numpy_dtype(name)
    assert name_of(numpy_dtype(name)) == name
    assert entry.field in tensor_pb2.TensorProto.DESCRIPTOR.fields_by_name


def test_what_is_not_in_the_table():
    assert dtype_name(0) == name_of(np.dtype("datetime64[s]")) == "DT_INVALID"
    assert dtype_name(20) == "20"
    with pytest.raises(UnimplementedError, match="no NumPy dtype for tensors of type DT_RESOURCE"):
        numpy_dtype("DT_RESOURCE")


def test_bfloat16_without_its_package_says_what_to_install(monkeypatch):
    assert numpy_dtype("DT_BFLOAT16") == ml_dtypes.bfloat16
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(UnimplementedError, match="pip install ml_dtypes"):
        numpy_dtype("DT_BFLOAT16")
