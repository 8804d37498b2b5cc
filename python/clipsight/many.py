"""Many videos: a folder of results each, which appears whole or not at all; what is done is not done again.

    jobs --skip what is done--> attempt --temporary folder--> work --done.json--> rename
                                   one after another, or in the processes of a Ray cluster

A job's key is over the video, the model and all options, so that a changed one is another job with another folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import error_text
from .staging import leftovers, one_run, remove_leftovers, whole_folder
from .text import short_name

MARKER = "done.json"
NOT_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
ATTEMPTS = 3  # of processes that died on the same video, before the others go on without it

Work = Callable[[str, Path], object]  # (video, empty folder) -> the results are in the folder


@dataclass(frozen=True)
class Job:
    video: str
    folder: str
    key: str


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `state` is `"done"`, `"skipped"` or `"failed"`; `attempts` counts processes that died too."""

    video: str
    folder: str
    state: str
    attempts: int = 0
    error: str = ""


def find_videos(patterns: Sequence[str]) -> list[str]:
    """Paths and globs -> paths, each once, a glob's in alphabetical order. ValueError where a glob matches nothing."""
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = [pattern]
        if glob.has_magic(pattern) and not os.path.exists(pattern):
            matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise ValueError(f"video: a pattern must match at least one file, got {pattern!r}")
        found |= dict.fromkeys(matches)
    return list(found)


def plan(videos: Iterable[str], out: Path, digest: str) -> list[Job]:
    """One job per video, with the folder `out/<name>-<start of its key>`.

    Args:
        videos: files, or folders of frames; a changed size or time of change makes another job.
        out: where the folders go.
        digest: of the model and all options.

    Raises:
        ValueError: a video does not exist.
    """
    jobs = {}
    for video in videos:
        path = Path(os.path.abspath(video))
        if not path.exists():
            raise ValueError(f"video: {video} does not exist")
        files = [path]
        if path.is_dir():  # what systems and editors hide there changes without the frames, or leads nowhere
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        key = hashlib.sha256(json.dumps([str(path), state, digest]).encode()).hexdigest()
        jobs[key] = Job(str(video), str(out / f"{short_name(path.stem)}-{key[:8]}"), key)
    return list(jobs.values())


def is_done(job: Job) -> bool:
    """Whether the job's folder holds every file that was there when it was finished."""
    try:
        marker = json.loads((Path(job.folder) / MARKER).read_text(encoding="utf-8"))
        return marker["key"] == job.key and marker["files"] == _files(Path(job.folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def run(
    jobs: Sequence[Job],
    make_work: Callable[[], Work],
    *,
    ray: bool = False,
    address: str | None = None,
    cpus: int = 1,
    gpus: int = 0,
) -> Iterator[Outcome]:
    """Does the jobs that are not done yet; yields every job's outcome as it is known, those done before first.

    Args:
        jobs: from `plan`.
        make_work: called once in each process; what it returns is called with a video and an empty folder. An error
            that it raises there is the outcome of that video alone.
        ray: spread the jobs over the processes of a Ray cluster: the one that this process is connected to already, or
            that at `address` or in `RAY_ADDRESS`, or one of this machine's own. The videos, `out` and the working
            directory must be at the same paths on all of its machines.
        address: of a Ray cluster.
        cpus, gpus: what one process takes.

    Raises:
        ImportError: `ray` without the package ray.
        ValueError: another run is writing into the same folder.
    """
    folders = sorted({Path(job.folder).parent for job in jobs})
    with contextlib.ExitStack() as held:
        if not all(map(is_done, jobs)):
            for folder in folders:
                held.enter_context(one_run(folder))
                held.callback(remove_leftovers, folder)
                remove_leftovers(folder)
        todo = []
        for job in jobs:
            if is_done(job):
                yield Outcome(job.video, job.folder, "skipped")
            else:
                todo.append(job)
        if ray and todo:
            yield from _spread(todo, make_work, address, cpus, gpus)
        elif todo:
            worker = _Worker(make_work)
            for job in todo:
                yield worker.attempt(job)


class _Worker:
    """Does one job after another in its process."""

    def __init__(self, make_work: Callable[[], Work], working_directory: str | None = None):
        if working_directory:
            os.chdir(working_directory)  # a process of a cluster starts elsewhere; relative paths are the caller's
        self._make_work = make_work

    @functools.cached_property
    def _work(self) -> Work:
        return self._make_work()

    def __call__(self, row: dict) -> dict:
        return dataclasses.asdict(self.attempt(Job(**row)))

    def attempt(self, job: Job) -> Outcome:
        folder = Path(job.folder)
        attempts = len(leftovers(folder.parent, folder.name)) + 1
        if attempts > ATTEMPTS:
            error = f"the process died {ATTEMPTS} times on this video (out of memory, or a damaged file)"
            return Outcome(job.video, job.folder, "failed", ATTEMPTS, error)
        try:
            with whole_folder(folder, tidy=False) as temporary:
                self._work(job.video, temporary)
                marker = {"key": job.key, "video": job.video, "attempts": attempts, "files": _files(temporary)}
                (temporary / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        except Exception as error:
            return Outcome(job.video, job.folder, "failed", attempts, error_text(error))
        return Outcome(job.video, job.folder, "done", attempts)


def _spread(jobs: list[Job], make_work, address: str | None, cpus: int, gpus: int) -> Iterator[Outcome]:
    """The jobs as rows of a Ray data set, one block each, mapped by a pool of processes that are started again."""
    with cluster(address, cpus * len(jobs)) as ray:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        there = ray.cluster_resources()
        fitting = min(int(there.get(name, 0) // need) for name, need in (("CPU", cpus), ("GPU", gpus)) if need)
        if fitting < 1:
            raise ValueError(f"ray: the cluster must have {cpus} CPUs and {gpus} GPUs for a process, got {there}")
        pool = ray.data.ActorPoolStrategy(size=min(fitting, len(jobs)), max_tasks_in_flight_per_actor=1)
        rows = ray.data.from_items([dataclasses.asdict(job) for job in jobs], override_num_blocks=len(jobs))
        rows = rows.map(
            _Worker, fn_constructor_args=(make_work, os.getcwd()), compute=pool, num_cpus=cpus, num_gpus=gpus
        )
        for row in rows.iter_rows():
            yield Outcome(**row)


@contextlib.contextmanager
def cluster(address: str | None = None, cpus: int | None = None) -> Iterator:
    """The module ray, connected: to what this process is connected to already, else as `run` says.

    Args:
        address: of a running cluster.
        cpus: what a cluster of this machine's own should use at most; by default all that the machine has.

    Raises:
        ImportError: without the package ray.
        ValueError: nothing answers at the address.
    """
    if address:
        _reach(address)
    own = address is None and "RAY_ADDRESS" not in os.environ
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    if own:  # its processes listen on the loopback alone, as on a Mac; `_node_ip_address` of `ray.init` does not do it
        settings[NOT_ALONE] = "0"
    for name, value in settings.items():
        os.environ.setdefault(name, value)  # read when ray is imported
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"ray: needs the extra 'ray': pip install 'clipsight[ray]' ({error})") from error
    if ray.is_initialized():
        yield ray
        return
    options: dict = {"logging_level": logging.ERROR, "log_to_driver": False}
    if own:
        options |= {"include_dashboard": False, "object_store_memory": 100 * 2**20}
        options |= {"num_cpus": min(cpus, len(os.sched_getaffinity(0)))} if cpus else {}
        with contextlib.suppress(ImportError):  # where ray was imported before
            from ray._private import ray_constants

            ray_constants.ENABLE_RAY_CLUSTER = os.environ[NOT_ALONE] not in ("0", "false")
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(address, **options)
    try:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put one of its own in its place
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Ray itself would try for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local") or "://" in address.removeprefix("ray://"):
        return  # words of Ray's own
    if not (separator and port.isdecimal() and int(port) < 2**16):
        raise ValueError(f"ray: the address must be HOST:PORT, such as 10.0.0.1:6379, or auto, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(
            f"ray: the address must be that of a running cluster, got {address!r} ({error.strerror or error})"
        ) from error


def _files(folder: Path) -> dict[str, int]:
    """Relative path and size of every file in the folder but the marker."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARKER)
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths}
