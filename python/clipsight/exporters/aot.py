"""AOTInductor (`.pt2`): the network compiled to machine code, for `clipsight.load` and LibTorch's package loader.

The archive holds one compiled model per clip size, named `size0`, `size1`, ... in the order of the manifest's sizes.
Where the maps are optional (the manifest has an input `explain`), `size0_without_maps`, ... stand beside them: the
network alone, for a batch of which no sample wants maps. A model takes the manifest's inputs in order, contiguous and
without `explain`, and gives its outputs in order, for any batch size. It does not check the shapes of its inputs:
whoever calls it does. The manifest is the extra file `clipsight.json`.

The code runs on the kind of device that it was compiled for; on x86-64 on every CPU with AVX2 (with a torch that lacks
the setting cpp.march, which 2.13 has, only on CPUs like the exporting one). Convolutions are oneDNN's, which uses what
the CPU has beyond that.
"""

from __future__ import annotations

import contextlib
import io
import platform
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..errors import first_line
from ..layouts import size_of
from ..manifest import LoadError, Manifest
from ..manifest_text import EXTRA_FILE
from ..staging import staging
from .check import ExportError
from .program import Program, nothing
from .quiet import quiet

KIND = "aot"
DEFAULT_PLUGIN = True
PLUGIN_LIBRARY = "clipsight_torch"
VERSIONS = ("torch",)
WITHOUT_MAPS = "_without_maps"
# Inductor compares shapes of unlike tensors when it looks for patterns, and takes an example's batch that equals the
# first axis of another (a layer of 2 channels) for a constant: so it is a number that is hardly one of channels.
EXAMPLE_BATCH = 11


class _Part(nn.Module):
    """What is compiled: tensors by position in, a tuple out; maps of zero length, where not wanted, drop the heads."""

    def __init__(self, whole: nn.Module, names: tuple[str, ...], maps: bool) -> None:
        super().__init__()
        self.whole, self.names, self.maps = whole, names, maps

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.whole(inputs[0], **dict(zip(self.names[1:], inputs[1:], strict=True)))
        logits, *maps = outputs if isinstance(outputs, tuple) else (outputs,)
        return logits, *(maps if self.maps else (m.new_zeros(nothing(m.shape)) for m in maps))


class Package:
    """Compiled models: the files of each by name, in a folder that goes when the package does."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {}
        self._stack = contextlib.ExitStack()
        self.folder = self._stack.enter_context(staging(Path(tempfile.gettempdir()) / "clipsight-aot"))
        weakref.finalize(self, self._stack.close)


def capture(program: Program) -> dict[str, ExportedProgram]:
    """The program once for each size, and where its maps are optional once more without them."""
    modules = {}
    for i, size in enumerate(program.sizes):
        names = (program.input_names[0], *program.module_names[1:])
        inputs = dict(zip(names, program.first_example(size, EXAMPLE_BATCH, seed=i), strict=True))
        for name in (f"size{i}", f"size{i}{WITHOUT_MAPS}")[: 1 + program.optional]:
            modules[name] = (program.whole(size), inputs)
    return _capture(modules)


def build(program: Program, captured: dict[str, ExportedProgram]) -> Package:
    """What `capture` gave, compiled."""
    return _compile(captured)


def convert(modules: dict[str, tuple[nn.Module, dict[str, Tensor]]]) -> Package:
    """Compiles modules by name, each with example inputs by name; the example's batch size must not be 1.

    A module takes its first input by position and the others by name.

    Raises:
        ExportError: no C++ compiler.
    """
    return _compile(_capture(modules))


def _capture(modules: dict[str, tuple[nn.Module, dict[str, Tensor]]]) -> dict[str, ExportedProgram]:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise ExportError(
            f"export: '.pt2' needs a C++ compiler such as g++, on the PATH or named by CXX, got none "
            f"({first_line(error)}); '.pt' and '.onnx' need no compiler"
        ) from error
    captured, free = {}, {"classes": (0, 1), "frames": (0, 2, 3)}
    for name, (module, inputs) in modules.items():
        part = _Part(module, tuple(inputs), maps=not name.endswith(WITHOUT_MAPS)).eval()
        shapes = tuple({axis: torch.export.Dim.AUTO for axis in free.get(name, (0,))} for name in inputs)
        with quiet(), torch.no_grad():
            captured[name] = torch.export.export(part, tuple(inputs.values()), dynamic_shapes=(shapes,))
    return captured


def _compile(captured: dict[str, ExportedProgram]) -> Package:
    package = Package()
    for name, program in captured.items():
        example, _ = program.example_inputs
        with quiet(), torch.no_grad():
            files = torch._inductor.aot_compile(
                program.module(check_guards=False), example, options=_options(package.folder / name, example[0])
            )
        # The sources are not needed to run, and they name folders of this machine.
        kept = (file for file in files if isinstance(file, str))
        package.files[name] = [file for file in kept if not file.endswith((".cpp", "kernel_metadata.json"))]
    return package


def save(package: Package, path: Path, manifest: Manifest) -> None:
    from torch.export.pt2_archive._package import package_pt2

    archive = io.BytesIO()  # torch's own writing to a file aborts the process where the disk is full
    package_pt2(archive, aoti_files=package.files, extra_files={EXTRA_FILE: manifest.to_json()})
    path.write_bytes(archive.getbuffer())


def open_models(path: Path, manifest: Manifest, device: str) -> Callable[..., list[Tensor]]:
    """A function of the file's inputs that runs the model which fits them.

    Raises:
        LoadError: the package was compiled for another device or CPU, or it is damaged.
    """
    loader = torch._C._aoti.AOTIModelPackageLoader
    index = int(device.partition(":")[2] or -1)
    names = [port.name for port in manifest.input_ports]
    models = {}
    for i in range(len(manifest.sizes)):
        for name in (f"size{i}", f"size{i}{WITHOUT_MAPS}")[: 1 + ("explain" in names)]:
            try:
                compiled = loader.load_metadata_from_package(str(path), name)
                _check_machine(path, compiled, device)
                models[name] = loader(str(path), name, False, 1, index)
            except LoadError:
                raise
            except RuntimeError as error:
                raise LoadError(
                    f"load: torch's package loader could not read '{path}', which was compiled by torch "
                    f"{manifest.built_with.get('torch', '?')}; here is torch {torch.__version__}: {first_line(error)}"
                ) from error

    def run(*inputs: Tensor) -> list[Tensor]:
        given = dict(zip(names, inputs, strict=True))
        wanted = given.pop("explain", None)
        name = f"size{_size_index(manifest, inputs[0])}"
        model = models[name if wanted is None or bool(wanted.any()) else name + WITHOUT_MAPS]
        return model.boxed_run([tensor.contiguous() for tensor in given.values()])

    return run


def _size_index(manifest: Manifest, clip: Tensor) -> int:
    if manifest.input.takes_frames:  # of any height and width: their number tells the size
        return [size[0] for size in manifest.sizes].index(clip.shape[1])
    return manifest.sizes.index(size_of(clip.shape, manifest.input.layout))


def _check_machine(path: Path, compiled: dict[str, str], device: str) -> None:
    """Compiled code is native code: what it asks of the machine is known before it crashes there."""
    wants = {
        "AOTI_DEVICE_KEY": (
            device.partition(":")[0],
            "load: device must be '{}', for which '{}' was compiled, got '{}'",
        ),
        "AOTI_MACHINE": (
            platform.machine(),
            "load: the CPU must be of the kind '{}', for which '{}' was compiled, got '{}'",
        ),
    }
    for key, (have, rule) in wants.items():
        if compiled.get(key, have) != have:
            raise LoadError(rule.format(compiled[key], path, have) + "; export it again, or use '.pt' or '.onnx'")
    missing = [isa for isa in compiled.get("AOTI_CPU_ISA", "").split() if not _cpu_has(isa)]
    if missing:
        raise LoadError(
            f"load: the CPU must have {', '.join(missing)}, for which '{path}' was compiled, got one without; export "
            "it on this machine, or use '.pt' or '.onnx'"
        )


def _cpu_has(isa: str) -> bool:
    known = {
        "AVX2": torch.cpu._is_avx2_supported,
        "AVX512": torch.cpu._is_avx512_supported,
        "AMX": torch.cpu._is_amx_tile_supported,
    }
    return known[isa]() if isa in known else True


def _options(folder: Path, clip: Tensor) -> dict:
    options = {
        "aot_inductor.package": True,
        "aot_inductor.output_path": str(folder),
        "aot_inductor.enable_line_tables": False,
        "freezing": True,  # batch norms folded into convolutions, weights in oneDNN's layout
    }
    if clip.device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        options |= {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
    known = torch._inductor.config.get_config_copy()
    return {name: value for name, value in options.items() if name in known}
