"""Loads the native libraries. What is missing stays callable and says, at the call, what failed and how to rebuild."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from .libraries import DIRECTORY, FILES, REBUILD, get_library_path
from .manifest import LoadError

CPU_LIBRARY, CUDA_LIBRARY = DIRECTORY / FILES["torch"], DIRECTORY / FILES["torch_cuda"]
OLDEST_TORCH = (2, 11)

_TUBE = (
    "(Tensor features, Tensor weight, SymInt[] size, float? threshold=None, int order=3, bool relu=False, "
    'str normalize="clip", str dtype="float32"'
)
_RULE = 'float n_sigma=2.0, str padding="replicate", str sign="abs", str sigma_of="signed"'
# The schemas as csrc/torch/register.cpp defines them, for a process where that library did not load.
SCHEMAS = (
    "channel_reduce(Tensor features, Tensor weight, float? threshold=None) -> Tensor",
    "back_step(Tensor pooled, Tensor kernel, Tensor selected, float theta, int groups=1)"
    " -> (Tensor edges, Tensor multiplicity)",
    "spline_upsample(Tensor volume, SymInt[] size, int order=3) -> Tensor",
    'sobel_temporal(Tensor volume, str padding="replicate") -> Tensor',
    f"selective_relevance(Tensor volume, {_RULE}, bool prescale=False, Tensor? n_sigma_of=None)"
    " -> (Tensor motion, Tensor motion_share)",
    f"saliency_tube{_TUBE}) -> Tensor",
    f"saliency_tube.out{_TUBE}, *, Tensor(a!) out) -> ()",
    f"selective_tube{_TUBE}, {_RULE}, Tensor? n_sigma_of=None) -> (Tensor tube, Tensor motion, Tensor motion_share)",
    f"selective_tube.out{_TUBE}, {_RULE}, Tensor? n_sigma_of=None, "
    "*, Tensor(a!) tube, Tensor(b!) motion, Tensor(c!) motion_share) -> ()",
)
OPS = tuple(schema.split("(", 1)[0] for schema in SCHEMAS)


def _load(path: Path) -> list[str]:
    """Loads one library; the reasons why it could not be loaded, none where it was."""
    if not path.exists():
        return [f"{path} does not exist"]
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        errors = [str(error.__cause__ or error)]  # the cause is the loader's own message, which names the file
        if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
            errors.append(f"torch must be {'.'.join(map(str, OLDEST_TORCH))} or newer, got {torch.__version__}")
        return errors
    return []


def _stand_in(op: str, library: Path, errors: list[str]):
    """A kernel that only explains why the real one is not there."""

    def missing(*args, **kwargs):
        causes = "; ".join(errors)
        raise RuntimeError(f"clipsight.{op}: the library {library.name} must be loaded, got: {causes}. {REBUILD}")

    return missing


CPU_ERRORS = _load(CPU_LIBRARY)
if CPU_ERRORS:
    CUDA_ERRORS = [f"needs {CPU_LIBRARY.name}, which is not loaded"]
elif not torch.cuda.is_available():
    CUDA_ERRORS = ["torch finds no CUDA device"]
else:
    CUDA_ERRORS = _load(CUDA_LIBRARY)

_stand_ins = torch.library.Library("clipsight", "DEF" if CPU_ERRORS else "FRAGMENT")
if CPU_ERRORS:
    for _schema, _op in zip(SCHEMAS, OPS, strict=True):
        _stand_ins.define(_schema)
        _stand_ins.impl(_op, _stand_in(_op, CPU_LIBRARY, CPU_ERRORS), "CompositeExplicitAutograd")
elif CUDA_ERRORS:
    for _op in OPS:
        _stand_ins.impl(_op, _stand_in(_op, CUDA_LIBRARY, CUDA_ERRORS), "CUDA")


def build_info() -> dict:
    """How this installation was built and what of it is loaded; JSON-able.

    `kernels` is what the torch-free NumPy module says of itself (SIMD levels, compiler, CUDA architectures).
    """
    try:
        from clipsight import _kernels

        kernels = _kernels.build_info()
    except ImportError as error:
        kernels = {"error": f"{error}; {REBUILD}"}
    return {
        "kernels": kernels,
        "torch": torch.__version__,
        "torch_library": _state(CPU_LIBRARY, CPU_ERRORS),
        "cuda_library": _state(CUDA_LIBRARY, CUDA_ERRORS),
        "onnxruntime_library": _try("onnxruntime"),
        "session_library": _try("session"),
    }


def _try(name: str) -> dict:
    """The state of a library that other programs load, found by loading it here."""
    try:
        path, errors = get_library_path(name), []
        ctypes.CDLL(str(path))
    except LoadError as error:
        path, errors = None, [str(error)]
    except OSError as error:
        errors = [str(error)]
    return _state(path, errors)


def _state(library: Path | None, errors: list[str]) -> dict:
    return {"path": library and str(library), "loaded": not errors, "errors": list(errors)}
