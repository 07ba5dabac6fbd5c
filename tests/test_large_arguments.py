"""Large parts of a call, which the caller copies into the task's memory, or sends."""

from __future__ import annotations

import _thread
import errno
import os
import select
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pynisher_exec import LimitedProcessExecutor
from pynisher_exec.caller.copying import Gift
from pynisher_exec.caller.item import LEAST_KEPT
from pynisher_exec.kernel import memory_copy

if TYPE_CHECKING:
    from pynisher_exec import LimitedFuture

PATIENCE = 40
Arrays = dict[str, Any]


class UnforeseenError(Exception):
    """Nobody has thought of it."""


def arrays() -> Arrays:
    """Parts that are copied, some on both sides of the bound, and others between them."""
    ours: Any = np.arange(LEAST_KEPT // 8, dtype=np.float64)
    fixed: Any = ours + 1
    fixed.flags.writeable = False
    return {
        "copied": ours,
        "sent": ours[:-1],
        "fixed": fixed,
        "small": np.arange(10),
        "strided": np.arange(LEAST_KEPT)[::2],
        "bytes": bytes(range(256)) * (LEAST_KEPT // 256 + 1),
        "bytearray": bytearray(range(256)) * (LEAST_KEPT // 256),
        "large": np.arange(9_000_000),  # of more than one piece
    }


def are_right(found: Arrays) -> list[bool]:
    """Whether each arrived as it was; change what can be changed."""
    wanted = arrays()
    assert found.keys() == wanted.keys()
    right = [np.array_equal(found[name], wanted[name]) for name in wanted]
    right += [type(found[name]) is type(wanted[name]) for name in wanted]
    for value in found.values():
        if isinstance(value, np.ndarray) and value.flags.writeable:
            value[:] = 0
    return right


@pytest.mark.parametrize("most", [1, None])
def test_large_parts_arrive_as_they_were(most: int | None) -> None:
    """From memory to memory, into a fresh process and a reused one; the caller's stay."""
    given = arrays()
    with LimitedProcessExecutor(2, memory="1GiB", max_tasks_per_child=most) as executor:
        for future in [executor.submit(are_right, given) for _ in range(4)]:
            assert all(future.result(PATIENCE))
    assert all(are_right(given))


def test_large_arguments_are_charged_to_nobody() -> None:
    """And the task may write to its copy."""

    def double(array: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        array *= 2
        return float(array.sum())

    given = np.ones(8 << 20)
    with LimitedProcessExecutor(1, memory="16MiB") as executor:
        assert executor.submit(double, given).result(PATIENCE) == 2 * len(given)
    assert given.sum() == len(given)


def test_bytes_that_are_an_argument_are_copied_from_where_they_lie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are bytes in the task; a keyword's value as well."""
    kernel, sources = memory_copy.copy_to, set()

    def note(pid: int, address: int, source: Any, at: int) -> int:
        sources.add(memory_copy.address_of(source))
        return kernel(pid, address, source, at)

    def look(data: bytes, again: bytes, *, more: bytes) -> tuple[str, str, bool, bool, bool]:
        kinds = type(data).__name__, type(more).__name__
        return *kinds, data == b"x" * len(data), more == data, again is data

    monkeypatch.setattr(memory_copy, "copy_to", note)
    given = b"x" * LEAST_KEPT
    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(look, given, given, more=bytes(bytearray(given)))
        assert future.result(PATIENCE) == ("bytes", "bytes", True, True, True)
        assert executor.submit(look, b"", b"", more=b"").result(PATIENCE)[0] == "bytes"
    assert len(sources) == 2
    assert memory_copy.address_of(given) in sources


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [PermissionError(errno.EPERM, "refused"), UnforeseenError()])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_large_parts_are_sent_where_they_cannot_be_copied(
    monkeypatch: pytest.MonkeyPatch, after: int, error: Exception
) -> None:
    """A container may refuse process_vm_writev(2), from the first piece on or later."""
    kernel, calls = memory_copy.copy_to, 0

    def refuse(pid: int, address: int, source: Any, at: int) -> int:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error
        return kernel(pid, address, source, at)

    monkeypatch.setattr(memory_copy, "copy_to", refuse)
    with LimitedProcessExecutor(1) as executor:
        assert all(executor.submit(are_right, arrays()).result(PATIENCE))
    assert calls == after + 1


def test_large_parts_are_sent_where_there_can_be_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is anything left of the attempt."""
    with LimitedProcessExecutor(1) as executor:
        executor.submit(int).result(PATIENCE)  # the monitor has been started

        def refuse(*_: object) -> None:
            msg = "can't start new thread"
            raise RuntimeError(msg)

        with monkeypatch.context() as patched:
            patched.setattr(_thread, "start_new_thread", refuse)
            assert all(executor.submit(are_right, arrays()).result(PATIENCE))


def wait_until_ended(gift: Gift) -> None:
    """And let go of it."""
    select.select([gift.bell], [], [], PATIENCE)
    gift.close()


def test_nothing_is_copied_into_a_stranger() -> None:
    """That has the pid of a task which has ended."""
    source, room = b"x" * 100, memory_copy.room(100)
    for supervisor, failed, count in ((os.getppid() + 1, True, 0), (os.getppid(), False, 100)):
        gift = Gift(os.getpid(), supervisor, [source], [memory_copy.address_of(room)])
        wait_until_ended(gift)
        assert gift.failed is failed
        assert room[:].count(b"x") == count


def test_task_that_is_killed_meanwhile_is_told_of_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one has its call."""
    kernel = memory_copy.copy_to

    def kill_and_copy(pid: int, address: int, source: Any, at: int) -> int:
        os.kill(pid, signal.SIGKILL)
        return kernel(pid, address, source, at)

    with LimitedProcessExecutor(1) as executor:
        monkeypatch.setattr(memory_copy, "copy_to", kill_and_copy)
        future = executor.submit(are_right, arrays())
        assert future.exception(PATIENCE) is not None
        assert future.report is not None
        assert future.report.signal == signal.SIGKILL
        monkeypatch.setattr(memory_copy, "copy_to", kernel)
        assert all(executor.submit(are_right, arrays()).result(PATIENCE))


def test_shutdown_and_cancel_while_parts_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is ended, the future cancelled, and the copy given up."""
    kernel = memory_copy.copy_to
    futures: list[LimitedFuture[object]] = []

    def cancel_and_copy(pid: int, address: int, source: Any, at: int) -> int:
        futures[0].cancel()
        return kernel(pid, address, source, at)

    monkeypatch.setattr(memory_copy, "copy_to", cancel_and_copy)
    with LimitedProcessExecutor(1) as executor:
        futures.append(executor.submit(are_right, arrays()))
    assert futures[0].cancelled()
