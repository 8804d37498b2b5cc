"""Where the native libraries of this installation lie; imports neither torch nor ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

from .manifest import LoadError

__all__ = ["cmake_prefix_path", "get_library_path"]

DIRECTORY = Path(os.environ.get("CLIPSIGHT_LIBRARY_DIR") or Path(__file__).parent)
REBUILD = "rebuild with `make dev` in a checkout, or install again with `pip install --no-build-isolation .`"

FILES = {
    "torch": "libclipsight_torch.so",
    "torch_cuda": "libclipsight_torch_cuda.so",
    "onnxruntime": "libclipsight_onnxruntime.so",
    "session": "libclipsight.so",
}
_NEEDS = {
    "torch_cuda": "the build needs nvcc on the PATH",
    "onnxruntime": "the build needs the headers of ONNX Runtime's C API (CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR)",
}

#: For CMake: `-DCMAKE_PREFIX_PATH=$(python -c "import clipsight; print(clipsight.cmake_prefix_path)")`.
cmake_prefix_path = str(Path(__file__).parent)


def get_library_path(name: str) -> Path:
    """The file of one library.

    Args:
        name: `"torch"` and `"torch_cuda"`: the ops for torch (LibTorch programs, Triton). `"onnxruntime"`: the custom
            ops for ONNX Runtime, `register_custom_ops_library`. `"session"`: the C and C++ interface.

    Raises:
        ValueError: there is no library of that name.
        LoadError: it was not built; the message says what the build needs.
    """
    if name not in FILES:
        raise ValueError(f"get_library_path: name must be one of {list(FILES)}, got {name!r}")
    path = DIRECTORY / FILES[name]
    if not path.is_file():
        needs = f"; {_NEEDS[name]}" if name in _NEEDS else ""
        raise LoadError(f"get_library_path: {path} must exist, got no such file: {REBUILD}{needs}")
    return path
