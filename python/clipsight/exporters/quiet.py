"""`quiet`: torch's exporters without their notes about themselves."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from ..dataflow import without_stacks

LOGGERS = ("torch.export", "torch._export", "torch._inductor", "torch.onnx", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Errors only, no warnings (`export` checks for itself what they fear), and no stack of Python's for every node."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), without_stacks():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
