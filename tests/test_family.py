"""A tree of processes that is looked at again: only those that may have changed are asked."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time
from typing import TYPE_CHECKING

from conftest import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from pynisher_exec import LimitedProcessExecutor, Status
from pynisher_exec.kernel import prctl, proc
from pynisher_exec.supervisor.family import Family

if TYPE_CHECKING:
    from typing import NoReturn

PATIENCE = 30
MB = 1 << 20
MOST = 30


class Tree:
    """Processes that do as they are told: each has a number, and a pipe by which it is told."""

    def __init__(self) -> None:
        self.pipes = [os.pipe() for _ in range(MOST)]
        self.answers = os.pipe()
        self.pids: list[int] = []
        self.top = os.fork()
        if self.top == 0:
            prctl.become_subreaper()  # nothing gets out of this tree
            self._obey(0)
        self.pids.append(self._answer())

    def _obey(self, number: int) -> NoReturn:
        try:
            os.write(self.answers[1], b"%9d" % os.getpid())
            while word := os.read(self.pipes[number][0], 3):
                if word == b"end":
                    break
                if word == b"own":
                    prctl.become_subreaper()
                elif os.fork() == 0:
                    number = int(word)
                if word == b"own" or number == int(word):
                    os.write(self.answers[1], b"%9d" % os.getpid())
        finally:
            os._exit(0)

    def _answer(self) -> int:
        return int(os.read(self.answers[0], 9))

    def tell(self, number: int, word: bytes) -> None:
        """Have one fork the next, end, or own whatever orphans there are below it."""
        os.write(self.pipes[number][1], word)
        if word == b"end":
            wait_until(lambda: not proc.is_alive(self.pids[number]))
        elif word == b"own":
            self._answer()
        else:
            self.pids.append(self._answer())

    def close(self) -> None:
        """End them all."""
        for pid in [*proc.descendants(self.top), self.top]:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(self.top, 0)
        for pipe in [*self.pipes, self.answers]:
            for end in pipe:
                os.close(end)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_whatever_happens_between_two_looks_is_found(data: st.DataObject) -> None:
    """Forks, ends, orphans and who adopts them, in any order, and any number of them at a time."""
    tree, family = Tree(), Family()
    try:
        living = [0]
        family.look()
        for _ in range(data.draw(st.integers(1, 12))):
            for _ in range(data.draw(st.integers(1, 3))):
                number = data.draw(st.sampled_from(living))
                word = data.draw(st.sampled_from((b"fork", b"fork", b"end", b"own")))
                if word == b"end" and number != 0:
                    living.remove(number)
                    tree.tell(number, word)
                elif word == b"own":
                    tree.tell(number, word)
                elif word == b"fork" and len(tree.pids) < MOST:
                    living.append(len(tree.pids))
                    tree.tell(number, b"%3d" % len(tree.pids))
            assert sorted(family.look()) == sorted(proc.descendants(os.getpid()))
    finally:
        tree.close()


def test_those_that_sleep_are_told() -> None:
    """Nobody has to be asked who has not run; who has, is not among them."""
    tree, family = Tree(), Family()
    try:
        for number in range(1, 6):
            tree.tell(0, b"%3d" % number)
        wait_until(lambda: family.look() and family.still.issuperset(tree.pids))
        tree.tell(3, b"own")
        family.look()
        top, *others = tree.pids
        assert family.still.issuperset({*others} - {tree.pids[3]})
        assert family.still.isdisjoint({top, tree.pids[3]})  # that may have got an orphan
    finally:
        tree.close()


def test_orphan_that_came_to_one_who_sleeps_is_found() -> None:
    """A subreaper adopts without doing anything: those above one that has run are asked, too."""
    tree, family = Tree(), Family()
    try:
        tree.tell(0, b"  1")
        tree.tell(1, b"own")
        tree.tell(1, b"  2")
        family.look()
        family.look()
        tree.tell(2, b"  3")
        tree.tell(2, b"end")
        found = proc.stat(tree.pids[3])
        assert found is not None
        assert found.parent == tree.pids[1]
        assert tree.pids[3] in family.look()
    finally:
        tree.close()


def write_into_a_sleeper(count: int) -> None:
    """Fill memory that another process has mapped, and which does nothing."""
    ready, is_ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        room = mmap.mmap(-1, count)  # shared: no rlimit bounds it
        address = ctypes.addressof(ctypes.c_char.from_buffer(room))
        os.write(is_ready, b"%20d" % address)
        time.sleep(PATIENCE)
        os._exit(0)
    address = int(os.read(ready, 20))
    piece = ctypes.create_string_buffer(MB)

    class Vector(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    for at in range(0, count, MB):
        here = Vector(ctypes.addressof(piece), MB)
        there = Vector(address + at, MB)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.process_vm_writev(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) != MB:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        time.sleep(0.01)  # the supervisor has its looks
    time.sleep(PATIENCE)


def test_memory_that_another_fills_counts_for_one_who_sleeps() -> None:
    """Not to have run is no proof of not having grown."""
    with LimitedProcessExecutor(1, memory="100MB", wall_time=PATIENCE) as executor:
        future = executor.submit(write_into_a_sleeper, 400 * MB)
        future.exception(PATIENCE)
        report = future.report
    assert report is not None
    assert report.status is Status.MEMORY
    assert 100e6 < report.peak_memory < 300e6
