"""What this machine lets us do, found out by doing it, each once, in a throw-away process.

    @requires("seccomp")
    def test_fifth_fork_is_refused(): ...

A probe that breaks for another reason than the machine's refusal counts as present: the tests then
run and fail where everybody sees it, where skipping would hide a broken module.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from typing import NamedTuple

import pytest

__all__ = ["NAMES", "available", "describe", "missing_from", "requires", "skip_reason"]

_MISSING = 77
"""Exit code of a probe whose mechanism is absent; its last line says why."""

_HEAD = """
import os, sys
sys.path[:] = {path!r}
def absent(why):
    print(why, flush=True)
    os._exit({code})
def probe():
{body}
try:
    probe()
except (OSError, NotImplementedError, ModuleNotFoundError) as error:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("pynisher_exec"):
        raise
    absent(f"{{type(error).__name__}}: {{error}}")
os._exit(0)
"""

_PROBES = {
    "root": """
    if os.getuid() != 0:
        absent(f"uid {os.getuid()}")
""",
    "seccomp": """
    from pynisher_exec.kernel import prctl, seccomp
    prctl.set_no_new_privs()
    os.close(seccomp.install_gate())
""",
    "perf": """
    from pynisher_exec.kernel import perf
    os.close(perf.open_task_clock(os.getpid()))
""",
    "landlock": """
    from pynisher_exec.kernel import landlock
    if landlock.abi() < 6:
        absent(f"landlock ABI {landlock.abi()}, signals need 6")
""",
    "pinning": """
    import mmap
    from pynisher_exec.kernel import memory_copy, pages
    memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[0] = 1
    pages.Pin().hold([memory_copy.address_of(memory)])
""",
    "cgroup": """
    mounts = [line.split() for line in open("/proc/self/mounts")]
    roots = [fields[1] for fields in mounts if fields[2] == "cgroup2"]
    own = [line[3:].strip() for line in open("/proc/self/cgroup") if line.startswith("0::")]
    if not roots or not own:
        absent("no cgroup of version 2 is mounted")
    trial = roots[0] + own[0].rstrip("/") + f"/probe-{os.getpid()}"
    os.mkdir(trial)
    os.rmdir(trial)
""",
    # CPython 3.13.0 marks a pending signal on the thread that was the main one before the fork.
    "fork_signals": """
    import signal, threading
    def child():
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        while __import__("time").process_time() < 3:
            pass
        os._exit(1)
    def fork():
        pid = os.fork()
        if pid == 0:
            child()
        status.append(os.waitpid(pid, 0)[1])
    status = []
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    if status[0]:
        absent("a process forked from a thread runs no signal handler in a busy loop")
""",
    # CPython 3.12.0 and 3.12.1 refuse it; the issue in which that was mended is gh-113964.
    "late_threads": """
    import subprocess
    code = (
        "import threading as t; m = t.main_thread();"
        "t.Thread(target=lambda: (m.join(), t.Thread(target=print, args=('x',)).start())).start()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if not done.stdout:
        absent(done.stderr.splitlines()[-1])
""",
    "numpy": """
    import numpy
""",
    "sklearn": """
    import sklearn
""",
}

NAMES = tuple(_PROBES)


class _Finding(NamedTuple):
    present: bool
    why: str
    """Why it is absent; or, for a probe that broke, how; empty when all is well."""


@cache
def _find(name: str) -> _Finding:
    code = _HEAD.format(path=sys.path, code=_MISSING, body=_PROBES[name])
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return _Finding(present=True, why="probe hung")
    if done.returncode in (0, _MISSING):
        return _Finding(done.returncode == 0, done.stdout.strip())
    last = done.stderr.strip().rpartition("\n")[2]
    return _Finding(present=True, why=f"probe broke, exit code {done.returncode}: {last}")


def available(name: str) -> bool:
    """Whether the machine has it, for a test that goes two ways."""
    return _find(name).present


def describe(name: str) -> str:
    """One entry of the list at the head of a test run."""
    present, why = _find(name)
    return f"{'' if present else 'no '}{name}" + (f" ({why})" if why else "")


def skip_reason(name: str) -> str:
    """What a skipped test shows; `missing_from` reads it back."""
    return f"needs {name}: {_find(name).why}"


def missing_from(reason: str) -> str | None:
    """Return the capability that a skip reason names, if it is one of ours."""
    match = re.search(r"\bneeds (\w+): ", reason)
    return match[1] if match and match[1] in _PROBES else None


def requires(*names: str) -> pytest.MarkDecorator:
    """Mark a test that is skipped, with the reason shown, where a capability is absent."""
    missing = [name for name in names if not available(name)]
    return pytest.mark.skipif(bool(missing), reason=skip_reason(missing[0]) if missing else "")
