"""Published checkpoints: every layout is read back value by value; what does not fit, or is not safe, is named."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import checkpoint_layouts as layouts
from clipsight import models
from clipsight.models import checkpoints, registry
from clipsight.models.checkpoint_files import contents_of
from clipsight.models.resnet3d import PREPROCESSING_2017, PREPROCESSING_2020
from helpers import import_torchvision


class Options(dict):
    """As Lightning's `AttributeDict`."""


OLD_TRAINING = {"epoch": 45, "arch": "resnet-50", "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}

# name -> network, classes, the file's contents made of the network's own state dict
LAYOUTS = {
    "I3D, first naming": ("i3d", 157, dict),
    "I3D, first naming, without counters": ("i3d", 400, layouts.without_counters),
    "I3D, second naming": ("i3d", 400, layouts.i3d_of_branches),
    "I3D, second naming, half precision": (
        "i3d",
        101,
        lambda s: {"state_dict": layouts.prefixed(layouts.in_half_precision(layouts.i3d_of_branches(s)))},
    ),
    "MFNet": ("mfnet", 400, lambda s: {"epoch": 7, "state_dict": layouts.prefixed(layouts.without_counters(s))}),
    "TSN": ("tsn", 51, lambda s: {"epoch": 9, "state_dict": layouts.tsn(layouts.without_counters(s))}),
    "TSN, no dropout": ("tsn", 101, lambda s: layouts.in_half_precision(layouts.tsn(s, "base_model.fc", ""))),
    "torchvision's ResNet-50": ("tsn", 1000, layouts.in_half_precision),
    "ResNet of 2017": (
        "r3d50",
        400,
        lambda s: (
            OLD_TRAINING | {"state_dict": layouts.prefixed(layouts.in_half_precision(layouts.without_counters(s)))}
        ),
    ),
    "ResNet of 2020": ("r3d50", 700, lambda s: {"epoch": 200, "state_dict": layouts.in_half_precision(s)}),
    "bare": ("movers", None, dict),
    "model": ("movers", None, lambda s: {"model": s, "epoch": 1}),
    "model_state": ("movers", None, lambda s: {"model_state": layouts.prefixed(s), "optimizer_state": {}}),
    "one in the other": ("movers", None, lambda s: {"model": {"state_dict": s}}),
    **{f"trainer: {name}": ("movers", None, write) for name, write in layouts.TRAINERS.items()},
}
LARGE = {"r3d101": 400, "r3d152": 1139, "resnext101": 400, "c3d": 487}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_file_comes_back_value_by_value(layout, tmp_path):
    name, num_classes, write = LAYOUTS[layout]
    state = layouts.values(name, num_classes)
    contents = write(state)
    torch.save(contents, tmp_path / "x.pth")
    half = any(v.dtype == torch.float16 for v in checkpoints.read(tmp_path / "x.pth").parts[-1][1].values())
    loaded = models.load(name, tmp_path / "x.pth")
    assert not loaded.training
    for key, value in loaded.state_dict().items():
        expected = state[key].half() if half and state[key].is_floating_point() else state[key]
        assert value.dtype == state[key].dtype
        if not key.endswith(layouts.COUNTER):
            assert torch.equal(value, expected.to(value.dtype)), key


def test_a_file_in_the_serialisation_of_old_torch(tmp_path):
    state = layouts.values("movers")
    torch.save(layouts.prefixed(state), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    loaded = models.load("movers", tmp_path / "x.pth").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize("write", [dict, layouts.i3d_of_branches], ids=["first naming", "second naming"])
def test_safetensors(write, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = layouts.values("i3d", 7)
    for file in ("x.safetensors", "x.ckpt"):
        save_file(layouts.prefixed(layouts.in_half_precision(write(state)), "model."), tmp_path / file)
        loaded = models.load("i3d", tmp_path / file).state_dict()
        assert all(torch.equal(loaded[k], state[k].half().float()) for k in layouts.without_counters(state))


@pytest.mark.parametrize("name", LARGE)
def test_names_of_the_large_networks(name):
    """Meta tensors: the names and shapes of networks of up to half a gigabyte."""
    shapes = registry.shapes(name, LARGE[name])
    state = layouts.values(name, LARGE[name], device="meta")
    published = layouts.prefixed(layouts.without_counters(state))
    contents = contents_of(published, "x.pth")
    chosen = checkpoints.chosen(contents, registry.shapes(name), any_count=True)
    assert checkpoints.class_count(chosen, shapes) == LARGE[name]
    fitted = checkpoints.fitted(contents, shapes, name)
    assert fitted == layouts.without_counters(state)
    fitted.pop("fc.bias" if name != "c3d" else "fc8.bias")
    with pytest.raises(ValueError, match=r"missing fc8?\.bias"):
        checkpoints.fitted(contents_of(layouts.prefixed(fitted), "x.pth"), shapes, name)


def test_the_number_of_classes_is_that_of_the_file(tmp_path):
    for count in (400, 700):
        torch.save(layouts.in_half_precision(layouts.values("r3d50", count)), tmp_path / f"{count}.pth")
    older, newer = (models.load("r3d50", tmp_path / f"{count}.pth") for count in (400, 700))
    assert (older.fc.out_features, newer.fc.out_features) == (400, 700)
    assert (older.preprocessing, newer.preprocessing) == (PREPROCESSING_2017, PREPROCESSING_2020)
    assert older.labels is newer.labels is None
    with pytest.raises(ValueError, match=re.escape("num_classes must be 700, that of 700.pth, got 400")):
        models.load("r3d50", tmp_path / "700.pth", num_classes=400)
    with pytest.raises(ValueError, match=r"num_classes must be 8, that of movers\.safetensors, got 5"):
        models.load("movers", num_classes=5)
    with pytest.raises(ValueError, match="num_classes must be 8, that of movers, got 5"):
        models.load("movers", num_classes=5, pretrained=False)
    assert models.load("mfnet", num_classes=5, pretrained=False).classifier.out_features == 5


def test_a_network_of_torchvision_by_name(tmp_path):
    import_torchvision()
    state = layouts.values("s3d", 11)
    torch.save({"model": layouts.prefixed(state)}, tmp_path / "x.pth")
    model = models.load("s3d", tmp_path / "x.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.labels is None
    assert models.load("r3d_18", pretrained=False).labels[5] == "archery"


def test_prefixes_that_belong_to_the_network_stay(tmp_path):
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model, self.module = nn.Linear(2, 3), nn.BatchNorm1d(3)

    model, other = Inside(), Inside()
    with torch.no_grad():
        other.base_model.weight.fill_(5.0)
    for contents in (other.state_dict(), layouts.prefixed(other.state_dict())):
        torch.save(contents, tmp_path / "x.pth")
        checkpoints.load_into(model, tmp_path / "x.pth")
        assert (model.base_model.weight == 5).all()
        nn.init.zeros_(model.base_model.weight)
    both = other.state_dict() | {"base_model.module.weight": torch.zeros(1)}
    torch.save(both, tmp_path / "both.pth")
    with pytest.raises(ValueError, match=r"unexpected base_model\.module\.weight"):
        checkpoints.load_into(model, tmp_path / "both.pth")


# ---- As trainers leave them --------------------------------------------------------------------------------------


def different(state: dict) -> dict:
    return {key: value + 1 for key, value in state.items()}


def test_of_several_networks_in_a_file_one_is_named(tmp_path):
    raw = layouts.values("movers")
    averaged, path = different(raw), tmp_path / "x.pth"

    def bias(file: str) -> Tensor:
        return models.load("movers", tmp_path / file).classifier.bias

    for contents, places in (
        ({"model": raw, "model_ema": layouts.prefixed(averaged)}, ("model", "model_ema")),
        ({"state_dict": raw, "state_dict_ema": averaged, "epoch": 3}, ("state_dict", "state_dict_ema")),
        (layouts.prefixed(raw, "student.") | layouts.prefixed(averaged, "teacher."), ("student", "teacher")),
        (raw | {"ema": averaged}, ("", "ema")),
        ({"folds": [raw, averaged]}, ("folds.0", "folds.1")),
    ):
        torch.save(contents, path)
        listed = ", ".join(f"x.pth#{place}" for place in places)
        with pytest.raises(ValueError, match=re.escape(f"got 2 that fit and differ; name one: {listed}")):
            models.load("movers", path)
        for place, state in zip(places, (raw, averaged), strict=True):
            assert torch.equal(bias(f"x.pth#{place}"), state["classifier.bias"])
    torch.save({"raw": {"net": raw}, "ema": {"net": averaged}}, path)
    assert torch.equal(bias("x.pth#ema"), averaged["classifier.bias"]), "the place may be an outer one"
    with pytest.raises(ValueError, match=r"checkpoint x\.pth must have tensors at 'e', got none there"):
        models.load("movers", f"{path}#e")
    torch.save(raw, tmp_path / "a#b.pth")
    assert torch.equal(bias("a#b.pth"), raw["classifier.bias"])


def test_networks_of_other_numbers_of_classes_are_no_less_networks(tmp_path):
    few, many = (layouts.without_counters(layouts.values("mfnet", count)) for count in (3, 5))
    torch.save({"net": few, "pretrained": many}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"name one: x\.pth#net, x\.pth#pretrained"):
        models.load("mfnet", tmp_path / "x.pth")
    for count, state in ((3, few), (5, many)):
        model = models.load("mfnet", tmp_path / "x.pth", num_classes=count)
        assert torch.equal(model.classifier.weight, state["classifier.weight"])
    with pytest.raises(ValueError, match="got 2 that fit"):
        models.load("mfnet", tmp_path / "x.pth", num_classes=4)


def test_part_of_a_network_is_refused(tmp_path):
    state = layouts.values("movers")
    backbone = {key: value for key, value in state.items() if not key.startswith("classifier")}
    for contents, message in (
        (
            layouts.prefixed(backbone, "encoder.") | {"projection.weight": torch.ones(4, 8)},
            "2 missing, first classifier",
        ),
        ({"backbone": backbone, "optimizer": layouts.optimizer(state)}, "2 missing, first classifier"),
        (
            {"state_dict": layouts.prefixed(state | {"extra.weight": torch.ones(3)}, "model.")},
            "unexpected extra.weight",
        ),
        ({"optimizer": layouts.optimizer(state)}, "it is none of these networks"),
        ({"epoch": 3, "classifier.bias": torch.ones(8)}, "missing"),
        ({0: torch.ones(2)}, "missing"),
    ):
        torch.save(contents, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=f"x.pth does not fit movers: .*{message}"):
            models.load("movers", tmp_path / "x.pth")


def test_values_that_are_no_weights_are_refused(tmp_path):
    state = layouts.values("movers")
    bias = state["classifier.bias"]
    for value in (bias.to(torch.int8), bias.to(torch.complex64), bias.to_sparse(), bias.to("meta")):
        torch.save(state | {"classifier.bias": value}, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=r"dense floating-point values as classifier\.bias, got torch"):
            models.load("movers", tmp_path / "x.pth")
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"name each tensor once, got two of the name 'a\.b'"):
        models.load("movers", tmp_path / "x.pth")


def test_into_a_network_in_its_wrappers(tmp_path):
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = torch.compile(nn.Linear(2, 3)), nn.Linear(3, 4)

    source = Parts()
    plain = {key.replace("_orig_mod.", ""): value for key, value in source.state_dict().items()}
    for contents in (source.state_dict(), plain, {"net": layouts.prefixed(plain)}):
        torch.save(contents, tmp_path / "x.pth")
        for wrap in (lambda network: network, nn.DataParallel, torch.compile):
            target = Parts()
            checkpoints.load_into(wrap(target), tmp_path / "x.pth")
            assert torch.equal(target.fc.weight, source.fc.weight)
            assert torch.equal(target.body.weight, source.body.weight)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch", "old torch"])
def test_what_needs_code_is_left_out_where_the_network_does_not(zipped, tmp_path):
    """Arguments, paths and numbers of NumPy lie beside the weights in most files; nothing of them is made or run."""
    state, mark = layouts.values("movers"), tmp_path / "it-ran"
    beside = {
        "args": argparse.Namespace(lr=0.1, path=tmp_path),
        "hyper_parameters": Options(lr=0.1),
        "best": np.float64(90.5),
        "history": np.arange(3),
        "callback": _Call(mark),
    }
    contents = {"state_dict": layouts.prefixed(state, "model."), **beside}
    torch.save(contents, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    allowed = set(torch.serialization.get_safe_globals())
    loaded = models.load("movers", tmp_path / "x.pth")
    assert torch.equal(loaded.classifier.bias, state["classifier.bias"])
    assert not mark.exists()
    assert set(torch.serialization.get_safe_globals()) == allowed
    torch.save({"optimizer": layouts.optimizer(state), "model": nn.Linear(2, 2)}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"not what torch\.nn\.modules\.linear\.Linear would make.*model\.state_dict\(\)"
    ):
        models.load("movers", tmp_path / "x.pth")


# ---- What does not fit -------------------------------------------------------------------------------------------


def refusal(network: str, state: dict, num_classes: int | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        checkpoints.fitted(contents_of(state, "x.pth"), registry.shapes(network, num_classes), network)
    return str(caught.value)


@pytest.mark.parametrize("name", registry.names())
def test_a_file_of_another_network_is_recognised(name):
    if name in registry.names()[-9:]:
        import_torchvision()
    asked = "mfnet" if name != "mfnet" else "i3d"
    fixed = name.startswith("movers")
    state = layouts.without_counters(layouts.values(name, None if fixed else 77, device="meta"))
    message = refusal(asked, layouts.prefixed(state))
    assert message.startswith(f"models.load: checkpoint x.pth does not fit {asked}: ")
    looks = "movers" if name == "movers_biased" else name  # one architecture
    assert message.endswith(f"; it looks like {looks} with {8 if fixed else 77} classes")
    first = next(key for key in registry.shapes(asked) if not key.endswith(layouts.COUNTER))
    assert f" missing, first {first}, " in message
    assert " unexpected, first " in message


def test_networks_with_the_same_names_are_told_apart_by_shapes():
    resnext, wide = layouts.values("resnext101", device="meta"), layouts.values("r3d50", device="meta")
    message = refusal("r3d101", resnext)
    assert "layer1.0.conv1.weight must have shape [64, 64, 1, 1, 1], got [128, 64, 1, 1, 1] and " in message
    assert message.endswith("more of another shape; it looks like resnext101 with 400 classes")
    assert refusal("r3d50", layouts.tsn(layouts.values("tsn", 51, "meta"))).endswith("looks like tsn with 51 classes")
    assert (
        refusal("i3d", layouts.i3d_of_branches(layouts.values("i3d", 5, "meta")) | {"x": torch.ones(1)}).count(";") == 1
    )
    wide["layer2.0.conv2.weight"] = torch.empty(256, 256, 3, 3, 3, device="meta")
    assert refusal("resnext101", wide).endswith("it is closest to r3d50 with 400 classes")
    assert refusal("i3d", {"a.weight": torch.ones(2)}).endswith("it is none of these networks")


@pytest.mark.parametrize(
    "blocks, basic, looks",
    [
        ((2, 2, 2, 2), True, "3-D ResNet-18"),
        ((3, 4, 6, 3), True, "3-D ResNet-34"),
        ((3, 4, 6, 3), False, "3-D ResNet-50"),
    ],
)
def test_shortcut_a_is_told_from_b(blocks, basic, looks):
    message = refusal("r3d50", layouts.shortcut_a(blocks, basic))
    expected = (
        f"it looks like a {looks} with shortcuts A (without weights: no downsample) and 400 classes, which is not"
    )
    assert expected in message
    if not basic:  # all the rest fits
        assert "20 missing, first layer1.0.downsample.0.weight, layer1.0.downsample.1.weight" in message
        assert "unexpected" not in message


def test_basic_blocks_with_shortcut_b():
    resnet18 = import_torchvision().models.resnet18
    with torch.device("meta"):
        state = resnet18(num_classes=9).state_dict()
    assert "it looks like a 2-D ResNet-18 with shortcuts B and 9 classes, which is not" in refusal("tsn", state)


def test_a_number_of_classes_that_differs():
    state = layouts.values("i3d", 157, device="meta")
    message = refusal("i3d", state)
    assert "logits.conv3d.weight must have shape [400, 1024, 1, 1, 1], got [157, 1024, 1, 1, 1]" in message
    assert message.endswith("the file has 157 classes, the network 400")


def test_a_file_with_more_or_less_than_the_network(tmp_path):
    state = layouts.values("i3d", 5)
    torch.save(state | {"extra.weight": torch.ones(3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth does not fit i3d: unexpected extra\.weight$"):
        models.load("i3d", tmp_path / "x.pth")
    del state["Mixed_3b.b0.bn.running_mean"], state["Mixed_3b.b0.bn.running_var"]
    torch.save(state, tmp_path / "x.pth")
    expected = r"2 missing, first Mixed_3b\.b0\.bn\.running_mean, Mixed_3b\.b0\.bn\.running_var$"
    with pytest.raises(ValueError, match=expected):
        models.load("i3d", tmp_path / "x.pth")


# ---- What cannot be read -----------------------------------------------------------------------------------------


class _Call:
    """What a pickle can do: call any function when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class _Command(_Call):
    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


def _write(contents, path: Path, how: str) -> None:
    if how == "pickle":
        path.write_bytes(pickle.dumps(contents))
    elif how == "old pickle":
        path.write_bytes(pickle.dumps(contents, protocol=2))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=how == "torch")


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle", "old pickle"])
@pytest.mark.parametrize("kind, wanted", [(_Call, r"_?io\.open"), (_Command, r"posix\.system")])
def test_a_pickle_that_would_run_code_is_refused(kind, wanted, how, tmp_path):
    mark = tmp_path / "it-ran"
    _write({"state_dict": {"features.0.0.weight": kind(mark)}}, tmp_path / "evil.pth", how)
    expected = rf"checkpoint evil\.pth is refused: to read it, {wanted} would have to run.*safetensors"
    with pytest.raises(ValueError, match=expected):
        models.load("movers", tmp_path / "evil.pth")
    assert not mark.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False) if "torch" in how else pickle.loads(
        (tmp_path / "evil.pth").read_bytes()
    )
    assert mark.exists(), "negative control: an unsafe reader runs it"


def test_a_whole_network_in_a_pickle_is_refused(tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"torch\.nn\.modules\.linear\.Linear would have to run.*model\.state_dict\(\)"
    ):
        models.load("movers", tmp_path / "x.pth")


@pytest.mark.parametrize("how", ["torch", "old torch", "safetensors"])
def test_a_file_that_is_cut_off(how, tmp_path):
    state, path = layouts.values("movers"), tmp_path / f"x.{'safetensors' if how == 'safetensors' else 'pth'}"
    if how == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        _write(state, path, how)
    whole = path.read_bytes()
    for size in (0, 7, 300, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"checkpoint x\.\w+ cannot be read"):
            models.load("movers", path)
    path.write_bytes(whole)
    models.load("movers", path)


def test_files_that_hold_something_else(tmp_path):
    def load(contents):
        torch.save(contents, tmp_path / "x.pth")
        return models.load("movers", tmp_path / "x.pth")

    for contents, got in (
        ({}, "no tensor"),
        ({"state_dict": {}}, "no tensor"),
        ([torch.ones(2)], "list"),
        (torch.ones(2), "Tensor"),
        ({"epoch": 3, "optimizer": {"state": {}}}, "no tensor"),
    ):
        with pytest.raises(ValueError, match=f"must hold a state dict of tensors, got {got} in x.pth"):
            load(contents)
    (tmp_path / "x.pth").write_text("no weights at all\n")
    with pytest.raises(ValueError, match="cannot be read: it is cut off or something else"):
        models.load("movers", tmp_path / "x.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "x.pth")
    with pytest.raises(ValueError, match="cannot be read: it is a TorchScript program"):
        models.load("movers", tmp_path / "x.pth")
    for missing in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(
            FileNotFoundError, match=f"checkpoint must be a file, {re.escape(str(missing))} does not exist"
        ):
            models.load("movers", missing)


# ---- The command line --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    pytest.importorskip("av")
    from clipsight.synthetic import moving_shapes
    from clipsight.video import VideoWriter

    frames = np.repeat(moving_shapes(1, seed=2, size=64).frames[0], 4, axis=0)  # 64 frames
    path = tmp_path_factory.mktemp("video") / "shapes.mp4"
    with VideoWriter(path, 25) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.mark.parametrize(
    "name, more, size",
    [
        pytest.param("i3d", [], [64, 224, 224], marks=pytest.mark.full),
        ("tsn", ["--frames", "64", "--size", "32x32"], [64, 32, 32]),
    ],
)
def test_explain_needs_nothing_but_the_checkpoint(name, more, size, video, tmp_path):
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from clipsight import cli

    written = {"i3d": layouts.i3d_of_branches, "tsn": layouts.tsn}[name]
    network = registry.build(name, 6)
    torch.save(written(network.state_dict()), tmp_path / "x.pth")
    out = tmp_path / "out"
    arguments = ["explain", video, "--model", name, "--checkpoint", tmp_path / "x.pth", "--out", out, "--raw", *more]
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    report = json.loads((out / "result.json").read_text())
    assert {c["class"] for c in report["top"]} <= set(range(6))
    assert list(np.load(out / "maps.npz")["maps"].shape[2:]) == size[1:]
    # What the command line showed the network is what its preprocessing says, and the answer is the network's own.
    from clipsight.video import VideoReader
    from clipsight.windows import sliding_windows

    preprocessing = replace(network.preprocessing, frames=size[0], crop=tuple(size[1:]))
    if more:
        preprocessing = replace(preprocessing, resize=round(256 * 32 / 224))
    window = next(sliding_windows(VideoReader(video), preprocessing, None, False, False))
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(window.clip)).softmax(1)[0]
    first = report["windows"][0]["top"]
    assert [c["probability"] for c in first] == pytest.approx([float(expected[c["class"]]) for c in first], abs=1e-5)


def test_the_command_line_says_it_in_one_line(video, tmp_path):
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from clipsight import cli

    torch.save(layouts.tsn(layouts.in_half_precision(layouts.values("tsn", 4))), tmp_path / "x.pth")
    arguments = ["explain", video, "--model", "i3d", "--checkpoint", tmp_path / "x.pth", "--out", tmp_path / "out"]
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exit_code == 1
    (line,) = result.output.strip().splitlines()
    assert line.startswith("error: models.load: checkpoint x.pth does not fit i3d: 287 missing")
    assert line.endswith("it looks like tsn with 4 classes")
