"""The data types of tensors: TensorFlow's numbers and names, NumPy's dtypes, fields of TensorProto."""

from typing import NamedTuple

import numpy as np

from keras_bn_serving.wire.errors import UnimplementedError


class DType(NamedTuple):
    """One tensorflow.DataType.

    `field` is the repeated field of TensorProto that carries its values where `tensor_content` does not, and
    `stored` the NumPy dtype of the numbers in that field: bits for the 16-bit floats, real and imaginary
    parts for complex numbers.
    """

    number: int
    name: str
    numpy: str
    field: str
    stored: str


_TABLE = [
    DType(1, "DT_FLOAT", "float32", "float_val", "float32"),
    DType(2, "DT_DOUBLE", "float64", "double_val", "float64"),
    DType(3, "DT_INT32", "int32", "int_val", "int32"),
    DType(4, "DT_UINT8", "uint8", "int_val", "int32"),
    DType(5, "DT_INT16", "int16", "int_val", "int32"),
    DType(6, "DT_INT8", "int8", "int_val", "int32"),
    DType(7, "DT_STRING", "object", "string_val", "object"),
    DType(8, "DT_COMPLEX64", "complex64", "scomplex_val", "float32"),
    DType(9, "DT_INT64", "int64", "int64_val", "int64"),
    DType(10, "DT_BOOL", "bool", "bool_val", "bool"),
    DType(14, "DT_BFLOAT16", "bfloat16", "half_val", "uint16"),
    DType(17, "DT_UINT16", "uint16", "int_val", "int32"),
    DType(18, "DT_COMPLEX128", "complex128", "dcomplex_val", "float64"),
    DType(19, "DT_HALF", "float16", "half_val", "uint16"),
    DType(22, "DT_UINT32", "uint32", "uint32_val", "uint32"),
    DType(23, "DT_UINT64", "uint64", "uint64_val", "uint64"),
]
BY_NUMBER = {entry.number: entry for entry in _TABLE}
BY_NAME = {entry.name: entry for entry in _TABLE}
_NAMES = {entry.numpy: entry.name for entry in _TABLE}


def dtype_name(number: int) -> str:
    """Return the name of a DataType number such as "DT_FLOAT", the number itself if it is unknown."""
    return BY_NUMBER[number].name if number in BY_NUMBER else "DT_INVALID" if number == 0 else str(number)


def name_of(dtype: np.dtype) -> str:
    """Return TensorFlow's name of a NumPy dtype, "DT_INVALID" if it has none."""
    return _NAMES.get(dtype.name, "DT_INVALID")


def numpy_dtype(name: str) -> np.dtype:
    """Return the NumPy dtype of a tensorflow.DataType name; strings are `object` arrays of bytes."""
    if name not in BY_NAME:
        raise UnimplementedError(f"there is no NumPy dtype for tensors of type {name}")
    if name == "DT_BFLOAT16":
        try:
            import ml_dtypes  # only models that use bfloat16 pay for its import
        except ImportError as error:
            raise UnimplementedError("bfloat16 tensors need ml_dtypes: pip install ml_dtypes") from error
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(BY_NAME[name].numpy)
