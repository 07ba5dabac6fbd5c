"""`progress=True`: a bar in a terminal, a line now and then in a file, nothing unless asked for."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from pynisher_exec import LimitedProcessExecutor, Status
from pynisher_exec.searches.progress import Lines, Progress, duration
from pynisher_exec.searches.reader import read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60

SEARCH = """
import sys
from pynisher_exec import LimitedProcessExecutor

def behave(number):
    if number % 3 == 1:
        raise ValueError(number)
    return number

with LimitedProcessExecutor(2, wall_time=30) as executor:
    print(len(list(executor.reports(behave, range(9), progress=True))))
    print(sum(executor.map(abs, range(4), progress=True)))
"""


def program(folder: Path, text: str = SEARCH) -> list[str]:
    """Write a program, and give its command."""
    path = folder / "search.py"
    path.write_text(dedent(text))
    return [sys.executable, str(path)]


def test_redirected_output_gets_a_line_at_the_end(tmp_path: Path) -> None:
    """What is done, and how it ended; standard output is the program's."""
    done = subprocess.run(
        program(tmp_path), capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert done.stdout == "9\n6\n"
    first, second = done.stderr.splitlines()
    assert first.startswith("behave: 9 of 9 done")
    assert first.endswith("ok 6  exception 3")
    assert second.startswith("abs: 4 of 4 done")


def in_a_terminal(tmp_path: Path, columns: int | None = None) -> str:
    """What a terminal of that width is shown; it does not say how wide it is unless told."""
    near, far = pty.openpty()
    if columns is not None:
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    with subprocess.Popen(program(tmp_path), stdout=subprocess.PIPE, stderr=far) as caller:
        os.close(far)
        shown = b""
        while True:
            try:
                part = os.read(near, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert caller.wait(PATIENCE) == 0
    os.close(near)
    return shown.decode(errors="replace")


@pytest.mark.parametrize("columns", [None, 200, 80, 50, 32])
def test_terminal_gets_a_bar_with_colours(tmp_path: Path, columns: int | None) -> None:
    """tqdm's, with the count of each status; a narrow one less of the bar, and the counts."""
    text = in_a_terminal(tmp_path, columns)
    assert "9/9" in text
    assert "\x1b[32mok 6\x1b[0m" in text
    assert "\x1b[31mexception 3\x1b[0m" in text
    assert ("100%" in text) == (columns is None or columns >= 50)


def test_terminal_that_goes_away_ends_no_search(tmp_path: Path) -> None:
    """Whoever watched it has left: an error at every byte."""
    near, far = pty.openpty()
    command = program(tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=far, text=True) as caller:
        os.close(far)
        os.close(near)
        assert caller.communicate(timeout=PATIENCE)[0] == "9\n6\n"
        assert caller.returncode == 0


def test_search_without_standard_error_runs(tmp_path: Path) -> None:
    """A daemon has closed it: nobody is there to see."""
    command = ["sh", "-c", shlex.join(program(tmp_path)) + " 2>&-"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "9\n6\n")


STANDS_STILL = """
import os, sys
from pynisher_exec import LimitedProcessExecutor
with LimitedProcessExecutor(2) as executor:
    reports = executor.reports(str, ["x" * 200] * 300, progress=True, record=sys.argv[1])
    print(sum(report.status == "ok" for report in reports))
"""


def test_terminal_that_stands_still_holds_up_nothing(tmp_path: Path) -> None:
    """Ctrl-S, or a connection that hangs: the record and the loop go on, and the program ends."""
    near, far = pty.openpty()
    place = tmp_path / "search.db"
    os.set_blocking(far, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(far, b"x" * 4096)  # nobody reads it
    os.set_blocking(far, True)
    command = [*program(tmp_path, STANDS_STILL), str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=far, text=True) as caller:
        os.close(far)
        assert caller.communicate(timeout=PATIENCE)[0] == "300\n"
    os.close(near)
    with read(place) as reader:
        assert len(reader.tasks()) == 1  # of one key


class Tee:
    """A standard error with no more than it needs."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        """Keep it."""
        self.text += text

    def flush(self) -> None:
        """Nothing waits."""


class NoLength:
    """Has a length that it does not know."""

    def __len__(self) -> int:
        raise TypeError

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_odd_streams_and_iterables_are_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's own standard error, a length that is none."""
    tee = Tee()
    monkeypatch.setattr(sys, "stderr", tee)
    with LimitedProcessExecutor(1) as executor:
        items: Any = NoLength()
        assert len(list(executor.reports(abs, items, progress=True))) == 3
    assert tee.text.startswith("abs: 3 done")


def test_nothing_is_shown_unless_asked_for(tmp_path: Path) -> None:
    """Not a byte."""
    text = SEARCH.replace(", progress=True", "")
    done = subprocess.run(
        program(tmp_path, text), capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert done.stderr == ""


def test_missing_tqdm_is_told(tmp_path: Path) -> None:
    """With what to install."""
    text = "import sys\nsys.modules['tqdm'] = None\n" + dedent(SEARCH)
    done = subprocess.run(
        program(tmp_path, text), capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert "pip install 'pynisher_exec[progress]'" in done.stderr


def test_lines_come_now_and_then() -> None:
    """One when it is due, with the time left, and one at the end."""
    clock = [100.0]
    file = io.StringIO()
    shown = Progress(10, "train", Lines(file, every=30), lambda: clock[0])
    shown.end(Status.OK)
    shown.show(2)
    assert file.getvalue() == ""
    clock[0] += 31
    shown.end(Status.MEMORY)
    shown.show(2)
    assert file.getvalue().startswith("train: 2 of 10 done, 0.0645/s, 2 min 04 s left: running 2")
    shown.close()
    assert len(file.getvalue().splitlines()) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.123, "0.12 s"), (12.3, "12 s"), (125, "2 min 05 s"), (3700, "1 h 01 min")],
)
def test_durations_are_told_as_people_say_them(seconds: float, text: str) -> None:
    """No more digits than it needs."""
    assert duration(seconds) == text
