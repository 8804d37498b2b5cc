"""`clipsight doctor`: a whole installation is ok, a broken one says what is wrong and what to do, and exits with 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest

import clipsight
from clipsight.manifest import LoadError
from helpers import run_python

pytest.importorskip("typer", reason="typer is not installed (extra 'video')")

ALWAYS = {"clipsight", "kernels (NumPy)", "torch", "torch ops"}


# `clipsight doctor --json`, then `clipsight doctor`, in one process: it takes seconds to import all that is examined.
BOTH = """
import json, sys
from typer.testing import CliRunner
from clipsight import cli
done = CliRunner().invoke(cli.app, ["doctor", "--json"])
print(json.dumps([done.exit_code, done.stdout]))
sys.argv = ["clipsight", "doctor"]
cli.main()
"""


class Doctor(NamedTuple):
    code: int
    report: dict
    table: str

    def __getitem__(self, name: str) -> dict:
        return next(finding for finding in self.report["findings"] if finding["name"] == name)


def doctor(**environment: str) -> Doctor:
    paths = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYTHONPATH": paths, "COLUMNS": "300"} | environment
    done = subprocess.run([sys.executable, "-c", BOTH], capture_output=True, text=True, env=environment, check=False)
    first, _, table = done.stdout.partition("\n")
    code, report = json.loads(first)
    assert done.returncode == code, done.stdout + done.stderr
    return Doctor(code, json.loads(report), table)


def test_this_installation_is_well():
    here = doctor()
    assert here.code == 0, here
    assert here.report["healthy"]
    assert here.report["build_info"]["torch_library"]["loaded"]
    assert {name for name in ALWAYS if here[name]["state"] == "ok"} == ALWAYS
    assert clipsight.__version__ in here["clipsight"]["found"]
    assert clipsight.build_info()["kernels"]["simd"] in here["kernels (NumPy)"]["found"]
    for finding in here.report["findings"]:
        assert finding["name"] in here.table


@pytest.mark.parametrize("content", [None, b"\x7fELF, but no more"], ids=["empty folder", "damaged library"])
def test_a_broken_installation(content, tmp_path):
    library = tmp_path / "libclipsight_torch.so"
    if content is not None:
        library.write_bytes(content)
    done = doctor(CLIPSIGHT_LIBRARY_DIR=str(tmp_path))
    assert done.code == 1
    assert not done.report["healthy"]
    assert not done.report["build_info"]["torch_library"]["loaded"]
    finding = done["torch ops"]
    assert finding["state"] == "broken"
    assert str(library) in finding["found"]
    assert "pip install --no-build-isolation ." in finding["advice"]
    assert done["ONNX Runtime ops"]["state"] == "missing"
    assert "broken" in done.table
    assert "→ rebuild with `make dev`" in done.table


def test_damaged_optional_libraries(tmp_path):
    try:
        originals = [clipsight.get_library_path(name) for name in ("onnxruntime", "session")]
    except LoadError as error:
        pytest.skip(str(error))
    for path in originals[0].parent.glob("libclipsight*.so"):
        (tmp_path / path.name).symlink_to(path)
    for original in originals:
        (tmp_path / original.name).unlink()
        (tmp_path / original.name).write_bytes(b"\x7fELF, but no more")
    done = doctor(CLIPSIGHT_LIBRARY_DIR=str(tmp_path))
    assert done.code == 1
    for part, original in zip(("ONNX Runtime ops", "session library"), originals, strict=True):
        assert done[part]["state"] == "broken"
        assert str(tmp_path / original.name) in done[part]["found"]
    assert done["torch ops"]["state"] == "ok"


ABSENT = """
import json, sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # as if it were not installed
from clipsight import doctor
print(json.dumps(doctor.report(doctor.examine())))
"""


def test_absent_extras_are_no_fault():
    report = json.loads(run_python(ABSENT, "onnxruntime", "ray"))
    assert report["healthy"]
    for part, extra in (("ONNX Runtime", "onnx"), ("Ray", "ray")):
        (finding,) = (f for f in report["findings"] if f["name"] == part)
        assert finding["state"] == "missing"
        assert finding["advice"] == f"pip install 'clipsight[{extra}]'"


def test_without_torch_the_report_is_still_written():
    report = json.loads(run_python(ABSENT, "torch"))
    states = {finding["name"]: finding["state"] for finding in report["findings"]}
    assert not report["healthy"]
    assert states["torch"] == "broken"
    assert states["kernels (NumPy)"] == "ok"
    assert "torch" in report["build_info"]["error"]
