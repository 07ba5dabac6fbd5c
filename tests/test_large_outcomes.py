"""Outcomes whose large parts the caller copies from the task's memory, or has sent."""

from __future__ import annotations

import errno
import gc
import os
import signal
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import wait_until

from pynisher_exec import LimitedProcessExecutor
from pynisher_exec.kernel import memory_copy

if TYPE_CHECKING:
    import mmap
    from pathlib import Path

    from pynisher_exec import LimitedFuture

PATIENCE = 40


def arrays(count: int, length: int) -> dict[str, object]:
    """Large parts beside each other, one that is not contiguous, one in the pickle itself."""
    made: dict[str, object] = {str(number): np.full(length, number) for number in range(count)}
    made["strided"] = np.arange(2 * length)[::2]
    made["bytes"] = b"x" * 8 * length
    made["empty"] = np.empty(0)
    return made


def are_right(found: dict[str, object], count: int, length: int) -> bool:
    """Whether they arrived as they were, and can be written to, as arrays from a pickle can."""
    wanted = arrays(count, length)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert np.array_equal(value, wanted[name])
        if isinstance(value, np.ndarray):
            assert value.flags.writeable
            value[:1] = 0
    return True


def test_large_parts_arrive_as_they_were() -> None:
    """Several of them, in one outcome, from memory to memory."""
    with LimitedProcessExecutor(2, memory="1GiB", wall_time=30) as executor:
        found = [executor.submit(arrays, 3, 1 << 20).result(PATIENCE) for _ in range(3)]
    assert all(are_right(each, 3, 1 << 20) for each in found)


@pytest.mark.parametrize("after", [0, 1])
def test_large_parts_are_sent_where_they_cannot_be_copied(
    monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """A container may refuse process_vm_readv(2), from the first part on or later."""
    kernel, calls = memory_copy.copy_from, 0

    def refuse(pid: int, address: int, into: mmap.mmap, at: int) -> int:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return kernel(pid, address, into, at)

    monkeypatch.setattr(memory_copy, "copy_from", refuse)
    with LimitedProcessExecutor(1) as executor:
        assert are_right(executor.submit(arrays, 3, 1 << 18).result(PATIENCE), 3, 1 << 18)
    assert calls == after + 1


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_need_no_room_beside_themselves(kind: type[bytes | bytearray]) -> None:
    """A task may return as much as it may hold, as an array's task may."""
    size = 96 << 20
    with LimitedProcessExecutor(1, memory=size + (16 << 20), wall_time=30) as executor:
        future = executor.submit(kind, size)
        found = future.result(PATIENCE)
        assert type(found) is kind
        assert len(found) == size
        assert found.count(0) == size
        assert future.report is not None
        assert future.report.peak_memory < size + (8 << 20)


def test_what_is_copied_counts_only_if_the_task_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed meanwhile: its pid might have become another process's."""
    kernel = memory_copy.copy_from

    def copy_and_kill(pid: int, address: int, into: mmap.mmap, at: int) -> int:
        done = kernel(pid, address, into, at)
        os.kill(pid, signal.SIGKILL)
        return done

    monkeypatch.setattr(memory_copy, "copy_from", copy_and_kill)
    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(arrays, 1, 1 << 18)
        assert future.exception(PATIENCE) is not None
        assert future.report is not None
        assert future.report.status == "transfer"
        monkeypatch.setattr(memory_copy, "copy_from", kernel)
        assert are_right(executor.submit(arrays, 1, 1 << 18).result(PATIENCE), 1, 1 << 18)


def test_shutdown_and_cancel_while_parts_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is ended, the future cancelled, and the copy given up."""
    kernel = memory_copy.copy_from
    futures: list[LimitedFuture[object]] = []

    def cancel_and_copy(pid: int, address: int, into: mmap.mmap, at: int) -> int:
        futures[0].cancel()
        return kernel(pid, address, into, at)

    monkeypatch.setattr(memory_copy, "copy_from", cancel_and_copy)
    with LimitedProcessExecutor(1) as executor:
        futures.append(executor.submit(arrays, 1, 1 << 24))
    assert futures[0].cancelled()


def cut(path: Path, size: int) -> np.memmap[Any, Any]:
    """Map a file of 4 MiB, of which `size` bytes stay."""
    path.write_bytes(bytes(1 << 22))
    mapped = np.memmap(path, np.uint8, "r")
    os.truncate(path, size)
    return mapped


@pytest.mark.parametrize("size", [0, 1 << 21])
@pytest.mark.parametrize("context", [None, "spawn"])
def test_map_of_a_file_that_was_cut_is_said_for_what_it_is(
    tmp_path: Path, size: int, context: str | None
) -> None:
    """It could only be read at the cost of a SIGBUS, so it travels neither way."""
    path = tmp_path / "data"
    with LimitedProcessExecutor(1, context=context) as executor:
        sent = executor.submit(len, cut(path, size))
        returned = executor.submit(cut, path, size)
        for future, what in (sent, "call of len"), (returned, "value of type numpy.memmap"):
            report = future.wait_for_report()
            assert report.status == "exception"
            assert f"the {what} cannot be pickled: EOFError: not all of" in report.message
        with pytest.raises(EOFError, match="a file that has been cut"):
            executor.share(cut(path, size))
        assert executor.submit(abs, -1).result(PATIENCE) == 1


def doubled(array: np.ndarray[Any, Any]) -> float:
    """Write to an argument."""
    array *= 2
    return float(array.max())


@pytest.mark.parametrize("context", [None, "loky", "spawn", "forkserver", "fork"])
def test_arguments_can_be_written_to(context: str | None) -> None:
    """By every way of starting: large ones, parts, and small ones that lie in the pickle."""
    with LimitedProcessExecutor(1, context=context) as executor:
        for array in np.ones(1 << 17), np.ones((1 << 10, 1 << 8))[:, ::2], np.ones(8):
            assert executor.submit(doubled, array).result(PATIENCE) == 2
            assert array.max() == 1


def test_arguments_go_with_their_call() -> None:
    """They wait for no collection, which large arrays do not bring about."""
    gc.disable()
    try:
        with LimitedProcessExecutor(1, wall_time=PATIENCE) as executor:
            array = np.ones(1 << 20)
            is_there = weakref.ref(array)
            assert executor.submit(np.sum, array).result() == 1 << 20
            del array
            wait_until(lambda: is_there() is None)
    finally:
        gc.enable()


class Greedy:
    """Takes memory to be pickled that there is not."""

    def __reduce__(self) -> tuple[type[Greedy], tuple[()]]:
        bytearray(1 << 40)
        return Greedy, ()


@pytest.mark.parametrize(("memory", "status"), [("150MiB", "memory"), (None, "exception")])
def test_value_that_memory_is_too_short_to_pickle_names_the_limit(
    memory: str | None, status: str
) -> None:
    """And what was being done; without a limit it is the value that cannot travel."""
    with LimitedProcessExecutor(1, memory=memory) as executor:
        report = executor.submit(Greedy).wait_for_report()
    assert report.status == status
    assert "Greedy cannot be pickled: MemoryError" in report.message
