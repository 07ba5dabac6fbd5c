"""Callers whose executors could meet by accident: each other, over a fork, an exec, a thread's end.

Each script must see that what it disturbs is there, and still there, or gone, afterwards: a marked
process is looked for by its environment, whoever its parent has become.
"""

from __future__ import annotations

from textwrap import dedent

from benchmarks.reliability.scripts import PATIENCE, Script

__all__ = ["SHARED"]

MEETING = """
import gc, tempfile
from benchmarks.processes import name_of
from benchmarks.reliability.marks import Mark

place = tempfile.mkdtemp()
def path(name):
    return os.path.join(place, name)
def until(name):
    while not os.path.exists(path(name)):
        time.sleep(0.001)
def meet(mine, other):
    # returns only while the other runs, too
    open(path(mine), "w").close()
    until(other)
    return os.environ.get("OWNER"), mine
def own(name):
    os.environ["OWNER"] = name
def templates():
    return [pid for pid in Mark.own().scan() if name_of(pid) == "limit-template"]
"""

EXECUTED = """
import os, sys, time
sys.path[:] = {path!r}
from benchmarks.processes import name_of
from benchmarks.reliability.marks import Mark
mark, own = Mark.own(), [int(sys.argv[1])]
deadline = time.monotonic() + 10
while mark.scan() != own and time.monotonic() < deadline:
    time.sleep(0.002)
left = [name_of(pid) for pid in mark.scan() if pid not in own]
held = [each for each in map(int, os.listdir("/proc/self/fd")) if each > 2]
held = [each for each in held if os.path.exists(f"/proc/self/fd/{each}")]
print(os.getpid() == own[0], left, held)
"""


def _script(name: str, text: str, expected: str = "True\n") -> Script:
    return Script(name, MEETING + dedent(text), expected)


SHARED = (
    _script(
        "two executors, asked at once",
        """
        found, start = {}, threading.Barrier(2)
        def ask(executor, mine, other):
            start.wait()
            meeting = executor.submit(meet, mine, other)
            calls = [executor.submit(os.getenv, "OWNER") for _ in range(8)]
            found[mine] = [call.result({patience}) for call in calls] == [mine] * 8
            found[mine] &= meeting.result({patience}) == (mine, mine)
        with LimitedProcessExecutor(2, initializer=own, initargs=("one",)) as one:
            with LimitedProcessExecutor(2, initializer=own, initargs=("two",)) as two:
                asking = [
                    threading.Thread(target=ask, args=(one, "one", "two")),
                    threading.Thread(target=ask, args=(two, "two", "one")),
                ]
                for each in asking:
                    each.start()
                for each in asking:
                    each.join()
                apart = len(templates())
                going = one.submit(meet, "still", "killed")
                until("still")
                two.kill_workers()
            open(path("killed"), "w").close()
            print(sorted(found.items()), apart, going.result({patience}), answers(one))
        """.replace("{patience}", str(PATIENCE)),
        "[('one', True), ('two', True)] 2 ('one', 'still') True\n",
    ),
    _script(
        "forks of the caller, that end in every way",
        """
        def exits():
            sys.exit(3)  # of the interpreter: what is registered for its exit is called
        def shuts_down():
            executor.shutdown(wait=True)
            os._exit(3)
        def kills():
            executor.kill_workers()
            executor.shutdown(wait=True, cancel_futures=True)
            os._exit(3)
        def drops():
            global executor, going
            del executor, going
            gc.collect()
            os._exit(3)
        def submits():
            try:
                executor.submit(abs, -1)
            except RuntimeError:
                os._exit(3)
        def has_its_own():
            with LimitedProcessExecutor(2) as mine:
                os._exit(3 if answers(mine) else 4)
        def leaves_its_own():
            global mine
            mine = LimitedProcessExecutor(2)
            sys.exit(3 if answers(mine) else 4)

        executor = LimitedProcessExecutor(2)
        good = answers(executor)
        going = executor.submit(meet, "begun", "over")
        until("begun")
        before = templates()
        ways = exits, shuts_down, kills, drops, submits, has_its_own, leaves_its_own
        for way in ways:
            pid = os.fork()
            if pid == 0:
                way()
                os._exit(5)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code != 3 or going.done() or not set(before) <= set(templates()):
                print(way.__name__, code, going, before, templates())
        open(path("over"), "w").close()
        print(good, len(before), going.result(60), answers(executor))
        """,
        "True 1 (None, 'begun') True\n",
    ),
    _script(
        "the caller becomes another program, and lives on",
        """
        executor = LimitedProcessExecutor(2)
        answers(executor)
        executor.submit(meet, "begun", "never")
        until("begun")
        assert len(Mark.own().scan()) > 3  # template, supervisor, task
        code = {code!r}.replace("{path!r}", repr(sys.path))
        os.execv(sys.executable, [sys.executable, "-c", code, str(os.getpid())])
        """.replace("{code!r}", repr(EXECUTED)),
        "True [] []\n",
    ),
    _script(
        "an executor first used in a thread that has ended",
        """
        made = []
        def begin():
            executor = LimitedProcessExecutor(2)
            made.append(executor)
            made.append(answers(executor))
            made.append(executor.submit(meet, "begun", "over"))
            until("begun")
        def ask():
            made.append(answers(executor))
        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()
        executor, good, going = made
        before = templates()
        time.sleep(0.1)  # for whatever the thread's end does
        survived = not going.done()
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        open(path("over"), "w").close()
        print(good, survived, going.result(60), made[-1], answers(executor), len(before))
        print(templates() == before)
        executor.shutdown()
        """,
        "True True (None, 'begun') True True 1\nTrue\n",
    ),
)
