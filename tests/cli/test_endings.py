"""How commands end that somebody ends, or that somebody stops reading; and what they print of texts from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
from clipsight import staging
from clipsight.synthetic import moving_shapes
from helpers import run, succeed, write_video

NET = """
import time
import torch
from torch import nn
from clipsight import Preprocessing, render

class Net(nn.Module):
    preprocessing = Preprocessing(frames=8, resize=32, crop=(32, 32))
    labels = ["[red]cat[/]", "[/]dog\\x1b[2J\\nerror: rm", "\\u732b" * 200, "\\u732b" * 200 + "/../x"]

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool, self.fc = nn.Conv3d(3, 6, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.pool(torch.relu(self.conv(x))).flatten(1))

class Bad(Net):
    def forward(self, x):
        return super().forward(x) / (1 // 0)

class Needy(Net):
    def __init__(self, depth, width=3):
        super().__init__()

def slow():
    render.Renderer.heat = lambda *_: time.sleep(60)
    return Net()
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "shapes.mp4", moving_shapes(1, seed=5, size=64).frames[0])


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "nets_of_endings.py").write_text(NET)
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "program.py").write_text("raise SystemExit(2)")
    (tmp_path / "half.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_of_endings", raising=False)
    return "nets_of_endings"


def clipsight(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | options.pop("env", {})
    command = [sys.executable, "-m", "clipsight", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options)


def test_ended_while_it_writes(video, nets):
    """Killed, it leaves something, which the next run removes; and that one, asked to end, leaves nothing."""
    for number in (signal.SIGKILL, signal.SIGTERM):
        with clipsight("explain", video, "--model", f"{nets}:slow", "--out", "out") as process:
            patience = time.monotonic() + 60
            while not list(Path("out").glob(f".heat.mp4.{process.pid}-*")):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < patience
                time.sleep(0.01)
            process.send_signal(number)
            said = process.communicate()[1].decode()
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), said
        assert bool(list(Path("out").iterdir())) == (number == signal.SIGKILL)
    assert said.splitlines() == ["error: stopped by SIGTERM; nothing half-written is left behind"]


def test_two_runs_into_one_folder(video, nets, tmp_path):
    with staging.one_run(tmp_path / "out"):
        result = run("explain", video, nets + ".py", "--out", "out")
    assert result.exit_code == 1
    assert "error: out: the folder out must be free, got one that another run is writing to (process" in result.output


def test_labels_are_no_commands(video, nets):
    everything = [argument for index in range(4) for argument in ("--class", index)]
    result = succeed("explain", video, "--model", f"{nets}:Net", "--out", "out[/]", *everything)
    assert "\x1b" not in result.output
    assert "[red]cat[/]" in result.output
    assert r"[/]dog\x1b[2J\nerror: rm" in result.output
    names = [path.name for path in Path("out[/]").iterdir()]
    assert len(names) == 4 * 4 + 1
    assert all(len(os.fsencode(name)) < 200 for name in names)
    labels = {row["label"] for row in json.loads(Path("out[/]", "result.json").read_text())["top"]}
    assert "[/]dog\x1b[2J\nerror: rm" in labels, "data stays what it is"


MODELS = {
    "a path": ("./nets_of_endings:Net", "got './nets_of_endings' and 'Net'"),
    "a file": ("nets_of_endings.py:Net", "two names without a path (in its folder, nets_of_endings:Net)"),
    "not there": ("nets_of_endings:Nets", "the module has no Nets; did you mean Net?"),
    "a function of something else": ("os:system", "must be callable without arguments, got one that needs command"),
    "a class that needs something": ("nets_of_endings:Needy", "got one that needs depth"),
    "a function that returns something else": ("os:getpid", "must be a torch.nn.Module, got int"),
    "a module": ("torch:nn", "must be a network, or a class or function that makes one, got module, not callable"),
    "a function that does not tell": ("builtins:type", "must be callable without arguments (type() takes"),
    "its own error": ("nets_of_endings:Bad", "nets_of_endings.py, line 21, in forward; --debug shows"),
    "its own import": ("broken:Net", "broken.py, line 1, in <module>, raised ModuleNotFoundError: No module named"),
    "a program": ("program:Net", "that ends Python when it is imported: is it a program?"),
    "its own syntax": ("half:f", "half.py, line 1, raised SyntaxError: invalid syntax"),
}
OPTIONS = {
    "--fps": ["inf", "nan", "1e-9", "0"],
    "--device": ["tpu", "cuda:99", "cuda:x", "cuda:"],
    "--size": ["0x0", "99999x99999", "1e3x1e3", "²x²"],
    "--frames": [str(10**12), "0", "-1"],
    "--stride": [str(10**30)],
    "--threads": [str(10**10)],
    "--out": ["broken.py", "broken.py/x"],
}


@pytest.mark.parametrize("model, message", MODELS.values(), ids=MODELS)
def test_what_is_no_network(model, message, video, nets):
    result = run("explain", video, "--model", model, "--out", "out")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not Path("out").exists()


@pytest.mark.parametrize("option", OPTIONS)
def test_numbers_and_places_that_cannot_be(option, video, nets):
    for value in OPTIONS[option]:
        others = [] if option == "--out" else ["--out", "out"]
        result = run("explain", video, "--model", f"{nets}:Net", *others, option, value)
        (line,) = result.output.splitlines()
        names = ("preprocessing", "size") if option == "--frames" else (option.strip("-"),)
        assert result.exit_code == 1
        assert line.lower().startswith(tuple(f"error: {name}: " for name in names)), line
        assert not Path("out").exists()


def test_whoever_reads_the_output_may_stop(tmp_path):
    """And a terminal may have no more than ASCII."""
    with clipsight("doctor", "--json") as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE
    with clipsight("info", "猫.onnx", env={"PYTHONIOENCODING": "ascii"}) as process:
        said = process.communicate()[1]
    assert said.startswith(b"error: ")
    assert rb"\u732b.onnx" in said
