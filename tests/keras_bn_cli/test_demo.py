"""The demo runs to its end, leaves what it says it leaves, and fails when a figure is not what it must be."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from keras_bn_cli import demo
from keras_bn_cli.program import program


@pytest.mark.slow
def test_the_demo_holds_what_it_prints(tmp_path):
    done = CliRunner().invoke(program, ["demo", "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "digits" / "1" / "saved_model.pb").exists()
    assert np.shape(json.loads((tmp_path / "request.json").read_text())["instances"]) == (1, 8, 8, 1)


def test_a_figure_out_of_bounds_ends_the_demo_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TRAIN_EPOCHS", 1)
    monkeypatch.setattr(demo, "BATCH_SIZE", 1024)
    done = CliRunner().invoke(program, ["demo", "-o", str(tmp_path)])
    assert done.exit_code == 1
    assert "The demo failed: test accuracy" in done.output
    assert not list(tmp_path.iterdir())
