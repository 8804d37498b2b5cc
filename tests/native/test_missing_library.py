"""Without the native library everything imports, and a call says what is missing."""

from __future__ import annotations

import pytest

from helpers import run_python

MISSING = """
import clipsight, torch
from clipsight import ops
info = clipsight.build_info()["torch_library"]
assert not info["loaded"], info
features, weight = torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2)
for call in (
    lambda: ops.channel_reduce(features, weight),
    lambda: ops.saliency_tube(features, weight, (1, 1, 1), out=features),
    lambda: torch.ops.clipsight.selective_tube(features, weight, [1, 1, 1]),
):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.parametrize("broken", [False, True], ids=["absent", "broken"])
def test_missing_library_is_loud(broken, tmp_path, monkeypatch):
    """`import clipsight` works without the library; a call names the op, the file, the causes, and how to rebuild."""
    monkeypatch.setenv("CLIPSIGHT_LIBRARY_DIR", str(tmp_path))
    library = tmp_path / "libclipsight_torch.so"
    if broken:
        library.write_bytes(b"not a library")
    messages = run_python(MISSING).splitlines()
    assert len(messages) == 3
    for message, op in zip(messages, ("channel_reduce", "saliency_tube.out", "selective_tube"), strict=True):
        assert message.startswith(f"clipsight.{op}: the library libclipsight_torch.so must be loaded, got: {library}")
        assert ("file too short" if broken else "does not exist") in message
        assert "pip install --no-build-isolation" in message
