"""Integrated gradients in an ONNX file: the network once, in a loop, whatever the chunks and the options are."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn

import clipsight
import networks
from clipsight import SaliencyTube, SelectiveRelevance
from clipsight.exporters.program import Program
from clipsight.heads import GuidedBackprop, IntegratedGradients
from clipsight.sized import SizedExplanation

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from clipsight.exporters.onnx import check  # noqa: E402

SIZE = (8, 16, 16)
RAW = {"colours": "raw", "normalize": "none"}
TUBE = SaliencyTube()


def exported(path, *heads, classes="predicted", network=networks.ModulePool, **options):
    """The explained model, and its file read by onnx."""
    model = clipsight.explain(networks.seeded(network), heads, networks.clip(size=SIZE), classes)
    clipsight.export(model, path, precheck=False, **options)
    return model, onnx.load(path)


def nodes(graph) -> list:
    """Those of nested graphs, too."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [*graph.node, *(node for graph in inner for node in nodes(graph))]


def count(file, op: str) -> int:
    return sum(node.op_type == op for node in nodes(file.graph))


def assert_equal(got, want) -> None:
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("chunks", [(2, 6), pytest.param((1, 2, 6), marks=pytest.mark.full)])
def test_the_network_stands_once_however_many_chunks_there_are(chunks, tmp_path):
    heads = {chunk: IntegratedGradients(steps=6, chunk=chunk, **RAW) for chunk in chunks}
    files = {chunk: exported(tmp_path / f"{chunk}.onnx", head)[1] for chunk, head in heads.items()}
    convolutions = {chunk: count(file, "Conv") for chunk, file in files.items()}
    assert len(set(convolutions.values())) == 1
    assert convolutions[6] > 0
    assert {chunk: count(file, "Loop") for chunk, file in files.items()} == {chunk: int(chunk < 6) for chunk in chunks}
    weights = [tensor for tensor in files[2].graph.initializer if np.prod(tensor.dims) > 64]
    values = [onnx.numpy_helper.to_array(tensor).tobytes() for tensor in weights]
    assert len(set(values)) == len(values)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """`uneven(2)`: a model whose last chunk is shorter than the others, and its file."""
    folder = tmp_path_factory.mktemp("uneven")

    @functools.cache
    def made(chunk: int):
        path, head = folder / f"{chunk}.onnx", IntegratedGradients(steps=5, chunk=chunk, **RAW)
        return exported(path, head, TUBE, classes=[3, 0])[0], path

    return made


@pytest.mark.parametrize("chunk", [2, *(pytest.param(chunk, marks=pytest.mark.full) for chunk in (3, 4))])
def test_steps_that_chunks_do_not_divide(chunk, uneven):
    model, path = uneven(chunk)
    clip = networks.clip(2, SIZE, seed=5)
    outputs = clipsight.load(path)(clip)
    assert_equal(outputs, model(clip))
    fewer = clipsight.explain(model.model, IntegratedGradients(steps=5 - 5 % chunk, chunk=chunk, **RAW), clip, [3, 0])
    off = (outputs[1] - fewer(clip)[1]).norm() / outputs[1].norm()
    assert off > 1e-3  # a last chunk that were left out would be seen


def test_openvino_runs_a_loop(uneven):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    model, path = uneven(2)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    for batch in (1, 3):
        clip = networks.clip(batch, SIZE, seed=batch)
        outputs = compiled({"clip": clip.numpy()})
        assert_equal([torch.from_numpy(outputs[name]) for name in model.output_names], model(clip))


class Twins(networks.ModulePool):
    """Two layers have the same weights, of more values than torch's exporter looks at to keep equal ones once."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Conv3d(12, 12, 3, padding=1)
        self.body.extend([first, nn.ReLU(), copy.deepcopy(first), nn.ReLU()])


def test_layers_with_equal_weights(tmp_path):
    model, _ = exported(tmp_path / "x.onnx", IntegratedGradients(steps=2, chunk=1, **RAW), network=Twins)
    clip = networks.clip(2, SIZE, seed=7)
    assert_equal(clipsight.load(tmp_path / "x.onnx")(clip), model(clip))


@pytest.mark.parametrize(
    "plugin, lengths",
    [
        pytest.param(False, (8, 4), marks=pytest.mark.full, id="plain"),
        pytest.param(True, (8, 4), marks=pytest.mark.full, id="fused"),
        pytest.param(True, (8,), id="fused, one size"),
    ],
)
def test_every_option_together(plugin, lengths, tmp_path):
    """A loop inside a branch inside a branch, beside another loop and a walk of the same rules."""
    integrals = [
        IntegratedGradients(steps=3, chunk=2, **RAW),
        SelectiveRelevance(of=IntegratedGradients(steps=4, chunk=2)),
    ]
    model, file = exported(
        tmp_path / "x.onnx",
        *integrals,
        GuidedBackprop(**RAW),
        classes="input",
        plugin=plugin,
        optional=True,
        sizes=[(frames, 16, 16) for frames in lengths],
    )
    assert count(file, "Loop") == 2 * len(lengths)
    loaded = clipsight.load(tmp_path / "x.onnx")
    for frames in lengths:
        clip, classes = networks.clip(3, (frames, 16, 16), seed=6), torch.tensor([[0, 1], [2, 3], [1, 0]])
        logits, *maps = loaded(clip, classes, explain=torch.ones(3, dtype=torch.bool))
        expected = model(clip, classes)
        assert_equal([logits, *maps], expected)
        assert (maps[0].flip(1) - expected[1]).norm() > 0.1 * expected[1].norm()  # of the other class
        nothing = loaded(clip, classes, explain=torch.zeros(3, dtype=torch.bool))
        assert_equal(nothing[:1], expected[:1])
        assert all(map.numel() == 0 for map in nothing[1:])


@pytest.mark.full
@pytest.mark.parametrize(
    "half, frames",
    [
        ("float16", "uint8"),
        (False, "uint8"),
        ("float16", None),
    ],
)
def test_the_self_check_of_a_loop(half, frames, tmp_path):
    """Of frames and in half precision: the network in the loop computes in its own type."""
    preprocessing = clipsight.Preprocessing(mean=(0.5,) * 3, std=(0.2,) * 3, frames=8, crop=(16, 16), resize=(16, 16))
    head = IntegratedGradients(steps=3, chunk=2)
    model = clipsight.explain(networks.seeded(networks.ModulePool), head, networks.clip(size=SIZE), "top2")
    manifest = clipsight.export(model, tmp_path / "x.onnx", half=half, frames=frames, preprocessing=preprocessing)
    assert manifest.self_check["clips"] >= 3


def fewer_turns(loop, tensor):
    tensor(loop.input[0]).raw_data = np.array(3).tobytes()


def other_steps(loop, tensor):
    """The last one of all, which the self-check does not run."""
    values = tensor(made(loop, "alphas").input[0])
    array = onnx.numpy_helper.to_array(values).copy()
    array[-1] += 1e-6
    values.raw_data = array.tobytes()


def steps_for_shares(loop, tensor):
    made(loop, "shares").input[0] = made(loop, "alphas").input[0]


def wrong_start(loop, tensor):
    """0, 1, 4 in place of 0, 2, 4."""
    made(loop, "start").input[1] = made(loop, "start").input[0]


def wrong_sum(loop, tensor):
    made(loop, "sum").input[0] = made(loop, "sum").input[1]


def made(loop, name: str):
    return next(node for node in loop.attribute[0].g.node if node.output[0].endswith(f"/{name}"))


@pytest.mark.parametrize("fault", [None, fewer_turns, other_steps, steps_for_shares, wrong_start, wrong_sum])
def test_the_self_check_of_a_loop_that_it_stops_early(fault, tmp_path):
    """Four turns, of which it runs three."""
    path = tmp_path / "x.onnx"
    model, file = exported(path, IntegratedGradients(steps=8, chunk=2))
    (loop,) = (node for node in nodes(file.graph) if node.op_type == "Loop")
    if fault is not None:
        fault(loop, {tensor.name: tensor for tensor in file.graph.initializer}.__getitem__)
    onnx.save(file, path)
    program = Program(model, (SIZE,), plugin=False)
    if fault is None:
        assert check(program, path, None)["max_difference"]["integrated_gradients"] < 1e-4
    else:
        with pytest.raises(clipsight.ExportError):
            check(program, path, None)


class OfImages(nn.Module):
    """Convolutions of images, whose weights the loop reads through nodes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(
            torch.relu(self.conv(x.transpose(1, 2).flatten(0, 1))).mean((2, 3)).unflatten(0, (-1, 8)).mean(1)
        )


def test_the_self_check_of_a_loop_over_images(tmp_path):
    head = IntegratedGradients(steps=8, chunk=2)
    model = clipsight.explain(networks.seeded(OfImages), head, networks.clip(size=SIZE))
    assert clipsight.export(model, tmp_path / "x.onnx").self_check["clips"] == 3
    file = onnx.load(tmp_path / "x.onnx")
    assert any("/own/" in name for node in nodes(file.graph) for name in node.output)


def test_the_self_check_runs_a_loop_for_a_few_turns(tmp_path, monkeypatch):
    counts = []
    path = tmp_path / "x.onnx"
    model, _ = exported(path, IntegratedGradients(steps=40, chunk=2))
    again = SizedExplanation.again

    def counted(self, clip):
        counts.append(len(clip))
        return again(self, clip)

    monkeypatch.setattr(SizedExplanation, "again", counted)
    check(Program(model, (SIZE,), plugin=False), path, None)
    assert 0 < sum(counts) <= 4 * 3 * 4  # not 40 for each of two clips
