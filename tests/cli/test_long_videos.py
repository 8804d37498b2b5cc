"""Memory does not grow with the length of a video: neither what Python holds, nor that of a whole command."""

import os
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("typer")

from clipsight.cli import comparing, explaining
from clipsight.cli.networks import Answer
from clipsight.preprocessing import Preprocessing
from clipsight.video import VideoWriter
from clipsight.windows import Geometry

SIDE = 48
MAP = 2 * SIDE * SIDE * 4  # bytes of a frame's relevance and mask


class Reader:
    """A video that nobody wrote."""

    size, fps, pixel_aspect, path, cut_off = (SIDE, SIDE), Fraction(25), Fraction(1), Path("made.mp4"), False

    def __init__(self, count):
        self.count = self.frame_count = count

    def __iter__(self):
        for index in range(self.count):
            self.decoded, self.span = index + 1, (index / self.fps, (index + 1) / self.fps)
            yield np.full((SIDE, SIDE, 3), 5 * index % 251, np.uint8)


class Flicker:
    """Its map is the brightness; what it predicts changes once, so that a second round is needed."""

    name, map, raw, feature, fixed_classes, has_motion = "flicker", "saliency_tube", True, None, None, True
    labels, takes_frames = ("dark", "light"), False
    preprocessing = Preprocessing(frames=8, crop=(SIDE, SIDE), scale=1.0)

    def __init__(self):
        self.rounds = 0

    def __call__(self, clip, classes):
        self.rounds += classes is not None
        maps = clip[:, 0]
        return Answer(np.float32([0, clip.mean() - 100]), maps, maps > 100, np.ones(1))


def peak(count, folder, work):
    """Bytes that Python and NumPy held at most."""
    folder.mkdir()
    tracemalloc.start()
    try:
        work(Reader(count), folder)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def explain(reader, folder):
    network = Flicker()
    done = explaining.run_network(network, reader, 1, folder=folder)
    assert network.rounds, "a second round"
    explaining.draw(done, reader, network, ["tube"], folder)
    explaining.write_raw(folder / "maps.npz", done, reader, network)
    assert sorted(p.name for p in folder.iterdir()) == ["contact.png", "focus.mp4", "heat.mp4", "maps.npz"]


def measure(reader, folder):
    runs = []
    for name in ("a", "b"):
        network = Flicker()
        done = explaining.run_network(network, reader, (0,), folder=folder)
        runs.append(comparing.Run(name, network, done, Geometry.of(network.preprocessing, reader.size)))
    comparing.Common.of(runs).measure(runs)


@pytest.mark.parametrize("work", [explain, measure])
def test_what_python_holds_does_not_grow_with_the_video(work, tmp_path, monkeypatch):
    monkeypatch.setattr("clipsight.windows.IN_MEMORY", 20 * MAP)
    short, long = 150, 450
    peak(50, tmp_path / "first", work)  # imports, fonts, plans
    grown = peak(long, tmp_path / "long", work) - peak(short, tmp_path / "short", work)
    assert grown / (long - short) < MAP / 16, "a sixteenth of a map of each frame, for what result.json says of windows"


def test_raw_maps_of_a_file_are_those_of_memory(tmp_path, monkeypatch):
    written = []
    for limit in (1 << 30, 5 * MAP):
        monkeypatch.setattr("clipsight.windows.IN_MEMORY", limit)
        reader, network = Reader(60), Flicker()
        done = explaining.run_network(network, reader, 1, folder=tmp_path)
        explaining.write_raw(tmp_path / "maps.npz", done, reader, network)
        with np.load(tmp_path / "maps.npz") as file:
            written.append({name: file[name] for name in file.files})
    for name, array in written[0].items():
        assert (array == written[1][name]).all(), name
    assert written[0]["maps"].shape == written[0]["motion_mask"].shape == (1, 60, SIDE, SIDE)
    assert written[0]["maps"][0, :, 0, 0].tolist() == [5 * i % 251 for i in range(60)], "the brightness of each frame"


def high_water(*arguments) -> float:
    """MB that `clipsight` with these arguments had in memory at most."""
    process = subprocess.Popen([sys.executable, "-m", "clipsight", *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0
    return usage.ru_maxrss / 1024


@pytest.mark.full
def test_an_hour_of_video_in_a_gigabyte(tmp_path):
    """`movers` on 10 minutes and on an hour of 5 frames a second: 18000 frames, 0.6 GB of maps in each round."""
    shade = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    used = {}
    for minutes in (10, 60):
        path = tmp_path / f"{minutes}.mp4"
        with VideoWriter(path, 5) as writer:
            for index in range(minutes * 300):
                writer.write(np.stack([np.roll(shade, index, 1), shade, shade], 2))
        used[minutes] = high_water("explain", path, "--out", tmp_path / str(minutes), "--method", "tube", "--raw")
    print({f"{minutes} minutes": f"{megabytes:.0f} MB" for minutes, megabytes in used.items()})
    assert max(used.values()) < 1024
    assert used[60] - used[10] < 40, "less than 3 KB a frame; its maps are 32 KB"
