"""The parts of the sources, and which tests are each one's share.

A share is a list of patterns of test files' names, searched for in every folder of tests that `make test` runs, the
fastest and likeliest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from .fault import REPOSITORY

TESTS = REPOSITORY / "tests"
NOT_IN_MAKE_TEST = {"oracle"}  # folders of tests that only `make test-all` runs
PYTHON = "python/clipsight/"


@dataclass(frozen=True)
class Part:
    name: str
    sources: tuple[str, ...]
    share: tuple[str, ...]

    def tests(self) -> list[Path]:
        return tests_of(self.share)


def _part(name: str, sources: str, share: str) -> Part:
    return Part(name, tuple(sources.split()), tuple(f"test_{stem}.py" for stem in share.split()))


def _package(names: str) -> str:
    return " ".join(PYTHON + name for name in names.split())


PARTS = (
    _part(
        "kernels",
        "csrc/ops/* csrc/core/* csrc/include/clipsight/dtype.h csrc/include/clipsight/kernels.h "
        + _package("reference.py"),
        "back_step kernels reference ops ops_errors onnxruntime_ops cpp_package",
    ),
    _part(
        "front ends",
        "csrc/torch/* csrc/onnxruntime/* csrc/python/* csrc/include/clipsight/torch.h",
        "back_step ops_errors ops onnxruntime_ops onnxruntime_loading kernels libraries ops_compiler cpp_package",
    ),
    _part(
        "session",
        "csrc/session/* csrc/include/clipsight/session.h csrc/include/clipsight/clipsight.h",
        "session_c session_cpp manifests cpp_package",
    ),
    _part(
        "heads",
        _package("heads/*"),
        "explain gradient_heads feature_pyramid feature_pyramid_* gradient_files gradients_* relevance_* "
        "export_pyramid export_options cli_maps",
    ),
    _part(
        "walks",
        _package(
            "backward/* graph/* attach.py convolutions.py dataflow.py explained.py foreign.py inputs.py layouts.py "
            "scores.py sized.py suspects.py"
        ),
        "adjoints convolve explain foreign graph inputs layouts targets gradient_heads feature_pyramid "
        "feature_pyramid_* gradients_* relevance_* gradient_files other_networks torchvision export_options",
    ),
    _part(
        "exporters",
        _package("exporters/* manifest.py manifest_text.py schema.py targets.py triton.py"),
        "targets onnx_simplify onnx_double export onnx_loop golden_python "
        "export_options onnx_plugin manifests runtime aot triton gradient_files export_* openvino models_onnx",
    ),
    _part(
        "runtime",
        _package("runtime.py onnx_runtime.py libraries.py _library.py ops.py _fake_and_autograd.py __init__.py"),
        "ops ops_* runtime onnxruntime_loading libraries doctor export_options onnx_plugin aot cpp_package",
    ),
    _part(
        "pyramid",
        _package("pyramid/*"),
        "pyramid_files pyramid_page cli_pyramid",
    ),
    _part(
        "measures",
        _package("metrics/* evaluation/*"),
        "metrics metrics_networks evaluate evaluate_runs study",
    ),
    _part(
        "video",
        _package("video.py decoding.py containers.py render.py text_files.py labels.py preprocessing.py windows.py")
        + " "
        + _package("many.py synthetic.py"),
        "video video_files render labels windows synthetic many cli compare cli_maps",
    ),
    _part(
        "networks",
        _package("models/*"),
        "checkpoints movers movers2d movers_biased models_i3d_mfnet models_resnet torchvision other_networks "
        "models_onnx",
    ),
    _part(
        "commands",
        _package("cli/* __main__.py demo.py doctor.py errors.py signals.py staging.py text.py"),
        "staging text doctor cli endings cli_* compare evaluate evaluate_runs many",
    ),
)


def sources() -> list[str]:
    """Every source file that a test on a CPU can reach: .cu files and those for CUDA are not among them."""
    found = [*REPOSITORY.glob("csrc/**/*.h"), *REPOSITORY.glob("csrc/**/*.cpp"), *REPOSITORY.glob(f"{PYTHON}**/*.py")]
    return sorted(str(path.relative_to(REPOSITORY)) for path in found if "cuda" not in path.name)


def sources_of(part: Part) -> list[str]:
    return [path for path in sources() if any(fnmatch(path, pattern) for pattern in part.sources)]


def tests_of(patterns: tuple[str, ...]) -> list[Path]:
    """The files of the patterns in their order, each once."""
    found = []
    for pattern in patterns:
        paths = sorted(path for path in TESTS.rglob(pattern) if not NOT_IN_MAKE_TEST.intersection(path.parts))
        found += [path for path in paths if path not in found]
    return found
