"""Clipsight: video classifiers that explain themselves in one forward pass.

The names below load on first use, so that a program that only runs an exported ONNX file does not import torch.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

_WHERE = {
    "explain": "explained",
    "ExplainedModel": "explained",
    "AttachError": "dataflow",
    "Target": "targets",
    "SaliencyTube": "heads",
    "FeaturePyramid": "heads",
    "SelectiveRelevance": "heads",
    "GradCAM": "heads",
    "GuidedBackprop": "heads",
    "GuidedGradCAM": "heads",
    "DeepTaylor": "heads",
    "LRPEpsilon": "heads",
    "InputGradient": "heads",
    "IntegratedGradients": "heads",
    "export": "exporters",
    "ExportError": "exporters",
    "load": "runtime",
    "LoadError": "manifest",
    "Manifest": "manifest",
    "Preprocessing": "preprocessing",
    "build_info": "_library",
    "get_library_path": "libraries",
    "cmake_prefix_path": "libraries",
    "onnx_session": "onnx_runtime",
}
_MODULES = ("doctor", "heads", "metrics", "models", "ops", "reference", "render", "synthetic", "video", "windows")

__all__ = [*_WHERE, *_MODULES, "__version__"]


def __getattr__(name: str):
    if name in _WHERE:
        value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    elif name == "__version__":
        value = _version()
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'clipsight' has no attribute {name!r}")
    globals()[name] = value
    return value


def _version() -> str:
    """What pyproject.toml states: that of the checkout this package lies in, or else the installed metadata."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if Path(__file__).parents[1].name == "python" and project.is_file():
        stated = re.search(r'^name = "clipsight"\nversion = "(.+)"$', project.read_text(encoding="utf-8"), re.MULTILINE)
        if stated:
            return stated[1]
    from importlib.metadata import version

    return version("clipsight")


def __dir__() -> list[str]:
    return sorted(__all__)
