"""`clipsight.load`: one call for every format, and a clear error for every file and input that does not fit."""

from __future__ import annotations

import copy
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

import clipsight
import networks
from artifacts import HEADS
from clipsight import explain, load
from clipsight.manifest import LoadError, read_manifest
from helpers import run_python, unaligned

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")

SIZE = (8, 32, 32)


@pytest.fixture(scope="module")
def explained():
    return explain(networks.seeded(networks.ModulePool), HEADS, networks.clip())


@pytest.fixture(scope="module")
def files(artifact):
    return {
        "x.pt": artifact("ModulePool", HEADS, ".pt", plugin=False),
        "fused.pt": artifact("ModulePool", HEADS, ".pt"),
        "x.onnx": artifact("ModulePool", HEADS, ".onnx"),
        "classes.pt": artifact("ModulePool", HEADS, ".pt", "input", plugin=False),
    }


@pytest.fixture(params=["x.pt", "fused.pt", "x.onnx"])
def file(request, files):
    return files[request.param]


def test_numpy_and_torch_give_the_same(file, explained):
    loaded = load(file, threads=1)
    clip = networks.clip(2)
    with torch.inference_mode():
        expected = explained(clip)
    from_torch, from_numpy = loaded(clip), loaded(clip.numpy())
    assert loaded.output_names == explained.output_names == loaded.manifest.output_names
    for name, want, a, b in zip(loaded.output_names, expected, from_torch, from_numpy, strict=True):
        assert isinstance(a, torch.Tensor), name
        assert isinstance(b, np.ndarray), name
        np.testing.assert_array_equal(a.numpy(), b)
        if name != "motion":  # a voxel on the threshold may fall on either side
            torch.testing.assert_close(a, want, atol=1e-4, rtol=1e-4)


def test_a_copy_opens_the_file_again(file, tmp_path, monkeypatch):
    clip = networks.clip(2).numpy()
    loaded = load(file, threads=1)
    monkeypatch.chdir(tmp_path)  # the path does not hang on the folder
    for copied in (pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded)):
        assert copied.manifest == loaded.manifest
        for one, other in zip(copied(clip), loaded(clip), strict=True):
            np.testing.assert_array_equal(one, other)


def read_only(clip):
    clip = clip.copy()
    clip.setflags(write=False)
    return clip


LAYOUTS = {
    "read-only": read_only,
    "every second": lambda clip: read_only(np.repeat(clip, 2, axis=4))[..., ::2],
    "backwards": lambda clip: clip[..., ::-1].copy()[..., ::-1],
    "Fortran's order": np.asfortranarray,
    "unaligned": unaligned,
    "broadcast": lambda clip: np.broadcast_to(clip[:1], clip.shape),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_numpy_arrays_as_they_lie_in_memory(file, layout):
    loaded = load(file)
    clip = networks.clip(1).numpy().repeat(2, 0)
    for a, b in zip(loaded(clip), loaded(LAYOUTS[layout](clip)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bytes_in_the_other_order_are_refused(file):
    with pytest.raises(TypeError, match="load: clip must be float32, got >f4"):
        load(file)(networks.clip().numpy().astype(">f4"))


def test_threads_stay_as_they_were(files):
    before = torch.get_num_threads()
    load(files["x.pt"], threads=before + 1)(networks.clip())
    assert torch.get_num_threads() == before


def test_onnx_runs_without_torch(files, tmp_path):
    np.save(tmp_path / "clip.npy", networks.clip(2).numpy())
    code = """
import sys, numpy as np
from clipsight.runtime import load
logits, tube, motion, share = load(sys.argv[1])(np.load(sys.argv[2]))
assert "torch" not in sys.modules
print(tube.shape)
"""
    assert run_python(code, files["x.onnx"], tmp_path / "clip.npy").split("\n")[0] == "(2, 1, 8, 32, 32)"


@pytest.mark.parametrize("name", ["fused.pt", "x.onnx"])
def test_fresh_process_prints_nothing_else(files, name):
    code = "import sys, numpy as np, clipsight; print(len(clipsight.load(sys.argv[1])(np.zeros((1,3,8,32,32), 'f'))))"
    assert run_python(code, files[name]) == "4\n"


def test_fused_file_says_which_library_is_missing(files, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSIGHT_LIBRARY_DIR", str(tmp_path))
    code = "import sys, clipsight; clipsight.load(sys.argv[1])"
    with pytest.raises(AssertionError, match=r"libclipsight_torch\.so, which must be loaded, got: .*plugin=False"):
        run_python(code, files["fused.pt"])


def test_fused_file_of_a_newer_clipsight(files, monkeypatch):
    monkeypatch.setattr(clipsight.runtime, "__version__", "0.0.9")
    with pytest.raises(LoadError, match=r"needs clipsight \d.* got 0\.0\.9; upgrade"):
        load(files["fused.pt"])


# ---- Files that are not right ---------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must name an exported file, got '.*no\.pt'"):
        load(tmp_path / "no.pt")
    with pytest.raises(FileNotFoundError):
        load(tmp_path)


@pytest.mark.parametrize("name", ["x.pt", "x.onnx"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file(files, tmp_path, name, kept):
    whole = files[name].read_bytes()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(LoadError, match="must be a"):
        load(tmp_path / name)


def test_something_else(tmp_path):
    for content in (b"RIFF\x10\x00\x00\x00AVI LIST", b"\x00" * 64, b"{}\n", b"\xff" * 99):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(LoadError, match=r"must be a whole file that clipsight\.export wrote"):
            load(tmp_path / "x.onnx")


def test_files_of_other_programs(files, tmp_path):
    import onnx

    torch.save({"weight": torch.zeros(3)}, tmp_path / "state.pt")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    foreign = onnx.load(files["x.onnx"])
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for name in ("state.pt", "x.zip", "foreign.onnx"):
        with pytest.raises(LoadError, match=r"must be a whole file .*: an? (archive|model) with no"):
            load(tmp_path / name)


def rewritten(source, target, change) -> None:
    """A copy of a TorchScript file with a changed manifest."""
    out = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            new.writestr(item, change(data.decode()).encode() if item.filename.endswith("clipsight.json") else data)
    target.write_bytes(out.getvalue())


def test_newer_manifest(files, tmp_path):
    rewritten(files["x.pt"], tmp_path / "x.pt", lambda text: text.replace('"format_version": 2', '"format_version": 7'))
    with pytest.raises(LoadError, match=r"format_version must be at most 2, got 7 .* upgrade clipsight"):
        load(tmp_path / "x.pt")


def test_unknown_fields_of_the_same_format_are_passed_over(files, tmp_path):
    rewritten(files["x.pt"], tmp_path / "x.pt", lambda text: text.replace('{\n  "kind"', '{\n  "new": 1,\n  "kind"'))
    assert read_manifest(tmp_path / "x.pt") == read_manifest(files["x.pt"])


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format_version": 1}', '{"format_version": "x"}', "\0"])
def test_damaged_manifest(files, tmp_path, text):
    rewritten(files["x.pt"], tmp_path / "x.pt", lambda _: text)
    with pytest.raises(LoadError, match="a manifest must be one that clipsight wrote"):
        load(tmp_path / "x.pt")


@pytest.mark.parametrize("name, member", [("x.pt", "/code/"), ("x.pt", "/data.pkl")])
def test_archive_without_its_program(files, tmp_path, name, member):
    with zipfile.ZipFile(files[name]) as old, zipfile.ZipFile(tmp_path / name, "w") as new:
        for item in old.infolist():
            if member not in item.filename:
                new.writestr(item, old.read(item))
    with pytest.raises(LoadError, match="could not read"):
        load(tmp_path / name)


def test_onnx_with_a_damaged_graph(files, tmp_path):
    import onnx

    model = onnx.load(files["x.onnx"])
    model.graph.node[0].op_type = "NoSuchOp"
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(LoadError, match=r"ONNX Runtime could not read .*NoSuchOp"):
        load(tmp_path / "x.onnx")


# ---- Inputs that do not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clip, error, message",
    [
        (np.zeros((3, *SIZE), "f"), ValueError, r"clip must have shape \[N, 3, 8, 32, 32\], got \[3, 8, 32, 32\]"),
        (np.zeros((1, 3, 8, 32, 48), "f"), ValueError, r"got \[1, 3, 8, 32, 48\]; export with sizes="),
        (np.zeros((1, 1, *SIZE), "f"), ValueError, r"\[N, 3, 8, 32, 32\], got \[1, 1, 8, 32, 32\]"),
        (np.zeros((0, 3, *SIZE), "f"), ValueError, "at least one sample"),
        (np.zeros((1, 3, *SIZE)), TypeError, "clip must be float32, got float64"),
        (torch.zeros(1, 3, *SIZE, dtype=torch.uint8), TypeError, "clip must be float32, got uint8"),
        ([[1.0]], TypeError, "NumPy array or torch tensor, got list"),
    ],
)
def test_clip(file, clip, error, message):
    with pytest.raises(error, match=message):
        load(file)(clip)


@pytest.mark.parametrize(
    "classes, error, message",
    [
        (None, ValueError, r"classes must be given, int64 \[N, M\]"),
        ([[1]], TypeError, "of the clip's kind"),
        (np.zeros((2, 1), np.int64), TypeError, "of the clip's kind"),
        (torch.zeros(2, 1), TypeError, "classes must be int64, got float32"),
        (torch.zeros(1, 1, dtype=torch.int64), ValueError, r"\[N, M\] = \[2, 1 or more\], got \[1, 1\]"),
        (torch.zeros(2, dtype=torch.int64), ValueError, r"got \[2\]"),
        (torch.zeros(2, 0, dtype=torch.int64), ValueError, r"got \[2, 0\]"),
        (torch.tensor([[0], [5]]), ValueError, r"classes must lie in 0\.\.4, got 0\.\.5"),
        (torch.tensor([[0], [-1]]), ValueError, r"classes must lie in 0\.\.4, got -1\.\.0"),
    ],
)
def test_classes(files, classes, error, message):
    with pytest.raises(error, match=message):
        load(files["classes.pt"])(networks.clip(2), classes)


def test_classes_where_the_file_chooses(file):
    with pytest.raises(ValueError, match=r"classes must not be given: .*'predicted'"):
        load(file)(networks.clip(), torch.tensor([[1]]))


def test_device_and_threads(file):
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda' or 'cuda:<number>', got 'tpu'"):
        load(file, device="tpu")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        load(file, threads=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_no_cuda(file):
    with pytest.raises(LoadError, match=r"device must be one that .* has, got 'cuda'|could not start CUDA"):
        load(file, device="cuda")
