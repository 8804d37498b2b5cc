"""Fixtures of every test file, and the one place that decides what is skipped."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest
import torch

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data"
REQUIRE_CUDA = os.environ.get("CLIPSIGHT_REQUIRE_CUDA") == "1"
WORKER = os.environ.get("PYTEST_XDIST_WORKER")

if WORKER:  # as many workers as cores, so each has one thread, and so have the processes that it starts
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

# Of a compiled package what calls the kernels, not the kernels: no test asks how fast it is, and -O1 takes far longer.
os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder of this test run, the same for all of its workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if WORKER else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips beside the repository."""
    if not CLIPS.is_dir():
        pytest.skip(f"no real clips: the folder {Path(*CLIPS.parts[-2:])} is not beside the repository")
    return CLIPS


@pytest.fixture(scope="session")
def program(shared_folder):
    """`program("examples/c_api/explain")`: the executable of a CMake project of this repository, built once.

    The sources are copied, so that nothing of the checkout but them can be found.
    """
    import building

    def built(path: str) -> Path:
        project, _, name = path.rpartition("/")
        return building.built_once(project, shared_folder / "programs") / name

    return built


@pytest.fixture(scope="session")
def artifact(shared_folder):
    """`artifact("movers", HEADS, ".onnx", frames="uint8")`: an exported file, made once; see support/artifacts.py."""
    import artifacts

    return functools.partial(artifacts.made_once, shared_folder / "artifacts")


@pytest.fixture(scope="session")
def once(shared_folder):
    """`once("x.onnx", write)`: the path of a file of this run, which `write(path)` makes for whoever asks first."""
    import artifacts

    return lambda name, write: artifacts.once(shared_folder / name, write)


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> dict[str, Path]:
    """Three videos of other sizes and lengths, by name."""
    import evaluated

    return evaluated.write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of `evaluated.NET` can be imported, from the working directory."""
    import evaluated

    evaluated.go_where_networks_are(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def nothing_but_units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make check` runs between two edits neither exports nor starts a process."""
    if request.path.parent.name not in ("unit", "kernels") or request.node.get_closest_marker("gpu"):
        return

    def refuse(*_, **__):
        pytest.fail("a test of this folder must not export or start a process; tests/README.md says where it belongs")

    for owner, name in ((subprocess, "Popen"), (torch.onnx, "export"), (torch.export, "save")):
        monkeypatch.setattr(owner, name, refuse)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` are skipped where they cannot run; CLIPSIGHT_REQUIRE_CUDA=1 makes that a failure."""
    if item.get_closest_marker("gpu") is None:
        return
    from clipsight import _library

    if not _library.CUDA_ERRORS:
        return
    reason = "no CUDA: " + "; ".join(_library.CUDA_ERRORS)
    if REQUIRE_CUDA:
        pytest.fail(f"CLIPSIGHT_REQUIRE_CUDA=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")  # the widest scope comes first: where this skips, no file is exported for nothing
def cuda_provider() -> list[str]:
    """The providers of an ONNX Runtime session on CUDA, or a skip where this ONNX Runtime has none."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        pytest.skip("this build of onnxruntime has no CUDA provider")
    return ["CUDAExecutionProvider"]


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest):
    """Runs a test on one and on two threads of torch's pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def opened(tmp_path: Path):
    """Opens an ONNX model as a file, as users do: opened(proto, **options of clipsight.onnx_session)."""
    import clipsight

    def open_model(proto, **options):
        path = tmp_path / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return clipsight.onnx_session(path, **options)

    return open_model
