"""The Triton model repository: its config, read with Triton's own protobuf definition, against the file it is for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed: pip install 'tritonclient[grpc]'")
import onnxruntime
import torch
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import np_to_triton_dtype

import clipsight
import networks
from artifacts import HEADS
from clipsight import triton
from clipsight.manifest import LoadError

OPTIONS = {"frames": "uint8", "output": "uint8", "optional": True, "inputs": ("tau", "n_sigma")}
FILES = {
    "plain.onnx": {},
    "sizes.onnx": {"sizes": [(16, 48, 64)]},
    "options.onnx": OPTIONS,
    "plugin.onnx": {"plugin": True},
    "plugin_options.onnx": {"plugin": True, **OPTIONS},
    "plugin.pt": {"sizes": [(16, 48, 64)]},
    "plain_options.pt": {"plugin": False, **OPTIONS},
    "plugin_options.pt": OPTIONS,
}
TWICE = ("plugin_options.onnx", "plugin_options.pt")  # what two other files show
NAMES = [pytest.param(name, marks=[pytest.mark.full] * (name in TWICE)) for name in FILES]
WITH_CLASSES = ("options.onnx", "plain_options.pt", "plugin_options.pt")  # as an input


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def exported(artifact):
    def make(name: str) -> Path:
        classes = "input" if name in WITH_CLASSES else "top2" if "sizes" in FILES[name] else "predicted"
        return artifact("movers", HEADS, Path(name).suffix, classes, **FILES[name])

    return make


@pytest.fixture(scope="module")
def served(exported, folder):
    """(the file, its folder in the repository, its config)"""

    def serve(name: str) -> tuple[Path, Path, ModelConfig]:
        file = exported(name)
        model = folder / "models" / name.replace(".", "_")
        if not model.exists():
            assert triton.write_repository(file, folder / "models", name=model.name, max_batch_size=4) == model
        return file, model, text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())

    return serve


def shape_of(port) -> list[int]:
    """Of one sample as the model sees it."""
    return list(port.reshape.shape if port.HasField("reshape") else port.dims)


def triton_type(name: str) -> str:
    return "TYPE_" + np_to_triton_dtype(np.dtype(name))


def inputs_for(config: ModelConfig, batch: int, varying: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Requests as a client sends them, from the config alone, then reshaped as Triton does."""
    rng = np.random.default_rng(0)
    arrays = {}
    for port in config.input:
        lengths = iter(varying.get(port.name, ()))
        sent = [next(lengths) if length == -1 else length for length in port.dims]
        dtype = DataType.Name(port.data_type)
        if dtype == "TYPE_FP32":
            array = rng.normal(size=(batch, *sent)).astype(np.float32)
        elif dtype == "TYPE_UINT8":
            array = rng.integers(0, 256, size=(batch, *sent), dtype=np.uint8)
        elif dtype == "TYPE_INT64":
            array = rng.integers(0, 8, size=(batch, *sent), dtype=np.int64)
        else:
            assert dtype == "TYPE_BOOL"
            array = np.ones((batch, *sent), bool)
        if port.name == "n_sigma":
            array = np.abs(array)
        arrays[port.name] = array.reshape(batch, *port.reshape.shape) if port.HasField("reshape") else array
    return arrays


def check_outputs(config: ModelConfig, batch: int, outputs) -> None:
    assert len(outputs) == len(config.output)
    for port, array in zip(config.output, outputs, strict=True):
        assert DataType.Name(port.data_type) == triton_type(array.dtype)
        expected = [batch, *shape_of(port)]
        assert len(array.shape) == len(expected), port.name
        assert all(want in (-1, got) for want, got in zip(expected, array.shape, strict=True)), (port, array.shape)


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_common_fields(served, name):
    file, model, config = served(name)
    onnx = file.suffix == ".onnx"
    manifest = clipsight.load(file).manifest
    assert (config.name, config.max_batch_size) == (model.name, 4)
    assert config.platform == ("onnxruntime_onnx" if onnx else "pytorch_libtorch")
    assert config.HasField("dynamic_batching")
    assert (model / "1" / f"model{file.suffix}").read_bytes() == file.read_bytes()
    labels = {port.name: port.label_filename for port in config.output}
    assert labels == {n: "labels.txt" if n == "logits" else "" for n in manifest.output_names}
    assert tuple((model / "labels.txt").read_text().splitlines()) == manifest.labels
    libraries = sorted(path.name for path in model.glob("*.so"))
    if not manifest.plugin.required:
        assert libraries == []
    elif onnx:
        assert libraries == ["libclipsight_onnxruntime.so"]
    else:
        assert "libclipsight_torch.so" in libraries
    assert len(config.model_operations.op_library_filename) == (onnx and manifest.plugin.required)
    assert {p.name for p in model.iterdir()} == {"config.pbtxt", "labels.txt", "README.md", "1", *libraries}
    readme = (model / "README.md").read_text()
    for port in (*config.input, *config.output):
        assert f"`{port.name}` |" in readme


@pytest.mark.parametrize("name", [name for name in NAMES if name.values[0].endswith(".onnx")])
def test_onnx_config_is_the_sessions(served, name, monkeypatch):
    file, model, config = served(name)
    monkeypatch.chdir(model.parent)  # where the server is started: the library's path is relative to it
    options = onnxruntime.SessionOptions()
    libraries = config.model_operations.op_library_filename
    if libraries:
        with pytest.raises(Exception, match="clipsight"):
            onnxruntime.InferenceSession(str(model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    for library in libraries:
        assert not os.path.isabs(library)
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(str(model / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    assert [port.name for port in config.input] == [value.name for value in session.get_inputs()]
    assert [port.name for port in config.output] == [value.name for value in session.get_outputs()]
    types = {"float": "FP32", "uint8": "UINT8", "int64": "INT64", "bool": "BOOL"}
    for port, value in zip(config.input, session.get_inputs(), strict=True):
        assert DataType.Name(port.data_type) == "TYPE_" + types[re.fullmatch(r"tensor\((\w+)\)", value.type)[1]]
        assert len(shape_of(port)) == len(value.shape) - 1
        for ours, theirs in zip(shape_of(port), value.shape[1:], strict=True):
            assert ours == theirs or not isinstance(theirs, int)
        assert port.HasField("reshape") == (len(value.shape) == 1)
    for port, value in zip(config.output, session.get_outputs(), strict=True):  # here Triton wants the very same
        assert DataType.Name(port.data_type) == "TYPE_" + types[re.fullmatch(r"tensor\((\w+)\)", value.type)[1]]
        assert shape_of(port) == [n if isinstance(n, int) else -1 for n in value.shape[1:]]
    for batch, varying in runs(name):
        arrays = inputs_for(config, batch, varying)
        outputs = session.run([port.name for port in config.output], arrays)
        check_outputs(config, batch, outputs)
        compare(outputs, call(file, arrays))
        if "explain" in arrays:
            arrays["explain"][:] = False
            outputs = session.run(None, arrays)
            check_outputs(config, batch, outputs)
            assert outputs[1].size == 0


def runs(name: str) -> list[tuple[int, dict]]:
    """Batches and lengths of the axes that vary: every clip size of the file, or frames of two sizes."""
    if "options" in name:
        return [(1, {"frames": [72, 96], "classes": [1]}), (3, {"frames": [64, 80], "classes": [2]})]
    if "sizes" in FILES[name]:
        return [(1, {"clip": [64]}), (2, {"clip": [48]})]
    return [(1, {}), (3, {})]


def call(file: Path, arrays: dict) -> tuple:
    clip, *others = arrays.items()
    return clipsight.load(file)(clip[1], **dict(others))


def compare(outputs, expected) -> None:
    for one, other in zip(outputs, expected, strict=True):
        tolerance = 1 if one.dtype == np.uint8 else 1e-5
        assert np.abs(one.astype(np.float64) - other.astype(np.float64)).max() <= tolerance


AS_TRITON_DOES = """
import sys
import numpy as np, torch
model, *files = sys.argv[1:]
module = torch.jit.load(model)
assert "clipsight" not in sys.modules
names = [argument.name for argument in module.forward.schema.arguments[1:]]
for data in files:
    arrays = dict(np.load(data))
    assert sorted(names) == sorted(arrays), names  # Triton finds inputs by the names of the arguments
    with torch.inference_mode():
        outputs = module(*(torch.from_numpy(arrays[name]) for name in names))
    np.savez(data, *(output.numpy() for output in outputs))
"""


def start_line(model: Path) -> dict[str, str]:
    """The variables of the start line in the README, with torch's folder in place of the one in Triton's image."""
    (line,) = re.findall(
        r"^((?:\w+=\S+ )*)tritonserver --model-repository=\.$", (model / "README.md").read_text(), re.M
    )
    variables = dict(word.split("=", 1) for word in line.split())
    libraries = str(Path(torch.__file__).parent / "lib")
    known = {"/opt/tritonserver/backends/pytorch": libraries, "$PWD": str(model.parent), "$LD_LIBRARY_PATH": ""}
    for old, new in known.items():
        variables = {key: value.replace(old, new) for key, value in variables.items()}
    return variables


def run_torchscript(model: Path, requests: list[dict], tmp_path: Path, variables: dict) -> list[list[np.ndarray]]:
    files = [tmp_path / f"{i}.npz" for i in range(len(requests))]
    for data, arrays in zip(files, requests, strict=True):
        np.savez(data, **arrays)
    command = [sys.executable, "-c", AS_TRITON_DOES, str(model / "1" / "model.pt"), *map(str, files)]
    environment = os.environ | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=model.parent, check=False)
    assert done.returncode == 0, done.stderr
    return [list(np.load(data).values()) for data in files]


@pytest.mark.parametrize("name", [name for name in NAMES if name.values[0].endswith(".pt")])
def test_torchscript_config_fits_the_script_and_the_start_line_loads_it(served, name, tmp_path):
    file, model, config = served(name)
    variables = start_line(model)
    assert ("LD_PRELOAD" in variables) == name.startswith("plugin")
    requests = [inputs_for(config, batch, varying) for batch, varying in runs(name)]
    results = run_torchscript(model, requests, tmp_path, variables)
    for (batch, _), arrays, outputs in zip(runs(name), requests, results, strict=True):
        check_outputs(config, batch, outputs)
        compare(outputs, call(file, arrays))
    expected = clipsight.load(file).manifest.output_names
    assert tuple(port.name for port in config.output) == expected
    assert not any(re.search(r"__\d+$", n) for n in expected), "else Triton would read an index from it"
    if variables:
        with pytest.raises(AssertionError, match="clipsight"):
            run_torchscript(model, requests, tmp_path, {})


def test_varying_axes(served):
    _, _, config = served("options.onnx")
    dims = {port.name: list(port.dims) for port in (*config.input, *config.output)}
    assert dims["frames"] == [16, -1, -1, 3]
    assert dims["classes"] == [-1]
    assert dims["explain"] == dims["tau"] == dims["n_sigma"] == [1]
    assert dims["logits"] == [8]
    assert dims["saliency_tube"] == [-1] * 4
    for name, batchless, logits in (("sizes.onnx", [-1] * 4, [-1]), ("plugin.pt", [2, 16, -1, 64], [8])):
        _, _, config = served(name)
        dims = {port.name: list(port.dims) for port in (*config.input, *config.output)}
        assert dims["clip"] == [3, 16, -1, 64]
        assert (dims["saliency_tube"], dims["logits"]) == (batchless, logits), "of ONNX, what its session knows"


def test_a_wrong_config_is_seen(served):
    """Negative control of the checks above."""
    file, _, config = served("plain.onnx")
    arrays = inputs_for(config, 1, {})
    outputs = call(file, arrays)
    check_outputs(config, 1, outputs)
    config.output[1].dims[0] += 1
    with pytest.raises(AssertionError):
        check_outputs(config, 1, outputs)


def test_second_model_and_what_is_refused(exported, tmp_path):
    file = exported("plain.onnx")
    first = triton.write_repository(file, tmp_path / "models")
    second = triton.write_repository(file, tmp_path / "models", name="v2.small-model")
    assert [first.name, second.name] == [file.stem, "v2.small-model"]
    with pytest.raises(FileExistsError, match="the repository must not have the model yet"):
        triton.write_repository(file, tmp_path / "models")
    for name in ("", "a b", "../up", ".hidden", 'a"b'):
        with pytest.raises(ValueError, match="the model's name must consist of letters"):
            triton.write_repository(file, tmp_path / "models", name=name)
    with pytest.raises(ValueError, match="max_batch_size must be at least 1, got 0"):
        triton.write_repository(file, tmp_path / "models", name="x", max_batch_size=0)
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(LoadError, match=r"no\.onnx"):
        triton.write_repository(tmp_path / "no.onnx", tmp_path / "models")
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == sorted([file.stem, "v2.small-model"])


def test_missing_library_leaves_nothing(exported, tmp_path, monkeypatch):
    from clipsight import libraries

    def missing(name):
        raise LoadError(f"libraries: {name} is not there")

    file = exported("plugin.onnx")
    monkeypatch.setattr(libraries, "get_library_path", missing)
    with pytest.raises(LoadError, match="onnxruntime is not there"):
        triton.write_repository(file, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_label_is_one_line(tmp_path):
    labels = ["cat", "two\nlines", "\x1b[2J", "d", "a\u2028b"]
    explained = clipsight.explain(networks.seeded(networks.ModulePool), clipsight.SaliencyTube(), networks.clip())
    clipsight.export(explained, tmp_path / "x.pt", plugin=False, labels=labels)
    model = triton.write_repository(tmp_path / "x.pt", tmp_path / "models")
    lines = (model / "labels.txt").read_text().split("\n")
    assert lines == ["cat", r"two\nlines", r"\x1b[2J", "d", r"a\u2028b", ""]
