"""The gate between calls and forks."""

import threading
import time

from keras_bn_serving.client import grpc_forks
from keras_bn_serving.client.grpc_forks import _Gate


def in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_fork_waits_for_calls_and_calls_wait_for_the_fork():
    gate, order = _Gate(), []
    gate.enter()
    fork = in_thread(lambda: (gate.before_fork(), order.append("fork")))
    while not gate._forks:
        time.sleep(0.001)
    call = in_thread(lambda: (gate.enter(), order.append("call")))
    order.append("first call ends")
    gate.leave()
    fork.join(10)
    order.append("forked")
    gate.after_fork()
    call.join(10)
    assert order == ["first call ends", "fork", "forked", "call"]


def test_a_fork_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(grpc_forks, "_LONGEST_WAIT_S", 0.01)
    gate = _Gate()
    gate.enter()
    gate.before_fork()
    gate.after_fork()
    gate.leave()
    gate.enter()  # and is open again


def test_two_forks_at_once():
    gate = _Gate()
    gate.before_fork()
    gate.before_fork()
    gate.after_fork()
    call = in_thread(gate.enter)
    call.join(0.05)
    assert call.is_alive()
    gate.after_fork()
    call.join(10)
    assert not call.is_alive()
