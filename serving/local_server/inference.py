"""Predict on one loaded model, whatever the transport; and what all methods share.

A signature's inputs and outputs have aliases (its keys) and tensor names (in the graph); requests speak in
aliases.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from serving.local_server import metrics, tensors
from serving.local_server.status import StatusError, invalid_argument

DEFAULT_SIGNATURE = "serving_default"
PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))
SignatureDef: TypeAlias = meta_graph_pb2.SignatureDef


class Model(Protocol):
    """A model that can be run, and how it wants its signatures checked."""

    name: str
    signatures: dict[str, SignatureDef]
    check_methods: bool

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """The values of the tensors named in `fetches`, given those in `feeds`."""


class Output(NamedTuple):
    """One output of a signature: its values, and their type as a DataType number."""

    array: np.ndarray
    dtype: int


def _braced(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def predict(
    model: Model,
    signature: SignatureDef,
    inputs: Mapping[str, np.ndarray],
    aliases: Collection[str] = (),
    timeout_ms: int = 0,
) -> dict[str, Output]:
    """The outputs called `aliases` (all if there are none) of a signature, given all of its inputs by
    alias."""
    if model.check_methods and signature.method_name not in (PREDICT, CLASSIFY, REGRESS):
        raise StatusError(
            "INTERNAL",
            "Expected prediction signature method_name to be one of "
            f"{{{PREDICT}, {CLASSIFY}, {REGRESS}}}. Was: {signature.method_name}",
        )
    chosen = list(aliases) or sorted(signature.outputs)
    # The dtypes are the C runtime's to check; it counts the arguments in the order of the aliases.
    feeds = {signature.inputs[alias].name: inputs[alias] for alias in sorted(inputs)}
    with metrics.timed(metrics.RUNTIME_LATENCY, model.name, "Predict", "TF1"):
        arrays = model.run(feeds, [signature.outputs[alias].name for alias in chosen], timeout_ms)
    return {
        alias: Output(array, signature.outputs[alias].dtype)
        for alias, array in zip(chosen, arrays, strict=True)
    }


def predict_request(
    model: Model, request: predict_pb2.PredictRequest, timeout_ms: int = 0
) -> dict[str, Output]:
    """The outputs a PredictRequest asks for.

    Raises:
        StatusError: FAILED_PRECONDITION for an unknown signature, INVALID_ARGUMENT for wrong inputs or
            outputs.
    """
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if key not in model.signatures:
        raise StatusError("FAILED_PRECONDITION", f'Serving signature key "{key}" not found.')
    signature = model.signatures[key]
    inputs = predict_inputs(signature, request.inputs)
    return predict(model, signature, inputs, predict_outputs(signature, request.output_filter), timeout_ms)


def predict_inputs(
    signature: SignatureDef, given: Mapping[str, tensor_pb2.TensorProto]
) -> dict[str, np.ndarray]:
    """The inputs of a gRPC request as arrays by alias, completed with the signature's defaults.

    Raises:
        StatusError: INVALID_ARGUMENT for an input too many, too few or of another name, or a broken tensor.
    """
    expected = signature.inputs
    if len(given) > len(expected) or (len(given) < len(expected) and not signature.defaults):
        raise invalid_argument(
            f"input size does not match signature: {len(given)}!={len(expected)} "
            f"len({_braced(given)}) != len({_braced(expected)}). Sent extra: "
            f"{_braced(set(given) - set(expected))}. "
            f"Missing but required: {_braced(set(expected) - set(given) - set(signature.defaults))}."
        )
    arrays = {}
    for alias in sorted(expected):
        if alias in given:
            proto = given[alias]
        elif alias in signature.defaults:
            proto = signature.defaults[alias]
        else:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {expected[alias].name}) not found in request "
                "and no "
                f"default value provided. Inputs expected to be in the request {_braced(given)}, or "
                "default input "
                f"alias set: {','.join(sorted(signature.defaults))}"
            )
        try:
            arrays[alias] = tensors.to_array(proto)
        except tensors.Malformed as error:
            raise invalid_argument(f"tensor parsing error: {alias}") from error
    if set(given) - set(expected):
        used = ",".join(sorted(set(given) & set(expected)))
        raise invalid_argument(
            f"Inputs contains invalid name. Used request inputs: {used}, request input: "
            f"{','.join(sorted(given))}"
        )
    return arrays


def predict_outputs(signature: SignatureDef, output_filter: Sequence[str]) -> list[str]:
    """The aliases an output filter names.

    Raises:
        StatusError: INVALID_ARGUMENT for an unknown or a repeated alias.
    """
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{_braced(signature.outputs)}."
            )
    for alias in output_filter:
        if list(output_filter).count(alias) > 1:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
    return list(output_filter)
