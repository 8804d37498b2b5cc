"""A copy of the sources in build/planted, in which a fault is planted and built.

`clean` is what was copied and built once. Each fault begins with `tree`, a copy of it with its times, so that only what
depends on the changed line is compiled again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .fault import REPOSITORY, Fault

FOLDER = REPOSITORY / "build" / "planted"
CLEAN, TREE = FOLDER / "clean", FOLDER / "tree"
PACKAGES = TREE / "python"  # for PYTHONPATH
SOURCES = ("CMakeLists.txt", "pyproject.toml", "cmake", "csrc", "python/clipsight")
# What `make dev` may have put next to the package.
BUILT = shutil.ignore_patterns("*.so", "*.a", "include", "lib", "share", "__pycache__")


class NotBuiltError(Exception):
    """The fault does not compile."""


def digest(*folders: Path) -> str:
    """A hash of what lies in them, without what is built or written there."""
    total = hashlib.sha256()
    for folder in folders:
        for path in sorted([folder] if folder.is_file() else folder.rglob("*")):
            relative = path.relative_to(REPOSITORY)
            if path.is_file() and path.suffix not in {".so", ".a", ".pyc"} and "planted" not in relative.parts:
                total.update(f"{relative}\0".encode() + path.read_bytes())
    return total.hexdigest()


def environment() -> dict[str, str]:
    """Finds the package of the tree and the programs beside this Python; leaves no .pyc that a fault could outlive."""
    paths = {
        "PYTHONPATH": [PACKAGES, os.environ.get("PYTHONPATH")],
        "PATH": [Path(sys.executable).parent, os.environ.get("PATH")],
    }
    joined = {name: os.pathsep.join(map(str, filter(None, value))) for name, value in paths.items()}
    return os.environ | joined | {"PYTHONDONTWRITEBYTECODE": "1"}


def prepare() -> None:
    """Copies and builds the sources, unless that was done for the same ones."""
    written, state = FOLDER / "sources.sha256", digest(*(REPOSITORY / name for name in SOURCES))
    if written.exists() and written.read_text() == state:
        return
    written.unlink(missing_ok=True)
    for folder in (CLEAN, TREE):
        shutil.rmtree(folder, ignore_errors=True)
    TREE.mkdir(parents=True)
    for name in SOURCES:
        source, target = REPOSITORY / name, TREE / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=BUILT if name.startswith("python") else None)
        else:
            shutil.copy2(source, target)
    pybind11 = _run(sys.executable, "-m", "pybind11", "--cmakedir").strip()
    options = ["-DCLIPSIGHT_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"]
    _run("cmake", "-S", TREE, "-B", TREE / "build", "-G", "Ninja", *options)
    _build()
    shutil.copytree(TREE, CLEAN, symlinks=True)
    written.write_text(state)


def restore() -> None:
    shutil.rmtree(TREE, ignore_errors=True)
    shutil.copytree(CLEAN, TREE, symlinks=True)


def plant(fault: Fault) -> None:
    restore()
    path = TREE / fault.file
    path.write_text(fault.applied(path.read_text(encoding="utf-8")), encoding="utf-8")
    if fault.file.startswith("csrc/"):
        output = _build()
        if "no work to do" in output:  # of programs that the tests build: only they would find out that it cannot be
            _check_syntax(path)


def _build() -> str:
    output = _run("cmake", "--build", TREE / "build")
    _run("cmake", "--install", TREE / "build", "--prefix", PACKAGES)
    return output


def _check_syntax(path: Path) -> None:
    from torch.utils.cpp_extension import include_paths

    folders = [TREE / "csrc", TREE / "csrc/include", *include_paths()]
    _run("c++", "-std=c++17", "-fsyntax-only", "-x", "c++", *(f"-I{folder}" for folder in folders), path)


def _run(*command: object) -> str:
    done = subprocess.run(
        list(map(str, command)),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotBuiltError(done.stdout)
    return done.stdout
