"""What tasks write: kept within a bound, or passed on to where the caller's own output goes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from pynisher_exec import LimitedProcessExecutor, TimeoutException

if TYPE_CHECKING:
    import pytest

PATIENCE = 30


def write_in_every_way() -> None:
    """Python, C, descriptors and a subprocess, to both streams."""
    import ctypes  # noqa: PLC0415

    sys.stdout.write("python out\n")
    sys.stderr.write("python err\n")
    sys.stdout.flush()
    os.write(1, b"descriptor out\n")
    ctypes.CDLL(None).puts(b"c out")
    ctypes.CDLL(None).fflush(None)
    subprocess.run(["sh", "-c", "echo shell out; echo shell err >&2"], check=True)


def write_much(count: int) -> int:
    """Write more than any pipe holds."""
    line = b"x" * 99 + b"\n"
    for _ in range(count // 100):
        os.write(1, line)
    return count


def test_everything_that_a_tree_writes_is_captured() -> None:
    """Python's streams, raw descriptors, C's buffers and subprocesses, each stream in order."""
    with LimitedProcessExecutor(1, capture_output=True) as executor:
        future = executor.submit(write_in_every_way)
        future.result(PATIENCE)
    assert future.report is not None
    assert future.report.stdout == "python out\ndescriptor out\nc out\nshell out\n"
    assert future.report.stderr == "python err\nshell err\n"


def test_output_without_capture_is_none_and_goes_where_the_callers_goes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Descriptors 1 and 2 of the task are the caller's, as they are at the dispatch."""
    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(write_in_every_way)
        future.result(PATIENCE)
    assert future.report is not None
    assert (future.report.stdout, future.report.stderr) == (None, None)
    out, err = capfd.readouterr()
    assert out.endswith("descriptor out\nc out\nshell out\n")
    assert err == "python err\nshell err\n"


def test_beyond_the_bound_head_and_tail_are_kept_with_a_notice() -> None:
    """A task that writes 20 MB is not slowed down to a stop, and the report stays small."""
    with LimitedProcessExecutor(1, capture_output=10_000, wall_time=20) as executor:
        future = executor.submit(write_much, 20_000_000)
        assert future.result(PATIENCE) == 20_000_000
    assert future.report is not None
    text = future.report.stdout
    assert text is not None
    assert len(text) < 10_100
    assert "[... 19990000 bytes left out ...]" in text
    assert text.startswith("xxx")
    assert text.endswith("x\n")


def test_output_before_a_limit_is_kept_and_quoted() -> None:
    """The last line of stderr stands in the exception's message."""

    def complain() -> None:
        sys.stderr.write("first\nlosing patience\n")
        sys.stderr.flush()
        time.sleep(60)

    with LimitedProcessExecutor(1, capture_output=True, wall_time=0.5) as executor:
        future = executor.submit(complain)
        error = future.exception(PATIENCE)
    assert isinstance(error, TimeoutException)
    assert str(error).endswith("last line of stderr: losing patience")
    assert future.report is not None
    assert future.report.stderr == "first\nlosing patience\n"


def test_bytes_that_are_no_text_are_replaced() -> None:
    """A report is text, whatever was written."""
    with LimitedProcessExecutor(1, capture_output=True) as executor:
        future = executor.submit(os.write, 1, b"caf\xe9\n")
        future.result(PATIENCE)
    assert future.report is not None
    assert future.report.stdout == "caf\ufffd\n"


def test_standard_input_of_a_task_is_empty() -> None:
    """A task that reads waits for nobody."""
    with LimitedProcessExecutor(1, wall_time=10) as executor:
        assert executor.submit(os.read, 0, 1).result(PATIENCE) == b""


def test_closed_standard_streams_of_the_caller_harm_nothing() -> None:
    """A daemon has none; its tasks' output then goes nowhere."""
    code = """
import os
from pynisher_exec import LimitedProcessExecutor
os.close(0), os.close(1)
def work():
    print("lost")
    return 42
with LimitedProcessExecutor(1) as executor:
    os.write(2, str(executor.submit(work).result(20)).encode())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.stderr, done.returncode) == (b"42", 0)
