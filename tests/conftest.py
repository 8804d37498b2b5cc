"""Fixtures of every test file, and the one place that decides what is skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data"
REQUIRE_CUDA = os.environ.get("CLIPSIGHT_REQUIRE_CUDA") == "1"


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips beside the repository."""
    if not CLIPS.is_dir():
        pytest.skip(f"no real clips: the folder {Path(*CLIPS.parts[-2:])} is not beside the repository")
    return CLIPS


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


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest):
    """Runs a test on one and on two threads of torch's pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
