"""Files and folders that appear whole or not at all, and folders that one run fills at a time.

What is being written stands beside its place in a folder of its own, `.NAME.PROCESS-RANDOM/`. Only its owner can enter
it, so nothing lies in wait there; and its process holds a lock on it, which dies with the process: who writes in that
place next removes what a killed one left, and never what another one is writing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from .text import short_name

LOCK = ".clipsight-lock"  # in a staging folder
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of which a write does not say where
RUN_LOCK = ".clipsight-run"  # in a folder that one run fills

_OWN: set[Path] = set()  # what this process is writing: a network file system may not tell its locks apart


@contextlib.contextmanager
def staging(target: str | os.PathLike, tidy: bool = True) -> Iterator[Path]:
    """A path for what will be the file or folder `target`, on the same file system and with the same name.

    The caller renames it to `target`; what is still there at the end of the block is removed.

    Args:
        target: its folder is made where it does not exist.
        tidy: first remove what killed processes left beside it.

    Raises:
        OSError: about `target`, where it is about what stands for it.
    """
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    if tidy:
        remove_leftovers(target.parent)
    try:
        folder, lock = _new_folder(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    try:
        yield folder / target.name
    except OSError as error:
        where = error.filename
        if error.errno in FULL if where is None else os.fsdecode(where).startswith(str(folder)):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    finally:
        _remove(folder)
        os.close(lock)
        _OWN.discard(folder)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and vanishes when it does not."""
    path = os.path.abspath(path)  # the working directory may change
    with staging(path) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike, tidy: bool = True) -> Iterator[Path]:
    """An empty folder that becomes `path`, in place of a folder there, when the block ends well."""
    path = os.path.abspath(path)
    with staging(path, tidy) as temporary:
        temporary.mkdir()
        yield temporary
        if os.path.islink(path):
            os.unlink(path)  # what it leads to is somebody else's
        before = temporary.with_name(f"{temporary.name}.before")  # removed with the staging folder
        if os.path.isdir(path):
            os.rename(path, before)
        try:
            os.replace(temporary, path)
        except BaseException:
            if before.exists():
                os.rename(before, path)
            raise


def leftovers(folder: Path, name: str) -> list[Path]:
    """What killed processes left of the target `name` in a folder."""
    dead = []
    for path in _staging_folders(folder, name):
        with _dead(path) as is_dead:
            dead += [path] * is_dead
    return dead


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes left in a folder: of the target `name`, or of every one."""
    for path in _staging_folders(folder, name):
        with _dead(path) as is_dead:
            if is_dead:
                _remove(path)
        if not is_dead:
            with contextlib.suppress(OSError):
                path.rmdir()  # works where it is empty: who made it was killed before it was locked, or makes another


def check_folder(folder: Path, option: str = "out") -> None:
    """Raises ValueError where results could not go into a folder, which need not exist."""
    absolute = folder.absolute()
    there = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{option}: must be a folder, got {folder}, and {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: must be a folder to write to, got {folder}, and nothing may be written in {there}")


@contextlib.contextmanager
def one_run(folder: Path) -> Iterator[None]:
    """Keeps the folder for this run. ValueError where another run has it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN_LOCK
    while (lock := _locked(path, os.O_CREAT, or_without=True)) is None:
        folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
        if path.exists():  # else the other run has ended in between
            raise ValueError(
                f"out: the folder {folder} must be free, got one that another run is writing to ({_owner(path)}); wait "
                "until it has ended, or choose another folder"
            )
    try:
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[:200]
    return "it does not say which"


def _staging_folders(folder: Path, name: str | None) -> list[Path]:
    """Those of this user, but for what this process is writing."""
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(short_name(name))}\.\d+-[0-9a-f]+")
    found, folder = [], os.path.abspath(folder)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if pattern.fullmatch(entry.name) and path not in _OWN and entry.is_dir(follow_symlinks=False):
                found += [path] * (entry.stat(follow_symlinks=False).st_uid == _user())
    return sorted(found)


def _new_folder(target: Path) -> tuple[Path, int]:
    """A new folder beside `target`, and the descriptor that holds its lock."""
    while True:
        folder = target.with_name(f".{short_name(target.name)}.{os.getpid()}-{secrets.token_hex(8)}")
        _OWN.add(folder)
        try:
            folder.mkdir(0o700)
            if (lock := _locked(folder / LOCK, os.O_CREAT | os.O_EXCL, or_without=True)) is not None:
                return folder, lock
        except BaseException:
            _remove(folder)
            _OWN.discard(folder)
            raise


def _remove(folder: Path) -> None:
    """The lock last: who is killed in between leaves something that is known as left."""
    if folder.is_symlink():  # put in its place by somebody else, to have another folder removed
        return
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _dead(path: Path) -> Iterator[bool]:
    """Whether nobody holds the lock of a staging folder; nobody else gets it in the block."""
    lock = None
    with contextlib.suppress(OSError):
        lock = _locked(path / LOCK)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _locked(path: Path, flags: int = 0, or_without: bool = False) -> int | None:
    """A descriptor that holds the lock of a file until it is closed; `None` where that cannot be had.

    Args:
        path: of the file.
        flags: of `open`.
        or_without: also a descriptor without a lock, where the file system has no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | flags, 0o600)
    except FileNotFoundError:
        return None  # somebody took its folder for an empty one
    with contextlib.suppress(FileNotFoundError):  # removed, by its owner or as a dead one
        locked = _lock(descriptor)
        if (locked or (locked is None and or_without)) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    os.close(descriptor)
    return None


try:
    import fcntl

    def _lock(descriptor: int) -> bool | None:
        """Whether this process holds the lock now; `None` where the file system has none."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    _user = os.getuid

except ImportError:  # pragma: no cover - Windows
    import msvcrt

    def _lock(descriptor: int) -> bool | None:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _user() -> int:
        return 0
