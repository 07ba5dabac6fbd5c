"""Limits that are held while the time of day jumps: by eleven days, forth or back, all the time.

In a guest of our own, as root, it is the machine's clock that jumps. Elsewhere nobody may set that:
there all that Python code of a caller, its template, supervisors and tasks asks the module `time`
about the time of day is answered by a clock that jumps by itself. In both, reports must show that
it has. What the second way would miss is a decision that C code takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.reliability.deeds import burn, swallow_and
from pynisher_exec import CpuTimeoutException, LimitedProcessExecutor

if TYPE_CHECKING:
    from pynisher_exec import LimitedFuture

__all__ = ["Tried", "run_tries"]

MAY_SET_THE_CLOCK = "PYNISHER_EXEC_MAY_SET_THE_CLOCK"
"""Set where the machine is a guest of our own."""

FAR, PERIOD = 1e6, 0.1
"""Seconds: how far the clock jumps, and how long it stays there."""

PATIENCE = 60
LATEST = 5.0
"""Seconds beyond a limit that are no failure on a loaded or an emulated machine."""

CUSTOMISATION = f"""
import time
def _by():
    return {FAR} if int(time.monotonic() / {PERIOD}) % 2 else -{FAR}
def _jumping(function, second):
    def told(clock=time.CLOCK_REALTIME):
        arguments = () if function in _simple else (clock,)
        return function(*arguments) + (clock == time.CLOCK_REALTIME) * int(_by()) * second
    return told
_simple = time.time, time.time_ns
time.time, time.time_ns = _jumping(time.time, 1), _jumping(time.time_ns, 10**9)
time.clock_gettime = _jumping(time.clock_gettime, 1)
time.clock_gettime_ns = _jumping(time.clock_gettime_ns, 10**9)
"""
"""A `sitecustomize` (site's documentation): every interpreter imports it before all else."""

CALLER = """
import sys
sys.path[:] = {path!r}
from benchmarks.reliability import clocks
clocks.be_the_caller({rounds}, {epoch!r}, set_it={set_it})
"""


class Tried(NamedTuple):
    """How many tasks, what was wrong with them, what jumped."""

    tries: int
    failures: list[str]
    what: str


def run_tries(count: int) -> Tried:
    """Run at least as many tasks in a caller for which the clock jumps."""
    set_it = MAY_SET_THE_CLOCK in os.environ and os.geteuid() == 0
    rounds = -(-count // len(KINDS))
    epoch = time.time() - time.monotonic()
    code = CALLER.format(path=sys.path, rounds=rounds, epoch=epoch, set_it=set_it)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return Tried(
                rounds * len(KINDS),
                _failures(code, folder, PATIENCE + rounds * LATEST, set_it=set_it),
                "the machine's clock" if set_it else "the clock of the caller and its processes",
            )
    finally:
        if set_it:
            time.clock_settime(time.CLOCK_REALTIME, epoch + time.monotonic())


def _failures(code: str, folder: str, patience: float, *, set_it: bool) -> list[str]:
    environment = dict(os.environ)
    if not set_it:
        Path(folder, "sitecustomize.py").write_text(CUSTOMISATION)
        paths = [folder, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=False,
            env=environment,
            text=True,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        return ["the caller hangs"]
    if done.returncode:
        return [f"the caller ended with {done.returncode}: {done.stderr[-500:]}"]
    failures: list[str] = json.loads(done.stdout)
    return failures


# In the caller -----------------------------------------------------------------------------------


class Slow:
    """Takes its time to be loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return time.sleep, (PATIENCE,)


def burn_on() -> None:
    """Use CPU time, told to stop or not."""
    try:
        burn()
    except CpuTimeoutException:
        burn()


class Kind(NamedTuple):
    """A call, its limits, the status that is right, the least that the time must be.

    `clock`: which of the times in its report; or none, and it is the caller that takes the time.
    """

    function: Any
    argument: tuple[object, ...]
    limits: dict[str, Any]
    status: str
    clock: str
    least: float


KINDS = (
    # The first that is waited for: it is timed from here.
    Kind(abs, (Slow(),), {}, "startup", "", 1.0),
    Kind(time.sleep, (PATIENCE,), {"wall_time": 0.5}, "wall_time", "wall_time", 0.5),
    Kind(burn, (), {"cpu_time": 0.5}, "cpu_time", "cpu_time", 0.5),
    Kind(
        swallow_and,
        ("sleep",),
        {"wall_time": 0.3, "grace_period": 0.5},
        "wall_time",
        "wall_time",
        0.8,
    ),
    Kind(
        swallow_and,
        ("return",),  # at the soft signal
        {"wall_time": 0.3, "grace_period": PATIENCE},
        "ok",
        "wall_time",
        0.3,
    ),
    # Burning takes as long as it counts, but for the skew of two clocks (under emulation, 4 ms).
    Kind(burn_on, (), {"cpu_time": 0.3, "grace_period": 0.5}, "cpu_time", "wall_time", 0.75),
)
"""Wall and CPU limits, the grace period of each, and the time that loading a call may take."""


def _wrong(kind: Kind, future: LimitedFuture[Any], began: float, epoch: float) -> str:
    """What is wrong with how a limit was held."""
    report = future.wait_for_report()  # the caller's own time is bounded
    now = time.monotonic()
    took = getattr(report, kind.clock) if kind.clock else now - began
    shift = FAR if report.started_at is None else report.started_at - epoch - now
    problems = [
        f"status {report.status}" * (report.status != kind.status),
        f"{took:.3f} s instead of {kind.least}" * (not kind.least <= took < kind.least + LATEST),
        f"the clock was off by {shift:.0f} s" * (abs(abs(shift) - FAR) > PATIENCE * 2),
    ]
    told = ", ".join(filter(None, problems))
    return told and f"{kind.limits or 'startup_time'}: {told}"


def be_the_caller(rounds: int, epoch: float, *, set_it: bool) -> None:
    """Try each kind as often, all at once, and print what was wrong."""
    failures = []
    if set_it:
        threading.Thread(target=_keep_setting, args=(epoch,), daemon=True).start()
    with LimitedProcessExecutor(4) as executor, LimitedProcessExecutor(1, startup_time=1) as slow:
        for _ in range(rounds):
            began = time.monotonic()
            futures = [
                (executor.limit(**kind.limits) if kind.limits else slow).submit(
                    kind.function, *kind.argument
                )
                for kind in KINDS
            ]
            pairs = zip(KINDS, futures, strict=True)
            failures += [_wrong(kind, future, began, epoch) for kind, future in pairs]
    print(json.dumps([each for each in failures if each]))


def _keep_setting(epoch: float) -> None:
    by = FAR
    while True:
        time.clock_settime(time.CLOCK_REALTIME, epoch + time.monotonic() + by)
        time.sleep(PERIOD)
        by = -by
