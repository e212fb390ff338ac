"""The clock of a long call: on a terminal only, and gone at the end."""

import io
import threading

import pytest
from tqdm import tqdm

from keras_bn_cli import elapsed as module


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_it_shows_on_a_terminal_alone(monkeypatch, stream):
    monkeypatch.setattr(module, "tqdm", lambda **options: tqdm(file=stream, **options))
    with module.elapsed("exporting"):
        pass
    assert ("exporting: 00:00" in stream.getvalue()) == stream.isatty()


def test_an_error_passes_through_and_the_thread_ends():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), module.elapsed("exporting"):
        raise ZeroDivisionError
    assert threading.active_count() <= before
