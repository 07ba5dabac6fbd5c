"""Between a function's return and the end of its task: limits stand, and nothing stays."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import multiprocessing
import os
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import crashes
import pytest
from conftest import stat_fields, wait_until, wait_until_running
from test_hostile_tasks import sockets

from pynisher_exec import LimitedProcessExecutor, PynisherError
from pynisher_exec.caller import exchange

PATIENCE = 40


def forge_returned(count: int) -> None:
    """Say RETURNED on the task's own line, in a word of many bytes, and go."""
    for line in own_lines(socket.SOCK_SEQPACKET):
        line.send(json.dumps({"kind": "returned", "outcome": "value", "x": "A" * count}).encode())
    os._exit(0)


def own_lines(kind: int) -> list[socket.socket]:
    """Copies of the sockets of a kind that this process has."""
    found = []
    for fd in sockets():
        line = socket.socket(fileno=os.dup(fd))
        if line.family == socket.AF_UNIX and line.type == kind:
            found.append(line)
    assert found
    return found


@pytest.mark.parametrize("count", [10, 60_000, 65_000, 65_450])
def test_forged_word_of_any_size_fails_one_future(count: int) -> None:
    """A word that does not fit on, with what is added to it, is no reason to be silent."""
    with LimitedProcessExecutor(1, wall_time=5) as executor:
        future = executor.submit(forge_returned, count)
        assert isinstance(future.exception(PATIENCE), PynisherError)
        assert future.report is not None
        assert future.report.status == "transfer"
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def leave_processes(ignored: int) -> str:
    """Leave workers of multiprocessing behind, which is what the interpreter waits for."""
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        context.Process(target=ignore_and_sleep).start()
    del ignored
    return "done"


def leave_a_pool(number: int) -> int:
    """Leave a pool open, an idle worker of which holds the lock of its queue."""
    logging.kept = multiprocessing.get_context("fork").Pool(2)  # type: ignore[attr-defined]
    return int(logging.kept.map(abs, [number])[0])  # type: ignore[attr-defined]


def ignore_and_sleep() -> None:
    """Stay."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(30)


@pytest.mark.parametrize(("leave", "expected"), [(leave_processes, "done"), (leave_a_pool, 1)])
def test_left_over_processes_do_not_hold_up_the_end(leave: Any, expected: object) -> None:
    """They end with the task, which exits by itself and need not be killed for it."""
    with LimitedProcessExecutor(1, wall_time=25) as executor:
        report = executor.submit(leave, 1).wait_for_report()
    assert (report.status, report.result, report.exit_code) == ("ok", expected, 0)


def trickle() -> None:
    """Say RETURNED, then send the outcome a byte at a time; bounded by what is asked of it."""
    (line,) = own_lines(socket.SOCK_SEQPACKET)
    (stream,) = own_lines(socket.SOCK_STREAM)
    line.send(json.dumps({"kind": "returned", "outcome": "value"}).encode())
    stream.send(b"PXF1" + struct.pack("!IQ", 1, 1000))
    for _ in range(150):
        time.sleep(0.2)
        stream.send(b"x")
    os._exit(0)


def test_outcome_that_trickles_is_no_way_to_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte buys no more than its time, so the transfer ends within what a silent one has."""
    monkeypatch.setattr(exchange, "TRANSFER_TIME", 1.0)
    with LimitedProcessExecutor(1, wall_time=60) as executor:
        future = executor.submit(trickle)
        assert isinstance(future.exception(20), PynisherError)
        assert future.report is not None
        assert future.report.status == "transfer"
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def return_beside_a_burner(path: str, allocate: bool) -> bytes:
    """Leave a child that uses CPU time or memory for ever; return what the caller must read."""
    with open(path, "wb", buffering=0) as file:
        if os.fork() == 0:
            file.write(str(os.getpid()).encode())
            file.close()
            if allocate:  # beyond the reach of RLIMIT_DATA
                memory = mmap.mmap(-1, 400 << 20)
                for page in range(0, len(memory), mmap.PAGESIZE):
                    memory[page] = 1
                time.sleep(30)
            until = time.monotonic() + 30
            while time.monotonic() < until:
                pass
            os._exit(0)
    while not Path(f"{path}.held").exists():
        time.sleep(0.001)
    return bytes(4 << 20)


@pytest.mark.parametrize("limits", [{"cpu_time": 0.5}, {"memory": "50MB"}], ids=str)
def test_limits_stand_while_a_returned_value_waits_to_be_read(
    limits: dict[str, Any], tmp_path: Path
) -> None:
    """The caller does not read: a callback of its own holds it up. What runs on is bounded."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    release, held = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        held.set()
        release.wait(PATIENCE)

    with LimitedProcessExecutor(2, **limits) as executor:
        try:
            future = executor.submit(return_beside_a_burner, str(pipe), "memory" in limits)
            reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            wait_until_running(future)
            executor.submit(crashes.value).add_done_callback(hold)
            assert held.wait(PATIENCE)
            Path(f"{pipe}.held").touch()
            pid = burner(reader)
            os.close(reader)
            wait_until(lambda: stat_fields(pid)[:1] in ([], ["Z"]), 10)
            assert not future.done()
        finally:
            release.set()
        future.exception(PATIENCE)
    assert future.report is not None
    # The limit itself where it was met before the task could say that it had returned.
    assert future.report.status in ("transfer", *limits)


def burner(reader: int) -> int:
    """Read the child's pid; before the task opens the pipe there is end of file."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            if text := os.read(reader, 20):
                return int(text)
    pytest.fail("no child has begun")
