"""What becomes of freed memory: glibc marks a block that is a mapping of its own in the word before it."""

from __future__ import annotations

import ctypes
import platform

import pytest

from keras_bn_serving.local_server import memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other C library has it")
_IS_MAPPED = 2


def mapped(size: int) -> bool:
    """Whether blocks of so many bytes get mappings of their own, which go when the blocks are freed.

    The last of 512 MiB tells: the first may find room among what is free in the arena.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    blocks = [libc.malloc(size) for _ in range((512 << 20) // size)]
    try:
        word = ctypes.c_size_t.from_address(blocks[-1] - ctypes.sizeof(ctypes.c_size_t))
        return bool(word.value & _IS_MAPPED)
    finally:
        for block in blocks:
            libc.free(block)


@pytest.mark.parametrize("mib", [2, 16, 31])
def test_weights_are_mapped_and_what_requests_take_is_not(mib: int) -> None:
    for _ in range(2):
        with memory.of_models():
            assert mapped(mib << 20)
        assert not mapped(mib << 20)


def test_an_image_is_mapped_at_no_time() -> None:
    with memory.of_models():
        assert not mapped(600_000)
    assert not mapped(600_000)


def test_of_several_at_once_the_last_to_end_counts() -> None:
    with memory.of_models():
        with pytest.raises(RuntimeError), memory.of_models():
            raise RuntimeError("a load that failed")
        assert mapped(16 << 20)
    assert not mapped(16 << 20)


def test_a_choice_of_the_operator_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory.of_models():
        pass  # from here on, 16 MiB are not mapped
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "33554432")
    with memory.of_models():
        assert not mapped(16 << 20)
