"""Metadata of models on a server: signatures, tensors, and the state of versions."""

from dataclasses import dataclass, field

from keras_bn_serving.wire.dtypes import BY_NAME
from keras_bn_serving.wire.errors import InvalidArgumentError

Shape = tuple[int | None, ...]


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
        known = self.dtype in BY_NAME
        kind = "string" if self.dtype == "DT_STRING" else BY_NAME[self.dtype].numpy if known else self.dtype
        return f"{kind} {'of any shape' if self.shape is None else self.shape}"


@dataclass(frozen=True)
class Signature:
    """A way to call a model: its inputs and outputs by name, and its method."""

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
        """Return the signature called `name`, or `serving_default` for None. The error lists all names."""
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
