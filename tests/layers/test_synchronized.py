"""Two replicas with a part of a batch each are one replica with all of it: moments, outputs, gradients."""

import json
import pathlib
import socket

import keras
import numpy as np
import pytest
from keras import ops

from keras_bn import BatchNormalization, KerasBNError, reference
from tests.processes import Program

SCRIPT = pathlib.Path(__file__).with_name("replicas.py")
# Examples on each replica, and whether some of their steps are masked.
CASES = [((4, 4), False), ((5, 2), True), ((6, 0), False)]


def _data(sizes, masked):
    rng = np.random.default_rng(0)
    data = {"gamma": rng.normal(size=3), "beta": rng.normal(size=3)}
    for replica, size in enumerate(sizes):
        # Each replica's mean is its own, and large: E[x²] - E[x]² would lose the variance.
        data[f"x_{replica}"] = rng.normal(1000 + replica, 1, (size, 4, 3))
        data[f"dy_{replica}"] = rng.normal(size=(size, 4, 3))
    data = {name: value.astype("float32") for name, value in data.items()}
    for replica, size in enumerate(sizes):
        data[f"mask_{replica}"] = rng.random((size, 4)) < (0.6 if masked else 1.1)
    return data


def _run(programs, script=SCRIPT):
    """Run (arguments, environment) of the script side by side until all are done."""
    running = [Program(script, arguments, **environment) for arguments, environment in programs]
    try:
        for program in running:
            program.wait(240)
    finally:
        for program in running:
            program.kill()


def _mirrored(paths):
    """One process with two logical devices."""
    _run([(["mirrored", *paths, ".result.npz"], {})])
    return [dict(np.load(f"{path}.result.npz")) for path in paths]


def _workers(paths):
    """Two processes on loopback, which find each other by TF_CONFIG."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
    addresses = [f"localhost:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    tasks = [
        json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
        for index in range(2)
    ]
    _run([(["workers", *paths, f".{i}.npz"], {"TF_CONFIG": task}) for i, task in enumerate(tasks)])
    return _results_of_both(paths)


def _processes(paths):
    """Two processes of torch.distributed, which find each other by a file."""
    rendezvous = f"{paths[0]}.rendezvous"
    script = SCRIPT.with_name("processes.py")
    _run([([str(rank), rendezvous, *paths], {"OMP_NUM_THREADS": "1"}) for rank in range(2)], script)
    return _results_of_both(paths)


def _results_of_both(paths):
    results = []
    for path in paths:
        one, other = (dict(np.load(f"{path}.{index}.npz")) for index in range(2))
        np.testing.assert_array_equal(one["weights"], other["weights"])
        results.append({**one, **other})
    return results


RUNS = {"tensorflow": [_mirrored, _workers], "torch": [_processes]}


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() not in RUNS, reason="JAX's shards: tests/kernels/test_jax.py")
@pytest.mark.parametrize("run", RUNS.get(keras.backend.backend(), []))
def test_replicas_together_are_one(run, tmp_path):
    cases = [_data(*case) for case in CASES]
    paths = [str(tmp_path / f"data_{index}.npz") for index in range(len(cases))]
    for path, data in zip(paths, cases, strict=True):
        np.savez(path, **data)
    for data, found in zip(cases, run(paths), strict=True):
        _assert_one(data, found)


def _assert_one(data, found):
    x, dy, mask = (np.concatenate([data[f"{name}_0"], data[f"{name}_1"]]) for name in ("x", "dy", "mask"))
    gamma, beta = data["gamma"], data["beta"]
    y, moments = reference.train_forward(x, gamma, beta, 1e-3, mask=mask[..., None])
    gradients = reference.train_gradients(dy, x, gamma, 1e-3, mask=mask[..., None])
    # The mean, near 1000, is rounded to 6e-5 of a deviation in float32.
    np.testing.assert_allclose(np.concatenate([found["y_0"], found["y_1"]]), y, atol=5e-4)
    np.testing.assert_allclose(np.concatenate([found["dx_0"], found["dx_1"]]), gradients.x, atol=1e-3)
    np.testing.assert_allclose(found["dgamma_0"] + found["dgamma_1"], gradients.gamma, atol=5e-3)
    np.testing.assert_allclose(found["dbeta_0"] + found["dbeta_1"], gradients.beta, atol=1e-4)
    unbiased = moments.variance * moments.count / (moments.count - 1)
    np.testing.assert_allclose(found["weights"][2], moments.mean / 2, rtol=1e-6)
    np.testing.assert_allclose(found["weights"][3], (1 + unbiased) / 2, rtol=1e-4)


def test_without_a_strategy_it_is_the_plain_layer():
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    plain, synchronized = BatchNormalization(), BatchNormalization(synchronized=True)
    y, z = (ops.convert_to_numpy(layer(x, training=True)) for layer in (plain, synchronized))
    np.testing.assert_allclose(z, y, atol=1e-6)


def test_other_backends_refuse(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    with pytest.raises(KerasBNError, match=r"needs the TensorFlow, PyTorch or JAX backend.*'openvino'"):
        BatchNormalization(synchronized=True)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
def test_every_variant_has_a_law_on_replicas(tmp_path):
    _run([([tmp_path / "result.npz"], {})], SCRIPT.with_name("variants_on_replicas.py"))
    results = dict(np.load(tmp_path / "result.npz"))
    expected = {name.removeprefix("expected_"): v for name, v in results.items() if "expected" in name}
    assert len(expected) == 11
    for name, value in expected.items():
        np.testing.assert_allclose(results[f"found_{name}"], value, rtol=1e-5, err_msg=name)
