"""Pages that tasks write to are copied as they are forked, where the kernel has a way."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import plain
import pytest
from capabilities import requires
from conftest import wait_until

from pynisher_exec import LimitedProcessExecutor
from pynisher_exec.kernel import capabilities, pages
from pynisher_exec.kernel.memory_copy import HUGE_PAGE, address_of, room
from pynisher_exec.protocol import messages
from pynisher_exec.supervisor import hot_pages
from pynisher_exec.supervisor.hot_pages import HotPages
from pynisher_exec.task import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 30
SIZE = mmap.PAGESIZE
COUNT = 50
MANY = 1 << 20


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    """Some pages of private memory that have been written to."""
    with mmap.mmap(-1, COUNT * SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as made:
        for page in range(COUNT):
            made[page * SIZE] = 1
        yield made


@contextlib.contextmanager
def fork(action: Callable[[], object]) -> Iterator[int]:
    """A fork of this process that has done something, and waits."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os.write(writing, b".")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(writing)
        assert os.read(reading, 1)
        yield pid
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def copied(memory: mmap.mmap, pid: int) -> list[int]:
    """Which of those pages the fork has copies of."""
    first = address_of(memory)
    places = [(address - first) // SIZE for address in pages.copied_by(pid, MANY)]
    return [place for place in places if 0 <= place < COUNT]


def test_copies_of_a_fork_are_what_it_has_written_to(
    memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that it has read, or that is new."""
    monkeypatch.setattr(pages, "MOST_MAPPED", 1 << 40)  # tests before may have left this one much
    new = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def write_some() -> None:
        new[0] = 1
        for page in range(COUNT):
            assert memory[page * SIZE] == 1
        for page in (3, 4, 7):
            memory[page * SIZE] = 2

    with fork(write_some) as pid:
        assert copied(memory, pid) == [3, 4, 7]
        assert address_of(new) not in pages.copied_by(pid, MANY)
        assert len(pages.copied_by(pid, 2)) == 2
    new.close()


@requires("pinning")
def test_pinned_pages_are_copied_at_the_fork() -> None:
    """Though nobody writes to them; others are shared. In a process without huge pages."""
    subprocess.run([sys.executable, __file__], check=True, timeout=PATIENCE)


def main() -> None:
    """Pin some pages, and no more; not beside huge pages, nor where memory to lock is short."""
    with mmap.mmap(-1, COUNT * SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = b"." * len(memory)
        pin, first = pages.Pin(), address_of(memory)
        pin.hold([first + page * SIZE for page in (9, 5, 6, 5)])
        assert copied_by_any(memory) == [5, 6, 9]
        pin.release()
        assert copied_by_any(memory) == []
        if "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
            with room(2 * HUGE_PAGE) as huge:
                huge[:] = b"." * len(huge)
                assert is_refused([first])
        assert not is_refused([first])
        most = pages.LOCKED_PART * SIZE
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
        capabilities.give_up(capabilities.IPC_LOCK)
        assert not is_refused([first])
        assert is_refused([first, first + SIZE])
        hot = HotPages(wanted=True)
        hot.note(0, None)
        assert not hot.are_sought


def is_refused(addresses: list[int]) -> bool:
    """Whether these pages cannot be pinned."""
    pin = pages.Pin()
    try:
        pin.hold(addresses)
    except OSError:
        return True
    finally:
        pin.close()
    return False


def copied_by_any(memory: mmap.mmap) -> list[int]:
    """What is copied though nobody writes to it."""
    with fork(lambda: None) as pid:
        return copied(memory, pid)


def test_too_much_to_look_through_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold up calls."""
    monkeypatch.setattr(pages, "MOST_MAPPED", 1)
    with pytest.raises(MemoryError):
        pages.copied_by(os.getpid(), MANY)


@pytest.mark.parametrize("uid", [0, 65534])
def test_memory_that_others_may_want_to_lock_is_left_to_them(uid: int) -> None:
    """A process takes a part of what its user may lock, unless that has no bound."""
    if os.getuid() != 0:
        pytest.skip("needs root: to be another user")
    most = 16 * SIZE * pages.LOCKED_PART
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
            os.setresuid(uid, uid, uid)
            enough, more = pages.may_lock(16 * SIZE), pages.may_lock(17 * SIZE)
            os._exit(0 if (enough, more) == (True, uid == 0) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def noted(*written: list[int] | str) -> tuple[list[int], list[bool]]:
    """What is pinned after brief calls that have written there; after each, whether more is sought.

    After a first one, that is. "long" stands for one that took long, "released" for none.
    In a process without huge pages.
    """
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(written)],
        check=True,
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
    )
    pinned, sought = json.loads(done.stdout)
    return pinned, sought


def note(written: list[list[int] | str]) -> None:
    """In that process."""
    hot_pages.LAST_RENEWAL = 3 * hot_pages.FIRST_RENEWAL
    hot = HotPages(wanted=True)
    hot.note(0, None)
    hot.pin()
    sought = []
    with mmap.mmap(-1, COUNT * SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = b"." * len(memory)
        first = address_of(memory)
        for step in written:
            if step == "released":
                hot.release()
            elif step == "long":
                hot.note(hot_pages.BRIEF, [first] if hot.are_sought else None)
            else:
                where = [first + int(place) * SIZE for place in step]
                hot.note(0, where if hot.are_sought else None)
            hot.pin()
            sought.append(hot.are_sought)
        print(json.dumps((copied_by_any(memory), sought)))  # noqa: T201  (the answer)
    hot.close()


@requires("pinning")
@pytest.mark.parametrize(
    ("written", "pinned", "sought"),
    [
        ([[3, 4, 7], [4, 5, 7]], [4, 7], False),
        ([[3], [4, 5, 6], [4, 5, 7]], [4, 5], False),
        ([[3], [3, 4, 5], [3]], [], True),
        ([[3], [3, 4, 5]] * (hot_pages.MOST_LOOKS // 2), [3], False),
        ([[3]], [], True),
        ([[3], "long", [4], [3]], [3], False),
        ([[3], [], [3]], [], False),
        ([[3], [4]] * (hot_pages.MOST_LOOKS // 2), [], False),
        ([[-MANY], [-MANY]], [], False),
        ([[3], "long"] * (hot_pages.MOST_LOOKS + 1) + [[3], [3]], [], False),
    ],
    ids=[
        "both",
        "those that are alike",
        "none alike",
        "none alike in many",
        "one call",
        "a long one between",
        "cannot be seen",
        "nothing in common",
        "not there any more",
        "never two in turn",
    ],
)
def test_what_every_call_has_written_to_is_pinned(
    written: list[list[int] | str], pinned: list[int], *, sought: bool
) -> None:
    """And nothing else, since each fork copies it."""
    found, still = noted(*written)
    assert (found, still[-1]) == (pinned, sought)


@requires("pinning")
def test_pages_are_sought_after_a_brief_call() -> None:
    """Not after a long one, or when they have been let go of."""
    assert noted("long", [3], "released", [3], [3]) == ([], [False, True, False, True, True])


@requires("pinning")
def test_what_did_not_come_to_anything_is_tried_anew() -> None:
    """After some calls, where looking had no end, or could not be."""
    unlike: list[list[int] | str] = [[3], "long"] * (hot_pages.MOST_LOOKS + 1)
    unseen: list[list[int] | str] = [[]]
    for none in (unlike, unseen):
        assert noted(*none)[1][-1] is False
        assert noted(*none, *[[3]] * (hot_pages.FIRST_RENEWAL + 3))[0] == [3]


@requires("pinning")
def test_other_calls_have_other_pages() -> None:
    """So it is looked anew after some, and more of them each time."""
    some, more = hot_pages.FIRST_RENEWAL, 3 * hot_pages.FIRST_RENEWAL
    calls: list[list[int]] = [[3]] * (2 + some) + [[8]] * (3 + more)
    assert noted(*calls[: 2 + some])[0] == [3]
    assert noted(*calls)[0] == [8]
    later, sought = noted(*calls, *[[9]] * (3 + more))
    assert later == [9]
    first, second = 2 + some, 5 + some + more
    looked_for = [place for place, each in enumerate(sought) if each]
    assert looked_for == [0, first, first + 1, second, second + 1]


@pytest.mark.parametrize("wanted", [True, False])
def test_nothing_is_looked_at_where_nothing_can_be_pinned(*, wanted: bool) -> None:
    """Without a descriptor, or where a process serves many calls: it would cost them time."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hot = HotPages(wanted=wanted)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3 if wanted else before[0], before[1]))
        hot.note(0, None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not hot.are_sought


def wait_until_fewer(
    executor: LimitedProcessExecutor, faults: Callable[[], int], most: float
) -> None:
    """Make calls until some in turn, so those of both slots, had no more pages given one by one."""
    wait_until(lambda: all(executor.submit(faults).result(PATIENCE) < most for _ in range(4)))


@requires("pinning")
def test_tasks_after_brief_ones_have_their_pages_already() -> None:
    """The first of a slot is forked before it is known what they write to."""
    with LimitedProcessExecutor(1, memory="1GiB", wall_time=60, preload=[]) as executor:
        first = executor.submit(plain.faults).result(PATIENCE)
        wait_until_fewer(executor, plain.faults, 0.75 * first)
        held = executor.submit(plain.open_files).result(PATIENCE)
    assert not any("io_uring" in name for name in held), held


@requires("pinning")
def test_pages_that_a_function_works_with_are_copied_at_the_fork() -> None:
    """Those of a large library, say, of which it takes what has been imported ahead."""
    with LimitedProcessExecutor(1, memory="1GiB", wall_time=60, preload=["plain"]) as executor:
        assert executor.submit(plain.refer).result(PATIENCE) > 0.8 * plain.PAGES
        wait_until_fewer(executor, plain.refer, 0.2 * plain.PAGES)
        began = time.monotonic()
        for _ in range(10):
            executor.submit(plain.refer).result(PATIENCE)
        assert time.monotonic() - began < 10 * run._LONGEST_LOOK  # no task waits for that


def leave(how: str) -> int:
    """Leave the line to the supervisor as no task should, or a process that has it, too."""
    if how == "closed":
        os.closerange(3, 100)
    elif how == "fork" and os.fork() == 0:
        signal.alarm(PATIENCE)
        signal.pause()
    elif how == "stolen":
        threading.Thread(target=take_all, daemon=True).start()
    elif how == "exit":
        os._exit(0)
    elif how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "large":
        return bytes(1 << 22)  # type: ignore[return-value]
    return os.getpid()


def take_all() -> None:
    """Take whatever comes on any socket."""
    while True:
        for place in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile, or nothing has come
                if str(place.readlink()).startswith("socket"):
                    with socket.socket(fileno=os.dup(int(place.name))) as line:
                        line.recv(1, socket.MSG_DONTWAIT)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("closed", "exit"),
        ("fork", "ok"),
        ("stolen", "ok"),
        ("exit", "exit"),
        ("killed", "signal"),
        ("large", "ok"),
    ],
)
def test_task_that_is_looked_at_ends_as_any_other(how: str, status: str) -> None:
    """Whatever it does to the line by which it waits for that."""
    with LimitedProcessExecutor(1, memory="1GiB", wall_time=60, preload=[]) as executor:
        futures = [executor.submit(leave, how) for _ in range(4)]
        reports = [future.wait_for_report() for future in futures]
        assert executor.submit(abs, -1).result(PATIENCE) == 1
    assert [str(report.status) for report in reports] == [status] * 4


@requires("pinning")
def test_calls_that_end_themselves_keep_no_other_from_having_pages() -> None:
    """What they have written to cannot be seen, as their memory goes first."""
    with LimitedProcessExecutor(1, memory="1GiB", wall_time=60, preload=[]) as executor:
        first = executor.submit(plain.faults).result(PATIENCE)
        for _ in range(16):
            assert executor.submit(os._exit, 3).wait_for_report().exit_code == 3
        wait_until_fewer(executor, plain.faults, 0.75 * first)


@requires("pinning")
def test_no_page_is_sought_where_a_process_serves_many_calls() -> None:
    """It is forked once."""
    with LimitedProcessExecutor(1, wall_time=60, preload=[], max_tasks_per_child=50) as executor:
        supervisor = [executor.submit(os.getppid).result(PATIENCE) for _ in range(4)][-1]
        held = [str(file.readlink()) for file in Path(f"/proc/{supervisor}/fd").iterdir()]
    assert not any("io_uring" in name for name in held), held


@pytest.mark.parametrize("end", ["nobody looks", "gone"])
def test_task_waits_to_be_looked_at_for_a_moment_only(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it has done is delivered by then."""
    monkeypatch.setattr(run, "_LONGEST_LOOK", 0.05)
    line, supervisor = messages.pair()
    with line, supervisor:
        if end == "gone":
            supervisor.close()
        task: Any = SimpleNamespace(_ends=SimpleNamespace(line=line))
        thread = threading.Thread(target=run.Task._show, args=(task,), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@requires("pinning")
def test_tasks_that_take_long_cost_no_memory_for_speed() -> None:
    """Half a millisecond is nothing to them."""
    with LimitedProcessExecutor(1, memory="1GiB", wall_time=60, preload=[]) as executor:
        counts = [executor.submit(plain.faults, 0.25).result(PATIENCE) for _ in range(8)]
    assert min(counts) > 0.75 * counts[0], counts


if __name__ == "__main__":
    if sys.argv[1:]:
        note(json.loads(sys.argv[1]))
    else:
        main()
