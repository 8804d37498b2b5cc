"""Files appear whole or not at all; what killed processes left goes, what others are writing stays."""

import errno
import os
import stat
import threading

import pytest

from clipsight import staging


def left(path, locked=False):
    """A staging folder as another process has it, or as it leaves it when it is killed; its lock's descriptor."""
    path.mkdir()
    (path / "half.json").write_text("{")
    descriptor = os.open(path / staging.LOCK, os.O_CREAT | os.O_RDWR)
    if locked:
        assert staging._lock(descriptor)
        return descriptor
    os.close(descriptor)
    return None


def test_the_next_one_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    dead, empty, alive = (tmp_path / f".{name}.12-ab" for name in ("heat.mp4", "empty", "alive"))
    left(dead)
    empty.mkdir()
    lock = left(alive, locked=True)
    others = [tmp_path / ".somebody.else", tmp_path / ".mine.12-ab"]
    others[0].mkdir()
    others[1].mkdir()
    (others[1] / "thesis.txt").write_text("precious")
    try:
        with staging.whole_file(tmp_path / "result.json") as path:
            path.write_text("{}")
            (own,) = {p for p in tmp_path.iterdir() if p.name.startswith(".result.json.")}
            staging.remove_leftovers(tmp_path)
            assert own.exists()
        assert {p.name for p in tmp_path.iterdir()} == {"result.json", alive.name, *(p.name for p in others)}
        assert staging.leftovers(tmp_path, "alive") == []
    finally:
        os.close(lock)
    assert staging.leftovers(tmp_path, "alive") == [alive]
    assert staging.leftovers(tmp_path, "aliv") == []
    staging.remove_leftovers(tmp_path)
    assert not alive.exists()
    assert (others[1] / "thesis.txt").read_text() == "precious"


def test_a_sweep_never_takes_what_is_being_made(tmp_path, monkeypatch):
    """As one of another process, which does not know what is this one's."""

    class Forgetful(set):
        def __contains__(self, _):
            return False

    monkeypatch.setattr(staging, "_OWN", Forgetful())
    done = threading.Event()

    def sweep():
        while not done.is_set():
            staging.remove_leftovers(tmp_path)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for i in range(100):
            with staging.whole_file(tmp_path / f"{i}.txt") as path:
                path.write_text(str(i))
    finally:
        done.set()
        sweeper.join()
    assert sorted(int(p.read_text()) for p in tmp_path.iterdir()) == list(range(100))


def test_nothing_that_lies_in_wait_is_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.mkdir()
    monkeypatch.setattr(staging.secrets, "token_hex", lambda _: "ab")  # even for someone who knows the name
    (tmp_path / f".x.json.{os.getpid()}-ab").symlink_to(victim)
    with pytest.raises(FileExistsError), staging.whole_file(tmp_path / "x.json") as path:
        path.write_text("{}")
    assert list(victim.iterdir()) == []
    staging.remove_leftovers(tmp_path)
    (victim / "thesis.txt").touch()
    (tmp_path / "y").symlink_to(victim)
    with staging.whole_folder(tmp_path / "y") as path:
        (path / "x").touch()
    assert [p.name for p in (tmp_path / "y").iterdir()] == ["x"]
    assert [p.name for p in victim.iterdir()] == ["thesis.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with staging.whole_file(tmp_path / "x") as path:
            path.write_text("x")
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with staging.whole_folder(tmp_path / "y"):
            pass
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "xy"] == [0o640, 0o750]


def test_errors_are_about_the_file_that_was_asked_for(tmp_path):
    for said in (False, True):
        with pytest.raises(OSError, match="No space") as caught, staging.whole_file(tmp_path / "x.json") as path:
            raise OSError(errno.ENOSPC, "No space left on device", *[str(path)] * said)
        assert caught.value.filename == str(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_one_run_at_a_time(tmp_path):
    out = tmp_path / "out"
    with staging.one_run(out):
        with pytest.raises(ValueError, match=rf"out: the folder {out} must be free, .*process {os.getpid()} on .*wait"):
            staging.one_run(out).__enter__()
        with staging.one_run(tmp_path / "other"):
            pass
    assert list(out.iterdir()) == []
    (out / staging.RUN_LOCK).write_text("process 12 on a machine that was switched off")
    with staging.one_run(out):
        pass
    assert list(out.iterdir()) == []


def test_check_folder(tmp_path):
    (tmp_path / "file").touch()
    staging.check_folder(tmp_path / "new" / "deep")
    for path in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(ValueError, match=rf"out: must be a folder, got {path}, and {tmp_path}/file is a file"):
            staging.check_folder(path)
