"""Candidates of a benchmark in processes of their own."""

import keras
import numpy as np
import pytest

from benchmarks import runtimes
from benchmarks.candidate import Candidate, Failed, by_turns


@pytest.fixture
def image(tmp_path):
    file = tmp_path / "image.npy"
    np.save(file, np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32))
    return file


def test_it_answers_as_the_model_and_times_each_call(tmp_path, image):
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(5, 3), keras.layers.Flatten()])
    model.export(tmp_path / "version", verbose=False)
    candidate = Candidate(runtimes.TENSORFLOW, tmp_path / "version", 1, image)
    try:
        # Two implementations of one convolution, which sum 27 products in their own order.
        np.testing.assert_allclose(candidate.answer, model.predict(np.load(image), verbose=0), atol=1e-6)
        assert candidate.load > 0 and candidate.resident > 0
        assert len(candidate.turn(7)) == 7
        assert by_turns({"one": candidate}, rounds=2, calls=4)["one"] > 0
    finally:
        candidate.close()


def test_what_cannot_be_opened_says_why_and_leaves_no_process(tmp_path, image):
    with pytest.raises(Failed, match=r"OSError|NotFoundError"):
        Candidate(runtimes.TENSORFLOW, tmp_path / "nothing", 1, image)
