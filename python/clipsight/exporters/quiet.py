"""`quiet`: torch's exporters without their notes about themselves."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from torch.fx import config

LOGGERS = ("torch.export", "torch._export", "torch._inductor", "torch.onnx", "onnxscript", "onnx_ir")
STACKS = "do_not_emit_stack_traces"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Errors only, no warnings (`export` checks for itself what they fear), and no stack of Python's for every node."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    stacks = getattr(config, STACKS, None)  # torch before 2.13 has no such switch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            setattr(config, STACKS, True)
            yield
        finally:
            setattr(config, STACKS, stacks)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
