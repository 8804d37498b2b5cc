"""The C API of libclipsight.so through ctypes, as another language would call it."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_double, c_float, c_int, c_int64, c_size_t, c_uint64

import numpy as np
import pytest

from clipsight import get_library_path
from clipsight.manifest import LoadError

DTYPES = ["float32", "float16", "bfloat16", "uint8", "int64", "bool", "float64"]
MAX_RANK = 8
ABI = 2


class Options(Structure):
    _fields_ = [("abi", c_int), ("threads", c_int)] + [
        (name, c_char_p) for name in ("device", "onnxruntime_library", "plugin_library")
    ]


class Tensor(Structure):
    _fields_ = [("data", ctypes.c_void_p)] + [(n, c_int) for n in ("dtype", "device", "device_index", "rank")]
    _fields_ += [("shape", c_int64 * MAX_RANK)]

    @classmethod
    def of(cls, array: np.ndarray) -> Tensor:
        """A view; the array must outlive it."""
        shape = (c_int64 * MAX_RANK)(*array.shape)
        return cls(array.ctypes.data, DTYPES.index(str(array.dtype)), 0, 0, array.ndim, shape)

    @classmethod
    def of_torch(cls, tensor) -> Tensor:
        """The same of a contiguous torch tensor, on its device."""
        dtype, device = str(tensor.dtype).removeprefix("torch."), tensor.device
        shape = (c_int64 * MAX_RANK)(*tensor.shape)
        place = int(device.type == "cuda"), device.index or 0
        return cls(tensor.data_ptr(), DTYPES.index(dtype), *place, tensor.dim(), shape)


class Port(Structure):
    _fields_ = [("name", c_char_p), ("dtype", c_int), ("rank", c_int)]
    _fields_ += [("shape", c_int64 * MAX_RANK), ("letters", c_char * MAX_RANK)]


class Class(Structure):
    _fields_ = [("index", c_int64), ("probability", c_float), ("label", c_char_p)]


class CError(Exception):
    pass


def load_library() -> ctypes.CDLL:
    """The library with its signatures, or a skip where it was not built."""
    try:
        library = ctypes.CDLL(str(get_library_path("session")))
    except LoadError as error:
        pytest.skip(str(error))
    session, tensors, size = c_uint64, POINTER(Tensor), c_size_t
    signatures = {
        "open": [c_char_p, POINTER(Options), POINTER(session)],
        "open_as": [c_char_p, c_char_p, POINTER(Options), POINTER(session)],
        "close": [session],
        "manifest": [session, POINTER(c_char_p)],
        "counts": [session, POINTER(size), POINTER(size), POINTER(size)],
        "input": [session, size, POINTER(Port)],
        "output": [session, size, POINTER(Port)],
        "map_region": [session, c_int64, c_int64, POINTER(c_double)],
        "output_shapes": [session, tensors, size, tensors, size],
        "run": [session, tensors, size, tensors, size],
        "probability": [session, POINTER(c_int)],
        "top_classes": [session, tensors, size, POINTER(Class), size],
    }
    for name, arguments in signatures.items():
        getattr(library, f"clipsight_{name}").argtypes = arguments
    library.clipsight_last_error.restype = library.clipsight_version.restype = c_char_p
    return library


class CSession:
    """One handle; a failing call raises CError with the library's message."""

    def __init__(self, path, runtime, plugin: str = "", threads: int = 0, kind: str | None = None, **options) -> None:
        self.library = load_library()
        self.handle = c_uint64()
        self.options = Options(ABI, threads, None, str(runtime).encode(), plugin.encode())
        for name, value in options.items():
            setattr(self.options, name, value)
        named = ["open"] if kind is None else ["open_as", kind.encode()]
        self.call(*named, str(path).encode(), byref(self.options), byref(self.handle), handle=False)

    def call(self, name: str, *arguments, handle: bool = True) -> None:
        function = getattr(self.library, f"clipsight_{name}")
        if function(*([self.handle] if handle else []), *arguments):
            message = self.library.clipsight_last_error().decode()
            assert message
            raise CError(message)
        assert self.library.clipsight_last_error() == b""

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs, in arrays of this side."""
        count = c_size_t()
        self.call("counts", None, byref(count), None)
        views, results = (Tensor * len(inputs))(*map(Tensor.of, inputs)), (Tensor * count.value)()
        self.call("output_shapes", views, len(inputs), results, count.value)
        outputs = [np.full(r.shape[: r.rank], 77, DTYPES[r.dtype]) for r in results]
        self.call("run", views, len(inputs), (Tensor * count.value)(*map(Tensor.of, outputs)), count.value)
        return outputs

    def ports(self, kind: str) -> list[tuple[str, str, tuple]]:
        result = []
        counts = [c_size_t(), c_size_t()]
        self.call("counts", *map(byref, counts), None)
        for i in range(counts[kind == "output"].value):
            port = Port()
            self.call(kind, i, byref(port))
            shape = tuple(
                n if n >= 0 else port.letters[a : a + 1].decode() for a, n in enumerate(port.shape[: port.rank])
            )
            result.append((port.name.decode(), DTYPES[port.dtype], shape))
        return result
