"""What a person is told: one line with the figures, and the next step where it is plain."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynisher_exec import LimitedProcessExecutor, Report
from pynisher_exec.caller.sentences import message_of, one_line, sentence
from pynisher_exec.errors import AnythingException
from pynisher_exec.limits import size_text
from pynisher_exec.report import Enforced, Status
from pynisher_exec.verdict import Evidence, Verdict, judge

MIB = 1 << 20
LIMITS = {
    name: Enforced(value, "")
    for name, value in {"memory": 200 * MIB, "cpu_time": 5, "wall_time": 60, "processes": 2}.items()
}

TOLD: list[tuple[Status, dict[str, Any], str]] = [
    (
        Status.MEMORY,
        {"used": 2.5 * 1024 * MIB, "detail": "in 2 processes; the largest, x, held 2 GiB"},
        "memory limit of 200 MiB passed: 2.5 GiB held in 2 processes; the largest, x, held 2 GiB",
    ),
    (
        Status.MEMORY,
        {"peak_memory": 3 * MIB},
        (
            "memory limit of 200 MiB met: an allocation was refused; 3 MiB were held at most; "
            "memory that is only reserved counts here"
        ),
    ),
    (
        Status.MEMORY,
        {"peak_memory": 190 * MIB},
        "memory limit of 200 MiB met: an allocation was refused; 190 MiB were held at most",
    ),
    (Status.CPU_TIME, {"cpu_time": 5.5}, "cpu_time limit of 5 s passed: used 5.500 s"),
    (
        Status.WALL_TIME,
        {"wall_time": 60.1, "cpu_time": 0.02},
        "wall_time limit of 60 s passed after 60.100 s, 0.020 s of CPU time used",
    ),
    (Status.PROCESSES, {"refused_forks": 3}, "limit of 2 subprocesses met: 3 forks refused"),
    (
        Status.PROCESSES,
        {"killed": "processes", "used": 3.0},
        "limit of 2 subprocesses passed: 3 alive at once",
    ),
    (
        Status.SIGNAL,
        {"wait_status": signal.SIGSEGV},
        "ended by SIGSEGV: faulthandler.enable() in the function shows where",
    ),
    (
        Status.SIGNAL,
        {"wait_status": signal.SIGKILL},
        "ended by SIGKILL, not sent by a limit: by the kernel for want of memory, or by somebody",
    ),
    (Status.SIGNAL, {"wait_status": signal.SIGUSR1}, "ended by SIGUSR1"),
    (Status.EXIT, {"wait_status": 3 << 8}, "exited with code 3 before the function returned"),
]


@pytest.mark.parametrize(("status", "facts", "said"), TOLD)
def test_ending_is_told(status: Status, facts: dict[str, Any], said: str) -> None:
    """With limit and use."""
    evidence = Evidence("running", limits=LIMITS, **facts)
    verdict = judge(evidence, delivered=False)
    assert sentence(status, evidence, verdict, {}) == said


@given(st.sampled_from(Status), st.text(), st.text())
def test_every_sentence_is_one_line(status: Status, what: str, reason: str) -> None:
    """Whatever a task has named its types and errors."""
    evidence = Evidence("outcome", limits=LIMITS, what=what)
    facts = {"outcome": "startup", "message": reason}
    said = one_line(sentence(status, evidence, Verdict(status), facts))
    assert len(said.splitlines()) == 1


def test_message_of_the_functions_own_exception_has_its_class() -> None:
    """`'depth'` alone says nothing; and a text of several lines is one."""
    assert message_of(KeyError("depth"), is_ours=False) == "KeyError: 'depth'"
    assert message_of(ValueError("a\n  b"), is_ours=False) == "ValueError: a b"
    assert message_of(AnythingException("ended"), is_ours=True) == "ended"


def refuse_memory() -> None:
    """Raise what a library says of it."""
    msg = "Unable to allocate 7.45 GiB"
    raise MemoryError(msg)


def test_what_a_library_says_of_refused_memory_is_told() -> None:
    """Beside the limit, as it was given."""
    said = report_of(refuse_memory, memory="200MB").message
    assert said.startswith("memory limit of 200 MB met: an allocation was refused; ")
    assert said.endswith(" were held at most; MemoryError: Unable to allocate 7.45 GiB")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (3 * MIB + MIB // 2, "3.5 MiB"),
        (5 << 28, "1.25 GiB"),
        (200_000_000, "200 MB"),
        (1_500_000_000, "1.5 GB"),
        (200 * MIB + 4096, "200 MiB"),
        (1000 * MIB, "1000 MiB"),
    ],
)
def test_size_is_told_in_the_unit_in_which_it_is_whole(count: int, text: str) -> None:
    """Whoever has written 200MB looks for that."""
    assert size_text(count) == text


def raise_in_lines() -> None:
    """Raise an exception whose text has several."""
    msg = "no\nsuch\ncolumn"
    raise LookupError(msg)


def grow_with_children() -> None:
    """Hold memory in three processes, none of which is over the limit alone."""
    held = b"x" * (60 * MIB)
    for _ in range(2):
        if not os.fork():
            own = b"y" * (60 * MIB)
            time.sleep(60 + len(own) * 0)
            os._exit(0)
    time.sleep(60 + len(held) * 0)


def report_of(function: Any, **limits: Any) -> Report:
    """Run it."""
    with LimitedProcessExecutor(1, **limits) as executor:
        return executor.submit(function).wait_for_report()


def test_report_has_one_line_for_an_exception() -> None:
    """Its class and its text."""
    assert report_of(raise_in_lines).message == "LookupError: no such column"


def test_memory_of_a_tree_names_the_number_and_the_largest() -> None:
    """What to look at."""
    report = report_of(grow_with_children, memory="150MiB", wall_time=30)
    assert report.status == "memory"
    assert report.message.startswith("memory limit of 150 MiB passed: ")
    assert " MiB held in 3 processes; the largest, limit-task (pid " in report.message
