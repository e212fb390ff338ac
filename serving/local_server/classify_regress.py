"""Classify, Regress and MultiInference on one loaded model: methods that take tf.Examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import inference_pb2, input_pb2

from serving.local_server import metrics, tensors
from serving.local_server.inference import CLASSIFY, DEFAULT_SIGNATURE, REGRESS, Model, SignatureDef
from serving.local_server.status import StatusError, invalid_argument

_API = {CLASSIFY: "Classify", REGRESS: "Regress"}


def examples_of(given: input_pb2.Input) -> np.ndarray:
    """A request's Examples, serialized. A context is put before each of them, so that the example's features
    win.

    Raises:
        StatusError: INVALID_ARGUMENT if there is none.
    """
    kind = given.WhichOneof("kind")
    examples = getattr(given, kind).examples if kind else ()
    if not examples:
        raise invalid_argument("Input is empty.")
    context = b""
    if kind == "example_list_with_context":
        context = given.example_list_with_context.context.SerializeToString()
    return np.array([context + example.SerializeToString() for example in examples], object)


def signature_of(model: Model, name: str) -> SignatureDef:
    """The signature for Classify and Regress.

    Raises:
        StatusError: INVALID_ARGUMENT if the model has none of that name.
    """
    signature = model.signatures.get(name or DEFAULT_SIGNATURE)
    if signature is None:
        raise invalid_argument(f"No signature was found with the name: {name or DEFAULT_SIGNATURE}")
    return signature


class Task(NamedTuple):
    """A method on a signature: what to fetch, and how to turn it into classes and scores or values."""

    method: str
    signature: SignatureDef

    def check(self, check_method: bool) -> None:
        """Raise INVALID_ARGUMENT unless the signature has the inputs and outputs the method needs."""
        word = "classification" if self.method == CLASSIFY else "regression"
        if check_method and self.signature.method_name != self.method:
            raise invalid_argument(
                f"Expected {word} signature method_name to be {self.method}. Was: "
                f"{self.signature.method_name}"
            )
        inputs, outputs = self.signature.inputs, self.signature.outputs
        if len(inputs) != 1:
            raise invalid_argument("Expected one input Tensor.")
        if self.method == CLASSIFY and len(outputs) not in (1, 2):
            raise invalid_argument(f"Expected one or two output Tensors, found {len(outputs)}")
        if self.method == REGRESS and len(outputs) != 1:
            raise invalid_argument("Expected one output Tensor.")
        if "inputs" not in inputs:
            raise invalid_argument(f"No {word} inputs found in SignatureDef: {self.signature}")
        if self.method == CLASSIFY and not {"classes", "scores"} & set(outputs):
            raise invalid_argument(
                'Expected classification signature outputs to contain at least one of "classes" or "scores". '
                f"Signature was: {self.signature}"
            )
        if self.method == REGRESS and "outputs" not in outputs:
            raise invalid_argument(f"No regression outputs found in SignatureDef: {self.signature}")

    def fetches(self) -> dict[str, str]:
        """The tensor names to fetch, by alias."""
        aliases = ("classes", "scores") if self.method == CLASSIFY else ("outputs",)
        return {
            alias: self.signature.outputs[alias].name for alias in aliases if alias in self.signature.outputs
        }

    def result(self, arrays: Mapping[str, np.ndarray], count: int) -> Classes | np.ndarray:
        """What the method answers, once the fetched arrays are found to be of the right type and shape."""
        if self.method == CLASSIFY:
            return _classes(arrays.get("classes"), arrays.get("scores"), count)
        return _values(arrays["outputs"], count)


class Classes(NamedTuple):
    """Labels (bytes) and scores (float32) for each example, both [examples, classes]; either may be
    missing."""

    labels: np.ndarray | None
    scores: np.ndarray | None

    def rows(self) -> list[list[tuple[bytes, float]]]:
        """A (label, score) pair for each class of each example; `b""` and 0.0 stand for what is missing."""
        shape = (self.labels if self.labels is not None else self.scores).shape  # type: ignore[union-attr]
        labels = np.full(shape, b"", object) if self.labels is None else self.labels
        scores = np.zeros(shape, np.float32) if self.scores is None else self.scores
        return [
            list(zip(row_labels, row_scores.tolist(), strict=True))
            for row_labels, row_scores in zip(labels, scores, strict=True)
        ]


def multi_tasks(model: Model, asked: Sequence[inference_pb2.InferenceTask]) -> list[Task]:
    """The tasks of a MultiInferenceRequest.

    Raises:
        StatusError: the tasks are not of one model, name a signature twice or one that is not there, or
            another method.
    """
    tasks: list[Task] = []
    seen: set[str] = set()
    for task in asked:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != asked[0].model_spec.name:
            raise invalid_argument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        key = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if key in seen:
            raise invalid_argument(f"Duplicate evaluation of signature: {key}")
        seen.add(key)
        if key not in model.signatures:
            raise invalid_argument(f"Requested signature not found in model graph: {key}")
        if task.method_name not in (CLASSIFY, REGRESS):
            raise StatusError("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
        tasks.append(Task(task.method_name, model.signatures[key]))
    return tasks


def run_task(model: Model, task: Task, examples: np.ndarray, timeout_ms: int = 0) -> Classes | np.ndarray:
    """The result of Classify or Regress on serialized examples."""
    task.check(model.check_methods)
    feeds, fetches = {task.signature.inputs["inputs"].name: examples}, task.fetches()
    with metrics.timed(metrics.RUNTIME_LATENCY, model.name, _API[task.method], "TF1"):
        arrays = model.run(feeds, list(fetches.values()), timeout_ms)
    return task.result(dict(zip(fetches, arrays, strict=True)), len(examples))


def run_tasks(
    model: Model, tasks: Sequence[Task], examples: np.ndarray, timeout_ms: int = 0
) -> list[Classes | np.ndarray]:
    """The result of each task of MultiInference on the same serialized examples, computed in one run."""
    for task in tasks:
        task.check(model.check_methods)
    metrics.EXAMPLE_COUNTS.observe(len(examples), model.name)
    metrics.EXAMPLES.add(model.name, by=len(examples))
    names = sorted({name for task in tasks for name in task.fetches().values()})
    feeds = {task.signature.inputs["inputs"].name: examples for task in tasks}
    fetched = dict(zip(names, model.run(feeds, names, timeout_ms), strict=True))
    return [
        task.result({alias: fetched[name] for alias, name in task.fetches().items()}, len(examples))
        for task in tasks
    ]


def _classes(labels: np.ndarray | None, scores: np.ndarray | None, count: int) -> Classes:
    for what, array, kind, name in (("classes", labels, "O", "STRING"), ("scores", scores, "f", "FLOAT")):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
        if array.dtype.kind != kind or (kind == "f" and array.dtype != np.float32):
            raise invalid_argument(f"Expected {what} Tensor of DT_{name}. Got: {_type(array)}")
        if len(array) != count:
            raise invalid_argument(f"Expected {what} output batch size of {count}. Got: {len(array)}")
    if labels is not None and scores is not None and labels.shape[1] != scores.shape[1]:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). Got "
            f"{labels.shape[1]} vs. {scores.shape[1]}"
        )
    return Classes(labels, scores)


def _values(array: np.ndarray, count: int) -> np.ndarray:
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(array)}"
        )
    if len(array) != count:
        raise invalid_argument(f"Input batch size did not match output batch size: {count} vs. {len(array)}")
    if array.dtype != np.float32:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {_type(array)}")
    return array.reshape(-1)


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _type(array: np.ndarray) -> str:
    return types_pb2.DataType.Name(tensors.datatype(array.dtype))
