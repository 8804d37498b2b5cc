"""ONNX files whose head is one node of clipsight's custom ops, against the same head in standard ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import clipsight
import networks
from artifacts import ALL_OUTPUTS as HEADS
from artifacts import OTHER_SIZE
from clipsight import LoadError, SaliencyTube, SelectiveRelevance, explain, export, ops, reference
from clipsight.manifest import read_manifest
from helpers import run_python
from test_export import assert_agree

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from clipsight.exporters import onnx as onnx_format  # noqa: E402
from clipsight.exporters import onnx_plugin  # noqa: E402

try:
    LIBRARY = clipsight.get_library_path("onnxruntime")
except LoadError as error:
    pytest.skip(str(error), allow_module_level=True)

PREPROCESSING = clipsight.Preprocessing(frames=8, resize=36, crop=(32, 32))

# Knows only ONNX Runtime, and the library where one is given.
PROGRAM = """
import sys, numpy as np, onnxruntime
file, inputs, results, *libraries = sys.argv[1:]
options = onnxruntime.SessionOptions()
for library in libraries:
    options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
outputs = session.run(None, dict(np.load(inputs)))
assert not any(name in ("clipsight", "torch") for name in sys.modules)
np.savez(results, *outputs)
"""


def run_alone(file, folder, *libraries, **inputs) -> list[np.ndarray]:
    """The outputs of a file in a fresh process."""
    np.savez(folder / "inputs.npz", **{name: value.numpy() for name, value in inputs.items()})
    run_python(PROGRAM, file, folder / "inputs.npz", folder / "results.npz", *libraries)
    return list(np.load(folder / "results.npz").values())


def nodes(graph) -> list:
    """All nodes, those of branches too."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += nodes(attribute.g)
    return found


def custom(path) -> list[str]:
    return [node.op_type for node in nodes(onnx.load(path).graph) if node.domain == onnx_plugin.DOMAIN]


@pytest.fixture(scope="module")
def explained():
    return explain(networks.seeded(networks.ModulePool), HEADS, networks.clip())


@pytest.fixture(scope="module")
def files(artifact):
    return {
        name: artifact("ModulePool", HEADS, ".onnx", sizes=[OTHER_SIZE], plugin=plugin)
        for name, plugin in {"fused.onnx": True, "plain.onnx": False}.items()
    }


@pytest.mark.parametrize("batch, size", [(1, (8, 32, 32)), (3, OTHER_SIZE)])
def test_fused_and_plain_file_agree_in_fresh_processes(files, explained, tmp_path, batch, size):
    clip = networks.clip(batch, size, seed=17)
    fused = run_alone(files["fused.onnx"], tmp_path, LIBRARY, clip=clip)
    plain = run_alone(files["plain.onnx"], tmp_path, clip=clip)
    with torch.inference_mode():
        eager = explained(clip)
    assert_agree(explained.output_names, fused, plain)
    assert_agree(explained.output_names, fused, eager)


def test_manifest_names_the_library(files):
    fused, plain = (read_manifest(files[name]) for name in ("fused.onnx", "plain.onnx"))
    assert (fused.plugin.required, fused.plugin.library) == (True, onnx_plugin.LIBRARY)
    assert LIBRARY.name == f"lib{fused.plugin.library}.so"
    assert not plain.plugin.required
    assert custom(files["plain.onnx"]) == []
    assert custom(files["fused.onnx"]) == ["SelectiveTube"] * 2  # one for each size


def test_the_head_is_one_node_after_the_class_choice(tmp_path):
    heads = [SaliencyTube(), SelectiveRelevance(n_sigma=1.5, extras=("motion_share",))]
    explained = explain(networks.seeded(networks.ModulePool), heads, networks.clip())
    export(explained, tmp_path / "x.onnx", plugin=True, plain=tmp_path / "plain.onnx", precheck=False)
    model, plain = onnx.load(tmp_path / "x.onnx"), onnx.load(tmp_path / "plain.onnx")
    (head,) = (node for node in model.graph.node if node.domain == onnx_plugin.DOMAIN)
    assert head.op_type == "SelectiveTube"
    assert list(head.output) == ["saliency_tube", "motion", "motion_share"]
    options = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in head.attribute}
    assert (options["size"], options["n_sigma"], options["relu"]) == ([8, 32, 32], 1.5, 0)
    assert "threshold" not in options
    choice = sorted(node.op_type for node in model.graph.node if node is not head)
    for node in plain.graph.node:
        choice.remove(node.op_type)
    assert len(choice) <= 3, choice  # argmax and the rows that it takes
    assert [(entry.domain, entry.version) for entry in model.opset_import if entry.domain] == [("clipsight", 1)]
    onnx.checker.check_model(model)


OPTIONS = {
    "top2": ({"classes": "top2"}, {}),
    "fixed, uint8": ({"classes": [3, 1]}, {"output": "uint8"}),
    "classes, thresholds": ({"classes": "input"}, {"inputs": ("tau", "n_sigma"), "sizes": [OTHER_SIZE]}),
    "frames, optional": ({}, {"frames": "uint8", "preprocessing": PREPROCESSING, "optional": True}),
    "half": ({}, {"half": True}),
}


TWICE = set(OPTIONS) - {"top2"}  # test_export_options.py and test_openvino.py export these too, both ways


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] * (n in TWICE)) for n in OPTIONS])
def test_options_of_export(tmp_path, name):
    """Each file passes the export's own comparison with the eager model, and agrees with its twin of standard ops."""
    of_explain, of_export = OPTIONS[name]
    explained = explain(networks.seeded(networks.ModulePool), HEADS, networks.clip(), **of_explain)
    results = []
    for plugin in (True, False):
        path = tmp_path / f"plugin_{plugin}.onnx"
        manifest = export(explained, path, plugin=plugin, **of_export)
        assert set(custom(path)) == ({"SelectiveTube"} if plugin else set())
        loaded, generator = clipsight.load(path), np.random.default_rng(3)
        if manifest.options["frames"]:
            clip = generator.integers(0, 256, (2, 8, 40, 50, 3), np.uint8)
        else:
            clip = generator.standard_normal((2, 3, 8, 32, 32), np.float32)
        classes = np.array([[0, 4, 2], [1, 1, 3]]) if explained.classes_input else None
        given = {"tau": [0.05, -0.1], "n_sigma": [1.0, 3.0]} if of_export.get("inputs") else {}
        results.append([loaded(clip, classes, **given)])
        if manifest.options["optional"]:
            results[-1].append(loaded(clip, explain=False))
            assert results[-1][-1][1].shape == (2, 1, 0, 0, 0)
    for fused, plain in zip(*results, strict=True):
        for output, a, b in zip(explained.output_names, fused, plain, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), output
            bound = 1 if a.dtype.kind in "iu" else 2e-3 if "half" in name else 1e-4
            share = (2e-2 if "half" in name else 1e-3) * (output in ("motion", "static"))
            assert (np.abs(a.astype(np.float64) - b) > bound).sum() <= share * a.size, output


# ---- every op by itself ---------------------------------------------------------------------------------------------


class Calls(nn.Module):
    """One op on inputs of the graph: with its options, as its twin in standard ops, and with other options."""

    def __init__(self, op: str) -> None:
        super().__init__()
        options = dict(CASES)[op]
        functions = [getattr(module, op) for module in (ops, reference, ops)]
        self.calls = list(zip(functions, (options, options, options | OTHER[op]), strict=True))

    def forward(self, tensor, weight=None):
        inputs = [x for x in (tensor, weight) if x is not None]
        results = [function(*inputs, **options) for function, options in self.calls]
        return tuple(x for result in results for x in (result if isinstance(result, tuple) else (result,)))


SIZE = (6, 14, 12)
CASES = [
    ("channel_reduce", {"threshold": 0.1}),
    ("spline_upsample", {"size": SIZE, "order": 1}),
    ("sobel_temporal", {"padding": "zeros"}),
    ("selective_relevance", {"n_sigma": 1.0, "padding": "zeros", "sign": "falling", "prescale": True}),
    ("saliency_tube", {"size": SIZE, "threshold": -0.5, "relu": True, "normalize": "frame", "dtype": "float16"}),
    ("selective_tube", {"size": SIZE, "n_sigma": 1.0, "sign": "rising", "sigma_of": "abs", "normalize": "none"}),
]
OTHER = {  # an option that changes the numbers
    "channel_reduce": {"threshold": None},
    "spline_upsample": {"order": 3},
    "sobel_temporal": {"padding": "replicate"},
    "selective_relevance": {"n_sigma": 2.0},
    "saliency_tube": {"relu": False},
    "selective_tube": {"n_sigma": 2.0},
}


@pytest.mark.parametrize("op", dict(CASES))
def test_node_gives_the_numbers_of_its_twin_in_standard_ops(op, tmp_path):
    torch.manual_seed(0)
    tube = op in ("channel_reduce", "saliency_tube", "selective_tube")
    inputs = (torch.randn(2, 6, 3, 4, 5), torch.randn(2, 3, 6)) if tube else (torch.randn(2, 3, 5, 7, 6),)
    names, calls = ["tensor", "weight"][: len(inputs)], Calls(op)
    with torch.inference_mode():
        outputs = [f"output{i}" for i in range(len(calls(*inputs)))]
    model = onnx_format.convert(calls, inputs, outputs, names, onnx_plugin.translation_table())
    (tmp_path / "op.onnx").write_bytes(model.SerializeToString())
    assert len(custom(tmp_path / "op.onnx")) == 2
    more = [torch.cat((x, x[:1] * 0.5)).numpy() for x in inputs]  # another batch than the exporter saw
    results = clipsight.onnx_session(tmp_path / "op.onnx").run(None, dict(zip(names, more, strict=True)))
    each = len(results) // 3
    node, twin, other = (results[i * each : (i + 1) * each] for i in range(3))

    def different(a, b) -> float:
        """Share of the values that differ."""
        differences = [np.abs(x.astype(np.float64) - y) > 2e-3 * np.abs(y).max() for x, y in zip(a, b, strict=True)]
        assert all((x.shape, x.dtype) == (y.shape, y.dtype) for x, y in zip(a, b, strict=True))
        return max(d.mean() for d in differences)

    assert different(node, twin) <= (1e-3 if op.startswith("selective") else 0)
    assert different(other, twin) > 1e-2


# ---- without the library --------------------------------------------------------------------------------------------


def test_opening_without_the_library_says_what_to_do(files, tmp_path):
    code = """
import os, sys
os.environ["CLIPSIGHT_LIBRARY_DIR"] = sys.argv[2]
import clipsight
for opening in (clipsight.load, clipsight.onnx_session):
    try:
        opening(sys.argv[1])
    except clipsight.runtime.LoadError as error:
        print(error)
"""
    code = code.replace("import clipsight\n", "import clipsight, clipsight.runtime\n")
    messages = run_python(code, files["fused.onnx"], tmp_path).splitlines()
    assert len(messages) == 2
    for message in messages:
        assert str(files["fused.onnx"]) in message
        assert f"{tmp_path / LIBRARY.name} must exist" in message
        assert "install" in message
        assert "not a registered function" not in message


def test_file_of_a_newer_clipsight_is_refused(files, tmp_path):
    model = onnx.load(files["fused.onnx"])
    (entry,) = model.metadata_props
    entry.value = entry.value.replace(f'"minimum_version": "{clipsight.__version__}"', '"minimum_version": "999.0.0"')
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(LoadError, match=r"needs clipsight 999\.0\.0 or newer for its ops"):
        clipsight.load(tmp_path / "newer.onnx")


def test_file_runs_without_torch(files, tmp_path):
    clip = networks.clip(2, seed=4)
    np.save(tmp_path / "clip.npy", clip.numpy())
    code = (
        "import sys, numpy as np, clipsight; outputs = clipsight.load(sys.argv[1])(np.load(sys.argv[2])); "
        "print('torch' in sys.modules, outputs[1].shape)"
    )
    assert run_python(code, files["fused.onnx"], tmp_path / "clip.npy").split("\n")[0] == "False (2, 1, 8, 32, 32)"
