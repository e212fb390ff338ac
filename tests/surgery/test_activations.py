"""Values that are kept between two levels: the same from memory and from disk."""

import errno

import keras
import numpy as np
import pytest
from keras import ops

from keras_bn.errors import KerasBNError
from keras_bn.surgery._activations import Activations
from keras_bn.surgery._compiled import as_tensor

VALUES = {
    3: (np.arange(12, dtype="float32").reshape(3, 4), None),
    5: (np.ones((2, 2), "float16"), np.array([True, False])),
}


@pytest.mark.parametrize("limit", [0, 50, 1e9])
def test_what_is_put_is_taken(limit, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Activations(limit) as kept:
        for batch in range(2):
            kept.put(batch, {number: [as_tensor(v) for v in group] for number, group in VALUES.items()})
        assert len(kept) == 2 and bool(list(tmp_path.iterdir())) == (limit < 1e9)
        for batch in (1, 0):
            for number, group in kept.take(batch).items():
                for found, expected in zip(group, VALUES[number], strict=True):
                    if expected is None:
                        assert found is None
                        continue
                    assert keras.backend.standardize_dtype(found.dtype) == str(expected.dtype)
                    np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)
    assert not list(tmp_path.iterdir())


def test_sixteen_bits_survive_the_disk():
    values = ops.cast(ops.convert_to_tensor(np.array([1.0, 2.5], "float32")), "bfloat16")
    with Activations(0) as kept:
        kept.put(0, {0: (values,)})
        (found,) = kept.take(0)[0]
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    np.testing.assert_array_equal(ops.convert_to_numpy(ops.cast(found, "float32")), [1.0, 2.5])


def test_files_go_on_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt), Activations(0) as kept:
        kept.put(0, {0: (ops.ones((2,)),)})
        assert list(tmp_path.iterdir())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named(monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("keras_bn.surgery._activations._write", full)
    with Activations(0) as kept, pytest.raises(KerasBNError, match=r"memory_limit.*No space left.*steps="):
        kept.put(0, {0: (ops.ones((2,)),)})
