"""Quantise an exported `.onnx` file to int8 with ONNX Runtime's static quantisation: the network only, not the head.

    python examples/quantise_int8.py movers.onnx movers_int8.onnx              # calibrated on moving shapes
    python examples/quantise_int8.py r3d_18.onnx r3d_18_int8.onnx *.mp4        # on videos of the network's own kind

Convolutions and matrix products of the network become int8, between QuantizeLinear and DequantizeLinear nodes; every
node that the logits do not need, that is the head, stays in float. The manifest stays in the file. Prints the error of
logits and maps on clips that the calibration did not see.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import clipsight
from clipsight.exporters.onnx_graph import network_and_head
from clipsight.manifest import Manifest, read_manifest
from clipsight.synthetic import moving_shapes

QUANTISED = ("Conv", "Gemm", "MatMul")


class Clips(CalibrationDataReader):
    """What the calibration reads: one input at a time, `None` at the end."""

    def __init__(self, clips: list[np.ndarray]) -> None:
        self.clips = iter(clips)

    def get_next(self) -> dict[str, np.ndarray] | None:
        clip = next(self.clips, None)
        return None if clip is None else {"clip": clip}


def some_clips(manifest: Manifest, videos: list[Path], seed: int) -> Iterator[np.ndarray]:
    """float32 `[1, 3, T, H, W]`, preprocessed as the network wants: windows of the videos, or moving shapes."""
    from clipsight.video import VideoReader
    from clipsight.windows import Geometry, sliding_windows, to_clip

    preprocessing = manifest.preprocessing
    for video in videos:
        yield from (window.clip for window in sliding_windows(VideoReader(video), preprocessing, loop=True))
    for i in itertools.count(seed) if not videos else ():
        frames = moving_shapes(1, i, frames=manifest.size[0], size=max(manifest.size[1:])).frames[0]
        geometry = Geometry.of(preprocessing, frames.shape[1:3])
        yield to_clip(map(geometry.crop_frame, frames), preprocessing)


def quantise(source: Path, target: Path, clips: list[np.ndarray]) -> None:
    model = onnx.load(source)
    _, head = network_and_head(model.graph)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    logging.getLogger().setLevel(logging.ERROR)  # it asks for a pre-processing that drops the manifest
    quantize_static(
        model,
        target,
        Clips(clips),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTISED),
        nodes_to_exclude=[node.name for node in head],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    model = onnx.load(target)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, target)


def errors(source: Path, target: Path, clips: list[np.ndarray]) -> dict[str, float]:
    """Top-1 agreement, and the mean difference of logits and maps as a share of the largest value.

    Maps are compared where both files name the same class; only there do they explain the same.
    """
    exact, rounded = clipsight.load(source), clipsight.load(target)
    pairs = [(exact(clip), rounded(clip)) for clip in clips]
    same = [a[0].argmax() == b[0].argmax() for a, b in pairs]
    figures = {"top-1 agreement": float(np.mean(same))}
    for i, name in enumerate(exact.output_names):
        chosen = [(a[i], b[i]) for (a, b), agree in zip(pairs, same, strict=True) if agree or name == "logits"]
        if chosen:
            a, b = (np.concatenate(arrays).astype(np.float64) for arrays in zip(*chosen, strict=True))
            figures[name] = float(np.abs(a - b).mean() / max(np.abs(a).max(), 1e-30))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="an .onnx file of clipsight.export, of one size, that takes clips")
    parser.add_argument("target", type=Path)
    parser.add_argument("videos", type=Path, nargs="*", help="by default moving shapes are made")
    parser.add_argument("--clips", type=int, default=24, help="for the calibration; as many again measure the error")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.source)
    if manifest.kind != "onnx" or len(manifest.input_ports) > 1 or manifest.input.name != "clip":
        parser.error("source must be an .onnx file whose only input is the clip")
    if manifest.plugin.required:
        parser.error("source must be exported with plugin=False: ONNX Runtime's calibration loads no custom ops")
    if len(manifest.sizes) > 1 or manifest.preprocessing is None:
        parser.error("source must have one clip size, and its preprocessing in the manifest")
    clips = list(itertools.islice(some_clips(manifest, arguments.videos, seed=7), 2 * arguments.clips))
    calibration, unseen = clips[::2], clips[1::2]
    if not unseen:
        parser.error("the videos must give at least two clips")
    quantise(arguments.source, arguments.target, calibration)
    for name, figure in errors(arguments.source, arguments.target, unseen).items():
        print(f"{name:26} {figure:.4f}" + ("" if name.startswith("top-1") else "  mean difference / largest value"))
    for file in (arguments.source, arguments.target):
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
