"""The methods on a model that is a function: which outputs are fetched, and what results may look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import inference_pb2, input_pb2, predict_pb2

from keras_bn_serving.local_server import inference
from keras_bn_serving.wire.errors import FailedPreconditionError, InvalidArgumentError, ServingError

SCORES = np.float32([[0.25, 0.75], [0.5, 0.5]])
LABELS = np.array([[b"a", b"b"], [b"c", b"d"]], object)


def signature(inputs: Sequence[str], outputs: Sequence[str], method: str = "") -> meta_graph_pb2.SignatureDef:
    made = meta_graph_pb2.SignatureDef(method_name=method)
    for alias in inputs:
        made.inputs[alias].name = f"{alias}:0"
    for alias in outputs:
        made.outputs[alias].name = f"{alias}:0"
    return made


def model(check: bool = False, **values: np.ndarray) -> inference.Model:
    """One whose tensor `NAME:0` has the value NAME, and whose calls are in `model.calls`."""
    calls: list[tuple[dict[str, np.ndarray], list[str]]] = []

    def run(feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int) -> list[np.ndarray]:
        calls.append((dict(feeds), list(fetches)))
        return [values[name.removesuffix(":0")] for name in fetches]

    signatures = {
        "serving_default": signature(["x"], ["y", "z"], inference.PREDICT),
        "classify": signature(["inputs"], ["classes", "scores"], inference.CLASSIFY),
        "regress": signature(["inputs"], ["outputs"], inference.REGRESS),
    }
    made = inference.Model("m", signatures, run, check)
    made.calls = calls  # type: ignore[attr-defined]
    return made


def examples(count: int, context: float | None = None) -> input_pb2.Input:
    given = input_pb2.Input()
    into = given.example_list if context is None else given.example_list_with_context
    if context is not None:
        given.example_list_with_context.context.features.feature["c"].float_list.value.append(context)
    for number in range(count):
        into.examples.add().features.feature["x"].float_list.value.append(number)
    return given


def test_only_the_outputs_that_are_asked_for_are_fetched() -> None:
    one = model(y=np.float32([1]), z=np.float32([2]))
    request = predict_pb2.PredictRequest(output_filter=["z"])
    request.inputs["x"].dtype = 1
    assert list(inference.predict_request(one, request)) == ["z"]
    assert one.calls[0][1] == ["z:0"]  # type: ignore[attr-defined]
    request.ClearField("output_filter")
    assert sorted(inference.predict_request(one, request)) == ["y", "z"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda r: r.output_filter.append("w"), "output tensor alias not found in signature: w"),
        (lambda r: r.output_filter.extend(["y", "y"]), "duplicate output tensor alias: y"),
        (lambda r: r.inputs["more"].CopyFrom(r.inputs["x"]), "input size does not match signature: 2!=1"),
        (lambda r: r.inputs.pop("x"), "input size does not match signature: 0!=1"),
        (lambda r: r.inputs["x"].ClearField("dtype"), "tensor parsing error: x"),
    ],
)
def test_predict_refuses(change: object, error: str) -> None:
    request = predict_pb2.PredictRequest()
    request.inputs["x"].dtype = 1
    change(request)  # type: ignore[operator]
    with pytest.raises(InvalidArgumentError, match=error):
        inference.predict_request(model(y=SCORES, z=SCORES), request)


def test_an_unknown_signature_is_a_failed_precondition() -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = "s"
    with pytest.raises(FailedPreconditionError, match='Serving signature key "s" not found'):
        inference.predict_request(model(), request)


def test_labels_and_scores_come_in_pairs() -> None:
    result = inference.one_task(
        model(classes=LABELS, scores=SCORES), inference.CLASSIFY, "classify", examples(2)
    )
    pairs = [[(one.label, one.score) for one in row.classes] for row in result.classifications]
    assert pairs == [[("a", 0.25), ("b", 0.75)], [("c", 0.5), ("d", 0.5)]]


@pytest.mark.parametrize(
    ("classes", "scores", "error"),
    [
        (LABELS[0], SCORES, "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        (SCORES, SCORES, "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        (LABELS, SCORES.astype(np.float64), "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        (LABELS, SCORES[:1], "Expected scores output batch size of 2. Got: 1"),
        (LABELS, SCORES[:, :1], "Tensors class and score should match in dim_size(1). Got 2 vs. 1"),
    ],
)
def test_classes_that_do_not_fit(classes: np.ndarray, scores: np.ndarray, error: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        inference.one_task(model(classes=classes, scores=scores), inference.CLASSIFY, "classify", examples(2))
    assert str(raised.value) == error


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_regression_is_a_value_for_each_example(shape: tuple[int, ...]) -> None:
    one = model(outputs=np.float32([3, 4]).reshape(shape))
    result = inference.one_task(one, inference.REGRESS, "regress", examples(2))
    assert [value.value for value in result.regressions] == [3, 4]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.zeros((2, 2), np.float32), "Expected output Tensor shape to be either"),
        (np.zeros(3, np.float32), "Input batch size did not match output batch size: 2 vs. 3"),
        (np.zeros(2, np.int64), "Expected output Tensor of DT_FLOAT.  Got: DT_INT64"),
    ],
)
def test_values_that_do_not_fit(values: np.ndarray, error: str) -> None:
    with pytest.raises(InvalidArgumentError, match=error):
        inference.one_task(model(outputs=values), inference.REGRESS, "regress", examples(2))


def test_a_context_stands_before_each_example() -> None:
    """Concatenated messages are merged by protobuf, where the later one's features win."""
    one = model(outputs=np.float32([1, 2]))
    inference.one_task(one, inference.REGRESS, "regress", examples(2, context=5))
    (feeds, _), given = one.calls[0], examples(2, context=5).example_list_with_context  # type: ignore[attr-defined]
    prefix = given.context.SerializeToString()
    expected = [prefix + example.SerializeToString() for example in given.examples]
    assert feeds["inputs:0"].tolist() == expected


def test_no_examples_are_refused() -> None:
    for empty in (input_pb2.Input(), examples(0), examples(0, context=1)):
        with pytest.raises(InvalidArgumentError, match="Input is empty"):
            inference.one_task(model(), inference.REGRESS, "regress", empty)


def test_the_method_of_a_signature_is_checked_on_demand() -> None:
    one = model(check=True, outputs=np.float32([1]))
    with pytest.raises(InvalidArgumentError, match="Expected classification signature method_name"):
        inference.one_task(one, inference.CLASSIFY, "regress", examples(1))
    strange = signature(["x"], ["y"], "my/own")
    with pytest.raises(ServingError, match="Expected prediction signature method_name") as raised:
        inference.predict(one, strange, {"x": np.float32([1])})
    assert raised.value.code == "INTERNAL"


def test_tasks_of_one_request_are_computed_in_one_run() -> None:
    one = model(classes=LABELS, scores=SCORES, outputs=np.float32([3, 4]))
    request = inference_pb2.MultiInferenceRequest(input=examples(2))
    for key, method in (("classify", inference.CLASSIFY), ("regress", inference.REGRESS)):
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = "m", key
    classes, values = inference.multi_inference(one, request)
    assert len(one.calls) == 1  # type: ignore[attr-defined]
    assert len(classes.classifications) == len(values.regressions) == 2
    request.tasks.add().CopyFrom(request.tasks[0])
    with pytest.raises(InvalidArgumentError, match="Duplicate evaluation of signature: classify"):
        inference.multi_inference(one, request)
