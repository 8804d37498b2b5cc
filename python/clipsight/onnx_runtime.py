"""`onnx_session`: an ONNX Runtime session that knows the custom ops of clipsight."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import first_line
from .libraries import get_library_path
from .manifest import LoadError, read_manifest

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["onnx_session"]


def onnx_session(
    path: str | os.PathLike,
    providers: Sequence | None = None,
    threads: int | None = None,
    options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """Opens an ONNX model with the ops of the domain `clipsight` registered, where that library was built.

    Args:
        path: any ONNX model, with such ops or without.
        providers: as `onnxruntime.InferenceSession` takes them; by default the CPU.
        threads: threads of one operation; by default the runtime's own choice.
        options: the session's options. The ops are added to them, so use them for this session only.

    Raises:
        FileNotFoundError: there is no such file.
        LoadError: ONNX Runtime is not installed or cannot read the model; or the model has ops of clipsight, and their
            library is missing or older than the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise LoadError(
            f"onnx_session: onnxruntime must be installed: pip install 'clipsight[onnx]' ({error})"
        ) from error
    if threads is not None and threads < 1:
        raise ValueError(f"onnx_session: threads must be at least 1, got {threads}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"onnx_session: path must be a file, got '{path}', which does not exist")
    if options is None:
        options = session_options(path)
    if threads is not None:
        options.intra_op_num_threads = threads
    missing = _register(options)
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), options, providers=list(providers or ["CPUExecutionProvider"]), enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's own exception types have no common base
        if missing and "clipsight:" in str(error):
            raise LoadError(
                f"onnx_session: '{path}' has ops of clipsight, whose library must be registered. {missing}"
            ) from error
        raise LoadError(f"onnx_session: ONNX Runtime could not read '{path}': {first_line(error)}") from error


def session_options(path: str | os.PathLike) -> onnxruntime.SessionOptions:
    """The options of a session of this model, where none are given."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are notes on graph optimisation
    # One block for a whole run, which this would lay out, holds every tensor of the forward pass and of the walk back
    # at once. Without it a file with a gradient head needs much less memory and no more time.
    options.enable_mem_pattern = False
    try:
        entries = read_manifest(path).session
    except LoadError:  # another model
        entries = {}
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def _register(options) -> str | None:
    """Adds the custom ops; why they are not there, where they are not."""
    try:
        library = get_library_path("onnxruntime")
    except LoadError as error:
        return str(error)
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:
        raise LoadError(f"onnx_session: ONNX Runtime could not load '{library}': {first_line(error)}") from error
    return None
