"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import keras_bn
import keras_bn_serving


def _modules():
    for package in (keras_bn, keras_bn_serving):
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                yield module.name


@pytest.mark.parametrize("name", list(_modules()))
def test_examples_run(name):
    if name == "keras_bn.beam":
        pytest.importorskip("apache_beam", reason="needs the extra beam")
    # The kernels of a backend import it.
    of_a_backend = name.startswith("keras_bn.kernels.")
    module = pytest.importorskip(name) if of_a_backend else importlib.import_module(name)
    failures = doctest.testmod(
        module,
        extraglobs={"np": np, "keras_bn": keras_bn},
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    ).failed
    assert failures == 0
