"""What was built, what this machine has, and what to do about what is missing: `clipsight doctor`.

Every check stands alone: a broken torch, runtime or library is a line of the report, not the end of it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from . import __version__
from .libraries import REBUILD, cmake_prefix_path, get_library_path
from .manifest import LoadError
from .text import printable

OK, MISSING, BROKEN = "ok", "missing", "broken"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        state: `"ok"`; `"missing"`: an optional part that is not here; `"broken"`: it must work, and does not.
        found: version, place, or the error.
        advice: what to do about it; empty where there is nothing to do.
    """

    name: str
    state: str
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Runs every check. No exception leaves it: what goes wrong in a check is its finding."""
    found = []
    for name, check in _CHECKS.items():
        try:
            finding = check()
        except Exception as error:
            finding = (BROKEN, f"{type(error).__name__}: {error}", REBUILD)
        found.append(Finding(name, *finding))
    return found


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing is broken; an optional part that is missing does not count."""
    return all(finding.state != BROKEN for finding in findings)


def report(findings: Iterable[Finding]) -> dict:
    """The findings with `build_info`, JSON-able."""
    findings = list(findings)
    try:
        from ._library import build_info

        built = build_info()
    except ImportError as error:  # torch is missing or broken, which the findings say in full
        built = {"error": str(error)}
    return {
        "healthy": healthy(findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "build_info": built,
    }


def show(findings: Iterable[Finding]) -> None:
    """Prints the findings as a table (needs rich)."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {OK: "green", MISSING: "yellow", BROKEN: "bold red"}
    rows = Table("part", "state", title=f"clipsight {__version__}")
    rows.add_column("found, and what to do", overflow="fold")
    for finding in findings:
        text = escape(printable(finding.found)) + (
            f"\n[bold]→ {escape(printable(finding.advice))}[/]" if finding.advice else ""
        )
        rows.add_row(finding.name, f"[{colours[finding.state]}]{finding.state}[/]", text)
    Console(highlight=False).print(rows)


# ---- the checks: each returns state, what was found, and advice where there is some --------------------------------


def _clipsight() -> tuple[str, ...]:
    return OK, f"{__version__} in {Path(__file__).parent}, Python {platform.python_version()}, {platform.platform()}"


def _kernels() -> tuple[str, ...]:
    from . import _kernels

    info = _kernels.build_info()
    if info["version"] != __version__:
        return BROKEN, f"built for clipsight {info['version']}, but this is {__version__}", REBUILD
    cuda = ", ".join(info["cuda_architectures"]) or "none"
    return (
        OK,
        f"SIMD {info['simd']} of {', '.join(info['simd_levels'])}; compiler {info['compiler']}; CUDA code: {cuda}",
    )


def _torch() -> tuple[str, ...]:
    import torch

    from ._library import OLDEST_TORCH

    oldest = ".".join(map(str, OLDEST_TORCH))
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        return BROKEN, torch.__version__, f"install torch {oldest} or newer"
    return OK, f"{torch.__version__}, {torch.get_num_threads()} threads"


def _torch_ops() -> tuple[str, ...]:
    import torch

    from . import _library, ops, reference

    if _library.CPU_ERRORS:
        return BROKEN, "; ".join(_library.CPU_ERRORS), REBUILD
    generator = torch.Generator().manual_seed(0)
    features, weight = torch.rand(1, 8, 2, 3, 3, generator=generator), torch.rand(1, 8, generator=generator)
    tube = ops.saliency_tube(features, weight, (4, 6, 6))
    if not torch.allclose(tube, reference.saliency_tube(features, weight, (4, 6, 6)), atol=1e-4):
        return BROKEN, f"{_library.CPU_LIBRARY} loads, but its numbers are wrong", REBUILD
    return OK, f"{_library.CPU_LIBRARY} loads and agrees with the reference"


def _cuda_ops() -> tuple[str, ...]:
    import torch

    from . import _library

    if not torch.cuda.is_available():
        built = "built" if _library.CUDA_LIBRARY.exists() else "not built"
        to_do = "check the driver with nvidia-smi" if torch.version.cuda else "install a CUDA build of torch"
        found = f"torch {torch.__version__} finds no CUDA device; {_library.CUDA_LIBRARY.name} is {built}"
        return MISSING, found, f"to use a GPU, {to_do}"
    device = torch.cuda.get_device_name()
    if not _library.CUDA_LIBRARY.exists():
        return MISSING, f"{device}, but no {_library.CUDA_LIBRARY.name}", f"put nvcc on the PATH and {REBUILD}"
    if _library.CUDA_ERRORS:
        return BROKEN, f"{device}: {'; '.join(_library.CUDA_ERRORS)}", REBUILD
    return OK, f"{_library.CUDA_LIBRARY} on {device}"


def _onnxruntime() -> tuple[str, ...]:
    if importlib.util.find_spec("onnxruntime") is None:
        return MISSING, "not installed; ONNX files need it", "pip install 'clipsight[onnx]'"
    import onnxruntime

    return OK, f"{onnxruntime.__version__}, providers {', '.join(onnxruntime.get_available_providers())}"


def _onnxruntime_ops() -> tuple[str, ...]:
    try:
        path = get_library_path("onnxruntime")
    except LoadError as error:
        return MISSING, str(error)
    if importlib.util.find_spec("onnxruntime") is None:
        ctypes.CDLL(str(path))
        return OK, f"{path} loads; it was not tried in ONNX Runtime, which is not installed"
    import onnxruntime

    onnxruntime.SessionOptions().register_custom_ops_library(str(path))
    return OK, f"{path} registers in ONNX Runtime {onnxruntime.__version__}"


def _session() -> tuple[str, ...]:
    try:
        path = get_library_path("session")
    except LoadError as error:
        return MISSING, str(error)
    library = ctypes.CDLL(str(path))
    library.clipsight_version.restype = ctypes.c_char_p
    version = library.clipsight_version().decode()
    if version != __version__:
        return BROKEN, f"{path} is of clipsight {version}, but this is {__version__}", REBUILD
    return OK, f"{path} loads, ABI version {library.clipsight_abi_version()}"


def _cpp_package() -> tuple[str, ...]:
    root = Path(cmake_prefix_path)
    config = root / "lib" / "cmake" / "clipsight" / "clipsightConfig.cmake"
    if not config.is_file():
        return MISSING, f"{config} does not exist", REBUILD
    return OK, f"CMAKE_PREFIX_PATH={root}"


def _compiler() -> tuple[str, ...]:
    name = os.environ.get("CXX") or "g++"  # what torch's compiler takes, too
    path = shutil.which(name)
    if path is None:
        return MISSING, f"{name} is not on the PATH", "install a C++ compiler, or name one in CXX"
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return OK, f"{path}: {version}"


def _packages(extra: str, what: str, **modules: str) -> Callable[[], tuple[str, ...]]:
    """A check that these modules (import name = distribution) import."""

    def check() -> tuple[str, ...]:
        absent = [name for module, name in modules.items() if importlib.util.find_spec(module) is None]
        if absent:
            return MISSING, f"not installed: {', '.join(absent)}; {what}", f"pip install 'clipsight[{extra}]'"
        for module, name in modules.items():
            try:
                importlib.import_module(module)
            except Exception as error:
                return BROKEN, f"import {module}: {error}", f"pip install --force-reinstall {name}"
        return OK, ", ".join(f"{name} {_version_of(name, module)}" for module, name in modules.items())

    return check


def _version_of(distribution: str, module: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # installed under another name, such as opencv-python
        return str(getattr(importlib.import_module(module), "__version__", "of unknown version"))


_CHECKS: dict[str, Callable[[], tuple[str, ...]]] = {
    "clipsight": _clipsight,
    "kernels (NumPy)": _kernels,
    "torch": _torch,
    "torch ops": _torch_ops,
    "torch ops, CUDA": _cuda_ops,
    "ONNX Runtime": _onnxruntime,
    "ONNX Runtime ops": _onnxruntime_ops,
    "ONNX export": _packages("onnx", "writing .onnx files needs them", onnx="onnx", onnxscript="onnxscript"),
    "session library": _session,
    "C++ package": _cpp_package,
    "compiler for .pt2": _compiler,
    "video": _packages("video", "reading and writing video needs them", av="av", cv2="opencv-python-headless"),
    "Ray": _packages("ray", "`clipsight explain --ray` needs it", ray="ray"),
}
