"""Forks that the `processes` limit refuses: what is told where the function copes, or does not."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest
from capabilities import requires

from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = requires("seccomp")


def try_to_fork() -> str:
    """Fork, and go on alone where that is refused."""
    with contextlib.suppress(BlockingIOError):
        if os.fork() == 0:
            os._exit(0)
        return "forked"
    return "alone"


def receive_nothing() -> None:
    """Raise the error number that a refused fork has too."""
    first, second = socket.socketpair()
    with first, second:
        first.setblocking(False)
        first.recv(1)


def try_to_fork_then_receive() -> None:
    """Do both, each in a function of its own."""
    assert try_to_fork() == "alone"
    receive_nothing()


def test_refused_fork_that_was_coped_with_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The value counts; the report names the limit, and one line is logged."""
    with (
        caplog.at_level(logging.DEBUG, "pynisher_exec"),
        LimitedProcessExecutor(1, processes=0) as executor,
    ):
        report = executor.submit(try_to_fork).wait_for_report()
    assert (str(report.status), report.result) == ("ok", "alone")
    assert report.limit_reached == "processes"
    (record,) = caplog.records
    assert "limit=processes value=0 status=ok" in record.getMessage()


def fork_twice() -> None:
    """Fork without a thought."""
    for _ in range(2):
        if os.fork() == 0:
            os._exit(0)


@pytest.mark.parametrize("function", [fork_twice, os.fork])
def test_refused_fork_that_was_not_coped_with_is_a_limit_of_processes(
    function: Callable[[], object],
) -> None:
    """Whether the function asked for it, or is nothing but that."""
    with LimitedProcessExecutor(1, processes=0) as executor:
        report = executor.submit(function).wait_for_report()
    assert (str(report.status), report.limit_reached) == ("processes", "processes")


def test_another_error_after_a_refused_fork_is_that_error() -> None:
    """A socket with nothing to read says EAGAIN as well, and has nothing to do with the limit."""
    with LimitedProcessExecutor(1, processes=0) as executor:
        report = executor.submit(try_to_fork_then_receive).wait_for_report()
    assert isinstance(report.exception, BlockingIOError)
    assert str(report.status) == "os_error"
    assert report.limit_reached == "processes"
