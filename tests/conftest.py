"""What tests share: quiet TensorFlow, random numbers of their own, and how they are spread over processes."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest


@pytest.fixture(autouse=True)
def seeded():
    import keras  # not above: the process that hands out the tests needs none of it

    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def compiled_functions_are_dropped():
    """What JAX compiled for the tests of one file would take gigabytes at the end of a run."""
    yield
    if os.environ.get("KERAS_BACKEND") == "jax":
        import jax

        jax.clear_caches()


def process_group(nodeid):
    """Tests of a group run in one process: those of a file, or of networks that are built once for all."""
    shared = (name for name in ("keras_applications", "keras_hub") if name in nodeid)
    return next(shared, nodeid.split("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return process_group(nodeid)

    return ByGroup(config, log)


def pytest_collection_modifyitems(items):
    """Under pytest-xdist, start the groups with slow tests first, so that none is left for the end."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    groups = {}
    for item in items:
        groups.setdefault(process_group(item.nodeid), []).append(item)

    def order(group):
        return not any(item.get_closest_marker("slow") for item in group), -len(group)

    items[:] = [item for group in sorted(groups.values(), key=order) for item in group]


def pytest_collection_finish():
    """Leave the imported modules out of garbage collection, where a full one takes most of a second."""
    gc.collect()
    gc.freeze()
