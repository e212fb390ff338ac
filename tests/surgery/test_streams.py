"""Reading the first batch ahead, and doing something after each."""

from __future__ import annotations

import keras
import numpy as np

from keras_bn.data import batches
from keras_bn.surgery._streams import each_followed_by, peek


def _model() -> keras.Model:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def test_peek_leaves_the_first_batch_among_the_others() -> None:
    data = np.arange(12.0).reshape(6, 2)
    for source in (data, (data[i : i + 2] for i in range(0, 6, 2))):
        given = batches(_model(), source, 2 if source is data else None)
        first, stream = peek(given)
        np.testing.assert_array_equal(first, data[:2])
        np.testing.assert_array_equal(np.concatenate(list(stream)), data)


def test_a_batch_is_done_when_the_next_is_asked_for() -> None:
    events: list[str] = []
    for batch in each_followed_by(lambda: events.append("done"), ["a", "b"]):
        events.append(batch)
    assert events == ["a", "done", "b", "done"]
