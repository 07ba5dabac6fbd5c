"""The parts without a process: limits, verdict, the watch's state machine, frames."""

from __future__ import annotations

import signal
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynisher_exec.limits import Limits
from pynisher_exec.protocol.frames import FrameError, FrameReader, FrameWriter
from pynisher_exec.report import Report, Status, exit_status_of
from pynisher_exec.supervisor.state import STAGES, Kill, Reading, Soft, Watch
from pynisher_exec.verdict import LIMIT_STATUS, RETURNED_STATUS, Evidence, judge

# Limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("memory", "2GiB", 2 << 30),
        ("memory", "1.5 MB", 1_500_000),
        ("memory", 1 << 20, 1 << 20),
        ("wall_time", "1h30min", 5400.0),
        ("wall_time", "90s", 90.0),
        ("wall_time", "250ms", 0.25),
        ("cpu_time", 3, 3.0),
    ],
)
def test_ways_to_write_a_limit(name: str, value: object, expected: float) -> None:
    """Numbers and strings come out as bytes and seconds."""
    assert getattr(Limits(**{name: value}), name) == expected  # type: ignore[arg-type]


@given(st.text(max_size=12))
@pytest.mark.parametrize("name", ["memory", "wall_time"])
def test_no_text_breaks_the_parser(name: str, text: str) -> None:
    """It is a limit or a ValueError that names it."""
    try:
        value = getattr(Limits(**{name: text}), name)  # type: ignore[arg-type]
    except ValueError as error:
        assert name in str(error)  # noqa: PT017  (both ways are right)
    else:
        assert value > 0


# The verdict -------------------------------------------------------------------------------------

KILLED, TERMINATED = signal.SIGKILL, signal.SIGTERM


@pytest.mark.parametrize(
    ("evidence", "delivered", "status"),
    [
        (Evidence("returned", 0, returned={"outcome": "value"}), True, "ok"),
        (Evidence("returned", 0, returned={"outcome": "value"}), False, "transfer"),
        (Evidence("returned", 0, returned={}), True, "transfer"),
        (Evidence("running", KILLED, killed="memory", struck=True), False, "memory"),
        (Evidence("running", TERMINATED, killed="wall_time", struck=True), False, "wall_time"),
        # What a handler of SIGTERM makes of our signal changes nothing:
        (Evidence("running", 3 << 8, killed="wall_time", struck=True), False, "wall_time"),
        # It ended by itself, just before our kill:
        (Evidence("running", 0, killed="wall_time"), False, "exit"),
        (Evidence("running", signal.SIGSEGV, killed="cpu_time"), False, "signal"),
        # It returned just before: delivered, the value counts; else it is a tie.
        (Evidence("returned", KILLED, "wall_time", True, {"outcome": "value"}), True, "ok"),
        (Evidence("returned", KILLED, "wall_time", True, {"outcome": "value"}), False, "wall_time"),
        (Evidence("running", KILLED), False, "signal"),
        (Evidence("running", signal.SIGALRM, limit_reached="wall_time"), False, "wall_time"),
        (Evidence("running", signal.SIGALRM), False, "signal"),
        (Evidence("outcome", signal.SIGABRT), False, "exception"),
        (Evidence("outcome", KILLED, killed="memory"), False, "exception"),
        (Evidence("loading", KILLED, killed="startup_time", struck=True), False, "startup"),
        (Evidence("loading", 256), False, "startup"),
        (Evidence("returned", 0, "cancelled", True, {"outcome": "value"}), True, "cancelled"),
        (Evidence("running", None, killed="wall_time", survivors=(7,)), False, "unkillable"),
        (Evidence("returned", 256, returned={"outcome": "os_error", "os_errno": 11}), True,
         "os_error"),
        (Evidence("returned", 256, returned={"outcome": "os_error", "os_errno": 11,
                  "forking": True}, refused_forks=1), True, "processes"),
        (Evidence("returned", 256, returned={"outcome": "os_error", "os_errno": 11,
                  "forking": False}, refused_forks=1), True, "os_error"),
        (Evidence("returned", 256, returned={"outcome": "os_error", "os_errno": 2},
                  refused_forks=1), True, "os_error"),
    ],
)  # fmt: skip
def test_evidence_becomes_a_status(evidence: Evidence, delivered: bool, status: str) -> None:
    """One row for each way in which a task can end, ties among them."""
    assert judge(evidence, delivered=delivered).status == status


evidences = st.builds(
    Evidence,
    stage=st.sampled_from(STAGES),
    wait_status=st.none() | st.sampled_from([0, 256, 9, 11, 14, 15, 24]),
    killed=st.none() | st.sampled_from([*LIMIT_STATUS, "cancelled", "transfer"]),
    returned=st.none() | st.fixed_dictionaries({"outcome": st.sampled_from([*RETURNED_STATUS, 3])}),
    limit_reached=st.none() | st.sampled_from(["cpu_time", "wall_time"]),
    survivors=st.sampled_from([(), (5,)]),
)


@given(evidences, st.booleans())
def test_verdict_is_total_and_keeps_its_promises(evidence: Evidence, delivered: bool) -> None:
    """Any evidence has a status, with an exit status; the strongest facts always win."""
    verdict = judge(evidence, delivered=delivered)
    assert exit_status_of(verdict.status, verdict.signal) in (
        0,
        Report(verdict.status).exit_status,
    ) or (verdict.signal == signal.SIGQUIT)
    if evidence.survivors:
        assert verdict.status is Status.UNKILLABLE
    elif evidence.killed == "cancelled":
        assert verdict.status is Status.CANCELLED
    if verdict.status is Status.OK:
        assert delivered
        assert evidence.returned == {"outcome": "value"}


# The watch ---------------------------------------------------------------------------------------

LIMITS = Limits(memory=100 << 20, cpu_time=10, wall_time=10, startup_time=5)


def running(limits: Limits) -> Watch:
    """Make a watch whose function started at second 1."""
    watch = Watch(limits, cores=2, now=0.0)
    watch.told("loading", {}, 0.5)
    watch.told("running", {}, 1.0)
    return watch


def test_watch_keeps_each_limit_to_the_moment() -> None:
    """Not before it, and at it."""
    assert running(LIMITS).tick(10.999) is None
    assert running(LIMITS).tick(11.0) == Kill("wall_time")
    assert running(LIMITS).read(Reading(9.99, 100 << 20, 0), 2.0) is None
    assert running(LIMITS).read(Reading(10.0, 0, 0), 2.0) == Kill("cpu_time")
    assert running(LIMITS).read(Reading(0.0, (100 << 20) + 1, 0), 2.0) == Kill("memory")
    loading = Watch(LIMITS, 2, 0.0)
    loading.told("loading", {}, 1.0)
    assert loading.tick(5.9) is None
    assert loading.tick(6.0) == Kill("startup_time")


def test_grace_period_lies_between_one_soft_signal_and_the_kill() -> None:
    """The signal once, the kill after the grace, for whichever limit came first."""
    watch = running(LIMITS.changed(grace_period=2))
    assert watch.tick(11.0) == Soft("wall_time", signal.SIGALRM)
    assert watch.tick(12.0) is None
    assert watch.read(Reading(10.5, 0, 0), 12.5) is None
    assert watch.tick(13.0) == Kill("wall_time")


def test_function_that_ended_in_time_may_pickle_its_outcome() -> None:
    """Five seconds from there, and as much CPU time again; then the object is the cause."""
    watch = running(LIMITS)
    watch.told("outcome", {"at": 10.9}, 10.9)
    assert watch.tick(11.5) is None
    assert watch.read(Reading(10.5, 0, 0), 11.5) is None
    assert watch.tick(15.89) is None
    assert watch.tick(15.9) == Kill("wall_time")
    assert watch.stage == "outcome"


def test_function_that_ended_in_its_grace_period_may_pickle_its_outcome() -> None:
    """As one that ended before its limit may."""
    watch = running(LIMITS.changed(grace_period=2.0))
    soft = watch.tick(11.0)
    assert isinstance(soft, Soft)
    watch.told("outcome", {"at": 12.9}, 12.9)
    assert watch.tick(13.5) is None
    assert watch.tick(17.89) is None
    assert watch.tick(17.9) == Kill("wall_time")


def test_outcome_that_is_told_after_the_kill_does_not_change_its_cause() -> None:
    """Nobody then knows whether the object was at fault, and the limit had been passed."""
    watch = running(LIMITS)
    assert watch.tick(11.0) == Kill("wall_time")
    watch.told("outcome", {"at": 10.999}, 11.001)
    assert watch.stage == "running"
    watch.told("returned", {"at": 10.999, "outcome": "value"}, 11.001)
    assert watch.stage == "returned"


def test_task_that_went_on_after_the_kill_was_decided_on_has_not_ended_by_itself() -> None:
    """It returned before the signal came, on a machine that held that up; it was late all the same.

    A word of before the kill shows no such thing.
    """
    watch = running(LIMITS)
    assert watch.tick(11.0) == Kill("wall_time")
    flags = []
    for kind, at in (("outcome", 10.999), ("returned", 11.001)):
        watch.told(kind, {"at": at, "outcome": "value"}, 11.002)
        flags.append(watch.outlived_kill)
    assert flags == [False, True]
    assert watch.returned is None


def test_one_count_of_processes_never_kills() -> None:
    """A process may have been seen twice: only what stays over is ended."""
    watch = running(Limits(processes=2))
    watch.counts_processes = True
    over, under = Reading(0.0, 0, 3), Reading(0.0, 0, 2)
    assert [watch.read(each, 2.0) for each in (over, under, over)] == [None] * 3
    assert watch.read(over, 3.0) == Kill("processes")


def test_count_between_two_others_is_heard_whatever_else_it_meets() -> None:
    """A soft CPU limit is reached in it: those before and after it are not in turn."""
    watch = running(Limits(processes=0, cpu_time=5, grace_period=2))
    watch.counts_processes = True
    assert watch.read(Reading(0.0, 0, 1), 2.0) is None
    assert watch.read(Reading(5.0, 0, 0), 2.1) == Soft("cpu_time", signal.SIGXCPU)
    assert watch.read(Reading(5.0, 0, 1), 2.2) is None


events = st.lists(
    st.one_of(
        st.tuples(st.just("told"), st.sampled_from([*STAGES, "nonsense"])),
        st.tuples(st.just("tick"), st.floats(0.0, 3.0)),
        st.tuples(
            st.just("read"),
            st.builds(Reading, st.floats(0, 20), st.integers(0, 200 << 20), st.integers(0, 5)),
        ),
        st.tuples(st.just("asked"), st.just("cancelled")),
    ),
    max_size=30,
)


@given(events, st.none() | st.floats(0.0, 3.0))
def test_any_order_of_events_keeps_the_promises(
    happenings: list[tuple[str, Any]], grace: float | None
) -> None:
    """Stages only advance; one kill at most; one soft signal at most; nothing after RETURNED."""
    watch = Watch(LIMITS.changed(grace_period=grace), cores=2, now=0.0)
    now, actions, stage = 0.0, [], 0
    for kind, value in happenings:
        done = watch.stage == "returned" or watch.killed is not None
        action: Any = None
        if kind == "told":
            watch.told(value, {}, now)
        elif kind == "tick":
            now += value
            action = watch.tick(now)
        elif kind == "read":
            action = watch.read(value, now)
        else:
            watch.asked(value, now)
        assert not (done and action)
        actions += [action] if action else []
        assert STAGES.index(watch.stage) >= stage
        stage = STAGES.index(watch.stage)
        deadline = watch.deadline()
        assert deadline >= 0
    assert sum(isinstance(action, Kill) for action in actions) <= 1
    assert sum(isinstance(action, Soft) for action in actions) <= (grace is not None)


# Frames ------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=20), st.data())
def test_frame_arrives_whole_however_it_is_cut(segments: list[bytes], data: st.DataObject) -> None:
    """Byte by byte or all at once, the same segments come out."""
    near, far = socket.socketpair()
    with near, far:
        FrameWriter(segments).write(near)
        near.shutdown(socket.SHUT_WR)
        whole = far.recv(1 << 16, socket.MSG_WAITALL)
    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        reader = FrameReader(1 << 20)
        found = None
        while whole:
            assert found is None
            cut = data.draw(st.integers(1, len(whole)))
            near.sendall(whole[:cut])
            whole = whole[cut:]
            found = reader.read(far)
    assert found is not None
    assert [bytes(each) for each in found] == segments


@pytest.mark.parametrize(
    "data",
    [
        b"PXF2" + bytes(4),
        b"PXF1" + struct.pack("!IQ", 1, 1 << 62),
        b"PXF1" + struct.pack("!I", 1 << 20),
        b"PXF1" + struct.pack("!IQ", 1, 10) + b"short",
    ],
    ids=["magic", "size", "count", "truncated"],
)
def test_what_is_no_frame_is_refused_without_allocating(data: bytes) -> None:
    """At its header, or where the stream ends; a claim alone takes no memory."""
    near, far = socket.socketpair()
    with near, far:
        near.sendall(data)
        near.close()
        with pytest.raises(FrameError):
            FrameReader(1 << 20).read(far)
