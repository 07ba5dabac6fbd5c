"""Which limits this machine holds, how hard, and by what: probed once, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

from pynisher_exec.caller.launch import start_interpreter
from pynisher_exec.errors import PynisherError
from pynisher_exec.protocol import messages
from pynisher_exec.template import probe

if TYPE_CHECKING:
    from pynisher_exec.limits import Limits

__all__ = ["LIMITS", "Support", "refuse_less_than_hard", "remarks", "supports"]

_DELEGATE = "a user gets one by systemd-run --user --scope -p Delegate=yes"

LIMITS = (
    "memory",
    "cpu_time",
    "wall_time",
    "processes",
    "grace_period",
    "startup_time",
    "open_files",
    "file_size",
    "core_size",
)


class Support(str):
    """The word "hard" or "soft", and why.

    `mechanism` says what holds the limit, `bound` how far it can be passed, `harder` what would
    make it hard (empty where it is).
    """

    __slots__ = ("bound", "harder", "mechanism")
    mechanism: str
    bound: str
    harder: str

    def __new__(cls, level: str, mechanism: str, bound: str, harder: str = "") -> Support:  # noqa: PYI034  (typing.Self is 3.11's)
        """Make one; `level` is the string itself."""
        self = super().__new__(cls, level)
        self.mechanism, self.bound, self.harder = mechanism, bound, harder
        return self


def supports(limit: str, *, no_new_privs: bool = True) -> Support:
    """Say how hard a limit is on this machine.

    "hard": no task evades it, and it is passed by no more than `.bound`. "soft": a task can evade
    or outrun it. The answer is found by trying the mechanism once in a process of its own (about
    0.1 s at the first call), never guessed. ValueError for an unknown name. `no_new_privs` is what
    the executor will be given.
    """
    if limit not in LIMITS:
        msg = f"limit={limit!r} is unknown: {', '.join(LIMITS)} are accepted"
        raise ValueError(msg)
    refused = dict(_probed(no_new_privs))
    if limit == "memory":
        return _memory(refused)
    if limit == "cpu_time":
        return _cpu_time(refused)
    if limit == "processes":
        return _processes(refused)
    if limit in ("wall_time", "grace_period", "startup_time"):
        return Support("hard", "deadline of the slot's supervisor", "50 ms late")
    return _rlimit(limit, refused)


def _rlimit(limit: str, refused: dict[str, str]) -> Support:
    mechanism = f"rlimit {limit}, in each process"
    if limit == "core_size" and refused["cores"]:
        reason = f"a core_pattern that is a file's name ({refused['cores']})"
        return Support("soft", mechanism, "a program is handed the whole core, see core(5)", reason)
    if not refused["rlimits"]:
        return Support("hard", mechanism, "not passed")
    reason = "no_new_privs=True, and that a process may give up CAP_SYS_RESOURCE (capset)"
    return Support("soft", mechanism, "a task may lift it, by CAP_SYS_RESOURCE", reason)


_NOT_COUNTED = (
    "files in memory (tmpfs, memfd) that no process maps are not counted, nor is memory that only "
    "privileged or configured systems give out (memfd_secret, hugetlbfs)"
)
_OF_A_TREE = (
    "of a tree 64 MiB + 15 % and its growth while it is read, some 40 ms per GiB mapped; what is "
    "written to shared objects is held by samples alone"
)


def _memory(refused: dict[str, str]) -> Support:
    if not refused["pss"]:
        mechanism = "RLIMIT_DATA in each process; the tree sampled, confirmed by PSS"
        return Support("hard", mechanism, f"64 MiB + 5 %; {_OF_A_TREE}; {_NOT_COUNTED}")
    mechanism = "RLIMIT_DATA in each process; the tree sampled"
    return Support(
        "soft",
        mechanism,
        f"pages shared within the tree count for each process; {_NOT_COUNTED}",
        f"a readable /proc/PID/smaps_rollup ({refused['pss']})",
    )


_SAMPLED = (
    "by samples, of a process whose exec makes it undumpable (it may not read the program, or has "
    "changed its groups): the kernel takes the clock from it"
)


def _cpu_time(refused: dict[str, str]) -> Support:
    if not refused["perf"]:
        return Support("hard", "perf task clock of the whole tree", f"20 ms + 2 %; {_SAMPLED}")
    if not refused["group"]:
        return Support("hard", "cpu.stat of a cgroup", "20 ms + 2 %")
    return Support(
        "soft",
        "CPU clocks of the living and what was reaped",
        "misses what short-lived processes used whose parent ignores SIGCHLD",
        f"perf_event_open ({refused['perf']})",
    )


def _processes(refused: dict[str, str]) -> Support:
    if not refused["gate"]:
        return Support("hard", "seccomp user notification: each fork is granted", "not passed")
    reason = f"seccomp user notification ({refused['gate']})"
    if not refused["filter"]:
        reason += "; processes=0 is hard all the same, by a plain filter"
    return Support("soft", "the tree counted, and killed when over", "a burst of forks", reason)


def remarks() -> dict[str, str]:
    """What else this machine does, or does not, for tasks: a sentence each, for `doctor`."""
    refused = dict(_probed(True))
    landlock, group = refused["landlock"], refused["group"]
    signals = "a task can signal nothing outside of its own tree, by Landlock"
    if landlock:
        signals = f"a task can signal its supervisor and its caller: no Landlock ({landlock})"
    cgroups = f"{group}; {_DELEGATE}" if group else "one can be made for each slot"
    return {"signals": signals, "cgroups": cgroups}


@lru_cache(maxsize=2)
def _probed(no_new_privs: bool) -> tuple[tuple[str, str], ...]:  # noqa: FBT001  (internal)
    near, far = messages.stream_pair()
    with near:
        try:
            pid = start_interpreter(probe.__name__, (far.fileno(),), (no_new_privs,), sys.path)
        finally:
            far.close()
        data = b""
        while part := near.recv(1 << 16):
            data += part
    with contextlib.suppress(ChildProcessError):  # the user waits for any child, or ignores them
        os.waitpid(pid, 0)
    if not data:
        msg = "the process that probes this machine ended without an answer; stderr may say why"
        raise PynisherError(msg)
    return tuple(json.loads(data).items())


os.register_at_fork(after_in_child=_probed.cache_clear)  # a task may be allowed less


def refuse_less_than_hard(limits: Limits, *, no_new_privs: bool) -> None:
    """ValueError for the first limit that is set and is not hard here."""
    for name in LIMITS:
        if getattr(limits, name) is None:
            continue
        found = supports(name, no_new_privs=no_new_privs)
        none_at_all = name == "processes" and limits.processes == 0
        if found != "hard" and not (none_at_all and "hard all the same" in found.harder):
            msg = f"strict=True, but {name} is {found} on this machine: it needs {found.harder}"
            raise ValueError(msg)
