"""Clipsight: video classifiers that explain themselves in one forward pass.

The names below load on first use, so that a program that only runs an exported ONNX file does not import torch.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_WHERE = {
    "explain": "explained",
    "ExplainedModel": "explained",
    "AttachError": "attach",
    "SaliencyTube": "heads",
    "SelectiveRelevance": "heads",
    "export": "exporters",
    "ExportError": "exporters",
    "load": "runtime",
    "Manifest": "manifest",
    "Preprocessing": "preprocessing",
    "build_info": "_library",
}
_MODULES = ("heads", "models", "ops", "reference", "render", "synthetic", "video", "windows")

__all__ = [*_WHERE, *_MODULES, "__version__"]


def __getattr__(name: str):
    if name in _WHERE:
        value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'clipsight' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
