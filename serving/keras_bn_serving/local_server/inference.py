"""The methods of PredictionService on one loaded model, whatever the transport.

A signature's inputs and outputs have aliases (its keys) and tensor names (in the graph); requests speak in
aliases.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import classification_pb2, inference_pb2, input_pb2, predict_pb2, regression_pb2

from keras_bn_serving.local_server import metrics
from keras_bn_serving.wire import tensors
from keras_bn_serving.wire.dtypes import name_of
from keras_bn_serving.wire.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    UnimplementedError,
)

DEFAULT_SIGNATURE = "serving_default"
PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))
SignatureDef: TypeAlias = meta_graph_pb2.SignatureDef
_OUTPUTS = {CLASSIFY: ("classes", "scores"), REGRESS: ("outputs",)}
Result: TypeAlias = "classification_pb2.ClassificationResult | regression_pb2.RegressionResult"


@dataclasses.dataclass
class Model:
    """A loaded version of a model, whose `run(feeds, fetches, timeout_ms)` computes tensors by name.

    With `check_methods` signatures must be of the method they are asked for.
    """

    name: str
    signatures: Mapping[str, SignatureDef]
    run: Callable[..., list[np.ndarray]]
    check_methods: bool = False
    close: Callable[[], None] = lambda: None


def predict(
    model: Model,
    signature: SignatureDef,
    inputs: Mapping[str, np.ndarray],
    aliases: Collection[str] = (),
    timeout_ms: int = 0,
) -> dict[str, np.ndarray]:
    """The outputs called `aliases` (all if there are none) of a signature, given all inputs by alias."""
    if model.check_methods and signature.method_name not in (PREDICT, CLASSIFY, REGRESS):
        expected = f"{{{PREDICT}, {CLASSIFY}, {REGRESS}}}. Was: {signature.method_name}"
        raise InternalError(f"Expected prediction signature method_name to be one of {expected}")
    chosen = list(aliases) or sorted(signature.outputs)
    # The dtypes are the C runtime's to check; it counts the arguments in the order of the aliases.
    feeds = {signature.inputs[alias].name: inputs[alias] for alias in sorted(inputs)}
    with metrics.timed(metrics.RUNTIME_LATENCY, model.name, "Predict", "TF1"):
        arrays = model.run(feeds, [signature.outputs[alias].name for alias in chosen], timeout_ms)
    return dict(zip(chosen, arrays, strict=True))


def predict_request(
    model: Model,
    request: predict_pb2.PredictRequest,
    timeout_ms: int = 0,
    contents: Mapping[str, memoryview] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """The outputs a PredictRequest asks for; its signature's defaults stand for inputs it leaves out.

    `contents` has, by alias, each `tensor_content` that is not in the request.
    """
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if key not in model.signatures:
        raise FailedPreconditionError(f'Serving signature key "{key}" not found.')
    signature, given, wanted = model.signatures[key], request.inputs, list(request.output_filter)
    if {*given} != {*signature.inputs}:
        _check_inputs(signature, given)
    for alias in wanted:
        if alias not in signature.outputs:
            expected = f"Outputs expected to be in the set {_braced(signature.outputs)}."
            raise InvalidArgumentError(f"output tensor alias not found in signature: {alias} {expected}")
        if wanted.count(alias) > 1:
            raise InvalidArgumentError(f"duplicate output tensor alias: {alias}")
    arrays = {}
    for alias in sorted(signature.inputs):
        try:
            tensor = given[alias] if alias in given else signature.defaults[alias]
            arrays[alias] = tensors.decode(tensor, content=contents.get(alias, b""))
        except (ValueError, UnimplementedError) as error:
            raise InvalidArgumentError(f"tensor parsing error: {alias}") from error
    return predict(model, signature, arrays, wanted, timeout_ms)


def _check_inputs(signature: SignatureDef, given: Collection[str]) -> None:
    """Raise INVALID_ARGUMENT unless the signature's defaults stand for whatever is not given."""
    expected, defaults = signature.inputs, signature.defaults
    extra, missing = {*given} - {*expected}, {*expected} - {*given} - {*defaults}
    if missing and (len(given) == len(expected) or (len(given) < len(expected) and defaults)):
        alias = min(missing)
        what = f"Signature input alias: {alias}(feed name: {expected[alias].name}) not found in request"
        among = f"request {_braced(given)}, or default input alias set: {','.join(sorted(defaults))}"
        raise InvalidArgumentError(
            f"{what} and no default value provided. Inputs expected to be in the {among}"
        )
    if extra or missing:
        sizes = f"{len(given)}!={len(expected)} len({_braced(given)}) != len({_braced(expected)})"
        sets = f"Sent extra: {_braced(extra)}. Missing but required: {_braced(missing)}."
        raise InvalidArgumentError(f"input size does not match signature: {sizes}. {sets}")


def _braced(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def one_task(
    model: Model, method: str, signature_name: str, given: input_pb2.Input, timeout_ms: int = 0
) -> Result:
    """The result of Classify or Regress."""
    key = signature_name or DEFAULT_SIGNATURE
    if key not in model.signatures:
        raise InvalidArgumentError(f"No signature was found with the name: {key}")
    with metrics.timed(metrics.RUNTIME_LATENCY, model.name, method.rpartition("/")[2].title(), "TF1"):
        return _run_tasks(model, [(method, model.signatures[key])], given, timeout_ms)[0]


def multi_inference(
    model: Model, request: inference_pb2.MultiInferenceRequest, timeout_ms: int = 0
) -> list[Result]:
    """The result of each task of a MultiInferenceRequest, computed in one run."""
    tasks: dict[str, tuple[str, SignatureDef]] = {}
    first = request.tasks[0].model_spec.name
    for task in request.tasks:
        name, key = task.model_spec.name, task.model_spec.signature_name or DEFAULT_SIGNATURE
        if not name:
            raise InvalidArgumentError("Found ModelSpec with an empty model name.")
        if name != first:
            what = "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            raise InvalidArgumentError(what)
        if key in tasks:
            raise InvalidArgumentError(f"Duplicate evaluation of signature: {key}")
        if key not in model.signatures:
            raise InvalidArgumentError(f"Requested signature not found in model graph: {key}")
        if task.method_name not in (CLASSIFY, REGRESS):
            raise UnimplementedError(f"Unsupported signature method_name: {task.method_name}")
        tasks[key] = task.method_name, model.signatures[key]
    results = _run_tasks(model, list(tasks.values()), request.input, timeout_ms)
    count = len(_examples(request.input))
    metrics.EXAMPLE_COUNTS.observe(count, model.name)
    metrics.EXAMPLES.add(model.name, by=count)
    return results


def _run_tasks(
    model: Model, tasks: Sequence[tuple[str, SignatureDef]], given: input_pb2.Input, timeout_ms: int
) -> list[Result]:
    for method, signature in tasks:
        _check(method, signature, model.check_methods)
    examples = _examples(given)
    feeds = {signature.inputs["inputs"].name: examples for _, signature in tasks}
    names = [
        {alias: info.name for alias, info in signature.outputs.items() if alias in _OUTPUTS[method]}
        for method, signature in tasks
    ]
    fetches = sorted({name for aliases in names for name in aliases.values()})
    fetched = dict(zip(fetches, model.run(feeds, fetches, timeout_ms), strict=True))
    results: list[Result] = []
    for (method, _), aliases in zip(tasks, names, strict=True):
        arrays: list[Any] = [fetched.get(aliases.get(alias, "")) for alias in _OUTPUTS[method]]
        results.append((_classes if method == CLASSIFY else _values)(len(examples), *arrays))
    return results


def _check(method: str, signature: SignatureDef, check_method: bool) -> None:
    """Raise INVALID_ARGUMENT unless the signature has the inputs and outputs the method needs."""
    inputs, outputs, found = signature.inputs, signature.outputs, f"found {len(signature.outputs)}"
    if method == CLASSIFY:
        word, most, counted = "classification", 2, f"Expected one or two output Tensors, {found}"
        needed = 'Expected classification signature outputs to contain at least one of "classes" or "scores"'
    else:
        word, most, counted = "regression", 1, "Expected one output Tensor."
        needed = "No regression outputs found in SignatureDef"
    if check_method and signature.method_name != method:
        what = f"Expected {word} signature method_name to be {method}. Was: {signature.method_name}"
        raise InvalidArgumentError(what)
    if len(inputs) != 1:
        raise InvalidArgumentError("Expected one input Tensor.")
    if not 1 <= len(outputs) <= most:
        raise InvalidArgumentError(counted)
    if "inputs" not in inputs:
        raise InvalidArgumentError(f"No {word} inputs found in SignatureDef: {_braced(inputs)}")
    if not {*_OUTPUTS[method]} & {*outputs}:
        raise InvalidArgumentError(f"{needed}. Signature was: {_braced(outputs)}")


def _examples(given: input_pb2.Input) -> np.ndarray:
    """Serialized Examples. A context is put before each of them, so that the example's features win."""
    kind = given.WhichOneof("kind")
    examples = getattr(given, kind).examples if kind else ()
    if not examples:
        raise InvalidArgumentError("Input is empty.")
    context = given.example_list_with_context.context.SerializeToString()  # b"" if there is none
    return np.array([context + example.SerializeToString() for example in examples], object)


def _classes(count: int, labels: np.ndarray | None, scores: np.ndarray | None) -> Result:
    """A (label, score) pair for each class of each example, both [count, classes] or missing."""
    given = (("classes", labels, object, "DT_STRING"), ("scores", scores, np.float32, "DT_FLOAT"))
    for name, array, dtype, dtype_name in given:
        if array is None:
            continue
        if array.ndim != 2:
            raise InvalidArgumentError(
                f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}"
            )
        if array.dtype != dtype:
            raise InvalidArgumentError(f"Expected {name} Tensor of {dtype_name}. Got: {_type(array)}")
        if len(array) != count:
            raise InvalidArgumentError(f"Expected {name} output batch size of {count}. Got: {len(array)}")
    shape = (labels if labels is not None else scores).shape  # type: ignore[union-attr]
    labels = np.full(shape, b"", object) if labels is None else labels
    scores = np.zeros(shape, np.float32) if scores is None else scores
    if labels.shape != scores.shape:
        sizes = f"{labels.shape[1]} vs. {scores.shape[1]}"
        raise InvalidArgumentError(f"Tensors class and score should match in dim_size(1). Got {sizes}")
    result = classification_pb2.ClassificationResult()
    for row in zip(labels, scores.tolist(), strict=True):
        # The field is a proto3 string: other bytes than UTF-8 cannot be put there.
        pairs = [{"label": a.decode("utf-8", "replace"), "score": b} for a, b in zip(*row, strict=True)]
        result.classifications.add(classes=pairs)
    return result


def _values(count: int, array: np.ndarray) -> Result:
    """A value for each example, [count] or [count, 1]."""
    if array.ndim != 1 and array.shape[1:] != (1,):
        what = "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got"
        raise InvalidArgumentError(f"{what} {_shape(array)}")
    if len(array) != count:
        what = f"Input batch size did not match output batch size: {count} vs. {len(array)}"
        raise InvalidArgumentError(what)
    if array.dtype != np.float32:
        raise InvalidArgumentError(f"Expected output Tensor of DT_FLOAT.  Got: {_type(array)}")
    values = array.reshape(-1).tolist()
    return regression_pb2.RegressionResult(regressions=[{"value": value} for value in values])


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _type(array: np.ndarray) -> str:
    return name_of(array.dtype)
