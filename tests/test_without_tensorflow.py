"""The package where TensorFlow is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
sys.modules["tensorflow"] = None  # importing it fails
import keras, keras_bn, numpy as np
assert keras.backend.backend() == sys.argv[1]
keras_bn.BatchNormalization()(np.ones((4, 3), "float32"), training=True)
for function, arguments in ((keras_bn.export, (None, "x")), (keras_bn.verify_inference_mode, ("x",))):
    try:
        function(*arguments)
    except keras_bn.KerasBNError as error:
        print(error)
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_it_is_imported_and_says_what_needs_tensorflow(backend):
    pytest.importorskip(backend)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path}
    command = [sys.executable, "-c", CODE, backend]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert [line.split(" needs ")[0] for line in run.stdout.splitlines()] == [
        "keras_bn.export",
        "keras_bn.verify_inference_mode",
    ]
    assert run.stdout.count("pip install 'keras-bn[tensorflow]'") == 2
