"""Callers whose tasks are callers: limits inside others, the inner one the tighter, or the outer.

A tighter outer limit ends everything below its task; a tighter inner one ends nothing above it.
"""

from __future__ import annotations

from benchmarks.reliability.scripts import Script

__all__ = ["NESTED"]

DIVE = """
from benchmarks.reliability.marks import Mark, marked

def dive(depth, limits):
    if depth == 0:
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(30)
    with LimitedProcessExecutor(1, wall_time=limits[0], preload=[]) as executor:
        mark = Mark() if depth == 3 else Mark.own()  # on the outermost task, and all below it
        future = executor.submit(marked, mark.value, dive, depth - 1, limits[1:])
        error = future.exception(30)
        alone = depth < 3 or not mark.scan()
        return (type(error).__name__ if error else future.result()) + " alone" * alone
began = time.monotonic()
"""

UNDER = (
    DIVE
    + """
from benchmarks.reliability.deeds import hog_in_children

def fork_some(count):
    for _ in range(count):
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
    time.sleep(1)  # where they are counted
def under(name, limits, function, *arguments):
    # how each ended, innermost first; the outer functions return, so harm beyond a task would show
    if not limits:
        function(*arguments)
        return []
    limit = {name: limits[0]}
    with LimitedProcessExecutor(1, preload=[], wall_time=20, **limit) as executor:
        mark = Mark() if len(limits) == 3 else Mark.own()
        future = executor.submit(marked, mark.value, under, name, limits[1:], function, *arguments)
        error = future.exception(60)
        if len(limits) == 3:
            good.append(not mark.scan() and has_counted(name, limits[0], future.report))
        return [type(error).__name__] if error else [*future.result(), "ok"]
def has_counted(name, limit, report):
    # what inner tasks used is in the outermost one's account, within its limit
    if name == "cpu_time":
        return 0.4 < report.cpu_time < limit + 0.2
    if name == "processes":
        return 10 <= report.peak_processes <= limit
    # where the inner limit is the tighter one, that may strike between two looks of the outer one
    return limit == "1GiB" or report.peak_memory >= 140 << 20
good = []
"""
)

NESTED = (
    Script(
        "three deep, the inner wall limit is the tighter one",
        DIVE + "print(dive(3, [20, 10, 0.5]))",
        "TimeoutException alone alone alone\n",
    ),
    Script(
        "three deep, the outer wall limit is the tighter one",
        DIVE + "print(dive(3, [2, 10, 20]), time.monotonic() - began < 6)",
        "TimeoutException alone True\n",
    ),
    Script(
        "memory",
        UNDER
        + """
hog = hog_in_children, 200 << 20  # no process of it meets an rlimit
print(under("memory", ["140MiB", "600MiB", "1GiB"], *hog), *good)
print(under("memory", ["1GiB", "600MiB", "100MiB"], *hog), *good)
""",
        "['MemorylimitException'] True\n['MemorylimitException', 'ok', 'ok'] True True\n",
    ),
    Script(
        "CPU time",
        UNDER
        + """
print(under("cpu_time", [2, 10, 20], burn, 30), *good)
print(under("cpu_time", [20, 10, 0.5], burn, 30), *good)
""",
        "['CpuTimeoutException'] True\n['CpuTimeoutException', 'ok', 'ok'] True True\n",
    ),
    # The outer gate refuses a fork in whosever task it is, and that one has the error; below a gate
    # there is no other (seccomp(2), EBUSY), so the inner limit is counted.
    Script(
        "processes",
        UNDER
        + """
print(under("processes", [20, 40, 60], fork_some, 30), *good)
print(under("processes", [60, 50, 3], fork_some, 10), *good)
""",
        "['BlockingIOError', 'ok', 'ok'] True\n['SubprocessException', 'ok', 'ok'] True True\n",
    ),
)
