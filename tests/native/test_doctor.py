"""`clipsight doctor`: a whole installation is ok, a broken one says what is wrong and what to do, and exits with 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import clipsight
from clipsight.manifest import LoadError
from helpers import run_python

pytest.importorskip("typer", reason="typer is not installed (extra 'video')")

ALWAYS = {"clipsight", "kernels (NumPy)", "torch", "torch ops"}


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-m", "clipsight", "doctor", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "COLUMNS": "300"} | environment,
        check=False,
    )


def findings_of(done: subprocess.CompletedProcess) -> dict[str, dict]:
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


@pytest.fixture(scope="module")
def here():
    return doctor("--json")


def test_this_installation_is_well(here):
    assert here.returncode == 0, here.stdout + here.stderr
    report = json.loads(here.stdout)
    assert report["healthy"]
    assert report["build_info"]["torch_library"]["loaded"]
    findings = findings_of(here)
    assert {name for name in ALWAYS if findings[name]["state"] == "ok"} == ALWAYS
    assert clipsight.__version__ in findings["clipsight"]["found"]
    assert clipsight.build_info()["kernels"]["simd"] in findings["kernels (NumPy)"]["found"]


def test_the_table_names_every_part(here):
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    for name in findings_of(here):
        assert name in done.stdout


def test_a_broken_installation_in_the_table(tmp_path):
    done = doctor(CLIPSIGHT_LIBRARY_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "broken" in done.stdout
    assert "→ rebuild with `make dev`" in done.stdout


@pytest.mark.parametrize("content", [None, b"\x7fELF, but no more"], ids=["empty folder", "damaged library"])
def test_a_broken_installation(content, tmp_path):
    library = tmp_path / "libclipsight_torch.so"
    if content is not None:
        library.write_bytes(content)
    done = doctor("--json", CLIPSIGHT_LIBRARY_DIR=str(tmp_path))
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert not report["healthy"]
    assert not report["build_info"]["torch_library"]["loaded"]
    finding = findings_of(done)["torch ops"]
    assert finding["state"] == "broken"
    assert str(library) in finding["found"]
    assert "pip install --no-build-isolation ." in finding["advice"]
    assert findings_of(done)["ONNX Runtime ops"]["state"] == "missing"


@pytest.mark.parametrize("name, part", [("onnxruntime", "ONNX Runtime ops"), ("session", "session library")])
def test_a_damaged_optional_library(name, part, tmp_path):
    try:
        original = clipsight.get_library_path(name)
    except LoadError as error:
        pytest.skip(str(error))
    for path in original.parent.glob("libclipsight*.so"):
        (tmp_path / path.name).symlink_to(path)
    library = tmp_path / original.name
    library.unlink()
    library.write_bytes(b"\x7fELF, but no more")
    done = doctor("--json", CLIPSIGHT_LIBRARY_DIR=str(tmp_path))
    assert done.returncode == 1, done.stderr
    findings = findings_of(done)
    assert findings[part]["state"] == "broken"
    assert str(library) in findings[part]["found"]
    assert findings["torch ops"]["state"] == "ok"


ABSENT = """
import json, sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # as if it were not installed
from clipsight import doctor
print(json.dumps(doctor.report(doctor.examine())))
"""


@pytest.mark.parametrize("name, part, extra", [("onnxruntime", "ONNX Runtime", "onnx"), ("ray", "Ray", "ray")])
def test_an_absent_extra_is_no_fault(name, part, extra):
    report = json.loads(run_python(ABSENT, name))
    (finding,) = (f for f in report["findings"] if f["name"] == part)
    assert report["healthy"]
    assert finding["state"] == "missing"
    assert finding["advice"] == f"pip install 'clipsight[{extra}]'"


def test_without_torch_the_report_is_still_written():
    report = json.loads(run_python(ABSENT, "torch"))
    states = {finding["name"]: finding["state"] for finding in report["findings"]}
    assert not report["healthy"]
    assert states["torch"] == "broken"
    assert states["kernels (NumPy)"] == "ok"
    assert "torch" in report["build_info"]["error"]
