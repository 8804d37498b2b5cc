"""Texts from outside on a terminal, in XML and as names of files; errors in one line."""

import errno
import os
import signal
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from clipsight import errors, signals
from clipsight.errors import error_text
from clipsight.text import LONGEST_NAME, file_names, printable, short_name

BAD = "cat\x1b[31m\nrm\r\x00\x9b\u2028\u202e\udcff"


def test_printable():
    assert printable(BAD) == r"cat\x1b[31m\nrm\r\x00\x9b\u2028\u202e\udcff"
    for text in ("flying fish", "naïve", "猫　犬", "می‌خواهم", "👩‍🚀", "a\\b"):
        assert printable(text) == text
    every = "".join(map(chr, range(0x3000))) + "\ufffe\uffff\ud800"
    assert ElementTree.fromstring(ElementTree.tostring(_element(printable(every)))).text == printable(every)
    assert len(printable(every).splitlines()) == 1


def _element(text):
    element = ElementTree.Element("label")
    element.text = text
    return element


def test_file_names():
    assert file_names(["flying fish", "cat"]) == ["flying_fish", "cat"]
    assert file_names(["a b", "a/b", "c"]) == ["0-a_b", "1-a_b", "c"]
    assert file_names(["Cat", "cat"]) == ["0-Cat", "1-cat"]
    assert file_names(["../../etc/passwd", "/", ".."]) == ["etc_passwd", "1", "2"]
    assert file_names(["layer4.0", "a", "A", "1-a"], also=".-") == ["0-layer4.0", "1-a", "2-A", "3-1-a"]
    long = file_names(["猫" * 400 + "a", "猫" * 400 + "b", BAD])
    assert len(set(long)) == 3
    assert all(len(name.encode()) <= LONGEST_NAME + 4 and name.isprintable() for name in long)


def test_short_name(monkeypatch):
    assert short_name("my holiday (1)") == "my holiday (1)"
    assert short_name("caf\udce9/\x1b") == "caf___"
    assert short_name("猫" * 400) == "猫" * (LONGEST_NAME // 3)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert short_name("naïve?") == "na_ve?"


def test_errors_of_the_system():
    full = OSError(errno.ENOSPC, "No space left on device", "out/heat.mp4")
    assert error_text(full) == "out/heat.mp4: no space left on device; free some space, or write elsewhere"
    closed = PermissionError(errno.EACCES, "Permission denied", b"\xff")
    assert error_text(closed).startswith(r"\udcff: permission denied;")
    assert error_text(MemoryError()).startswith("out of memory; ")
    assert error_text(RuntimeError("DefaultCPUAllocator: can't allocate memory")).startswith("out of memory (Default")
    assert error_text(ValueError("size: must be\n HxW, got \x1b")) == r"size: must be HxW, got \x1b"
    assert error_text(ValueError("too small\nException raised from f at g:3\nframe #0: h")) == "too small"
    assert error_text(KeyError("x")) == "'x'; --debug shows where"
    assert "Error" not in error_text(AssertionError())


def test_an_error_of_the_users_own_code_is_shown_as_theirs(tmp_path, monkeypatch):
    code = tmp_path / "nets.py"
    code.write_text("def forward():\n    return 1 / 0\n")
    scope = {}
    exec(compile(code.read_text(), str(code), "exec"), scope)
    monkeypatch.setattr(errors, "user_code", {str(code)})
    with pytest.raises(ZeroDivisionError) as caught:
        scope["forward"]()
    expected = f"{code}, line 2, in forward, raised ZeroDivisionError: division by zero; --debug shows the traceback"
    assert error_text(caught.value) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_raise_once(number, monkeypatch, capsys):
    monkeypatch.setattr(signals, "_received", [])
    monkeypatch.setattr(signals, "_told", set())
    before = [(n, signal.getsignal(n)) for n in signals.STOPPING]
    try:
        for n in signals.STOPPING:
            signal.signal(n, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signals.stop_by_exception()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "as nohup and & leave it"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # as `timeout` and a terminal that closes do
        monkeypatch.setattr(signals, "DEAF", 0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    finally:
        for n, handler in before:
            signal.signal(n, handler)
    assert [signals.exit_code(), signals.exit_code()] == [128 + number] * 2
    assert capsys.readouterr().err == f"error: stopped by {number.name}; nothing half-written is left behind\n"
