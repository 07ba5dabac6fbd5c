"""The same calls through pynisher 0.6.4 and through `enforce_limits`: where they agree.

A few hundred calls are generated (function kinds x limits x endings), and their answers, (value,
exit status, exit code, errno), are the same. Where they are not, 0.6.4 is wrong: each such case is
a row of a table with the reason, and must come about as described.

Both sides make 16 calls at once, 0.6.4's by a driver (see `replayed`).
"""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import replayed
from capabilities import available, skip_reason
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from replayed import HUNG, Answer, Spec

import pynisher_exec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def installed() -> str:
    """The version of pynisher, or nothing."""
    try:
        return importlib.metadata.version("pynisher")
    except importlib.metadata.PackageNotFoundError:
        return ""


pytestmark = pytest.mark.skipif(
    not installed().startswith("0.6."),
    reason=f"needs pynisher 0.6 to compare with; installed is: {installed() or 'none'}",
)

BATCH = 16


@dataclass
class Driver:
    """The process that calls 0.6.4."""

    process: subprocess.Popen[bytes]

    def answers(self, specs: Sequence[Spec], seconds: float) -> list[Answer]:
        """What 0.6.4 answers, or HUNG after so many seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump((list(specs), seconds), self.process.stdin)
        self.process.stdin.flush()
        found: list[Answer] = pickle.load(self.process.stdout)
        return found


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    """One for the module."""
    with subprocess.Popen(
        [sys.executable, replayed.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Driver(process)
        finally:
            process.kill()


def both(driver: Driver, specs: Sequence[Spec], seconds: float) -> list[tuple[Answer, Answer]]:
    """Each call's answer by 0.6.4, then by us."""
    with ThreadPoolExecutor(BATCH) as threads:
        theirs = threads.submit(driver.answers, specs, seconds)
        with ThreadPoolExecutor(4) as callers:
            ours = list(callers.map(lambda spec: replayed.answer("pynisher_exec", spec), specs))
        return list(zip(theirs.result(), ours, strict=True))


# Generated calls ---------------------------------------------------------------------------------

EXCEPTIONS = ("ValueError", "KeyError", "ZeroDivisionError", "KeyboardInterrupt", "GeneratorExit")
OF_LIBRARY = (
    "CpuTimeoutException",
    "TimeoutException",
    "SignalException",
    "SubprocessException",
    "PynisherError",
    "AnythingException",
)
SIGNALS = (
    signal.SIGQUIT,
    signal.SIGABRT,
    signal.SIGKILL,
    signal.SIGSEGV,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGHUP,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=5,
)

Ending = tuple[str, Any]


def of(ending: str, arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Ending]:
    """Draw an ending's argument."""
    return arguments.map(lambda argument: (ending, argument))


AT_ONCE = (
    of("value", VALUES)
    | of("large", st.sampled_from([1_000, 100_000, 3_000_000]))
    | of("raise", st.sampled_from((*EXCEPTIONS, "MemoryError", "RecursionError")))
    | of("os error", st.none() | st.integers(1, 130))
    | of("raise of library", st.sampled_from(OF_LIBRARY))
    | of("sys.exit", st.sampled_from([None, 0, 1, 7, 255, 256, -1, "text"]))
    | of("os._exit", st.integers(0, 255))
    | of("kill", st.sampled_from(SIGNALS))
    | of("recurse", st.just(0))
)
WITH_HELPERS = of("thread", VALUES) | of("child", st.integers(0, 100))
CONTEXTS = st.sampled_from([None, "fork"] if available("fork_signals") else [None])


@st.composite
def calls(draw: st.DrawFn) -> Spec:
    """Draw a call that ends at once, under limits that are not met.

    0.6.4's limit on processes counts all of the user's: it stands only where none is started. A
    memory limit below what the test process itself reserves would be met in a fork of it.
    """
    helped = draw(st.integers(0, 5)) == 0
    ending, argument = draw(WITH_HELPERS if helped else AT_ONCE)
    choices: dict[str, Any] = {
        "wall_time_in_s": [None, 25],
        "cpu_time_in_s": [None, 25],
        "grace_period_in_s": [None, 0, 1],
        "mem_in_mb": [None, None, 100_000],
        "num_processes": [None] if helped else [None, 8],
        "capture_output": [False, True],
    }
    if (ending, argument) == ("os error", 12):
        choices["mem_in_mb"] = [None]
    limits = {name: draw(st.sampled_from(values)) for name, values in choices.items()}
    return _spec(draw, ending, argument, limits)


def _spec(draw: st.DrawFn, ending: str, argument: Any, limits: dict[str, Any]) -> Spec:
    return Spec(
        draw(st.sampled_from(replayed.KINDS)),
        ending,
        argument,
        tuple(limits.items()),
        draw(CONTEXTS),
    )


@st.composite
def limited_calls(draw: st.DrawFn) -> Spec:
    """Draw a call that meets a limit; in whole seconds, as 0.6.4 has them."""
    ending, limits = draw(
        st.sampled_from(
            [
                ("sleep", {"wall_time_in_s": 1}),
                ("sleep", {"wall_time_in_s": 1, "grace_period_in_s": 5}),
                ("sleep until told", {"wall_time_in_s": 1, "grace_period_in_s": 5}),
                ("burn", {"cpu_time_in_s": 1, "grace_period_in_s": 5}),
                ("burn until told", {"cpu_time_in_s": 1, "grace_period_in_s": 5}),
                ("hold", {"mem_in_mb": 200}),
            ]
        )
    )
    argument = draw(st.sampled_from([5, 300])) if ending == "hold" else draw(VALUES)
    spec = _spec(draw, ending, argument, limits)
    return spec._replace(context=None) if ending == "hold" else spec


def agree(spec: Spec, theirs: Answer, ours: Answer) -> bool:
    """Equal; but at a wall limit without grace 0.6.4 races its own alarm: it ends with 0 or -15."""
    limits = dict(spec.limits)
    if spec.ending == "sleep" and not limits.get("grace_period_in_s") and theirs[2] == 0:
        theirs = (*theirs[:2], -15, *theirs[3:])
    return theirs == ours


def check(driver: Driver, specs: list[Spec]) -> None:
    """All agree; the message has each call that does not, with both answers.

    Nothing is to be shrunk then, at seconds a try. 0.6.4 forks beside threads, and may just hang:
    such a call is made once more, by itself.
    """
    wrong = []
    for spec, (theirs, ours) in zip(specs, both(driver, specs, 25), strict=True):
        again = driver.answers([spec], 25)[0] if theirs == HUNG else theirs
        if not agree(spec, again, ours):
            wrong.append((spec, again, ours))
    assert not wrong, "\n".join(map(repr, wrong))


@pytest.mark.timeout(120)
@settings(max_examples=12, phases=[Phase.generate])
@given(specs=st.lists(calls(), min_size=BATCH, max_size=BATCH))
def test_generated_calls_agree(driver: Driver, specs: list[Spec]) -> None:
    """192 calls, every function kind and ending, limits that are not met: the same answers."""
    check(driver, specs)


@pytest.mark.timeout(120)
@settings(max_examples=2, phases=[Phase.generate])
@given(specs=st.lists(limited_calls(), min_size=BATCH, max_size=BATCH))
def test_generated_calls_that_meet_a_limit_agree(driver: Driver, specs: list[Spec]) -> None:
    """32 calls that meet a wall, CPU or memory limit, heeding it or not: the same answers."""
    check(driver, specs)


# Known differences -------------------------------------------------------------------------------


class Row(NamedTuple):
    """A call that is answered differently, and why 0.6.4 is wrong."""

    name: str
    spec: Spec
    theirs: Answer
    ours: Answer
    reason: str


def call(ending: str, argument: Any = None, caller: str = "", **limits: Any) -> Spec:
    """A plain function's call."""
    return Spec("function", ending, argument, tuple(limits.items()), caller=caller)


A, C, M, S, T = (
    "AnythingException",
    "CpuTimeoutException",
    "MemorylimitException",
    "SubprocessException",
    "TimeoutException",
)
BELOW = "memory limit below the interpreter's own size"
ROWS = [
    Row(
        "cpu limit without grace",
        call("burn", cpu_time_in_s=1),
        (None, A, -9, None),
        (None, C, -9, None),
        "0.6.4 leaves the limit to the kernel, whose SIGKILL does not say why",
    ),
    Row(
        "soft cpu signal swallowed",
        call("burn on", cpu_time_in_s=1, grace_period_in_s=1),
        (None, A, -9, None),
        (None, C, -9, None),
        "the same kill, after the grace period",
    ),
    Row(
        BELOW,
        call("value", 42, mem_in_mb=1),
        (42, 0, 0, None),
        (None, M, 0, None),
        "1 MiB was passed from the beginning: 0.6.4 notices only when the fork asks for more",
    ),
    Row(
        "memory of a tree",
        call("children hold", 60, mem_in_mb=150),
        ("held", 0, 0, None),
        (None, M, -9, None),
        "0.6.4 limits each process by itself: 240 MiB are held under a limit of 150",
    ),
    Row(
        "map that the memory limit refuses",
        call("map", 300, mem_in_mb=200),
        (None, S, 0, 12),
        (None, M, 0, 12),
        "ENOMEM is how a map is told of the limit that was set: no fault of the subprocess",
    ),
    Row(
        "what the caller holds",
        call("hold", 50, caller="holds memory", mem_in_mb=200),
        (None, M, 0, None),
        (50 << 20, 0, 0, None),
        "0.6.4's fork inherits the caller's 300 MiB, and has no room for 50 under 200",
    ),
    Row(
        "SIGALRM without a wall limit",
        call("kill", int(signal.SIGALRM)),
        (None, T, 0, None),
        (None, A, -14, None),
        "no limit was set, so none was met: the function received a signal and just died",
    ),
    Row(
        "SIGXCPU without a CPU limit",
        call("kill", int(signal.SIGXCPU)),
        (None, C, 0, None),
        (None, A, -24, None),
        "as with SIGALRM",
    ),
    Row(
        "value that cannot be pickled",
        call("lock"),
        (None, A, 0, None),
        (None, A, 1, None),
        "0.6.4 swallows the error in its process, which then ends as if all were well",
    ),
    Row(
        "value that cannot be loaded",
        call("unloadable"),
        (None, 5, 0, None),
        (None, A, 1, None),
        "5 is none of the statuses that the README names",
    ),
    Row(
        "wall limit of half a second",
        call("value", 42, wall_time_in_s=0.5),
        (None, A, 1, None),
        (42, 0, 0, None),
        "0.6.4 gives the float to alarm(2), and takes its TypeError for the function's",
    ),
    Row(
        "cpu limit of half a second",
        call("value", 42, cpu_time_in_s=0.5),
        (None, A, 1, None),
        (42, 0, 0, None),
        "as with the wall limit, by setrlimit(2)",
    ),
    Row(
        "fraction of a mebibyte",
        call("value", 42, mem_in_mb=500.5),
        (None, A, 1, None),
        (42, 0, 0, None),
        "as with the CPU limit",
    ),
    Row(
        "signals ignored",
        call("ignore", wall_time_in_s=1),
        HUNG,
        (None, T, -15, None),
        "after its SIGTERM 0.6.4 waits for an end that does not come",
    ),
    Row(
        "function that stops itself",
        call("stop", wall_time_in_s=1),
        HUNG,
        (None, T, -15, None),
        "a stopped process does not take a SIGTERM",
    ),
    Row(
        "orphan that holds the pipe",
        call("orphan", 3),
        HUNG,
        (None, A, 3, None),
        "0.6.4 waits for the end of a pipe that another process keeps open",
    ),
    Row(
        "lock held by another thread",
        call("take lock", caller="holds a lock"),
        HUNG,
        (True, 0, 0, None),
        "0.6.4's fork has the lock as it was, and no thread to let it go",
    ),
    Row(
        "errno of the call before",
        call("value", 42, caller="called before"),
        (42, 0, 0, 5),
        (42, 0, 0, None),
        "0.6.4 does not reset os_errno",
    ),
    Row(
        "MemorylimitException of the function's own",
        call("raise of library", "MemorylimitException"),
        (None, A, 1, None),
        (None, M, 0, None),
        "a limit met further down is told as one; it is a MemoryError, which 0.6.4's is not",
    ),
    Row(
        "subprocesses, as root",
        call("fork at once", 4, num_processes=2),
        (4, 0, 0, None),
        (None, S, 0, 11),
        "RLIMIT_NPROC, which is what 0.6.4 sets, does not bind root",
    ),
]
Answers = dict[str, tuple[Answer, Answer]]


@pytest.fixture(scope="module")
def answers(driver: Driver) -> Answers:
    """Both answers to each row; what has not ended after some seconds hangs.

    What was not to hang is asked once more, alone and with patience: the machine may be busy.
    """
    found = zip(ROWS, both(driver, [row.spec for row in ROWS], 8), strict=True)
    named = {row.name: answer for row, answer in found}
    for row in ROWS:
        if HUNG in named[row.name] and HUNG not in (row.theirs, row.ours):
            named[row.name] = both(driver, [row.spec], 40)[0]
    pynisher_exec.shutdown()
    return named


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_known_difference(row: Row, answers: Answers) -> None:
    """Each row comes about as described, on both sides."""
    if row.name == "subprocesses, as root":
        if os.getuid() != 0:
            pytest.skip(skip_reason("root"))
        if not available("seccomp"):
            pytest.skip(skip_reason("seccomp"))
    theirs, ours = answers[row.name]
    if row.name == BELOW:  # see test_memory_below_the_interpreter_always_ends_alike
        ours = (*ours[:2], 0, ours[3])
    assert ours == row.ours
    assert theirs == row.theirs, row.reason
    assert theirs != ours
