"""Builds the C and C++ programs of examples and tests against the installed package, outside the source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

import clipsight

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = Path(clipsight.cmake_prefix_path)


def command(name: str) -> str:
    """The path of a program beside this Python or on the PATH; a skip where there is none."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def cmake() -> str:
    path = command("cmake")
    version = re.search(r"(\d+)\.(\d+)", subprocess.run([path, "--version"], capture_output=True, text=True).stdout)
    if tuple(map(int, version.groups())) < (3, 24):
        pytest.skip(f"CMake 3.24 or newer is not installed, only {version[0]}")
    return path


def compiler(language: str = "CXX") -> str:
    """The compiler of "C" or "CXX" that CMake takes, too."""
    variable, name = {"C": ("CC", "cc"), "CXX": ("CXX", "c++")}[language]
    return command(os.environ.get(variable) or name)


def prefixes() -> list[Path]:
    """What CMAKE_PREFIX_PATH holds: the package, and torch where it is not installed beside it."""
    import torch

    beside = PACKAGE.parent / "torch"
    return [PACKAGE] if beside.is_dir() else [PACKAGE, Path(torch.__file__).parent]


def configure(source: Path, build: Path, *options: str) -> subprocess.CompletedProcess:
    compiler()
    paths = ";".join(map(str, prefixes()))
    arguments = [
        cmake(),
        "-S",
        source,
        "-B",
        build,
        f"-DCMAKE_PREFIX_PATH={paths}",
        *options,  # and no CMAKE_BUILD_TYPE: these programs run for a second, so optimising them only takes time
    ]
    return subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False)


def build(source: Path, folder: Path, *options: str) -> Path:
    """Configures and builds a CMake project; returns the folder of its programs."""
    done = configure(source, folder, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    arguments = ["nice", cmake(), "--build", folder, "--parallel", "2"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def built_once(project: str, root: Path) -> Path:
    """The folder of a project's programs, which the first process that asks for it builds."""
    compiler("CXX"), cmake()  # or a skip
    folder = root / "build" / project
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "built").exists():
            for sources in ("examples", "tests/programs"):
                shutil.copytree(REPOSITORY / sources, root / sources, dirs_exist_ok=True)
            if project == "tests/programs/torch_session":
                built_once("examples/cpp_libtorch", root)  # whose object files it links
            build(root / project, folder)
            (folder / "built").touch()
    return folder
