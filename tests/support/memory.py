"""What stays in use of the C library's heap, on which the native libraries and the runtimes live."""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable

import pytest

FLAT = 64 << 10  # bytes: of 2000 leaks of one short string each there are more


class Mallinfo2(ctypes.Structure):
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library, or a skip where it cannot tell."""
    found = ctypes.CDLL(None)
    if not hasattr(found, "mallinfo2"):
        pytest.skip("the C library has no mallinfo2")
    found.mallinfo2.restype = Mallinfo2
    found.malloc.restype = ctypes.c_void_p
    before = _in_use(found)
    found.malloc(FLAT)
    if _in_use(found) < before + FLAT:
        pytest.skip("this process has another malloc than the C library's, as sanitizers bring")
    return found


def kept(call: Callable[[], object], times: int, first: int = 200) -> int:
    """Bytes that `times` calls leave in use, after `first` others."""
    library = libc()
    for _ in range(first):
        call()
    gc.collect()
    before = _in_use(library)
    for _ in range(times):
        call()
    gc.collect()
    return _in_use(library) - before


def _in_use(library: ctypes.CDLL) -> int:
    info = library.mallinfo2()
    return info.uordblks + info.hblkhd  # of the heaps, and of what is mapped by itself
