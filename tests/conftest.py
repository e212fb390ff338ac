"""What tests share: quiet TensorFlow, random numbers of their own, and how they are spread over processes."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Under pytest-xdist, run a file's tests in one process, and start the files with slow tests first."""
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        return
    groups = {}
    for item in items:
        # The tests that are marked to share something expensive are a group of their own.
        marked = item.get_closest_marker("xdist_group")
        if not marked:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(config.rootpath).as_posix()))
        groups.setdefault(item.get_closest_marker("xdist_group").args[0], []).append(item)

    def order(group):
        return not any(item.get_closest_marker("slow") for item in group), -len(group)

    items[:] = [item for group in sorted(groups.values(), key=order) for item in group]


def pytest_collection_finish():
    """Leave the imported modules out of garbage collection, where a full one takes most of a second."""
    gc.collect()
    gc.freeze()
