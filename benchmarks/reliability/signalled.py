"""Callers that get signals, and that have children of their own: as they do without an executor.

What the user's code learns of its own children is asked before there is an executor, while tasks
run, and just after: three times the same, and what it must be. That a loop over any child, or a
handler, also meets the end of a template, which is the caller's child, is no failure.
"""

from __future__ import annotations

from textwrap import dedent

from benchmarks.reliability.scripts import PATIENCE, Script

__all__ = ["SIGNALLED"]

CHILDREN = """
import subprocess

def waited(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def within(seconds, true):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.001)
    return true()
def forked(code):
    pid = os.fork()
    if pid == 0:
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)
    return pid
"""

ROUNDS = """
def children():
    # a program, too, where nobody takes its status from the `subprocess` module
    codes = [subprocess.run(["/bin/sh", "-c", "exit 7"]).returncode] if alone else []
    return codes + [learnt(forked(code)) for code in (3, 0, -9)]
alone = {alone}
good = [children() == expected]
for _ in range(3):
    early = forked(3)  # its status lies there for whoever waits for any child
    with LimitedProcessExecutor(2) as executor:
        tasks = [executor.submit(time.sleep, 0.05 * n) for n in range(4)]
        good.append(children() == expected)
        good.append(all(task.result({patience}) is None for task in tasks))
        good.append(answers(executor))
    good.append(learnt(early) == expected[-3])
    good.append(children() == expected)
print(all(good) or good)
"""


KEPT = """
statuses = {}
def learnt(pid):
    return statuses.pop(pid) if within(5, lambda: pid in statuses) else "nothing"
expected = [3, 0, -9]
"""
"""Where nobody is alone: somebody reaps whatever there is, and notes the statuses."""


def _thrice(name: str, text: str, *, alone: bool) -> Script:
    rounds = ROUNDS.replace("{alone}", str(alone)).replace("{patience}", str(PATIENCE))
    return Script(name, CHILDREN + ("" if alone else KEPT) + dedent(text) + rounds)


SIGNALLED = (
    Script(
        "SIGTERM by default",
        """
        with LimitedProcessExecutor(2) as executor:
            executor.submit(time.sleep, 60)
            print(answers(executor), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
        """,
        code=-15,
    ),
    Script(
        "SIGTERM handled",
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        with LimitedProcessExecutor(2, wall_time=1) as executor:
            print(answers(executor), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
        """,
        code=7,
    ),
    _thrice(
        "SIGCHLD handler that counts",
        """
        calls = asked = 0
        def count(*_):
            global calls
            calls += 1
        signal.signal(signal.SIGCHLD, count)
        forks = forked
        def forked(code):
            global asked
            asked = calls
            return forks(code)
        def learnt(pid):
            return waited(pid), within(5, lambda: calls > asked)
        expected = [7, (3, True), (0, True), (-9, True)]
        """,
        alone=True,
    ),
    _thrice(
        "SIGCHLD handler that reaps whatever it can",
        """
        def reap(*_):
            try:
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    statuses[found[0]] = os.waitstatus_to_exitcode(found[1])
            except ChildProcessError:
                pass
        signal.signal(signal.SIGCHLD, reap)
        """,
        alone=False,
    ),
    _thrice(
        "waitpid(-1) in another thread",
        """
        def reap():
            while True:
                try:
                    pid, status = os.waitpid(-1, 0)
                    statuses[pid] = os.waitstatus_to_exitcode(status)
                except ChildProcessError:
                    time.sleep(0.001)
        threading.Thread(target=reap, daemon=True).start()
        """,
        alone=False,
    ),
    _thrice(
        "SIGCHLD ignored",
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        def learnt(pid):
            try:
                return waited(pid)
            except ChildProcessError:  # the kernel keeps no status: sigaction(2)
                return not within(2, lambda: not os.path.exists(f"/proc/{pid}"))
        expected = [0, False, False, False]
        """,
        alone=True,
    ),
    Script(
        "SIGINT while it waits",
        """
        main = threading.main_thread().ident
        threading.Timer(1, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        try:
            with LimitedProcessExecutor(2) as executor:
                executor.submit(time.sleep, 60).result()
        except KeyboardInterrupt:
            print(True)
        """,
    ),
)
