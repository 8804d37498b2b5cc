"""Files of strangers: what is opened under the name of data is data, and it asks nothing of the machine."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

import clipsight
import networks
from artifacts import HEADS
from clipsight import load, triton
from clipsight.manifest import LoadError, read_manifest
from session_files import with_manifest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def files(artifact):
    return {
        "torchscript": artifact("ModulePool", HEADS, ".pt", plugin=False),
        "onnx": artifact("ModulePool", HEADS, ".onnx"),
    }


def renamed(source, target):
    target.write_bytes(source.read_bytes())
    return target


def test_code_under_the_name_of_data_is_not_opened(files, tmp_path):
    for name in ("harmless.onnx", "harmless.ONNX", "harmless.pt2", "harmless.model", "harmless"):
        with pytest.raises(
            LoadError, match=r"must be of the kind '(onnx|aot)' by .*, got 'torchscript'; .* may run code"
        ):
            load(renamed(files["torchscript"], tmp_path / name))
    compiled = tmp_path / "harmless.onnx"
    with zipfile.ZipFile(compiled, "w") as archive:
        text = read_manifest(files["torchscript"]).to_json().replace('"kind": "torchscript"', '"kind": "aot"')
        archive.writestr("x/extra/clipsight.json", text)
    with pytest.raises(LoadError, match=r"must be of the kind 'onnx' by its suffix '\.onnx', got 'aot'"):
        load(compiled)


def test_code_under_the_name_of_data_is_not_served(files, tmp_path):
    harmless = renamed(files["torchscript"], tmp_path / "harmless.onnx")
    with pytest.raises(LoadError, match=r"triton: .* must be of the kind 'onnx' by its suffix .*, got 'torchscript'"):
        triton.write_repository(harmless, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_data_under_the_name_of_code_is_not_opened_either(files, tmp_path):
    with pytest.raises(LoadError, match=r"must be of the kind 'torchscript' by its suffix '\.pt', got 'onnx'"):
        load(renamed(files["onnx"], tmp_path / "x.pt"))


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_the_kind_may_be_stated(files, tmp_path, kind):
    file = renamed(files[kind], tmp_path / "x.model")
    clip = networks.clip(2).numpy()
    for one, other in zip(load(file, kind=kind)(clip), load(files[kind])(clip), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(LoadError, match=f"must be of the kind 'aot' by kind=, got '{kind}'"):
        load(file, kind="aot")
    with pytest.raises(ValueError, match=r"kind must be one of \['torchscript', 'onnx', 'aot'\], got 'zip'"):
        load(file, kind="zip")
    if kind == "onnx":  # data needs no word
        load(file)


ENTRIES = {
    "session.collect_node_memory_stats_to_file": "written.csv",
    "session.save_external_prepacked_constant_initializers": "1",
    "ep.context_file_path": "context.onnx",
    "session.disable_prepacking": "0",
    "": "1",
}


@pytest.mark.parametrize("key", ENTRIES)
def test_entries_of_a_session_are_those_that_export_writes(files, tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    hostile = with_manifest(files["onnx"], tmp_path / "x.onnx", session={key: ENTRIES[key]})
    with pytest.raises(LoadError, match=r"manifest's session(\.session\.disable_prepacking)? must .*, got"):
        load(hostile)
    session = clipsight.onnx_session(hostile)  # of any ONNX model: the entries are not heeded
    session.run(None, {"clip": networks.clip().numpy()})
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


@pytest.mark.parametrize("library", ["/../../tmp/evil", "../clipsight_torch", "c", "", "clipsight_torch.so", None, 3])
def test_a_plugin_is_one_of_ours(files, tmp_path, library):
    plugin = {"required": True, "library": library, "minimum_version": ""}
    with pytest.raises(LoadError, match=r"manifest's plugin\.library must be"):
        load(with_manifest(files["onnx"], tmp_path / "x.onnx", plugin=plugin))


def test_external_data_stays_in_its_folder(files, tmp_path):
    """ONNX Runtime's own rule, on which SECURITY.md relies."""
    (tmp_path / "models").mkdir()
    model = onnx.load(files["onnx"])
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (tmp_path / "models" / "beside.bin").write_bytes(weight.raw_data)
    (tmp_path / "secret.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    path, clip = tmp_path / "models" / "x.onnx", networks.clip().numpy()
    for location, opens in (("beside.bin", True), ("../secret.bin", False), (str(tmp_path / "secret.bin"), False)):
        del weight.external_data[:]
        weight.external_data.add(key="location", value=location)
        path.write_bytes(model.SerializeToString())
        if opens:
            for one, other in zip(load(path)(clip), load(files["onnx"])(clip), strict=True):
                np.testing.assert_array_equal(one, other)
        else:
            with pytest.raises(LoadError, match="ONNX Runtime could not read"):
                load(path)
