"""Which names are versions; exporting follows the same rule."""

import pytest

from keras_bn.saving import versions
from keras_bn_serving.wire.versions import version_number

NAMES = {
    "1": 1, "00000123": 123, "-5": -5, "+7": 7, " 8 ": 8, "20170111173521": 20170111173521,
    str(2**63 - 1): 2**63 - 1, str(2**63): None, "": None, "2.denied": None, "tmp-3": None, ".x": None,
    "1_000": None, "0x10": None, "1e3": None, "\u0663": None, "--1": None, "1 2": None,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_name_is_a_64_bit_integer(name):
    assert version_number(name) == NAMES[name]


def test_export_counts_the_same_folders_as_versions(tmp_path):
    for name in NAMES:
        if name and NAMES[name] is not None:
            (tmp_path / name).mkdir()
    assert sorted(versions._versions(tmp_path)) == sorted(filter(None, NAMES.values()))
