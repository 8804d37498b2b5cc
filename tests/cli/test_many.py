"""Many videos: results appear whole or not at all, once; also when processes of a real Ray cluster are killed."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
from typer.testing import CliRunner

from clipsight import cli, many
from clipsight.cli.request import Request
from clipsight.synthetic import MOTION_CLASSES, moving_shapes
from clipsight.video import VideoReader, VideoWriter


@pytest.fixture(scope="module")
def truth():
    return moving_shapes(3, seed=5, size=96)


@pytest.fixture(scope="module")
def videos(truth, tmp_path_factory):
    """Three videos of 32 frames."""
    folder = tmp_path_factory.mktemp("videos")
    for i, frames in enumerate(truth.frames):
        with VideoWriter(folder / f"shape{i}.mp4", 10) as writer:
            for frame in np.concatenate([frames, frames]):
                writer.write(frame)
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray", reason="ray is not installed: pip install 'clipsight[ray]'")
    with many.cluster(cpus=2) as module:
        module.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its processes cannot import this file
        yield module


def upper(text: str, folder: Path) -> None:
    """A small job: the file's text in capitals, in two files."""
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(Path(text).read_text().upper())


def make_upper():
    return upper


def make_upper_that_dies():
    """Kills its own process on the file with the text `poison`, after it wrote one of two files."""

    def work(text: str, folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        if Path(text).read_text() == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        upper(text, folder)

    return work


@pytest.fixture
def texts(tmp_path):
    for name, text in (("one", "cat"), ("two", "dog"), ("three", "bird")):
        (tmp_path / f"{name}.txt").write_text(text)
    return [str(tmp_path / f"{name}.txt") for name in ("one", "two", "three")]


def states(outcomes) -> dict[str, str]:
    return {Path(outcome.video).stem: outcome.state for outcome in outcomes}


def test_find_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.mp4", "a.mp4", "c.gif", "odd[1].mp4"):
        Path(name).touch()
    assert many.find_videos(["*.mp4"]) == ["a.mp4", "b.mp4", "odd[1].mp4"]
    assert many.find_videos(["c.gif", "b.mp4", "*.mp4"]) == ["c.gif", "b.mp4", "a.mp4", "odd[1].mp4"]
    assert many.find_videos(["odd[1].mp4", "gone.mp4"]) == ["odd[1].mp4", "gone.mp4"]
    with pytest.raises(ValueError, match=re.escape("video: a pattern must match at least one file, got '*.avi'")):
        many.find_videos(["c.gif", "*.avi"])
    with pytest.raises(ValueError, match=r"video: gone\.mp4 does not exist"):
        many.plan(["gone.mp4"], tmp_path, "x")


def test_a_job_depends_on_the_video_and_the_digest(texts, tmp_path, monkeypatch):
    def keys(files, digest="x"):
        return [job.key for job in many.plan(files, tmp_path / "out", digest)]

    before = keys(texts)
    assert len(set(before)) == 3
    monkeypatch.chdir(tmp_path)
    assert keys(["one.txt", "two.txt", "three.txt"]) == before, "a relative path is the same video"
    assert keys([texts[0], "one.txt"]) == before[:1], "once is enough"
    assert not set(keys(texts, "y")) & set(before)
    os.utime(texts[1], ns=(0, 10**9))
    assert [new == old for new, old in zip(keys(texts), before, strict=True)] == [True, False, True]
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "0.png").write_bytes(b"x")
    folder = keys([str(frames)])
    (frames / "._0.png").write_bytes(b"left by a system")
    (frames / "2.png").symlink_to("gone.png")
    assert keys([str(frames)]) == folder
    (frames / "1.png").write_bytes(b"y")
    assert keys([str(frames)]) != folder


def test_one_after_another_and_only_once(texts, tmp_path):
    jobs = many.plan(texts, tmp_path / "out", "x")
    assert states(many.run(jobs, make_upper)) == dict.fromkeys(("one", "two", "three"), "done")
    first = Path(jobs[0].folder)
    assert {p.name for p in first.iterdir()} == {"a.txt", "b.txt", "done.json"}
    assert (first / "b.txt").read_text() == "CAT"
    (Path(jobs[1].folder) / "a.txt").unlink()
    (Path(jobs[2].folder) / "done.json").write_text("{")
    again = list(many.run(jobs, make_upper))
    assert states(again) == {"one": "skipped", "two": "done", "three": "done"}
    assert again[0].state == "skipped", "what is done is told first"
    assert states(many.run(jobs, lambda: pytest.fail("nothing is left to do"))) == dict.fromkeys(
        states(again), "skipped"
    )
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_an_error_is_told_and_leaves_nothing(texts, tmp_path):
    jobs = many.plan(texts, tmp_path / "out", "x")

    def make():
        def work(text, folder):
            (folder / "half.txt").touch()
            if "two" in text:
                raise ValueError("this one\nis bad")
            upper(text, folder)

        return work

    outcomes = list(many.run(jobs, make))
    assert states(outcomes) == {"one": "done", "two": "failed", "three": "done"}
    assert outcomes[1].error == "this one is bad"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {Path(jobs[i].folder).name for i in (0, 2)}
    assert states(many.run(jobs, make_upper)) == {"one": "skipped", "two": "done", "three": "skipped"}


def test_an_interruption_leaves_whole_results(texts, tmp_path):
    jobs = many.plan(texts, tmp_path / "out", "x")

    def make():
        def work(text, folder):
            upper(text, folder)
            if "two" in text:
                raise KeyboardInterrupt

        return work

    with pytest.raises(KeyboardInterrupt):
        list(many.run(jobs, make))
    assert [p.name for p in (tmp_path / "out").iterdir()] == [Path(jobs[0].folder).name]


def test_what_a_killed_run_left_is_removed(texts, tmp_path):
    jobs = many.plan(texts, tmp_path / "out", "x")
    half = Path(jobs[0].folder).with_name(f".{Path(jobs[0].folder).name}.12-ab")
    other = tmp_path / "out" / ".somebody.else"
    for folder in (half, other):
        folder.mkdir(parents=True)
    assert [outcome.attempts for outcome in many.run(jobs, make_upper)] == [1, 1, 1]
    assert (half.exists(), other.exists()) == (False, True)


def test_ray_is_not_for_strangers(ray):
    assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
    assert os.environ["RAY_AUTH_MODE"] == "token"
    session = Path(ray._private.worker._global_node.get_session_dir_path()).name
    processes = [f"/proc/{pid}" for pid in os.listdir("/proc") if pid.isdigit()]
    ours = {link for process in processes if session in _name(process) for link in _open_files(process)}
    listening = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()]
    addresses = {f[1].rpartition(":")[0] for f in listening if f[3] == "0A" and f"socket:[{f[9]}]" in ours}
    assert len(addresses) > 0
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}, "the loopback alone"


def _name(process: str) -> str:
    try:
        return Path(process, "cmdline").read_text()
    except OSError:  # it has ended
        return ""


def _open_files(process: str) -> list[str]:
    try:
        return [os.readlink(path) for path in Path(process, "fd").iterdir()]
    except OSError:
        return []


def test_ray_does_the_same(ray, texts, tmp_path):
    jobs = many.plan(texts, tmp_path / "out", "x")
    assert states(many.run(jobs[:1], make_upper)) == {"one": "done"}
    assert states(many.run(jobs, make_upper, ray=True)) == {"one": "skipped", "two": "done", "three": "done"}
    assert [(Path(job.folder) / "a.txt").read_text() for job in jobs] == ["CAT", "DOG", "BIRD"]
    with pytest.raises(ValueError, match="ray: the cluster must have 999 CPUs and 0 GPUs for a process"):
        list(many.run(many.plan(texts, tmp_path / "more", "x"), make_upper, ray=True, cpus=999))


@pytest.mark.full
def test_a_video_that_kills_every_process_does_not_stop_the_others(ray, texts, tmp_path):
    Path(texts[1]).write_text("poison")
    jobs = many.plan(texts, tmp_path / "out", "x")
    outcomes = {Path(o.video).stem: o for o in many.run(jobs, make_upper_that_dies, ray=True, cpus=2)}
    assert states(outcomes.values()) == {"one": "done", "two": "failed", "three": "done"}
    assert outcomes["two"].error.startswith("the process died 3 times on this video")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(Path(jobs[i].folder).name for i in (0, 2))
    assert (Path(jobs[0].folder) / "a.txt").read_text() == "CAT"
    Path(texts[1]).write_text("dog")
    assert (
        states(many.run(many.plan(texts, tmp_path / "out", "x"), make_upper_that_dies, ray=True, cpus=2))["two"]
        == "done"
    )


def kill_one_that_draws(out: Path, killed: list, give_up: threading.Event) -> None:
    """Kills the first process whose temporary folder holds a file, that is, in the middle of a video."""
    while not killed and not give_up.is_set():
        for path in out.glob(".*.*/*"):
            pid = int(re.fullmatch(r".*\.(\d+)-\w+", path.parent.name)[1])
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
                killed.append((pid, path.parent.name))
                break
        time.sleep(0.002)


@pytest.mark.full
def test_videos_of_a_killed_worker_are_done_again(ray, truth, videos, tmp_path):
    request = Request(threads=1, raw=True)
    out = tmp_path / "out"
    jobs = many.plan(videos[:2], out, request.digest(request.open()))
    killed, give_up = [], threading.Event()
    watcher = threading.Thread(target=kill_one_that_draws, args=(out, killed, give_up))
    watcher.start()
    try:
        outcomes = list(many.run(jobs, request.worker, ray=True, cpus=2))  # in one process, which takes both CPUs
    finally:
        give_up.set()
        watcher.join()
    ((_, half),) = killed
    assert states(outcomes) == {f"shape{i}": "done" for i in range(2)}
    victims = [outcome for outcome in outcomes if half.startswith(f".{Path(outcome.folder).name}.")]
    assert [outcome.attempts for outcome in victims] == [2], "the killed video was done again"
    assert sum(outcome.attempts for outcome in outcomes) == 3, "and no other"
    assert sorted(p.name for p in out.iterdir()) == sorted(Path(job.folder).name for job in jobs), "nothing half-made"
    for i, job in enumerate(jobs):
        folder = Path(job.folder)
        result = json.loads((folder / "result.json").read_text())
        assert {p.name for p in folder.iterdir()} == {*result["files"], "done.json"}
        assert result["top"][0]["label"] == MOTION_CLASSES[truth.labels[i]]
        assert len(list(VideoReader(folder / "heat.mp4"))) == 32
    alone = tmp_path / "alone"
    assert states(many.run(many.plan(videos[:1], alone, "x"), request.worker)) == {"shape0": "done"}
    maps = [np.load(next(folder.glob("shape0-*/maps.npz")))["maps"] for folder in (out, alone)]
    assert np.abs(maps[0] - maps[1]).max() <= 1e-5 * np.abs(maps[1]).max(), "as one after another, in this process"
    assert states(many.run(jobs, request.worker, ray=True)) == {f"shape{i}": "skipped" for i in range(2)}


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def lines(result) -> list[str]:
    return [line.split(":")[0] for line in result.output.splitlines() if line.strip()]


def test_command_line_with_many_videos(videos, tmp_path):
    folder = Path(videos[0]).parent
    out = tmp_path / "out"
    result = run("explain", *videos[:2], "--out", out)
    assert (result.exit_code, lines(result)) == (0, [f"done    {video}" for video in videos[:2]]), result.output
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    result = run("explain", folder / "shape[012].mp4", "--out", out)
    assert lines(result) == [*(f"skipped {video}" for video in videos[:2]), f"done    {videos[2]}"]
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was done is untouched"
    result = run("explain", *videos[:2], "--method", "tube", "--out", out)
    assert lines(result) == [f"done    {video}" for video in videos[:2]], "other options are other results"
    assert len(list(out.iterdir())) == 5
    assert (
        run("explain", videos[0], "--method", "tube", "--threads", 1, videos[1], "--out", out).output.count("skipped")
        == 2
    )


ONE_FRAME = """
import torch
from torch import nn
from clipsight import Preprocessing

class Net(nn.Module):
    preprocessing = Preprocessing(frames=8, resize=32, crop=(32, 32))

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool, self.fc = nn.Conv3d(3, 6, (8, 3, 3)), nn.AdaptiveAvgPool3d(1), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.pool(torch.relu(self.conv(x))).flatten(1))
"""


def test_every_result_has_the_networks_notes(videos, tmp_path, monkeypatch):
    (tmp_path / "one_frame.py").write_text(ONE_FRAME)
    monkeypatch.chdir(tmp_path)
    result = run("explain", *videos[:2], "--model", "one_frame:Net", "--class", 0, "--out", "out")
    assert result.exit_code == 0, result.output
    notes = [json.loads(path.read_text())["notes"] for path in Path("out").glob("*/result.json")]
    assert [len(texts) for texts in notes] == [1, 1]
    assert all("single frame" in texts[0] for texts in notes), notes


@pytest.mark.full
def test_command_line_with_ray(ray, videos, tmp_path):
    result = run("explain", videos[0], "--ray", "--threads", 1, "--out", tmp_path)
    assert (result.exit_code, lines(result)) == (0, [f"done    {videos[0]}"]), result.output
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "done.json").read_text())["video"] == videos[0]


@pytest.mark.full
def test_command_line_with_the_address_of_a_cluster(ray, videos, tmp_path):
    """From another folder than the cluster's own, with relative paths."""
    shutil.copy(videos[0], tmp_path / "clip.mp4")
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "clipsight", "explain", "clip.mp4", "--out", "out", "--ray-address", address]
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | path, check=False)
    assert done.returncode == 0, done.stderr
    assert "done    clip.mp4: " in done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    assert (folder / "heat.mp4").is_file()


def test_an_address_where_nothing_answers(texts, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"ray: the address must be that of a running cluster, got '{address}'"):
            list(many.run(many.plan(texts, tmp_path, "x"), make_upper, ray=True, address=address))


def test_command_line_goes_on_after_a_bad_video(videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(Path(videos[0]).read_bytes()[:2000])
    result = run("explain", videos[1], bad, videos[2], "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert lines(result) == [f"done    {videos[1]}", f"failed  {bad}", f"done    {videos[2]}", "error"]
    assert "error: explain: 1 of 3 videos failed" in result.output
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["*.avi"], "video: a pattern must match at least one file, got '*.avi'"),
        (["VIDEO", "gone.mp4"], "video: gone.mp4 does not exist"),
        (["VIDEO", "VIDEO2", "--boxes", "b.csv"], "boxes: belong to one video, got 2 videos"),
        (["VIDEO", "VIDEO2", "--class", "horse"], "class: 'horse' is no class of this model"),
        (["VIDEO", "VIDEO2", "--model", "gone.onnx"], "gone.onnx"),
    ],
)
def test_mistakes_end_the_run_before_it_begins(arguments, message, videos, tmp_path):
    known = {"VIDEO": videos[0], "VIDEO2": videos[1]}
    result = run("explain", *(known.get(a, a) for a in arguments), "--out", tmp_path / "out")
    assert (result.exit_code, message in result.output) == (1, True), result.output
    assert not (tmp_path / "out").exists()


def test_without_ray(texts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=re.escape("ray: needs the extra 'ray': pip install 'clipsight[ray]'")):
        list(many.run(many.plan(texts, tmp_path / "out", "x"), make_upper, ray=True))
