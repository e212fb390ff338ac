"""A model trained on JAX or PyTorch, saved, exported by TensorFlow, and served."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import keras_bn  # noqa: F401 - registers the layers
from keras_bn_cli.program import program
from keras_bn_serving.client import Client
from keras_bn_serving.local_server import launch

ROOT = Path(__file__).parents[2]
TRAIN = """
import keras, keras_bn, numpy as np, sys
assert keras.backend.backend() == sys.argv[1]
random = np.random.default_rng(0)
images, labels = random.normal(size=(64, 8, 8, 1)).astype("float32"), random.integers(0, 2, 64)
inputs = keras.Input((8, 8, 1), name="image")
x = keras_bn.BatchNormalization()(keras.layers.Conv2D(8, 3, use_bias=False)(inputs))
x = keras_bn.BatchRenormalization()(keras.layers.Dense(4)(keras.layers.Flatten()(keras.ops.relu(x))))
model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="class")(x))
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(images, labels, batch_size=16, verbose=0)
model.save("model.keras")
np.savez("answers.npz", images=images[:8], answers=np.asarray(model.predict(images[:8], verbose=0)))
try:
    keras_bn.export(model, "models")
except keras_bn.KerasBNError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_trained_elsewhere_saved_exported_and_served(tmp_path, backend):
    pytest.importorskip(backend)
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": f"{ROOT}:{ROOT / 'serving'}"}
    command = [sys.executable, "-c", TRAIN, backend]
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert f"not on {backend}" in run.stdout and "keras-bn export model.keras" in run.stdout
    arguments = ["export", str(tmp_path / "model.keras"), str(tmp_path / "models")]
    result = CliRunner().invoke(program, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    saved = np.load(tmp_path / "answers.npz")
    with (
        launch(tmp_path / "models", "elsewhere") as server,
        Client(f"http://localhost:{server.rest_port}", "elsewhere") as client,
    ):
        answers = client.predict(saved["images"])
    # Each backend adds float32 numbers up in an order of its own.
    np.testing.assert_allclose(answers, saved["answers"], rtol=1e-4, atol=1e-6)
