"""Compiled packages (`.pt2`): they say what the eager model says, and what a machine cannot run is refused."""

from __future__ import annotations

import platform
import shutil
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import clipsight
import networks
from artifacts import ALL_OUTPUTS as HEADS
from artifacts import OTHER_SIZE
from clipsight import ExportError, LoadError, SaliencyTube, SelectiveRelevance, explain, export
from clipsight.manifest import read_manifest
from helpers import run_python
from test_export import assert_agree

if shutil.which("c++") is None and shutil.which("g++") is None:
    pytest.skip("no C++ compiler on the PATH", allow_module_level=True)

# Knows only torch, and the library where one is given.
PROGRAM = """
import sys, numpy as np, torch
file, model, clip, results, *libraries = sys.argv[1:]
for library in libraries:
    torch.ops.load_library(library)
loaded = torch._C._aoti.AOTIModelPackageLoader(file, model, False, 1, -1)
outputs = loaded.boxed_run([torch.from_numpy(np.load(clip))])
assert not any(name.startswith("clipsight") for name in sys.modules)
np.savez(results, *(tensor.numpy() for tensor in outputs))
"""


@pytest.fixture(scope="module")
def explained():
    return explain(networks.seeded(networks.ModulePool), HEADS, networks.clip())


@pytest.fixture(scope="module")
def fused(artifact):
    """Two clip sizes."""
    return artifact("ModulePool", HEADS, ".pt2", sizes=[OTHER_SIZE])


@pytest.fixture(scope="module")
def plain(artifact):
    """One."""
    return artifact("ModulePool", HEADS, ".pt2", plugin=False)


def run_alone(file, clip, folder, model="size0", libraries=()) -> list[np.ndarray]:
    """The outputs of one model of a package in a fresh process with nothing but torch."""
    np.save(folder / "clip.npy", clip.numpy())
    run_python(PROGRAM, file, model, folder / "clip.npy", folder / "results.npz", *libraries)
    return list(np.load(folder / "results.npz").values())


@pytest.mark.parametrize("batch, size, model", [(1, (8, 32, 32), "size0"), (3, OTHER_SIZE, "size1")])
def test_fused_file_in_fresh_process(fused, explained, tmp_path, batch, size, model):
    clip = networks.clip(batch, size, seed=17)
    got = run_alone(fused, clip, tmp_path, model, [clipsight.get_library_path("torch")])
    with torch.inference_mode():
        assert_agree(explained.output_names, got, explained(clip))
    assert_agree(explained.output_names, clipsight.load(fused)(clip.numpy()), got)


@pytest.mark.full  # one more compilation
@pytest.mark.parametrize("batch", [1, 3])
def test_plain_file_needs_no_library(plain, explained, tmp_path, batch):
    clip = networks.clip(batch, seed=18)
    with torch.inference_mode():
        assert_agree(explained.output_names, run_alone(plain, clip, tmp_path), explained(clip))
    assert not read_manifest(plain).plugin.required


def test_manifest_in_file(fused, explained):
    manifest = read_manifest(fused)
    assert (manifest.kind, manifest.sizes) == ("aot", ((8, 32, 32), OTHER_SIZE))
    assert (manifest.plugin.required, manifest.plugin.library) == (True, "clipsight_torch")
    assert manifest.output_names == explained.output_names
    assert manifest.self_check["max_difference"]["saliency_tube"] < 1e-4
    code = "import sys, clipsight.manifest as m; print(m.read_manifest(sys.argv[1]).kind, 'torch' in sys.modules)"
    assert run_python(code, fused) == "aot False\n"


def test_archive_names_no_folder_of_this_machine(fused):
    with zipfile.ZipFile(fused) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".cpp")]


@pytest.mark.full
def test_network_alone(fused, tmp_path):
    explained = explain(networks.seeded(networks.ModulePool), SaliencyTube(), networks.clip())
    export(explained, tmp_path / "tube.pt2", plain=tmp_path / "network.pt2")
    alone, clip = clipsight.load(tmp_path / "network.pt2"), networks.clip(3, seed=5)
    (logits,) = alone(clip)
    assert alone.output_names == ("logits",)
    for file in (fused, tmp_path / "tube.pt2"):
        torch.testing.assert_close(logits, clipsight.load(file)(clip)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_all_inputs_that_a_file_can_have(tmp_path):
    """Frames, classes, thresholds, and no maps on demand: two models, of which the runtime takes the right one."""
    heads = [SaliencyTube(extras=("peak_box",)), SelectiveRelevance(extras=("motion_share",))]
    explained = explain(networks.seeded(networks.ModulePool), heads, networks.clip(), classes="input")
    preprocessing = clipsight.Preprocessing(frames=8, resize=36, crop=(32, 32))
    options = {"frames": "uint8", "preprocessing": preprocessing, "optional": True, "inputs": ("tau", "n_sigma")}
    path = tmp_path / "x.pt2"
    manifest = export(explained, path, **options)  # compares all inputs with the eager model
    assert [port.name for port in manifest.input_ports] == ["frames", "classes", "explain", "tau", "n_sigma"]
    loaded = clipsight.load(path)
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 40, 50, 3), np.uint8)
    for count in (1, 5):  # 5: as many as there are classes
        classes = np.tile(np.arange(count), (2, 1))
        logits, *maps = loaded(frames, classes)
        only_logits, *nothing = loaded(frames, classes, explain=False)
        np.testing.assert_allclose(only_logits, logits, rtol=1e-5, atol=1e-6)
        assert [m.shape for m in nothing] == [(2, count, 0, 0, 0), (2, count, 0), (2, count, 0, 0, 0), (2, 0)]
        assert [m.shape[:2] for m in maps] == [(2, count)] * 4
        one = loaded(frames, classes, explain=[False, True])
        assert all(np.array_equal(a, b) for a, b in zip(one[1:], maps, strict=True))
    every, none = loaded(frames, classes, n_sigma=0.0)[3], loaded(frames, classes, n_sigma=[0.0, 1e9])[3]
    assert not none[1].any()
    assert not np.array_equal(loaded(frames, classes, tau=0.1)[1], maps[0])
    np.testing.assert_array_equal(none[0], every[0])


@pytest.mark.full
def test_half_precision(tmp_path):
    explained = explain(networks.seeded(networks.ModulePool), [SaliencyTube()], networks.clip())
    manifest = export(explained, tmp_path / "x.pt2", half="bfloat16")
    assert 0 < manifest.self_check["half_difference"]["logits"]["max"] < 0.05


def test_threads_give_the_same_bits(fused):
    loaded = clipsight.load(fused, threads=1)
    clips = [networks.clip(1 + i % 3, seed=i).numpy() for i in range(24)]
    expected = [loaded(clip) for clip in clips]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(loaded, clips), expected, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


# ---- other machines, damaged files ----------------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an x86-64 instruction set")
@pytest.mark.parametrize("file", ["fused", pytest.param("plain", marks=pytest.mark.full)])
def test_code_is_for_any_cpu_with_avx2(file, request, tmp_path):
    if shutil.which("objdump") is None:
        pytest.skip("no objdump on the PATH")
    with zipfile.ZipFile(request.getfixturevalue(file)) as archive:
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
        for name in libraries:
            (tmp_path / "model.so").write_bytes(archive.read(name))
            code = subprocess.run(["objdump", "-d", tmp_path / "model.so"], capture_output=True, text=True, check=True)
            assert "%ymm" in code.stdout
            assert "%zmm" not in code.stdout
    assert libraries


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an x86-64 instruction set")
def test_same_numbers_where_the_libraries_use_no_more_than_avx2(fused, explained, tmp_path, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    clip = networks.clip(2, seed=19)
    with torch.inference_mode():
        got = run_alone(fused, clip, tmp_path, libraries=[clipsight.get_library_path("torch")])
        assert_agree(explained.output_names, got, explained(clip))


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("AOTI_MACHINE", "pdp11", r"the CPU must be of the kind 'pdp11', for which .* was compiled"),
        pytest.param(
            "AOTI_CPU_ISA",
            "AVX512 AMX",
            r"the CPU must have .*AMX, for which .* was compiled",
            marks=pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="this CPU has AMX"),
        ),
        ("AOTI_DEVICE_KEY", "cuda", r"device must be 'cuda', for which .* was compiled, got 'cpu'"),
    ],
)
def test_package_for_another_machine(fused, tmp_path, key, value, message):
    """What a package says of its machine, changed to what another machine would have written there."""
    stated = torch._C._aoti.AOTIModelPackageLoader.load_metadata_from_package(str(fused), "size0")
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(fused) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("_metadata.json"):
                assert f'"{key}": "{stated[key]}"'.encode() in content
                content = content.replace(f'"{key}": "{stated[key]}"'.encode(), f'"{key}": "{value}"'.encode())
            target.writestr(name, content)
    with pytest.raises(LoadError, match=message):
        clipsight.load(path)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_file(fused, tmp_path, kept):
    content = fused.read_bytes()
    path = tmp_path / "truncated.pt2"
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(LoadError, match=r"truncated\.pt2' must be"):
        clipsight.load(path)


def test_damaged_code(fused, tmp_path):
    path = tmp_path / "damaged.pt2"
    with zipfile.ZipFile(fused) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"no library" if name.endswith(".so") else source.read(name))
    with pytest.raises(LoadError, match=r"package loader could not read .*damaged\.pt2"):
        clipsight.load(path)


def test_missing_library(fused, tmp_path):
    code = """
import os, sys
os.environ["CLIPSIGHT_LIBRARY_DIR"] = sys.argv[2]
import clipsight
from clipsight.manifest import LoadError
try:
    clipsight.load(sys.argv[1])
except LoadError as error:
    print(error)
"""
    message = run_python(code, fused, tmp_path)
    assert "calls ops of the library libclipsight_torch.so" in message
    assert "or export with plugin=False" in message


def test_no_compiler(explained, tmp_path):
    clear = torch._inductor.cpp_builder.get_cpp_compiler, torch._inductor.cpp_builder.cpp_compiler_search
    for function in clear:
        getattr(function, "cache_clear", lambda: None)()
    try:
        with (
            torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}),
            pytest.raises(ExportError, match=r"needs a C\+\+ compiler .* got none"),
        ):
            export(explained, tmp_path / "x.pt2")
    finally:
        for function in clear:
            getattr(function, "cache_clear", lambda: None)()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "clip, error, message",
    [
        (
            networks.clip(size=(8, 16, 16)),
            ValueError,
            r"clip must have shape \[N, 3, 8, 32, 32\] or \[N, 3, 12, 48, 40\]",
        ),
        (networks.clip().double(), TypeError, "clip must be float32, got float64"),
        (networks.clip()[:0], ValueError, "at least one sample"),
    ],
)
def test_wrong_input(fused, clip, error, message):
    with pytest.raises(error, match=message):
        clipsight.load(fused)(clip)


def test_input_need_not_be_contiguous(fused):
    loaded, clip = clipsight.load(fused), networks.clip(2, seed=6)
    for a, b in zip(loaded(clip.transpose(3, 4).contiguous().transpose(3, 4)), loaded(clip), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
