"""What the client does on failures, stale metadata and deadlines: the steps, with no network."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from keras_bn_serving.client.exchange import Exchange, Pause, Shared, Target
from keras_bn_serving.client.metadata import ModelMetadata, Signature, TensorSpec, VersionStatus
from keras_bn_serving.client.operations import Operations
from keras_bn_serving.wire.errors import (
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ServingError,
    UnavailableError,
)

MODEL = Target("m")


def metadata(dtype="DT_FLOAT", version=1):
    spec = {"x": TensorSpec(dtype, (None,))}
    return ModelMetadata(
        "m", version, {"serving_default": Signature(spec, {"y": TensorSpec(dtype, (None,))})}
    )


class NamingCodec:
    """Every exchange is its name, and an answer is its own result."""

    def predict(self, target, name, signature, inputs, outputs):
        (array,) = inputs.values()
        return Exchange(f"predict {array.dtype}", b"", lambda answer: answer)

    def status(self, target):
        return Exchange("status", None, lambda answer: answer)

    def metadata(self, target):
        return Exchange("metadata", None, lambda answer: answer)

    def examples(self, method, target, name, examples, context):
        return Exchange(method, b"", lambda answer: answer)

    def reload(self, config):
        return Exchange("reload", b"", lambda answer: answer, idempotent=False)


@dataclass
class Script:
    """Plays a server: gives the answers in turn, raising the errors among them, and notes what was asked."""

    answers: list[Any]
    asked: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)

    def run(self, operation, whole=True):
        try:
            step = next(operation)
            while True:
                if isinstance(step, Shared):
                    step = operation.send(self.run(step.operation(), whole=False))
                    continue
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    step = operation.send(None)
                    continue
                self.asked.append(step.path)
                self.timeouts.append(step.timeout)
                answer = self.answers.pop(0)
                step = operation.throw(answer) if isinstance(answer, Exception) else operation.send(answer)
        except StopIteration as end:
            assert not (whole and self.answers)
            return end.value


def operations(retries=2):
    return Operations(NamingCodec(), retries)


def predict(client, x=(1,), outputs=None):
    return client.predict(MODEL, list(x), None, outputs, 10.0)


Y = {"y": np.float32([1])}


def test_metadata_is_asked_for_once():
    client = operations()
    for answers in ([metadata(), Y], [Y], [Y]):
        assert Script(answers).run(predict(client)) is Y["y"]


def test_one_output_is_unwrapped_and_named_ones_are_not_unless_by_a_str():
    both = {"y": 1, "z": 2}
    assert Script([metadata(), both]).run(predict(operations())) == both
    assert Script([metadata(), Y]).run(predict(operations(), outputs="y")) is Y["y"]
    assert Script([metadata(), Y]).run(predict(operations(), outputs=["y"])) == Y
    with pytest.raises(InvalidArgumentError, match="no output 'q': the signature offers y"):
        Script([metadata()]).run(predict(operations(), outputs=["q"]))


def test_a_model_that_changed_under_us_is_met_with_fresh_metadata():
    client = operations()
    Script([metadata("DT_FLOAT"), Y]).run(predict(client))
    # Refused here by the kept signature, taken by the new one.
    script = Script([metadata("DT_STRING", version=2), Y])
    assert script.run(predict(client, ["text"])) is Y["y"]
    assert script.asked == ["metadata", "predict object"]
    # Refused by the server, which has moved on to integers.
    client = operations()
    Script([metadata("DT_FLOAT"), Y]).run(predict(client))
    script = Script([InvalidArgumentError("Expects arg[0] to be int32"), metadata("DT_INT32", version=2), Y])
    assert script.run(predict(client)) is Y["y"]
    assert script.asked == ["predict float32", "metadata", "predict int32"]


@pytest.mark.parametrize(
    "error", [InvalidArgumentError("shape"), InternalError("odd"), NotFoundError("gone")]
)
def test_an_error_with_unchanged_metadata_is_the_servers_word(error):
    client = operations()
    Script([metadata(), Y]).run(predict(client))
    with pytest.raises(type(error)) as caught:
        Script([error, metadata()]).run(predict(client))
    assert caught.value is error


def test_bad_input_is_refused_before_anything_is_sent_when_metadata_is_known():
    script = Script([metadata()])
    with pytest.raises(InvalidArgumentError, match="input 'x' should be float32"):
        script.run(predict(operations(), ["text"]))
    assert script.asked == ["metadata"]


@pytest.mark.parametrize("error", [UnavailableError, CancelledError])
def test_what_the_server_did_not_take_on_is_tried_again_with_growing_pauses_then_raised(error):
    down = error("connection refused")
    script = Script([down, down, [VersionStatus(1, "AVAILABLE")]])
    script.run(operations().status(MODEL, 10.0))
    assert script.asked == ["status"] * 3
    assert 0.025 <= script.pauses[0] <= 0.075 <= 0.05 * 2 * 1.5
    assert 0.05 <= script.pauses[1] <= 0.15
    script = Script([down, down, down])
    with pytest.raises(error, match="refused"):
        script.run(operations().status(MODEL, 10.0))
    script = Script([down])
    with pytest.raises(error):
        script.run(operations(retries=0).status(MODEL, 10.0))


@pytest.mark.parametrize("error", [DeadlineExceededError("slow"), InternalError("broken"), ServingError("?")])
def test_nothing_else_is_tried_again(error):
    script = Script([error])
    with pytest.raises(type(error)):
        script.run(operations().status(MODEL, 10.0))


def test_reload_is_never_repeated_and_forgets_metadata():
    client = operations()
    Script([metadata(), Y]).run(predict(client))
    with pytest.raises(UnavailableError):
        Script([UnavailableError("lost")]).run(client.reload({}, 10.0))
    script = Script([metadata(), Y])
    script.run(predict(client))
    assert script.asked[0] == "metadata"


def test_no_retry_reaches_beyond_the_deadline():
    script = Script([UnavailableError("down")])
    with pytest.raises(UnavailableError):
        script.run(operations(retries=50).status(MODEL, 0.02))
    assert script.pauses == []


def test_the_timeout_covers_the_whole_call(monkeypatch):
    script, now = Script([metadata(), Y]), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now.__setitem__(0, now[0] + 1.0) or now[0])
    script.run(predict(operations()))
    assert script.timeouts == [9.0, 8.0]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e10])
def test_a_timeout_is_positive(timeout):
    with pytest.raises(InvalidArgumentError, match="timeout should be a positive number of seconds"):
        Script([]).run(operations().status(MODEL, timeout))


def test_wait_until_ready_sees_a_server_start():
    script = Script(
        [
            UnavailableError("refused"),
            NotFoundError("Could not find any versions of model m"),
            DeadlineExceededError("busy loading"),
            [VersionStatus(3, "LOADING"), VersionStatus(1, "END", "DATA_LOSS", "corrupt")],
            [VersionStatus(3, "AVAILABLE"), VersionStatus(2, "AVAILABLE")],
        ]
    )
    assert script.run(operations().wait_until_ready(MODEL, 60.0)) == 3
    assert len(script.pauses) == 4


def test_wait_until_ready_gives_up_when_the_server_has():
    failed = [VersionStatus(1, "END", "NOT_FOUND", "no saved_model.pb")]
    with pytest.raises(
        FailedPreconditionError, match=r"m cannot be loaded: version 1: NOT_FOUND: no saved_model"
    ):
        Script([failed]).run(operations().wait_until_ready(MODEL, 60.0))


def test_wait_until_ready_says_what_it_last_saw(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now.__setitem__(0, now[0] + 0.4) or now[0])
    with pytest.raises(
        DeadlineExceededError, match=r"not available after 1 s \(last seen: version 1 LOADING\)"
    ):
        Script([[VersionStatus(1, "LOADING")]]).run(operations().wait_until_ready(MODEL, 1.0))


@pytest.mark.parametrize("examples", [[], [1.0], None, "x"])
def test_examples_are_dicts(examples):
    with pytest.raises(InvalidArgumentError, match="classify takes a dict of features by name"):
        Script([]).run(operations().examples("classify", MODEL, examples, None, None, 10.0))


def test_one_example_may_stand_for_a_list():
    assert (
        Script(["answer"]).run(operations().examples("regress", MODEL, {"x": 1.0}, None, None, 1.0))
        == "answer"
    )
