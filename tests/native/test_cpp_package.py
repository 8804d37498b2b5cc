"""The example programs and the CMake package, built against the installed package in a folder of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import building
import clipsight
from artifacts import ALL_OUTPUTS, HEADS, OTHER_SIZE
from building import PACKAGE, command
from clipsight import reference, synthetic
from clipsight.manifest import read_manifest
from helpers import onnxruntime_library

FRAMES, HEIGHT, WIDTH = 21, 80, 96  # of the video; the network takes 16 x 64 x 64, that of small.pt2 8 x 32 x 32
PROGRAMS = {
    "c_api": ("frames.onnx", "frames_fused.onnx"),
    "cpp_onnxruntime": ("frames.onnx", "frames_fused.onnx", "clip.onnx"),
    "cpp_libtorch": ("frames.pt", "frames.pt2", "clip.pt", "clip.pt2", "small.pt2"),
}
TWICE = {"frames.pt2", "clip.pt2"}  # what another file of the same program shows, compiled once more
CASES = [
    pytest.param(name, file, marks=[pytest.mark.full] * (file in TWICE))
    for name, files in PROGRAMS.items()
    for file in files
]


@pytest.fixture(scope="session")
def exported(artifact):
    """`exported("frames_fused.onnx")`: the shipped network with two heads; `"small.pt2"`: that of test_aot.py.

    What the name says: the input, clip or frames; fused, for the ops of the plug-in in ONNX; optional, for the input
    `explain`.
    """

    def write(name: str) -> Path:
        words, suffix = name.split(".")[0].split("_"), Path(name).suffix
        if "small" in words:
            return artifact("ModulePool", ALL_OUTPUTS, suffix, sizes=[OTHER_SIZE])
        options = {"fused": {"plugin": True}, "frames": {"frames": "uint8"}, "optional": {"optional": True}}
        return artifact("movers", HEADS, suffix, **{k: v for w in words for k, v in options.get(w, {}).items()})

    return write


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Where the programs find ONNX Runtime: the library of the Python package."""
    return os.environ | {"ONNXRUNTIME": str(onnxruntime_library())}


def video_for(file: Path) -> np.ndarray:
    """A clip of a moving shape: uint8 [T, H, W, 3], of the network's size where the file takes floats."""
    frames = synthetic.moving_shapes(1, seed=3, frames=FRAMES, size=max(HEIGHT, WIDTH)).frames[0]
    manifest = read_manifest(file)
    height, width = (HEIGHT, WIDTH) if manifest.options["frames"] else manifest.preprocessing.crop
    return frames[:, :height, :width]


def write_video(frames: np.ndarray, folder: Path, form: str) -> tuple[Path, list[str]]:
    """The arguments for a raw dump, or for a folder of PPM images."""
    frames = np.ascontiguousarray(frames)
    if form == "raw":
        frames.tofile(folder / "video.raw")
        return folder / "video.raw", ["x".join(map(str, frames.shape[:3]))]
    (folder / "frames").mkdir()
    for i, frame in enumerate(frames):
        header = b"P6\n%d %d\n255\n" % (frame.shape[1], frame.shape[0])
        (folder / "frames" / f"{i:04d}.ppm").write_bytes(header + frame.tobytes())
    return folder / "frames", []


def read_ppm(path: Path) -> np.ndarray:
    width, height, pixels = re.match(rb"P6\n(\d+) (\d+)\n255\n(.*)", path.read_bytes(), re.DOTALL).groups()
    return np.frombuffer(pixels, np.uint8).reshape(int(height), int(width), 3)


def run_example(executable: Path, file: Path, folder: Path, form: str, environment) -> tuple[str, Path]:
    """What the program prints, and its folder of results."""
    source, size = write_video(video_for(file), folder, form)
    out = folder / "out"
    out.mkdir()
    done = subprocess.run(
        [executable, file, source, out, *size], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, out


def python_results(file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The frames that the network saw [T, H, W, 3], and the outputs of the same file in Python."""
    video, loaded = video_for(file), clipsight.load(file)
    p = loaded.manifest.preprocessing
    frames = video[[i * len(video) // p.frames for i in range(p.frames)]]
    if not loaded.manifest.options["frames"]:
        clip = (frames.astype(np.float64) * p.scale - np.array(p.mean)) / np.array(p.std)
        inputs = np.ascontiguousarray(clip.transpose(3, 0, 1, 2)[None], dtype=np.float32)
    else:
        inputs = frames[None]
    return frames, dict(zip(loaded.output_names, loaded(inputs), strict=True))


@pytest.mark.parametrize("form", ["raw", "ppm"])
@pytest.mark.parametrize("name, file", CASES)
def test_programs_give_the_numbers_of_python(name, file, form, program, exported, environment, tmp_path):
    executable = program(f"examples/{name}/explain")
    path = exported(file)
    printed, out = run_example(executable, path, tmp_path, form, environment)
    frames, expected = python_results(path)
    assert sorted(p.stem for p in out.glob("*.raw")) == sorted(expected)
    for output, values in expected.items():
        got = np.fromfile(out / f"{output}.raw", values.dtype).reshape(values.shape)
        np.testing.assert_allclose(got, values, rtol=1e-5, atol=1e-5, err_msg=output)
    assert np.ptp(expected["saliency_tube"]) > 0.9  # the comparison must be able to fail
    assert_top_classes(printed, expected["logits"][0], read_manifest(path).labels)
    pictures = [read_ppm(p) for p in sorted(out.glob("heat*.ppm"))]
    assert [p.shape for p in pictures] == [frames[0].shape] * len(frames)


def test_the_torch_program_draws_what_the_other_draws(program, exported, environment, tmp_path):
    drawn = []
    for name, file in (("cpp_libtorch", "frames.pt"), ("cpp_onnxruntime", "frames_fused.onnx")):
        folder = tmp_path / name
        folder.mkdir()
        _, out = run_example(program(f"examples/{name}/explain"), exported(file), folder, "raw", environment)
        drawn.append(np.stack([read_ppm(p) for p in sorted(out.glob("heat*.ppm"))]).astype(float))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
    assert np.abs(drawn[0] - drawn[0][::-1]).max() > 50


def assert_top_classes(printed: str, logits: np.ndarray, labels) -> None:
    lines = [re.fullmatch(r" *(\S+)  (\d+)  (.*)", line).groups() for line in printed.splitlines()]
    probabilities = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    order = np.argsort(-probabilities, kind="stable")[:5]
    assert [int(index) for _, index, _ in lines] == order.tolist()
    assert [label for _, _, label in lines] == [labels[i] for i in order]
    np.testing.assert_allclose([float(p) for p, _, _ in lines], probabilities[order], atol=1e-5)


@pytest.mark.parametrize(
    "name, file, message",
    [
        ("cpp_onnxruntime", "clip.pt", "link the CMake target clipsight::torch"),
        ("cpp_libtorch", "clip.onnx", "libonnxruntime.so"),  # it runs ONNX files as well, where ONNX Runtime is found
        ("cpp_libtorch", "damaged.pt", "damaged.pt"),
        ("cpp_libtorch", "missing.pt", "path must name an exported file"),
    ],
)
def test_programs_say_what_is_wrong(name, file, message, program, exported, tmp_path):
    path = exported(file) if file.startswith("clip") else tmp_path / file
    if file == "damaged.pt":
        damage(exported("clip.pt"), path)
    source, size = write_video(video_for(exported("clip.pt")), tmp_path, "raw")
    command = [program(f"examples/{name}/explain"), path, source, tmp_path / "out", *size]
    hidden = ("ONNXRUNTIME", "LD_LIBRARY_PATH")
    alone = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(command, capture_output=True, text=True, env=alone, check=False)
    assert done.returncode == 1
    assert message in done.stderr


def damage(path: Path, to: Path) -> None:
    """A copy whose archive is whole and whose manifest can be read, but not its code."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            content = old.read(item)
            new.writestr(item.filename, b"def forward(" if item.filename.endswith(".py") else content)


def test_a_device_that_is_not_there_is_named(program, exported, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    source, size = write_video(video_for(exported("clip.pt")), tmp_path, "raw")
    done = subprocess.run(
        [program("examples/cpp_libtorch/explain"), exported("clip.pt"), source, tmp_path / "out", *size],
        capture_output=True,
        text=True,
        env=os.environ | {"DEVICE": "cuda"},
        check=False,
    )
    assert done.returncode == 1
    assert "device must be one that torch has" in done.stderr


# ---- Sessions over torch ---------------------------------------------------------------------------------------------


def run_session(program, *arguments) -> subprocess.CompletedProcess:
    executable = program("tests/programs/torch_session/session")
    environment = os.environ | {"ONNXRUNTIME": ""}
    return subprocess.run([executable, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("file", ["clip.pt", pytest.param("clip.pt2", marks=pytest.mark.full)])
def test_eight_threads_get_the_bits_of_one(file, program, exported):
    done = run_session(program, "threads", exported(file))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["clip.pt", pytest.param("clip.pt2", marks=pytest.mark.full)])
def test_memory_of_the_caller_gets_the_same_numbers(file, program, exported, tmp_path):
    clip = np.random.default_rng(0).standard_normal((3, 3, 16, 64, 64)).astype(np.float32)
    clip.tofile(tmp_path / "clip")
    done = run_session(program, "run", exported(file), tmp_path / "clip", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = np.concatenate([output.ravel() for output in clipsight.load(exported(file))(clip)])
    np.testing.assert_allclose(np.fromfile(tmp_path / "out", np.float32), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("file", ["clip_optional.pt", pytest.param("clip_optional.pt2", marks=pytest.mark.full)])
def test_maps_that_nobody_wants_are_empty(file, program, exported):
    done = run_session(program, "optional", exported(file))
    assert done.returncode == 0, done.stdout + done.stderr
    wanted, unwanted = ([int(n) for n in line.split()] for line in done.stdout.splitlines())
    volume = 2 * 16 * 64 * 64
    assert wanted == [16, volume, volume, 2]
    assert unwanted[:3] == [16, 0, 0]


@pytest.mark.parametrize("file", ["clip.pt", pytest.param("clip.pt2", marks=pytest.mark.full)])
def test_no_memory_of_ours_after_the_first_run(file, program, exported):
    done = run_session(program, "allocations", exported(file), "3")  # TorchScript compiles in its first runs
    counts = list(map(int, done.stdout.split()))
    assert counts[:2] == [0, 0]
    assert counts[2] > 0  # outputs that are ours to allocate


# ---- The package -----------------------------------------------------------------------------------------------------


def needed(executable: Path) -> list[str]:
    dynamic = subprocess.run([command("readelf"), "-d", executable], capture_output=True, text=True, check=True).stdout
    return re.findall(r"NEEDED.*\[(.*)\]", dynamic)


def test_as_needed_does_not_lose_the_ops(program):
    assert "libclipsight_torch.so" in needed(program("tests/programs/torch_session/session"))
    assert "libclipsight_torch.so" not in needed(
        program("tests/programs/torch_session/without")
    )  # the linker does drop


@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernels_need_no_framework(threads, program, tmp_path):
    generator = torch.Generator().manual_seed(0)
    features, weight = torch.randn(2, 24, 3, 5, 4, generator=generator), torch.randn(2, 3, 24, generator=generator)
    (tmp_path / "in").write_bytes(features.numpy().tobytes() + weight.numpy().tobytes())
    executable = program("tests/programs/kernels/kernels")
    assert not [library for library in needed(executable) if re.search("torch|onnx|python|clipsight", library)]
    subprocess.run([executable, tmp_path / "in", tmp_path / "out", str(threads)], check=True)
    got = torch.from_numpy(np.fromfile(tmp_path / "out", np.float32))
    cam = reference.channel_reduce(features, weight)
    upsampled = reference.spline_upsample(cam, (9, 31, 27))
    selected = (torch.arange(36) % 2 == 0).view(2, 3, 6)
    edges, multiplicity = reference.back_step(features.flatten()[:48].view(2, 24), weight.view(6, 24), selected, 0.6)
    expected = [
        cam,
        *reference.selective_tube(features, weight, (9, 31, 27)),
        upsampled,
        reference.sobel_temporal(upsampled),
        *reference.selective_relevance(upsampled),
        edges.float(),
        multiplicity,
    ]
    parts = got.split([e.numel() for e in expected])
    for part, want in zip(parts, expected, strict=True):
        close = torch.isclose(part, want.flatten(), rtol=1e-5, atol=1e-5 * want.abs().max().item())
        assert close.double().mean() > 0.999  # a voxel on the threshold may fall on either side
        assert not torch.allclose(part, want.flatten() * 1.01, rtol=1e-4)


def test_small_work_waits_for_a_late_pool_only_once(program):
    """And tries it again after 4096 times: of 10000 that makes 2 more."""
    done = subprocess.run([program("tests/programs/kernels/late")], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "10", "2"]


@pytest.fixture
def kernels_cuda(program):
    """A program over the CUDA kernels, built wherever they and the toolkit are; it runs the fused op on the GPU."""
    if not (PACKAGE / "libclipsight_kernels_cuda.a").exists():
        pytest.skip("the CUDA kernels were not built")
    command("nvcc")
    return program("tests/programs/kernels_cuda/kernels_cuda")


def test_the_cuda_kernels_say_where_there_is_no_gpu(kernels_cuda):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([kernels_cuda], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("selective_tube: CUDA kernel prepare must launch, got cudaError")


@pytest.mark.gpu
def test_the_cuda_kernels_need_no_framework(kernels_cuda):
    done = subprocess.run([kernels_cuda], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-4


def test_pkg_config_builds_a_program_from_a_moved_package(exported, environment, tmp_path):
    moved = tmp_path / "elsewhere" / "clipsight"
    shutil.copytree(PACKAGE, moved, ignore=shutil.ignore_patterns("*.py", "__pycache__", "models", "*_cuda*"))
    paths = os.environ | {"PKG_CONFIG_PATH": str(moved / "lib" / "pkgconfig")}
    flags = subprocess.run(
        [command("pkg-config"), "--cflags", "--libs", "clipsight"],
        capture_output=True,
        text=True,
        env=paths,
        check=True,
    ).stdout.split()
    source = building.REPOSITORY / "examples" / "c_api" / "main.c"
    executable = tmp_path / "explain"
    common = source.parents[1] / "common"
    subprocess.run([building.compiler("C"), source, f"-I{common}", *flags, "-lm", "-o", executable], check=True)
    loader = subprocess.run(["ldd", executable], capture_output=True, text=True, check=True).stdout
    assert str(moved.resolve()) in str(Path(re.search(r"libclipsight.so => (\S+)", loader)[1]).resolve())
    file = exported("frames_fused.onnx")  # its ops come from the moved folder, too
    printed, _ = run_example(executable, file, tmp_path, "ppm", environment)
    assert_top_classes(printed, python_results(file)[1]["logits"][0], synthetic.MOTION_CLASSES)


@pytest.mark.parametrize(
    "arguments, target, message",
    [
        (clipsight.__version__, "clipsight::kernels", None),
        (clipsight.__version__, "clipsight::onnxruntime", None),
        ("99", "", "requested version"),
        ("COMPONENTS;keras", "", "a component must be kernels"),
        ("", "clipsight::torch", "clipsight::torch_needs_find_package_Torch"),
    ],
)
def test_cmake_says_what_it_finds(arguments, target, message, tmp_path):
    source = building.REPOSITORY / "tests" / "programs" / "find"
    done = building.configure(source, tmp_path / "build", f"-DARGUMENTS={arguments}", f"-DTARGET={target}")
    if message is None:
        assert done.returncode == 0, done.stderr
        assert f"found {clipsight.__version__}" in done.stdout
    else:
        assert done.returncode != 0
        assert message in " ".join(done.stderr.split())


def test_no_installed_text_names_this_machine():
    for path in [*PACKAGE.glob("lib/**/*"), *PACKAGE.glob("include/**/*"), *PACKAGE.glob("share/**/*")]:
        if path.is_file():
            text = path.read_text()
            assert str(building.REPOSITORY) not in text, path
            assert str(Path.home()) not in text or str(Path.home()) == "/", path


@pytest.mark.parametrize("header", sorted(p.name for p in PACKAGE.glob("include/clipsight/*.h")))
def test_headers_stand_alone(header, tmp_path):
    includes = [f"-I{PACKAGE / 'include'}"]
    if header == "torch.h":
        includes += [f"-isystem{Path(torch.__file__).parent / 'include'}"]
    checks = [("CXX", "cpp", "-std=c++17")]
    if header == "clipsight.h":
        checks.append(("C", "c", "-std=c99"))
    for language, suffix, standard in checks:
        source = tmp_path / f"main.{suffix}"
        source.write_text(f"#include <clipsight/{header}>\nint main(void) {{ return 0; }}\n")
        command = [building.compiler(language), "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
        if header == "kernels_cuda.h":  # nvcc knows where its headers are
            command = [building.command("nvcc"), "-c", "-o", tmp_path / "main.o", "-Xcompiler", "-Wall,-Wextra,-Werror"]
        done = subprocess.run([*command, standard, *includes, source], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
