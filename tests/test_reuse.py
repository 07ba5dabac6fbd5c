"""`max_tasks_per_child`: processes that serve several tasks, under limits that count for each."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crashes
import loky
import numpy as np
import pytest
from conftest import (
    child_pids,
    descendant_pids,
    stat_fields,
    wait_until,
    wait_until_running,
    wait_until_stopped,
)

from pynisher_exec import (
    CpuTimeoutException,
    LimitedProcessExecutor,
    MemorylimitException,
    SubprocessException,
    TimeoutException,
)
from pynisher_exec.kernel import proc, sealed_memory
from pynisher_exec.supervisor.child import Child

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynisher_exec import LimitedFuture, Report

PATIENCE = 40
MIB = 1 << 20


@pytest.fixture
def executor() -> Iterator[LimitedProcessExecutor]:
    """One slot, whose process serves all tasks."""
    with LimitedProcessExecutor(1, max_tasks_per_child=None) as made:
        yield made


def pids(executor: LimitedProcessExecutor, count: int) -> list[int]:
    """In which process each of some tasks runs."""
    return [executor.submit(os.getpid).result(PATIENCE) for _ in range(count)]


def report_of(future: LimitedFuture[Any]) -> Report:
    """Give the report, once it is there."""
    future.exception(PATIENCE)
    assert future.report is not None
    return future.report


# Which process serves ----------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "expected"), [(1, 6), (2, 3), (4, 2), (None, 1)])
def test_process_serves_as_many_tasks_as_it_may(most: int | None, expected: int) -> None:
    """One after the other, and then another one does."""
    with LimitedProcessExecutor(1, max_tasks_per_child=most) as executor:
        found = pids(executor, 6)
    assert len(set(found)) == expected
    assert found == sorted(found, key=found.index)


def test_by_default_each_task_has_a_process_of_its_own() -> None:
    """Reuse has to be asked for."""
    with LimitedProcessExecutor(1) as executor:
        assert len(set(pids(executor, 3))) == 3


@pytest.mark.parametrize(
    ("ending", "stays"),
    [
        (crashes.value, True),
        (crashes.raise_value_error, True),
        (crashes.open_nothing, True),
        (sys.exit, False),
        (lambda: os._exit(3), False),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), False),
        (lambda: (number for number in range(3)), True),
    ],
    ids=["value", "exception", "os_error", "sys.exit", "_exit", "signal", "unpicklable"],
)
def test_what_ends_a_process_and_what_does_not(
    executor: LimitedProcessExecutor, ending: Any, stays: bool
) -> None:
    """An exception or a broken value is a task's end; an exit and a signal are the process's."""
    (before,) = pids(executor, 1)
    executor.submit(ending).exception(PATIENCE)
    assert (pids(executor, 1) == [before]) is stays


def test_state_that_a_task_leaves_is_there_for_the_next(executor: LimitedProcessExecutor) -> None:
    """Modules and their globals; what the caller has around it is put on anew."""

    def leave() -> None:
        logging.kept = "kept"  # type: ignore[attr-defined]
        os.environ["LEFT"] = "left"
        os.chdir("/")
        os.umask(0o077)

    def look() -> tuple[Any, ...]:
        umask = os.umask(0)
        os.umask(umask)
        return logging.kept, os.environ.get("LEFT"), Path.cwd(), umask  # type: ignore[attr-defined]

    own = os.umask(0)
    os.umask(own)
    executor.submit(leave).result(PATIENCE)
    assert executor.submit(look).result(PATIENCE) == ("kept", None, Path.cwd(), own)


def test_environment_of_each_submit_is_put_on(
    executor: LimitedProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed and changed back."""
    found = []
    for value in ("one", "two", "one"):
        monkeypatch.setenv("CHANGING", value)
        found.append(executor.submit(os.environ.get, "CHANGING").result(PATIENCE))
    assert found == ["one", "two", "one"]


def test_initializer_is_called_once_in_each_process() -> None:
    """As the stdlib's pools do."""

    def count() -> None:
        logging.begun = getattr(logging, "begun", 0) + 1  # type: ignore[attr-defined]

    with LimitedProcessExecutor(1, max_tasks_per_child=3, initializer=count) as executor:
        begun = [executor.submit(lambda: logging.begun).result(PATIENCE) for _ in range(7)]  # type: ignore[attr-defined]
    assert begun == [1] * 7


# Limits ------------------------------------------------------------------------------------------


def use_cpu(seconds: float) -> int:
    """Use so much, here and as much again in a child; tell the process."""
    pid = os.fork()
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return os.getpid()


def test_cpu_time_counts_for_each_task(executor: LimitedProcessExecutor) -> None:
    """Not what earlier tasks and their children have used; and it holds."""
    limited = executor.limit(cpu_time=1)
    futures = [limited.submit(use_cpu, 0.3) for _ in range(4)]
    assert len({future.result(PATIENCE) for future in futures}) == 1
    assert all(0.5 < report_of(future).cpu_time < 1 for future in futures)
    with pytest.raises(CpuTimeoutException):
        limited.submit(use_cpu, 60).result(PATIENCE)


def hold(size: int) -> tuple[int, int]:
    """Hold memory for the length of this call; tell the process and its rlimit."""
    kept = np.ones(size // 8)
    assert len(kept)
    return os.getpid(), resource.getrlimit(resource.RLIMIT_DATA)[0]


def test_memory_counts_for_each_task(executor: LimitedProcessExecutor) -> None:
    """Beyond what the process holds when each begins; under the limit of each."""
    first = executor.limit(memory=100 * MIB).submit(hold, 80 * MIB)
    second = executor.limit(memory=200 * MIB).submit(hold, 150 * MIB)
    third = executor.limit(memory=100 * MIB).submit(hold, 80 * MIB)
    free = executor.submit(hold, 80 * MIB)
    answers = [each.result(PATIENCE) for each in (first, second, third, free)]
    assert len({pid for pid, _ in answers}) == 1
    assert answers[3][1] == resource.getrlimit(resource.RLIMIT_DATA)[0]
    for future, size in ((first, 80), (second, 150), (third, 80)):
        assert size * 0.9 < report_of(future).peak_memory / MIB < size + 8
    with pytest.raises(MemorylimitException):
        executor.limit(memory=100 * MIB).submit(hold, 150 * MIB).result(PATIENCE)
    assert pids(executor, 1) != [answers[0][0]]


def test_wall_time_counts_for_each_task(executor: LimitedProcessExecutor) -> None:
    """And a task that passes it takes its process along."""
    limited = executor.limit(wall_time=0.5)
    before = pids(executor, 1)
    for _ in range(3):
        limited.submit(time.sleep, 0.3).result(PATIENCE)
    assert pids(executor, 1) == before
    with pytest.raises(TimeoutException):
        limited.submit(time.sleep, 60).result(PATIENCE)
    assert pids(executor, 1) != before


def test_subprocesses_are_counted(executor: LimitedProcessExecutor) -> None:
    """A gate could not be taken down again; what is over the limit is ended, and it is told."""

    def start(count: int) -> None:
        for _ in range(count):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        time.sleep(60)

    limited = executor.limit(processes=2)
    report = report_of(limited.submit(start, 6))
    assert report.status == "processes"
    assert isinstance(report.exception, SubprocessException)
    assert report.message.startswith("limit of 2 subprocesses passed: ")
    assert report.message.endswith(" alive at once")
    assert report.limits["processes"].mechanism == "counted"
    assert executor.submit(crashes.value).result(PATIENCE) == 42


def test_soft_limit_of_one_task_is_none_of_the_next(executor: LimitedProcessExecutor) -> None:
    """Its handlers go with it; a task that heeded one has met a limit, so its process goes."""
    (before,) = pids(executor, 1)
    soft = executor.limit(wall_time=30, cpu_time=30, grace_period=1)
    assert soft.submit(crashes.value).result(PATIENCE) == 42
    names = executor.submit(
        lambda: (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGXCPU))
    )
    assert names.result(PATIENCE) == (signal.SIG_DFL, signal.SIG_DFL)
    assert pids(executor, 1) == [before]
    told = soft.limit(wall_time=0.2).submit(crashes.sleep_until_told)
    assert told.result(PATIENCE) == "best so far"
    assert report_of(told).limit_reached == "wall_time"
    assert pids(executor, 1) != [before]


def test_signals_reach_each_task(executor: LimitedProcessExecutor) -> None:
    """None is blocked since the end of the task before."""
    for _ in range(3):
        assert (
            executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result(PATIENCE) == set()
        )


# What tasks leave --------------------------------------------------------------------------------


def leave_children(folder: str) -> int:
    """Leave a child, a grandchild that nobody waits for, and one in a session of its own."""
    for depth in range(3):
        if os.fork() == 0:
            if depth and os.fork():
                os._exit(0)
            if depth == 2:
                os.setsid()
            Path(folder, str(os.getpid())).touch()
            time.sleep(60)
            os._exit(0)
    wait_until(lambda: len(os.listdir(folder)) == 3, PATIENCE)
    return os.getpid()


def test_nothing_but_the_process_is_left(executor: LimitedProcessExecutor, tmp_path: Path) -> None:
    """When a future resolves, what its task had started has gone."""
    served = executor.submit(leave_children, str(tmp_path)).result(PATIENCE)
    alive = [
        pid for pid in map(int, os.listdir(tmp_path)) if stat_fields(pid)[:1] not in ([], ["Z"])
    ]
    assert alive == []
    assert pids(executor, 1) == [served]


def use_pool() -> tuple[int, str]:
    """Use multiprocessing's pool and its tracker."""
    from multiprocessing.shared_memory import SharedMemory  # noqa: PLC0415

    memory = SharedMemory(create=True, size=100)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    return os.getpid(), memory.name


def test_pools_go_with_their_task_and_shared_memory_with_its_process() -> None:
    """The tracker that removes the memory goes on, and is no subprocess of a later task."""
    with LimitedProcessExecutor(1, max_tasks_per_child=None) as executor:
        captured = executor.limit(capture_output=True)
        futures = [captured.submit(use_pool) for _ in range(4)]
        found = [future.result(PATIENCE) for future in futures]
        assert len({pid for pid, _ in found}) == 1
        assert [report_of(future).stderr for future in futures] == [""] * 4
        assert executor.submit(lambda: len(child_pids(os.getpid()))).result(PATIENCE) == 1
        future = executor.limit(processes=0).submit(time.sleep, 0.5)
        future.result(PATIENCE)
        assert report_of(future).peak_processes == 0
    assert not [name for _, name in found if Path("/dev", "shm", name).exists()]


def use_loky(number: int) -> tuple[int, int]:
    """Use the one executor that loky has for all who ask, joblib among them."""
    executor = loky.get_reusable_executor(1)
    return os.getpid(), executor.submit(abs, -number).result(PATIENCE)


def test_lokys_executor_works_in_each_task(executor: LimitedProcessExecutor) -> None:
    """Its workers go with a task, and a later one is not given what waits to learn of that."""
    found = [executor.submit(use_loky, number).result(PATIENCE) for number in range(6)]
    assert [value for _, value in found] == list(range(6))
    assert len({pid for pid, _ in found}) == 1


def keep(kind: str) -> int:
    """Leave something of multiprocessing's to later tasks, after its first use."""
    makers: dict[str, Any] = {
        "threads": lambda: ThreadPool(2),
        "processes": lambda: multiprocessing.get_context("fork").Pool(2),
        "queue": multiprocessing.Queue,
    }
    logging.kept = makers[kind]()  # type: ignore[attr-defined]
    return use_kept(kind)


def use_kept(kind: str) -> int:
    """Use what was kept."""
    kept: Any = logging.kept  # type: ignore[attr-defined]
    if kind == "queue":
        kept.put(7)
        return int(kept.get(timeout=PATIENCE))
    return int(kept.map(abs, [-7])[0])


@pytest.mark.parametrize("kind", ["threads", "queue"])
def test_kept_threads_work_for_later_tasks(executor: LimitedProcessExecutor, kind: str) -> None:
    """Those of multiprocessing's pools and queues as well."""
    view = executor.limit(wall_time=PATIENCE)
    (before,) = pids(executor, 1)
    found = [view.submit(function, kind).result(PATIENCE) for function in (keep, use_kept)]
    assert found == [7, 7]
    assert pids(executor, 1) == [before]


def test_kept_pool_whose_workers_have_gone_says_so(executor: LimitedProcessExecutor) -> None:
    """At once; it would otherwise take calls that nobody runs."""
    (before,) = pids(executor, 1)
    assert executor.submit(keep, "processes").result(PATIENCE) == 7
    with pytest.raises(ValueError, match="Pool not running"):
        executor.limit(wall_time=PATIENCE).submit(use_kept, "processes").result(PATIENCE)
    assert pids(executor, 1) == [before]


def leave_a_busy_thread() -> tuple[int, int]:
    """Leave a thread that never rests, and soon starts what it does not wait for."""

    def work() -> None:
        for number in range(10):
            if os.fork() == 0:
                if number and os.fork():
                    os._exit(0)
                time.sleep(number and 60)
                os._exit(0)
        while True:
            logging.turns += 1  # type: ignore[attr-defined]

    logging.turns = 0  # type: ignore[attr-defined]
    threading.Thread(target=work, daemon=True).start()
    return os.getpid(), os.getppid()


def has_nothing_but(supervisor: int, process: int) -> bool:
    """Whether it has that one child, and all below is zombies that the child could still reap."""
    states = [stat_fields(pid)[:1] for pid in descendant_pids(process)]
    return child_pids(supervisor) == [process] and all(state in ([], ["Z"]) for state in states)


def test_threads_stand_still_while_no_task_runs(executor: LimitedProcessExecutor) -> None:
    """What they had started has gone then; with the next task they go on."""

    def look() -> tuple[int, bool]:
        before = logging.turns  # type: ignore[attr-defined]
        wait_until(lambda: logging.turns > before, PATIENCE)  # type: ignore[attr-defined]
        return os.getpid(), True

    for _ in range(2):
        resting, supervisor = executor.submit(leave_a_busy_thread).result(PATIENCE)
        wait_until_stopped(resting)
        wait_until(partial(has_nothing_but, supervisor, resting))
        assert executor.submit(look).result(PATIENCE) == (resting, True)


def test_output_of_each_task_is_its_own(executor: LimitedProcessExecutor) -> None:
    """Captured or not, one after the other."""
    captured = executor.limit(capture_output=True)
    for number in range(3):
        future = captured.submit(os.write, 1, f"task {number}".encode())
        assert report_of(future).stdout == f"task {number}"
        assert report_of(executor.submit(os.write, 1, b"")).stdout is None


def test_temporary_directory_of_each_task_is_its_own() -> None:
    """And gone with it, though the process lives."""
    with LimitedProcessExecutor(1, max_tasks_per_child=None, private_tmp=True) as executor:
        found = [executor.submit(tempfile.mkdtemp).result(PATIENCE) for _ in range(3)]
        assert len(set(pids(executor, 2))) == 1
    assert len({Path(each).parent for each in found}) == 3
    assert not any(Path(each).parent.exists() for each in found)


def test_shared_objects_are_mapped_for_their_task_only(executor: LimitedProcessExecutor) -> None:
    """Each task has it as it was, and the map goes with it."""

    def scribble(array: Any) -> tuple[float, int, int]:
        found = float(array[0])
        array[:] = 7
        with open("/proc/self/maps") as file:
            return found, sum("memfd:shared" in line for line in file), os.getpid()

    handle = executor.share(np.ones(1 << 20))
    found = [executor.submit(scribble, handle).result(PATIENCE) for _ in range(4)]
    assert {(value, maps) for value, maps, _ in found} == {(1.0, 1)}
    assert len({pid for *_, pid in found}) == 1


@pytest.mark.parametrize("length", [100, 1 << 21])
def test_values_of_all_sizes_come_back(executor: LimitedProcessExecutor, length: int) -> None:
    """By the same stream, one after the other."""
    for number in range(3):
        found = executor.submit(np.full, length, number).result(PATIENCE)
        assert np.array_equal(found, np.full(length, number))
    assert len(set(pids(executor, 2))) == 1


# What tasks do to the process --------------------------------------------------------------------


def shut_the_lines() -> None:
    """Shut all sockets down."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            line = socket.socket(fileno=os.dup(int(name)))
            line.shutdown(socket.SHUT_WR)
            line.close()


def say_much() -> None:
    """Say more than anybody listens to."""
    for name in os.listdir("/proc/self/fd"):
        for _ in range(300):
            with contextlib.suppress(OSError):
                os.set_blocking(int(name), False)
                os.write(int(name), b"words")


def put_a_file_everywhere(path: str) -> None:
    """Have a file on all numbers but the standard streams'."""
    own = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            os.dup2(own, int(name))


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(
    "deed", [shut_the_lines, say_much, put_a_file_everywhere, lambda: os.closerange(0, 100)]
)
def test_process_that_has_lost_its_lines_is_replaced(
    executor: LimitedProcessExecutor, tmp_path: Path, deed: Any, captured: bool
) -> None:
    """The task is answered at once, the next one is well, and no byte of ours is in a file."""
    path = tmp_path / "own"
    args = (str(path),) if deed is put_a_file_everywhere else ()
    view = executor.limit(capture_output=True, wall_time=20)  # else its garbage is on our streams
    before = pids(executor, 1)
    report = report_of(view.submit(deed, *args))
    assert report.status in ("exit", "transfer")
    after = view.submit(os.getpid) if captured else executor.submit(os.getpid)
    assert after.result(PATIENCE) != before[0]
    assert not path.exists() or path.read_bytes() == b""


@pytest.mark.parametrize("number", [0, 1, 2])
def test_standard_streams_that_a_task_closed_are_there_for_the_next(
    executor: LimitedProcessExecutor, number: int
) -> None:
    """By their numbers or as Python's streams; shared objects do not get in between."""
    handle = executor.share(np.ones(1 << 18))
    (before,) = pids(executor, 1)
    captured = executor.limit(capture_output=True)
    executor.submit(setattr, sys, "stdout", None).result(PATIENCE)
    executor.submit(setattr, sys, "stderr", object()).result(PATIENCE)
    executor.submit(os.close, number).result(PATIENCE)
    assert executor.submit(float_sum, handle).result(PATIENCE) == 1 << 18
    executor.submit(lambda: (sys.stdout.close(), sys.stderr.close())).result(PATIENCE)
    assert report_of(captured.submit(os.write, 2, b"err")).stderr == "err"
    assert report_of(captured.submit(lambda: sys.stdout.write("out"))).stdout == "out"
    assert pids(executor, 1) == [before]


def float_sum(array: Any) -> float:
    """Read all of it."""
    return float(array.sum())


def test_timers_and_handlers_end_with_their_task(executor: LimitedProcessExecutor) -> None:
    """A later one is not struck by them."""

    def leave() -> int:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        return os.getpid()

    def look() -> tuple[Any, ...]:
        time.sleep(0.6)
        return signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGTERM), os.getpid()

    before = executor.submit(leave).result(PATIENCE)
    found = executor.limit(wall_time=20, grace_period=1).submit(look).result(PATIENCE)
    assert found == (signal.SIG_DFL, signal.SIG_DFL, before)


def test_rlimit_of_one_task_does_not_bind_the_call_of_the_next(
    executor: LimitedProcessExecutor,
) -> None:
    """Its descriptors are received before its own limits are there."""
    handles = [executor.share(number) for number in range(30)]
    (before,) = pids(executor, 1)
    executor.limit(open_files=12).submit(crashes.value).result(PATIENCE)
    assert executor.submit(lambda *args: len(args), *handles).result(PATIENCE) == 30
    assert pids(executor, 1) == [before]


def test_zombies_are_no_subprocesses(executor: LimitedProcessExecutor) -> None:
    """Neither a task's own nor those of one before it."""

    def leave_zombies() -> int:
        for _ in range(6):
            if os.fork() == 0:
                os._exit(0)
        time.sleep(0.5)
        return os.getpid()

    limited = executor.limit(processes=2)
    before = executor.submit(leave_zombies).result(PATIENCE)
    future = limited.submit(time.sleep, 0.5)
    future.result(PATIENCE)
    assert report_of(future).peak_processes == 0
    assert pids(executor, 1) == [before]


def test_zombies_do_not_add_up(executor: LimitedProcessExecutor) -> None:
    """Those of a task are reaped after the next one, which had them ended, if not before."""

    def leave() -> None:
        if os.fork() == 0:
            time.sleep(600)

    def children() -> tuple[int, int]:
        text = Path("/proc/thread-self/children").read_text()
        return os.getpid(), len(text.split())

    found = []
    for _ in range(4):
        executor.submit(leave).result(PATIENCE)
        found.append(executor.submit(children).result(PATIENCE))
    assert len({pid for pid, _ in found}) == 1
    assert max(count for _, count in found) <= 1


def test_signal_that_comes_late_strikes_no_later_task(executor: LimitedProcessExecutor) -> None:
    """One that is pending when the function has ended, and one whose timer was about to fire."""

    def leave(number: int) -> None:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
        if number % 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    for number in range(40):
        executor.submit(leave, number).result(PATIENCE)
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def test_lowered_hard_limit_ends_the_process(executor: LimitedProcessExecutor) -> None:
    """Nobody could raise it again."""
    (before,) = pids(executor, 1)
    executor.submit(resource.setrlimit, resource.RLIMIT_CPU, (100, 100)).result(PATIENCE)
    assert pids(executor, 1) != [before]


def test_shared_object_that_a_task_kept_is_not_charged_to_the_next(
    executor: LimitedProcessExecutor,
) -> None:
    """It was given to the process, whoever reads it there."""

    def keep(array: Any) -> None:
        logging.kept = array  # type: ignore[attr-defined]

    def use() -> float:
        return float_sum(logging.kept)  # type: ignore[attr-defined]

    executor.submit(keep, executor.share(np.ones(20 * MIB))).result(PATIENCE)
    limited = executor.limit(memory=64 * MIB)
    assert limited.submit(use).result(PATIENCE) == 20 * MIB


def test_shared_object_that_a_task_kept_is_remembered_among_many(
    executor: LimitedProcessExecutor,
) -> None:
    """A supervisor forgets those that are mapped no more, and only those."""

    def keep(array: Any) -> int:
        logging.kept = array  # type: ignore[attr-defined]
        return os.getpid()

    def use() -> tuple[float, int]:
        return float_sum(logging.kept), os.getpid()  # type: ignore[attr-defined]

    pid = executor.submit(keep, executor.share(np.ones(20 * MIB))).result(PATIENCE)
    for _ in range(6):
        many = [executor.share(np.ones(1)) for _ in range(200)]
        assert executor.submit(len, many).result(PATIENCE) == len(many)
    limited = executor.limit(memory=64 * MIB)
    assert limited.submit(use).result(PATIENCE) == (20 * MIB, pid)


def test_shared_objects_of_calls_that_are_over_are_forgotten() -> None:
    """A process may serve without end."""
    descriptor = sealed_memory.create([], 4096)
    view = sealed_memory.view(descriptor, 4096)
    child = Child.__new__(Child)
    child.pid, child.shares = os.getpid(), {proc.place_of(descriptor)}
    for number in range(5000):
        child.note_shares([b"00:00 %d" % number])
    assert proc.place_of(descriptor) in child.shares
    assert len(child.shares) < 2000
    view.release()
    os.close(descriptor)


def test_process_in_which_tasks_leave_much_is_replaced(executor: LimitedProcessExecutor) -> None:
    """As soon as it has grown by more than a task may take."""

    def leave() -> int:
        logging.kept = [*getattr(logging, "kept", []), np.ones(60 * MIB // 8)]  # type: ignore[attr-defined]
        return os.getpid()

    limited = executor.limit(memory=100 * MIB)
    found = [limited.submit(leave).result(PATIENCE) for _ in range(6)]
    assert len(set(found)) == 3


def test_usage_of_earlier_tasks_is_not_in_the_report_of_the_last(
    executor: LimitedProcessExecutor,
) -> None:
    """Of a process that served others, the kernel's account is not that of one task."""
    executor.submit(use_cpu, 0.5).result(PATIENCE)
    report = report_of(executor.submit(os._exit, 3))
    assert report.exit_code == 3
    assert report.cpu_time < 0.4
    assert report.rusage is None


@pytest.mark.parametrize("call", ["work()", "in_a_spawned_process(work)"])
def test_initializer_of_the_main_module_shares_globals_with_each_call(
    tmp_path: Path, call: str
) -> None:
    """It travels by value with each, so it is called for each; of `__mp_main__`, too."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import multiprocessing
from pynisher_exec import LimitedProcessExecutor
def begin():
    global DATA
    DATA = [10, 20]
def look(number):
    return DATA[number]
def work():
    with LimitedProcessExecutor(1, initializer=begin, max_tasks_per_child=None) as executor:
        print(list(executor.map(look, [0, 1, 0])), flush=True)
def in_a_spawned_process(function):
    process = multiprocessing.get_context("spawn").Process(target=function)
    process.start()
    process.join()
if __name__ == "__main__":
    {call}
""")
    done = subprocess.run(
        [sys.executable, program], capture_output=True, check=True, text=True, timeout=PATIENCE
    )
    assert done.stdout == "[10, 20, 10]\n"


# Ends --------------------------------------------------------------------------------------------


def test_cancel_ends_the_process_of_the_task(executor: LimitedProcessExecutor) -> None:
    """The next one has another."""
    (before,) = pids(executor, 1)
    future = executor.submit(time.sleep, 60)
    wait_until_running(future)
    assert future.cancel()
    assert future.wait_for_report().status == "cancelled"
    assert pids(executor, 1) != [before]


def test_process_that_dies_while_it_rests_is_replaced(executor: LimitedProcessExecutor) -> None:
    """Whoever kills it: the next call has not begun, so it is not lost."""
    for _ in range(5):
        (resting,) = pids(executor, 1)
        os.kill(resting, signal.SIGKILL)
        assert pids(executor, 1) != [resting]


def test_random_endings_have_right_answers() -> None:
    """Whatever came before in the same process."""
    chance = random.Random(20261126)  # noqa: S311  (the same each time)
    cases: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        (crashes.value, (), {}, "ok"),
        (crashes.raise_value_error, (), {}, "exception"),
        (crashes.open_nothing, (), {}, "os_error"),
        (time.sleep, (60,), {"wall_time": 0.05}, "wall_time"),
        (use_cpu, (60,), {"cpu_time": 0.05}, "cpu_time"),
        (hold, (300 * MIB,), {"memory": 64 * MIB}, "memory"),
        (os._exit, (3,), {}, "exit"),
        (os.kill, (0, signal.SIGSEGV), {}, "signal"),
        (np.ones, (1 << 18,), {"memory": "1GiB"}, "ok"),
    ]
    chosen = chance.choices(cases, [8, 4, 2, 1, 1, 1, 1, 1, 2], k=150)
    with LimitedProcessExecutor(2, max_tasks_per_child=None) as executor:
        futures = [
            executor.limit(**limits).submit(function, *args) for function, args, limits, _ in chosen
        ]
        found = [str(report_of(future).status) for future in futures]
    assert found == [status for *_, status in chosen]


@pytest.mark.parametrize("most", [0, -1, 1.0, True, "two"])
def test_nonsense_is_refused(most: object) -> None:
    """By name."""
    with pytest.raises((ValueError, TypeError), match="max_tasks_per_child"):
        LimitedProcessExecutor(max_tasks_per_child=most)  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [{"context": "loky"}, {"strict": True}])
def test_what_does_not_go_together_is_refused(other: dict[str, Any]) -> None:
    """A context has one process for each task; strict promises what a reused one cannot."""
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        LimitedProcessExecutor(max_tasks_per_child=2, **other)
