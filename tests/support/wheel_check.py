"""What an installed clipsight must do; tests/support/wheel.sh runs it in a fresh environment, with any torch.

python wheel_check.py write FOLDER    exports the shipped network, with the results of the network itself beside it
python wheel_check.py run FOLDER      imports, looks itself over, checks the ops, and runs and exports such files
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import clipsight
from clipsight import FeaturePyramid, SaliencyTube, SelectiveRelevance, doctor, models, ops, reference

FILES = {"plain.pt": False, "fused.pt": True, "plain.onnx": False, "fused.onnx": True}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    heads = [SaliencyTube(), SelectiveRelevance(extras=("motion_share",)), FeaturePyramid()]
    clip = torch.rand(2, 3, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    explained = clipsight.explain(models.load("movers"), heads, clip)
    for name, plugin in FILES.items():
        clipsight.export(explained, folder / name, plugin=plugin)
    with torch.inference_mode():
        np.savez(folder / "expected.npz", clip, *explained(clip))


def run(folder: Path) -> None:
    package = Path(clipsight.__file__).parent
    assert Path(sys.prefix) in package.parents, f"{package} is not the package that was installed here"
    findings = doctor.examine()
    for finding in findings:
        print(f"{finding.name:>20}  {finding.state:8}{finding.found}")
    assert doctor.healthy(findings)
    assert (package / "pyramid" / "page.html").is_file()
    assert all(models.has_weights(name) for name in ("movers", "movers2d", "movers_biased"))
    check_ops()
    run_files(folder)
    write(folder / "own")
    run_files(folder / "own")


def check_ops() -> None:
    generator = torch.Generator().manual_seed(1)
    for channels, grid, size in [
        (3, (1, 1, 1), (4, 5, 6)),
        (64, (2, 7, 7), (16, 56, 56)),
        (257, (4, 5, 3), (7, 40, 33)),
    ]:
        features = torch.rand(2, channels, *grid, generator=generator)
        weight = torch.randn(2, 3, channels, generator=generator)
        for order in (1, 3):
            got, want = (m.selective_tube(features, weight, size, order=order) for m in (ops, reference))
            agree(got, want, f"selective_tube {channels} {grid} {size} order {order}")


def run_files(folder: Path) -> None:
    clip, *expected = np.load(folder / "expected.npz").values()
    for name in FILES:
        agree(clipsight.load(folder / name)(clip), expected, str(folder / name))


def agree(got, want, what: str) -> None:
    """Within 1e-4 of the largest value; 0.1 % of the voxels may lie on the edge of a motion mask."""
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, what
        off = np.abs(a - b) > 1e-4 * max(1.0, np.abs(b).max())
        assert off.mean() <= 1e-3, f"{what}: {off.sum()} of {off.size} values differ"
    print(f"agrees: {what}")


if __name__ == "__main__":
    {"write": write, "run": run}[sys.argv[1]](Path(sys.argv[2]))
