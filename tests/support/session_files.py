"""Files for the tests of the C and C++ sessions: a good one, and one for each thing that can be wrong with it."""

from __future__ import annotations

import ctypes.util
import json
import re
import zipfile
from pathlib import Path


def with_manifest(good: Path, path: Path, **changes) -> Path:
    """A copy of an ONNX file whose manifest has other values, or lacks those that are `...`.

    `manifest=None` takes it out, a string replaces it.
    """
    import onnx

    model = onnx.load(good)
    (entry,) = model.metadata_props
    values = json.loads(entry.value)
    for name, value in changes.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    values = {name: value for name, value in values.items() if value is not ...}
    entry.value = json.dumps(values)
    if "manifest" in changes:
        entry.value = changes["manifest"] or ""
        entry.key = entry.key if changes["manifest"] is not None else "other"
    onnx.save(model, path)
    return path


def _archive(path: Path, text: str | None, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", bytes(100))
        if text is not None:
            archive.writestr("x/extra/clipsight.json", text)
    return path


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def bad_files(good: Path, folder: Path) -> dict[str, tuple[Path, str, str]]:
    """By name: a file, the path of the plug-in to open it with (or ""), and a pattern of the message that is due."""
    import onnx

    data = good.read_bytes()
    manifest = json.loads(onnx.load(good).metadata_props[0].value)
    archive = _archive(folder / "good.pt", json.dumps(manifest | {"kind": "torchscript"})).read_bytes()
    damaged = onnx.load(good)
    damaged.graph.node[0].op_type = "NoSuchOp"
    onnx.save(damaged, folder / "damaged.onnx")
    needs = {"required": True, "library": "clipsight_onnxruntime"}
    newer = with_manifest(good, folder / "newer.onnx", format_version=99, clipsight_version="77.0")
    other = [output | {"dtype": "uint8"} for output in manifest["outputs"]]
    wrong_library = ctypes.util.find_library("z") or "libc.so.6"
    wrong_library = next(Path("/usr/lib").rglob(wrong_library), Path("/lib/x86_64-linux-gnu") / wrong_library)

    def changed(name: str, **changes) -> Path:
        return with_manifest(good, folder / f"{name}.onnx", **changes)

    whole = r"must be a whole file that clipsight.export wrote, got something else or a damaged one"
    files = {
        "missing": (folder / "none.onnx", r"path must name an exported file, got .*none\.onnx': No such file"),
        "folder": (folder, r"path must name an exported file, got .*directory"),
        "empty": (_bytes(folder / "empty.onnx", b""), f"{whole}: the file is empty"),
        "other bytes": (_bytes(folder / "bytes.onnx", b"\xff" * 64), whole),
        "truncated": (_bytes(folder / "half.onnx", data[: len(data) // 2]), f"{whole}: a field of .* past the end"),
        "truncated archive": (_bytes(folder / "half.pt", archive[:-60]), f"{whole}: it has no directory"),
        "changed directory": (
            _bytes(folder / "flip.pt", archive.replace(b"PK\1\2", b"PK\1\3")),
            f"{whole}: its directory is broken",
        ),
        "changed text": (
            _bytes(folder / "flip2.pt", archive.replace(b"ModulePool", b"ModulePoll")),
            f"{whole}: its manifest has a wrong checksum",
        ),
        "compressed": (
            _archive(folder / "deflated.pt", json.dumps(manifest), zipfile.ZIP_DEFLATED),
            f"{whole}.*stored",
        ),
        "no manifest": (
            changed("bare", manifest=None),
            f"{whole}: a model with no clipsight manifest",
        ),
        "no manifest in archive": (
            _archive(folder / "bare.pt", None),
            "an archive with no clipsight manifest",
        ),
        "newer": (
            newer,
            r"format_version must be at most \d+, got 99 \(written by clipsight 77\.0\); upgrade clipsight",
        ),
        "no JSON": (
            changed("text", manifest="{"),
            r"manifest of .* must be one that clipsight wrote: JSON must have '\"'",
        ),
        "no fields": (
            changed("fields", manifest="{}"),
            "wrote: the manifest must have the member format_version, got",
        ),
        "deep JSON": (changed("deep", manifest="[" * 100000), "at most 64 levels"),
        "other kind": (
            changed("kind", kind="tensorrt"),
            "kind must be one of torchscript, onnx, aot, got 'tensorrt'",
        ),
        "hidden code": (
            _bytes(folder / "harmless.onnx", archive),
            "must be of the kind 'onnx' by its suffix '.onnx', got 'torchscript'; a file that may run code",
        ),
        "code of no suffix": (
            _bytes(folder / "harmless", archive),
            "must be of the kind 'onnx' by a suffix that no export has, got 'torchscript'",
        ),
        "data under the suffix of code": (
            _bytes(folder / "x.pt2", data),
            "kind 'aot' by its suffix '.pt2', got 'onnx'",
        ),
        "torch": (folder / "good.pt", "got 'torchscript'; link the CMake target clipsight::torch"),
        "a session entry that writes": (
            changed("entry", session={"session.collect_node_memory_stats_to_file": str(folder / "written")}),
            r"session must have no member but session\.disable_prepacking, got 'session\.collect_node_memory_stats",
        ),
        "another value of a session entry": (
            changed("value", session={"session.disable_prepacking": "0"}),
            r"session\.disable_prepacking must be one of 1, got '0'",
        ),
        "a library of another folder": (
            changed("traversal", plugin=needs | {"library": f"/../../../../../../../../{folder}/evil"}),
            r"plugin\.library must be one of clipsight_torch, clipsight_onnxruntime, got '/[.]",
        ),
        "a library of another name": (
            changed("name", plugin=needs | {"library": "c"}),
            r"plugin\.library must be one of clipsight_torch, clipsight_onnxruntime, got 'c'",
        ),
        "damaged graph": (folder / "damaged.onnx", r"ONNX Runtime could not read .*NoSuchOp"),
        "other inputs": (changed("inputs", input={"dtype": "float64"}), "must have the inputs of its manifest"),
        "other outputs": (changed("outputs", outputs=other), "must have the outputs of its manifest"),
        "newer library": (
            changed("library", plugin=needs | {"minimum_version": "99.0.0"}),
            r"the file needs clipsight 99\.0\.0 or newer for its ops, got [\d.]+; upgrade",
        ),
    }
    result = {name: (path, "", message) for name, (path, message) in files.items()}
    plugged = changed("plugged", plugin=needs)
    result["missing library"] = (
        plugged,
        str(folder / "libnone.so"),
        r"calls ops of libclipsight_onnxruntime\.so, which must lie beside .* got no file .*libnone\.so",
    )
    result["wrong library"] = (plugged, str(wrong_library), "RegisterCustomOps")
    return result


def assert_message(message: str, pattern: str) -> None:
    assert re.search(pattern, message, re.DOTALL), f"{message!r} does not match {pattern!r}"
