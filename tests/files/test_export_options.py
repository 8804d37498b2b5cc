"""Options of `export`: frames in, other types out, maps on demand, half precision, thresholds and classes as inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import clipsight
import networks
from clipsight import ExportError, Manifest, Preprocessing, SaliencyTube, SelectiveRelevance, explain, export, load
from clipsight.exporters.frames import Frames
from clipsight.exporters.program import Program
from clipsight.manifest import read_manifest

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")
windows = pytest.importorskip("clipsight.windows", reason="the extra 'video' is not installed")

HEADS = (
    SaliencyTube(extras=("per_frame", "peak_box")),
    SelectiveRelevance(part="both", extras=("motion_share",)),
)
PREPROCESSING = Preprocessing(
    frames=8, resize=40, crop=(32, 36), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), channel_order="BGR"
)
SIZE, LONGER = (8, 32, 36), (12, 32, 36)
SOURCES = ((45, 60), (61, 44), (36, 42))
FORMATS = {"fused.pt": True, "plain.pt": False, "fused.onnx": True, "plain.onnx": False}
# As plain ONNX test_openvino.py exports the same options, for one clip length.
EACH_FORMAT = pytest.mark.parametrize(
    "name", ["fused.pt", "plain.pt", "fused.onnx", pytest.param("plain.onnx", marks=pytest.mark.full)]
)


def frames(batch: int, count: int, source, seed: int = 3) -> torch.Tensor:
    """Smooth moving colours: uint8 [N, T, H, W, 3]."""
    coarse = torch.rand(batch, 3, count // 2, 6, 7, generator=torch.Generator().manual_seed(seed)) * 255
    clip = torch.nn.functional.interpolate(coarse, (count, *source), mode="trilinear", align_corners=True)
    return clip.round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def as_video_does(frames: torch.Tensor, preprocessing=PREPROCESSING) -> torch.Tensor:
    """The clip that the video path of the package makes of the same frames, with OpenCV."""
    geometry = windows.Geometry.of(preprocessing, tuple(frames.shape[2:4]))
    clips = [windows.to_clip(map(geometry.crop_frame, sample.numpy()), preprocessing) for sample in frames]
    return torch.from_numpy(np.concatenate(clips))


def explained(heads=HEADS, classes="predicted"):
    return explain(networks.seeded(networks.ModulePool), heads, networks.clip(size=SIZE), classes)


def assert_close(names, got, expected) -> None:
    bounds = {"motion_share": 1e-3, "saliency_tube_per_frame": 0.05 if torch.uint8 in {g.dtype for g in got} else 2e-4}
    for name, a, b in zip(names, got, expected, strict=True):
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        steps = 1.0 if not b.is_floating_point() else bounds.get(name, 2e-4)
        outside = ((a.double() - b.double()).abs() > steps).double().mean().item()
        assert outside <= (2e-3 if name in ("motion", "static") else 0), (name, outside)


@pytest.fixture(scope="module")
def everything(once):
    """`everything("plain.pt")`: a file with all options but half precision."""

    def file(name: str) -> Path:
        options = {"frames": "uint8", "output": "uint8", "optional": True, "inputs": ("tau", "n_sigma")}
        facts = {"plugin": FORMATS[name], "sizes": [LONGER], "preprocessing": PREPROCESSING}
        return once(f"everything_{name}", lambda path: export(explained(classes="input"), path, **options, **facts))

    return file


@pytest.fixture(scope="module")
def on_demand(once):
    """The folder of files with a head to skip, and with the network alone."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for suffix in (".pt", ".onnx"):
            export(explained(), folder / f"x{suffix}", optional=True, plain=folder / f"network{suffix}")

    return once("on_demand", write)


# ---- Everything at once ---------------------------------------------------------------------------------------------


@EACH_FORMAT
@pytest.mark.parametrize("source, count", [(SOURCES[0], 8), (SOURCES[1], 12), (SOURCES[2], 8)])
def test_everything_says_what_single_heads_say(everything, name, source, count):
    """Each sample with its own classes and thresholds is what `explain` with those as options says of its clip."""
    raw, classes = frames(3, count, source), torch.tensor([[0, 4], [2, 2], [3, 1]])
    tau, n_sigma = (-1.0, 0.05, -0.1), (2.0, 1.0, 0.5)
    loaded = load(everything(name))
    got = loaded(raw, classes, explain=[False, True, False], tau=tau, n_sigma=np.array(n_sigma))
    for i, clip in enumerate(as_video_does(raw)):
        tube = SaliencyTube(threshold=tau[i], dtype="uint8", extras=HEADS[0].extras)
        motion = SelectiveRelevance(of=SaliencyTube(threshold=tau[i], dtype="uint8"), n_sigma=n_sigma[i], part="both")
        single = explained((tube, replace(motion, extras=HEADS[1].extras)), classes[i].tolist())
        with torch.inference_mode():
            assert_close(loaded.output_names, [output[i : i + 1] for output in got], single(clip[None]))


@EACH_FORMAT
def test_nobody_wants_maps(everything, name):
    loaded, raw, classes = load(everything(name)), frames(2, 8, SOURCES[0]), torch.tensor([[0, 4, 1], [2, 2, 2]])
    with_maps, without = loaded(raw, classes), loaded(raw, classes, explain=False)
    assert torch.equal(with_maps[0], without[0])
    shapes = {name: tuple(output.shape) for name, output in zip(loaded.output_names, without, strict=True)}
    assert shapes == {
        "logits": (2, 5),
        "saliency_tube": (2, 3, 0, 0, 0),
        "saliency_tube_per_frame": (2, 3, 0),
        "saliency_tube_peak_box": (2, 3, 0),
        "motion": (2, 3, 0, 0, 0),
        "static": (2, 3, 0, 0, 0),
        "motion_share": (2, 0),
    }
    assert [w.dtype for w in without] == [w.dtype for w in with_maps]


@EACH_FORMAT
def test_manifest_of_everything(everything, name):
    manifest = read_manifest(everything(name))
    assert [tuple(port) for port in manifest.input_ports] == [
        ("frames", "uint8", ("N", "T", "H", "W", 3)),
        ("classes", "int64", ("N", "M")),
        ("explain", "bool", ("N",)),
        ("tau", "float32", ("N",)),
        ("n_sigma", "float32", ("N",)),
    ]
    assert {o.name: o.default for o in manifest.option_inputs} == {
        "explain": True,
        "tau": float(np.finfo(np.float32).min),
        "n_sigma": 2.0,
    }
    plugin = FORMATS[name]
    assert manifest.options == {
        "frames": "uint8",
        "output": "uint8",
        "optional": True,
        "half": None,
        "plugin": plugin,
    }
    assert manifest.plugin.required == plugin
    assert manifest.plugin.library == ("clipsight_torch" if name.endswith("pt") else "clipsight_onnxruntime")
    shapes = {output.name: (output.shape, output.dtype) for output in manifest.outputs}
    assert shapes["saliency_tube"] == (("N", "M", "t", "h", "w"), "uint8")
    assert shapes["motion_share"] == (("N", "m"), "float32")
    assert Manifest.from_json(manifest.to_json()) == manifest


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_manifest_for_other_languages(everything):
    """Strict JSON, with the inputs in order as the outputs are."""
    values = json.loads(read_manifest(everything("plain.pt")).to_json(), parse_constant=refuse)
    assert [i["name"] for i in values["inputs"]] == ["frames", "classes", "explain", "tau", "n_sigma"]
    assert values["inputs"][0] == {
        "name": "frames",
        "dtype": "uint8",
        "shape": ["N", "T", "H", "W", 3],
        "meaning": "RGB bytes",
        "layout": "NTHWC",
    }
    assert all(i["meaning"] for i in values["inputs"])


@EACH_FORMAT
def test_graph_inputs_are_the_ports(everything, name):
    ports = read_manifest(everything(name)).input_ports
    if name.endswith(".pt"):
        arguments = torch.jit.load(str(everything(name))).forward.schema.arguments
        assert [a.name for a in arguments][1:] == [port.name for port in ports]
        return
    session = clipsight.onnx_session(everything(name))
    types = {"tensor(uint8)": "uint8", "tensor(int64)": "int64", "tensor(bool)": "bool", "tensor(float)": "float32"}
    assert [(i.name, types[i.type]) for i in session.get_inputs()] == [port[:2] for port in ports]


def test_manifest_of_format_1_is_read(everything):
    values = json.loads(read_manifest(everything("plain.pt")).to_json())
    for later in ("inputs", "option_inputs", "options"):
        del values[later]
    manifest = Manifest.from_json(json.dumps(values | {"format_version": 1}))
    assert manifest.option_inputs == ()
    assert [port.name for port in manifest.input_ports] == ["frames", "classes"]


# ---- Frames ---------------------------------------------------------------------------------------------------------

GEOMETRIES = [
    (Preprocessing(resize=128, crop=(112, 112)), (256, 340)),
    (Preprocessing(resize=128, crop=(112, 112)), (480, 270)),
    (Preprocessing(resize=112, crop=(112, 112)), (64, 80)),
    (Preprocessing(resize=(128, 171), crop=(112, 112)), (240, 320)),
    (Preprocessing(resize=(60, 50), crop=(31, 32)), (60, 50)),
    (Preprocessing(resize=(64, 80), crop=(61, 78)), (32, 40)),
    (Preprocessing(resize=None, crop=(63, 70)), (96, 99)),
    (Preprocessing(resize=17, crop=(17, 16), channel_order="BGR", scale=1.0, mean=(10, 20, 30)), (1080, 1920)),
]


def share_of_other_pixels(got: torch.Tensor, preprocessing, raw: torch.Tensor) -> float:
    """Share of the values that differ at all; none may by more than one level."""
    step = torch.tensor([preprocessing.scale / std for std in preprocessing.std]).view(3, 1, 1, 1)
    levels = ((got - as_video_does(raw, preprocessing)) / step).abs()
    assert levels.max() < 1.01
    return (levels > 0.01).float().mean().item()


@pytest.mark.parametrize("preprocessing, source", GEOMETRIES)
def test_frames_have_the_pixels_of_the_video_path(preprocessing, source):
    """On x86-64 to the pixel; OpenCV may round otherwise elsewhere."""
    raw = torch.randint(0, 256, (1, 2, *source, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    module = Frames(preprocessing, torch.float32)
    got = module(raw)
    assert got.shape == (1, 3, 2, *preprocessing.crop)
    assert share_of_other_pixels(got, preprocessing, raw) < 1e-3
    assert torch.equal(torch.jit.script(module)(raw), got)


def test_another_resize_would_be_seen():
    preprocessing, source = GEOMETRIES[0]
    raw = torch.randint(0, 256, (1, 2, *source, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    resized = preprocessing.resized(source)
    floats = raw[0].permute(0, 3, 1, 2).float()
    exact = torch.nn.functional.interpolate(floats, resized, mode="bilinear").round() / 255
    top, left = ((full - part) // 2 for full, part in zip(resized, preprocessing.crop, strict=True))
    crop = exact[..., top : top + 112, left : left + 112].transpose(0, 1)[None]
    assert share_of_other_pixels(crop, preprocessing, raw) > 0.01
    with pytest.raises(AssertionError):
        share_of_other_pixels(crop.roll(1, -1), preprocessing, raw)


@EACH_FORMAT
def test_frames_that_do_not_fit(everything, name):
    loaded, classes = load(everything(name)), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"frames must have shape \[N, 8, H, W, 3\] or \[N, 12, H, W, 3\], got"):
        loaded(frames(1, 10, SOURCES[0]), classes)
    with pytest.raises(TypeError, match="frames must be uint8, got float32"):
        loaded(frames(1, 8, SOURCES[0]).float(), classes)
    with pytest.raises(ValueError, match="frames must have shape"):
        loaded(frames(1, 8, SOURCES[0]).permute(0, 4, 1, 2, 3), classes)


@pytest.mark.parametrize(
    "suffix, plugin", [(".pt", False), (".onnx", True), pytest.param(".onnx", False, marks=pytest.mark.full)]
)
def test_crop_that_does_not_fit_is_refused_by_the_file_itself(tmp_path, suffix, plugin):
    wide = Preprocessing(frames=8, resize=40, crop=(32, 44))
    model = explain(networks.seeded(networks.ModulePool), SaliencyTube(), networks.clip(size=wide.size))
    file = tmp_path / f"x{suffix}"
    export(model, file, plugin=plugin, preprocessing=wide, frames="uint8")
    upright = frames(1, 8, (60, 45))
    with pytest.raises(ValueError, match="crop 44x32 must fit into the resized frame, got 40x53 from a source of 45x"):
        load(file)(upright)
    if suffix == ".pt":
        with pytest.raises(RuntimeError, match="index out of range"):
            torch.jit.load(str(file))(upright)
    else:
        providers = ["CPUExecutionProvider"]
        session = clipsight.onnx_session(file) if plugin else onnxruntime.InferenceSession(file, providers=providers)
        with pytest.raises(Exception, match="crop_44x32_must_fit_into_the_resized_frame"):
            session.run(None, {"frames": upright.numpy()})


# ---- Maps on demand -------------------------------------------------------------------------------------------------


def nodes_that_run(file, folder, inputs) -> set[str]:
    """Names of the nodes that ONNX Runtime ran, those in branches included."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    session.run(None, inputs)
    with open(session.end_profiling()) as log:
        events = json.load(log)
    return {e["name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")}


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_plain_is_the_network_alone(on_demand, suffix):
    whole, plain = load(on_demand / f"x{suffix}"), load(on_demand / f"network{suffix}")
    clip = networks.clip(2, SIZE)
    (logits,) = plain(clip)
    torch.testing.assert_close(logits, whole(clip)[0], atol=1e-5, rtol=1e-5)
    assert plain.output_names == ("logits",)
    assert [port.name for port in plain.manifest.input_ports] == ["clip"]
    assert plain.manifest.weights_digest == whole.manifest.weights_digest
    assert not plain.manifest.plugin.required
    assert (on_demand / f"network{suffix}").stat().st_size < (on_demand / f"x{suffix}").stat().st_size


def test_skipped_head_costs_nothing_in_onnx(on_demand, tmp_path):
    clip = networks.clip(2, SIZE).numpy()
    alone = nodes_that_run(on_demand / "network.onnx", tmp_path, {"clip": clip})
    wanted, unwanted = (
        nodes_that_run(on_demand / "x.onnx", tmp_path, {"clip": clip, "explain": np.array([value, False])})
        for value in (True, False)
    )
    assert len(wanted) > len(alone) + 30
    # Casting and testing the flag, the If itself, and the empty maps: two nodes for each, one for N.
    assert len(unwanted) <= len(alone) + 5 + 3 * 6
    assert not any(name.startswith("wanted/") or "MatMul" in name.split("wanted/")[-1] for name in unwanted - alone)


def test_skipped_head_costs_nothing_in_torchscript(on_demand):
    loaded = load(on_demand / "x.pt")
    ran = {}
    for wanted in (True, False):
        with torch.profiler.profile() as profile:
            loaded(networks.clip(2, SIZE), explain=wanted)
        ran[wanted] = {event.name for event in profile.events()}
    assert "clipsight::selective_tube" in ran[True]
    assert not any(name.startswith("clipsight::") for name in ran[False])
    assert "aten::gather" not in ran[False]


# ---- Types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, output",
    [
        ("fused.pt", "float16"),
        ("fused.pt", "uint8"),
        ("plain.pt", "uint8"),
        ("fused.onnx", "uint8"),
        pytest.param("plain.onnx", "uint8", marks=pytest.mark.full),
    ],
)
def test_output_type(tmp_path, name, output):
    model = explained()
    manifest = export(model, tmp_path / name, plugin=FORMATS[name], output=output)
    assert manifest.methods[0]["dtype"] == manifest.methods[1]["of"]["dtype"] == output
    clip = networks.clip(2, SIZE)
    tube = load(tmp_path / name)(clip)[1]
    with torch.inference_mode():
        expected = model(clip)[1]
    assert tube.dtype == getattr(torch, output)
    scale, bound = (255, 0.51) if output == "uint8" else (1, 1e-3)
    assert (tube.float() - scale * expected).abs().max() < bound


@pytest.mark.parametrize(
    "name, plugin, half",
    [
        ("x.pt", False, "float16"),
        ("x.pt", False, "bfloat16"),
        pytest.param("x.onnx", True, True, marks=pytest.mark.full),
        pytest.param("x.onnx", False, True, marks=pytest.mark.full),
    ],
)
def test_half_precision_states_its_error(tmp_path, name, plugin, half):
    options = {"plugin": plugin, "labels": list("abcde")}
    export(explained(), tmp_path / f"whole_{name}", **options)
    manifest = export(explained(), tmp_path / name, half=half, **options)
    assert manifest.options["half"] == ("float16" if half is True else half)
    assert manifest.input.dtype == "float32"
    assert {o.dtype for o in manifest.outputs} == {"float32", "int64"}
    stated = manifest.self_check["half_difference"]
    clip = networks.clip(4, SIZE, seed=9)
    logits, want = (load(tmp_path / f"{n}{name}")(clip)[0] for n in ("", "whole_"))
    measured = ((logits - want).abs().max() / want.abs().max()).item()
    assert 0 < measured < 5 * stated["logits"]["max"] < (0.1 if half == "bfloat16" else 0.01)
    assert 0 < stated["saliency_tube"]["mean"] < 0.02
    if name == "x.pt":
        state = torch.jit.load(str(tmp_path / name)).state_dict().values()
        assert all(v.dtype != torch.float32 for v in state)


def test_half_precision_that_overflows(tmp_path):
    model = networks.seeded(networks.ModulePool)
    with torch.no_grad():
        model.body[3].weight *= 1e6
    model = explain(model, SaliencyTube(), networks.clip())
    with pytest.raises(ExportError, match=r"must be finite in half precision .* half='bfloat16'"):
        export(model, tmp_path / "x.pt", plugin=False, half=True)
    assert not list(tmp_path.iterdir())
    export(model, tmp_path / "x.pt", plugin=False, half="bfloat16")


# ---- Thresholds -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_threshold(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thresholds")
    heads = (SaliencyTube(threshold=0.02), SelectiveRelevance(of=SaliencyTube(threshold=0.02), n_sigma=1.5))
    export(explained(heads), folder / "x.pt", inputs=("n_sigma", "tau"))
    return folder / "x.pt", explained(heads)


def test_defaults_are_the_heads_own(by_threshold):
    file, model = by_threshold
    loaded, clip = load(file), networks.clip(2, SIZE)
    assert [o.default for o in loaded.manifest.option_inputs] == [0.02, 1.5]
    with torch.inference_mode():
        assert_close(loaded.output_names, loaded(clip), model(clip))
    everything = loaded(clip, tau=-np.inf)
    assert not torch.equal(everything[1], loaded(clip)[1])
    for a, b in zip(everything, loaded(clip, tau=torch.full((2,), -1e9)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"explain": True}, ValueError, "explain must not be given: the file was exported without it"),
        ({"tau": [0.0, 1.0, 2.0]}, ValueError, r"tau must be a number or have shape \[2\], got \[3\]"),
        ({"tau": float("nan")}, ValueError, "tau must be a number, got nan"),
        ({"tau": "0"}, TypeError, "tau must hold float32 values"),
        ({"n_sigma": [1.0, -1.0]}, ValueError, "n_sigma must be a number, at least 0"),
    ],
)
def test_thresholds_that_do_not_fit(by_threshold, options, error, message):
    with pytest.raises(error, match=message):
        load(by_threshold[0])(networks.clip(2, SIZE), **options)


@pytest.mark.parametrize("ignored", ["tau", "n_sigma"])
def test_ignored_threshold_is_an_error(tmp_path, ignored):
    model = explained()
    whole = model.at

    class Deaf(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.whole = whole(size, plugin=False)

        def forward(self, clip, **options):
            return self.whole(clip, **{name: value for name, value in options.items() if name != ignored})

    model.at = lambda size, plugin=True: whole(size, plugin) if plugin else Deaf(size)
    with pytest.raises(ExportError, match=f"must change with the input {ignored}"):
        export(model, tmp_path / "x.pt", plugin=False, inputs=("tau", "n_sigma"))
    assert not list(tmp_path.iterdir())


def test_maps_that_stay_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Program, "empty_shape", lambda self, i: ["N", 1, 1, 1, 1])
    with pytest.raises(ExportError, match=r"must be torch.float32 \[2, 1, 0, 0, 0\]"):
        export(explained(SaliencyTube()), tmp_path / "x.pt", optional=True)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"frames": "uint8"}, ValueError, "preprocessing must be given with frames='uint8'"),
        ({"frames": "float32", "preprocessing": PREPROCESSING}, ValueError, r"frames must be one of \['uint8'\]"),
        (
            {"frames": "uint8", "preprocessing": PREPROCESSING, "sizes": [(8, 64, 64)]},
            ValueError,
            r"sizes must all have the crop \(32, 36\) where frames='uint8'",
        ),
        ({"output": "int8"}, ValueError, "output must be one of"),
        ({"half": "float8"}, ValueError, r"half must be one of \['float16', 'bfloat16'\], got 'float8'"),
        ({"inputs": "sigma"}, ValueError, r"inputs must be among \['tau', 'n_sigma'\], got \['sigma'\]"),
        ({"plain": "other.onnx"}, ValueError, r"plain must be another file of the format \.pt"),
        ({"example": networks.clip(), "frames": "uint8", "preprocessing": PREPROCESSING}, ValueError, "must be frames"),
    ],
)
def test_arguments(tmp_path, options, error, message):
    if "plain" in options:
        options = {"plain": tmp_path / options["plain"]}
    with pytest.raises(error, match=message):
        export(explained(), tmp_path / "x.pt", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "heads, inputs, message",
    [
        (SaliencyTube(), "n_sigma", "thresholds that a method has, got 'n_sigma'"),
        (SaliencyTube(channels=[0]), "tau", "thresholds that a method has, got 'tau'"),
        ([SaliencyTube(threshold=t) for t in (0.1, 0.2)], "tau", r"needs one tau for all methods, got \[0.1, 0.2\]"),
    ],
)
def test_thresholds_that_no_method_has(tmp_path, heads, inputs, message):
    with pytest.raises(ValueError, match=message):
        export(explained(heads), tmp_path / "x.pt", inputs=inputs)


def test_bfloat16_is_not_for_onnx(tmp_path):
    with pytest.raises(ValueError, match=r"half must be 'float16' for '\.onnx', got bfloat16"):
        export(explained(), tmp_path / "x.onnx", half="bfloat16")
    assert not list(tmp_path.iterdir())


@EACH_FORMAT
def test_several_maps_for_each_class(tmp_path, name):
    """Where a head makes three maps of each class, skipping it gives no three for each."""
    model = explained(SaliencyTube(channels="top3"), "input")
    export(model, tmp_path / name, plugin=FORMATS[name], optional=True)
    loaded, classes = load(tmp_path / name), torch.zeros(2, 2, dtype=torch.int64)
    assert tuple(loaded(networks.clip(2, SIZE), classes)[1].shape) == (2, 6, *SIZE)
    assert tuple(loaded(networks.clip(2, SIZE), classes, explain=False)[1].shape) == (2, 6, 0, 0, 0)
