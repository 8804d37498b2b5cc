"""`load`: any exported file as the same callable. An ONNX file runs without torch."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import __version__
from .errors import first_line
from .layouts import in_words, size_of
from .manifest import FORMATS, LoadError, Manifest, OptionInput, check_kind, read_manifest
from .onnx_runtime import onnx_session, session_options

__all__ = ["LoadError", "Loaded", "load"]


def load(path: str | os.PathLike, device: str = "cpu", threads: int | None = None, kind: str | None = None) -> Loaded:
    """Loads a file that `clipsight.export` wrote.

    An ONNX model is data. A TorchScript archive and a `.pt2` package are code, which runs on this machine with all that
    you may do there: open only those that you trust (SECURITY.md).

    Args:
        path: an ONNX model (`.onnx`), a TorchScript archive (`.pt`) or a compiled package (`.pt2`).
        device: `"cpu"`, or `"cuda"` where torch or ONNX Runtime has it.
        threads: threads of one call; by default the runtime's own choice.
        kind: `"onnx"`, `"torchscript"` or `"aot"`, for a file whose suffix does not say it.

    Raises:
        FileNotFoundError: there is no such file.
        LoadError: the file is damaged, not one of clipsight's, not of the kind that its suffix says, or newer than this
            clipsight; or the native library, the runtime or the device that it needs is missing.
    """
    if kind is not None and kind not in FORMATS.values():
        raise ValueError(f"load: kind must be one of {list(FORMATS.values())}, got {kind!r}")
    manifest = read_manifest(path)
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise ValueError(f"load: device must be 'cpu', 'cuda' or 'cuda:<number>', got {device!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"load: threads must be at least 1, got {threads}")
    check_kind("load", path, manifest.kind, kind)
    run = _RUNTIMES[manifest.kind](Path(path), manifest, device, threads)
    return Loaded(manifest, run, (os.path.abspath(path), device, threads, manifest.kind))


class Loaded:
    """An exported file, ready to run.

    NumPy arrays in, NumPy arrays out; torch tensors in, torch tensors out. A call returns a tuple in the order of
    `output_names`. A pickle or a copy of it opens the file again.

    Attributes:
        manifest: what the file says about itself.
        output_names: names of the returned arrays.
    """

    def __init__(self, manifest: Manifest, run, opened: tuple) -> None:
        self.manifest = manifest
        self.output_names = manifest.output_names
        self._run, self._opened = run, opened

    def __reduce__(self):
        return load, self._opened

    def __call__(self, clip, classes=None, *, explain=None, tau=None, n_sigma=None) -> tuple:
        """Runs the file on a batch.

        Args:
            clip: `[N, 3, T, H, W]`, or its axes in the order of the manifest's `input.layout`; or uint8 frames
                `[N, T, H, W, 3]` of any H and W where the file takes those.
            classes: int64 `[N, M]`, for a file that was explained with `classes="input"`.
            explain: whether maps are wanted; where no sample of the batch wants them they have zero length.
            tau: weights below it count as zero.
            n_sigma: threshold of the motion mask in standard deviations.

        The last three are a number or one per sample `[N]`, for files that have them as an input; by default what the
        manifest names.

        Raises:
            ValueError, TypeError: an input does not fit the manifest.
            LoadError: the runtime fails: the file is damaged, or asks for more memory than there is.
        """
        self._check_clip(clip)
        self._check_classes(clip, classes)
        given = {"explain": explain, "tau": tau, "n_sigma": n_sigma}
        wanted = {option.name: option for option in self.manifest.option_inputs}
        for name, value in given.items():
            if value is not None and name not in wanted:
                raise ValueError(f"load: {name} must not be given: the file was exported without it as an input")
        options = (_option(option, given.get(name), clip) for name, option in wanted.items())
        inputs = (clip, *(() if classes is None else (classes,)), *options)
        try:
            return self._run(*inputs)
        except Exception as error:  # of a runtime, whose exceptions have no common base
            raise LoadError(
                f"load: the file must run on inputs that fit its manifest, got: {first_line(error)}"
            ) from error

    def _check_clip(self, clip) -> None:
        want = self.manifest.input
        name, axis = want.name, want.layout.index("C")
        if not _is_array(clip):
            raise TypeError(f"load: {name} must be a NumPy array or torch tensor, got {type(clip).__name__}")
        shape = tuple(clip.shape)
        if want.takes_frames:
            allowed = " or ".join(f"[N, {t}, H, W, {want.channels}]" for t in dict.fromkeys(s[0] for s in want.sizes))
            fits = len(shape) == 5 and shape[1] in {s[0] for s in want.sizes} and min(shape[2:]) > 0
        else:
            allowed = " or ".join(in_words(want.channels, size, want.layout) for size in want.sizes)
            fits = len(shape) == 5 and size_of(shape, want.layout) in want.sizes
        if not fits or shape[axis] != want.channels:
            hint = "; export with sizes= for other clip sizes" if len(shape) == 5 and not fits else ""
            raise ValueError(f"load: {name} must have shape {allowed}, got {list(shape)}{hint}")
        if shape[0] == 0:
            raise ValueError(f"load: {name} must have at least one sample, got shape {list(shape)}")
        if _dtype(clip) != want.dtype:
            raise TypeError(f"load: {name} must be {want.dtype}, got {_dtype(clip)}")
        if want.takes_frames:
            self.manifest.preprocessing.resized(shape[2:4])

    def _check_classes(self, clip, classes) -> None:
        want = self.manifest.classes_input
        if want is None:
            if classes is not None:
                raise ValueError(
                    f"load: classes must not be given: the file chooses them itself, classes={self.manifest.classes!r}"
                )
            return
        if classes is None:
            raise ValueError("load: classes must be given, int64 [N, M]: the file was exported with classes='input'")
        if not _is_array(classes) or _is_torch(classes) != _is_torch(clip):
            raise TypeError(f"load: classes must be of the clip's kind, {type(clip)}, got {type(classes)}")
        if _dtype(classes) != want.dtype:
            raise TypeError(f"load: classes must be {want.dtype}, got {_dtype(classes)}")
        shape = tuple(classes.shape)
        if len(shape) != 2 or shape[0] != clip.shape[0] or shape[1] == 0:
            raise ValueError(f"load: classes must have shape [N, M] = [{clip.shape[0]}, 1 or more], got {list(shape)}")
        low, high = int(classes.min()), int(classes.max())
        if low < 0 or high >= want.num_classes:
            raise ValueError(f"load: classes must lie in 0..{want.num_classes - 1}, got {low}..{high}")


class _TorchScript:
    """`torch.jit.load`, under inference mode; the native library is loaded first where the file needs it."""

    def __init__(self, path: Path, manifest: Manifest, device: str, threads: int | None) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise LoadError(f"load: device must be one that torch has, got {device!r}, but torch finds no CUDA device")
        if manifest.plugin.required:
            _load_plugin(manifest)
        self.threads, self.device, self.torch = threads, device, torch
        self.module = self._open(path, manifest)

    def _open(self, path: Path, manifest: Manifest):
        from .exporters.torchscript import quiet

        try:
            with quiet():
                return self.torch.jit.load(str(path), map_location=self.device).eval()
        except Exception as error:  # of damaged text it is a UnicodeDecodeError
            raise LoadError(f"load: torch.jit.load could not read '{path}': {first_line(error)}") from error

    def __call__(self, *inputs) -> tuple:
        torch = self.torch
        numpy = isinstance(inputs[0], np.ndarray)
        with torch.inference_mode(), self._threads():
            tensors = [torch.from_numpy(np.require(i, requirements="CAW")) if numpy else i for i in inputs]
            results = self.module(*(tensor.to(self.device) for tensor in tensors))
        return tuple(r.cpu().numpy() for r in results) if numpy else tuple(results)

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        if self.threads is None:
            yield
            return
        before = self.torch.get_num_threads()
        self.torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            self.torch.set_num_threads(before)


class _Aot(_TorchScript):
    """The compiled models of a `.pt2` package; `exporters/aot.py` says which there are."""

    def _open(self, path: Path, manifest: Manifest):
        from .exporters.aot import open_models

        return open_models(path, manifest, self.device)


class _Onnx:
    """An ONNX Runtime session."""

    def __init__(self, path: Path, manifest: Manifest, device: str, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise LoadError(f"load: '.onnx' needs the extra 'onnx': pip install 'clipsight[onnx]' ({error})") from error
        onnxruntime.set_default_logger_severity(3)  # errors only: its warnings are notes on graph optimisation
        options = session_options(path)
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = _providers(onnxruntime, device)
        if manifest.plugin.required:
            _check_version(manifest)
            self.session = onnx_session(path, providers, options=options)
        else:
            try:
                self.session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
            except Exception as error:  # ONNX Runtime's own exception types have no common base
                raise LoadError(f"load: ONNX Runtime could not read '{path}': {first_line(error)}") from error
        if device != "cpu" and self.session.get_providers()[0] != "CUDAExecutionProvider":
            raise LoadError(
                f"load: device must be one that works here, got {device!r}: ONNX Runtime could not start CUDA"
            )
        self.names = [port.name for port in manifest.input_ports]
        self.outputs = list(manifest.output_names)
        _check_ports(path, "inputs", manifest.input_ports, self.session.get_inputs())
        _check_ports(path, "outputs", manifest.outputs, self.session.get_outputs())

    def __call__(self, *inputs) -> tuple:
        if isinstance(inputs[0], np.ndarray):
            arrays = [np.require(array, requirements="CA") for array in inputs]
            return tuple(self.session.run(self.outputs, dict(zip(self.names, arrays, strict=True))))
        import torch

        arrays = [tensor.detach().cpu().numpy() for tensor in inputs]
        results = self.session.run(self.outputs, dict(zip(self.names, arrays, strict=True)))
        return tuple(torch.from_numpy(result).to(inputs[0].device) for result in results)


def _check_ports(path: Path, what: str, ports, found) -> None:
    """The graph must be the one that the manifest describes: arrays are bound by the manifest's names and types."""
    types = {"float32": "float", "float64": "double"}
    expected = {port.name: f"tensor({types.get(port.dtype, port.dtype)})" for port in ports}
    if {value.name: value.type for value in found} != expected:
        raise LoadError(f"load: '{path}' must have the {what} of its manifest, got others; export it again")


_RUNTIMES = {"torchscript": _TorchScript, "aot": _Aot, "onnx": _Onnx}


def _providers(onnxruntime, device: str) -> list:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    available = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise LoadError(
            f"load: device must be one that ONNX Runtime has, got {device!r}; its providers are {available}"
        )
    index = int(device.partition(":")[2] or 0)
    return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]


def _check_version(manifest: Manifest) -> None:
    need = manifest.plugin.minimum_version
    if _number(__version__) < _number(need):
        raise LoadError(
            f"load: the file needs clipsight {need} or newer for its ops, got {__version__}; upgrade clipsight"
        )


def _load_plugin(manifest: Manifest) -> None:
    _check_version(manifest)
    from . import _library

    if _library.CPU_ERRORS:
        raise LoadError(
            f"load: the file calls ops of the library {_library.CPU_LIBRARY.name}, which must be loaded, got: "
            f"{'; '.join(_library.CPU_ERRORS)}. {_library.REBUILD}; or export with plugin=False"
        )


def _option(option: OptionInput, value, like):
    """One value per sample of the batch, of the clip's kind."""
    batch, dtype = like.shape[0], np.dtype(option.dtype)
    if _is_torch(value):
        value = value.detach().cpu().numpy()
    default = option.default if dtype.kind == "b" else float(option.default)
    values = np.asarray(default if value is None else value)
    if values.shape not in ((), (1,), (batch,)):
        raise ValueError(f"load: {option.name} must be a number or have shape [{batch}], got {list(values.shape)}")
    if values.dtype.kind not in ("b" if dtype.kind == "b" else "iuf"):
        raise TypeError(f"load: {option.name} must hold {dtype} values, got {values.dtype}")
    if np.isnan(values).any() or (option.name == "n_sigma" and (values < 0).any()):
        rule = "a number, at least 0" if option.name == "n_sigma" else "a number"
        raise ValueError(f"load: {option.name} must be {rule}, got {values}")
    values = np.array(np.broadcast_to(values, (batch,)), dtype)
    return sys.modules["torch"].from_numpy(values) if _is_torch(like) else values


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _is_torch(value) -> bool:
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def _is_array(value) -> bool:
    return isinstance(value, np.ndarray) or _is_torch(value)


def _dtype(array) -> str:
    return str(array.dtype).removeprefix("torch.")
