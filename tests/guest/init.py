"""The first process of the guest: mounts, control groups, then the tests as root and as a user.

Both live in a group of their own in which they may make others beside their own, as a service with
`Delegate=yes` does. What it ends with is printed for `boot.py`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

USER = 1000
GROUPS = Path("/sys/fs/cgroup")
MOUNTS = (
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("securityfs", "/sys/kernel/security"),
    ("cgroup2", str(GROUPS)),
    ("tmpfs", "/tmp"),  # noqa: S108 - the guest's own
    ("tmpfs", "/dev/shm"),  # noqa: S108
)
OWN = {"PYNISHER_EXEC_MAY_SET_THE_CLOCK": "1", "PYNISHER_EXEC_NO_SKIPS": "1"}
"""For row 12 of the reliability table, and for tests/conftest.py."""

REBOOT = 0x01234567  # LINUX_REBOOT_CMD_RESTART, reboot(2): the emulator then ends
PYTEST = (
    "-m",
    "pytest",
    "-q",
    "-rs",
    "--color=no",
    "-o",
    "timeout=600",
    "-o",
    "faulthandler_timeout=600",
    "-p",
    "no:cacheprovider",
    "--rootdir=/tests",
    "-c",
    "/pyproject.toml",
)


def mount_all() -> None:
    """Mount what a Linux system has."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, target in MOUNTS:
        Path(target).mkdir(parents=True, exist_ok=True)
        if libc.mount(kind.encode(), target.encode(), kind.encode(), 0, None):
            print(f"guest: {kind} on {target}: {os.strerror(ctypes.get_errno())}")
    for name, number in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        Path("/dev", name).symlink_to(f"/proc/self/fd{number}")
    for each in ("/tmp", "/dev/shm"):  # noqa: S108 - as above
        Path(each).chmod(0o1777)


def make_group(name: str, uid: int) -> None:
    """Make a group that belongs to a user, with one below it for processes."""
    group = GROUPS / name
    (group / "main").mkdir(parents=True)
    (group / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    for folder in (group, group / "main"):
        for each in (folder, *folder.glob("cgroup.*")):
            os.chown(each, uid, uid)


def keep_perf_on() -> None:
    """Have one clock for good.

    With the first one, and after the last one, the kernel changes its own code in the midst of its
    scheduler, and emulators have crashed it there.
    """
    sys.path.insert(0, "/site")
    from pynisher_exec.kernel import perf  # noqa: PLC0415 - it is there only now

    pid = os.fork()
    if pid == 0:
        signal.pause()
    perf.open_task_clock(pid)


def run(name: str, uid: int, tests: list[str]) -> int:
    """Run pytest in a group, as its user, and reap whatever is orphaned meanwhile."""
    pid = os.fork()
    if pid == 0:
        (GROUPS / name / "main" / "cgroup.procs").write_text(str(os.getpid()))
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        os.environ.update(HOME="/tmp", PATH="/bin", PYTHONPATH="/site:/tests", **OWN)  # noqa: S108
        os.chdir("/tmp")  # noqa: S108
        os.execv(sys.executable, [sys.executable, *PYTEST, *tests])  # noqa: S606
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Be the system."""
    mount_all()
    keep_perf_on()
    (GROUPS / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    codes = []
    for name, uid in (("root", 0), ("user", USER)):
        make_group(name, uid)
        print(f"guest: Linux {os.uname().release}, uid {uid}", flush=True)
        codes.append(run(name, uid, sys.argv[1:]))
    print(f"guest: ended with {max(map(abs, codes))}", flush=True)


if __name__ == "__main__":
    try:
        main()
    finally:
        os.sync()
        ctypes.CDLL(None).reboot(REBOOT)
