"""The processes of a task are walked anew when any has been started, and not for nothing."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from conftest import wait_until

from pynisher_exec.kernel import proc
from pynisher_exec.supervisor import tree

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def child() -> Iterator[int]:
    """A child that starts another one at each SIGUSR1, which both wait for their end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    pid = os.fork()
    if pid == 0:
        try:
            while signal.sigwait({signal.SIGUSR1}) and os.fork():
                pass
            signal.pause()
        finally:
            os._exit(0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    yield pid
    for each in reversed(proc.descendants(pid)):
        os.kill(each, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def start_another(child: int) -> None:
    """Have it start one, and wait until that is there."""
    before = len(proc.children(child))
    os.kill(child, signal.SIGUSR1)
    wait_until(lambda: len(proc.children(child)) > before)


def test_settled_tree_is_not_walked(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing on the machine starts a process."""
    walks = []
    walk = tree.walk

    def counted() -> list[int]:
        walks.append(1)
        return walk()

    monkeypatch.setattr(tree, "walk", counted)
    seen = tree.Tree(child)

    def is_quiet() -> bool:
        before = len(walks)
        found = [seen.pids() for _ in range(20)]
        assert all(child in pids for pids in found)
        return len(walks) == before

    wait_until(is_quiet)


def test_process_that_comes_is_seen_at_the_next_look(child: int) -> None:
    """Started by one that was there, again and again."""
    seen = tree.Tree(child)
    for _ in range(20):
        for _ in range(3):
            assert set(seen.pids()) >= {child}
        start_another(child)
        assert set(proc.children(child)) <= set(seen.pids())


@pytest.mark.parametrize("answer", [0, None, 1 << 30])
def test_count_that_cannot_be_right_is_not_believed(
    child: int, answer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox may give a constant, a container another machine's."""
    monkeypatch.setattr(proc, "last_started", lambda: answer)
    monkeypatch.setattr(tree, "_AT_IMPORT", answer)
    seen = tree.Tree(child)
    for _ in range(3):
        for _ in range(3):
            seen.pids()
        start_another(child)
        assert set(proc.children(child)) <= set(seen.pids())


def test_last_started_is_what_was_started_last() -> None:
    """Or later, beside others."""
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        assert (proc.last_started() or 0) >= pid
