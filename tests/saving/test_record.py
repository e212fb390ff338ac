"""The record of a version: read as it was written, or refused with a reason."""

import pytest

import keras_bn
from keras_bn.profiling.profile import _versions
from keras_bn.saving.record import EXTRA, RECORD, read_record, write_record


def test_entries_are_added(tmp_path):
    write_record(tmp_path, {"precision": "float32", "fused": False})
    write_record(tmp_path, {"fused": True})
    assert read_record(tmp_path) == {"precision": "float32", "fused": True}


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_a_damaged_record(tmp_path, text):
    (tmp_path / EXTRA).mkdir()
    (tmp_path / EXTRA / RECORD).write_text(text)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(keras_bn.KerasBNError, match=f"{RECORD} is damaged .*; export the model again"):
        read_record(tmp_path)
    assert _versions(tmp_path) == {"float32": tmp_path}, "the plan measures it nevertheless"


def test_no_record(tmp_path):
    with pytest.raises(keras_bn.KerasBNError, match="give the version folder"):
        read_record(tmp_path)
