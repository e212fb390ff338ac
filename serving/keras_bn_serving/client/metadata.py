"""What a server says about its models: signatures, tensors, the state of versions."""

from dataclasses import dataclass, field

import numpy as np

from keras_bn_serving.wire.errors import InvalidArgumentError, UnimplementedError

# tensorflow.DataType: number, name and NumPy dtype of those that have one; strings are objects.
_DTYPES = [
    (1, "DT_FLOAT", "float32"), (2, "DT_DOUBLE", "float64"),
    (3, "DT_INT32", "int32"), (4, "DT_UINT8", "uint8"),
    (5, "DT_INT16", "int16"), (6, "DT_INT8", "int8"), (7, "DT_STRING", "object"),
    (8, "DT_COMPLEX64", "complex64"), (9, "DT_INT64", "int64"), (10, "DT_BOOL", "bool"),
    (14, "DT_BFLOAT16", "bfloat16"), (17, "DT_UINT16", "uint16"), (18, "DT_COMPLEX128", "complex128"),
    (19, "DT_HALF", "float16"), (22, "DT_UINT32", "uint32"), (23, "DT_UINT64", "uint64"),
]  # fmt: skip
DTYPE_NAMES = {0: "DT_INVALID"} | {number: name for number, name, _ in _DTYPES}
DTYPE_NUMBERS = {name: number for number, name, _ in _DTYPES}
_NUMPY_NAMES = {name: numpy_name for _, name, numpy_name in _DTYPES}

STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}

Shape = tuple[int | None, ...]


def numpy_dtype(name: str) -> np.dtype:
    """Return the NumPy dtype of a tensorflow.DataType name; strings are `object` arrays of bytes."""
    if name not in _NUMPY_NAMES:
        raise UnimplementedError(f"this client has no NumPy dtype for tensors of type {name}")
    if name == "DT_BFLOAT16":
        import ml_dtypes  # only models that use bfloat16 pay for its import

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(_NUMPY_NAMES[name])


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature.

    `dtype` is a tensorflow.DataType name such as "DT_FLOAT"; `shape` has None for a free dimension and is
    itself None when the rank is unknown; `has_default` says that an input may be left out of a gRPC
    request.
    """

    dtype: str
    shape: Shape | None
    has_default: bool = False

    def __str__(self) -> str:
        kind = "string" if self.dtype == "DT_STRING" else _NUMPY_NAMES.get(self.dtype, self.dtype)
        return f"{kind} {'of any shape' if self.shape is None else self.shape}"


@dataclass(frozen=True)
class Signature:
    """A way to call a model: its inputs and outputs by name, and the method it is meant for."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    method: str = ""


@dataclass(frozen=True)
class ModelMetadata:
    """The signatures of one version of a model."""

    name: str
    version: int
    signatures: dict[str, Signature] = field(repr=False)

    def signature(self, name: str | None) -> Signature:
        """Return the signature called `name`, None for serving_default; the error lists those there are."""
        name = name or "serving_default"
        if name not in self.signatures:
            offered = ", ".join(sorted(self.signatures)) or "none"
            raise InvalidArgumentError(f"model {self.name} has no signature {name!r}; it offers {offered}")
        return self.signatures[name]


@dataclass(frozen=True)
class VersionStatus:
    """A version's state: START, LOADING, AVAILABLE, UNLOADING or END, and the error that ended it."""

    version: int
    state: str
    code: str = "OK"
    message: str = ""
