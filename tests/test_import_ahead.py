"""What tasks were seen to import, a template imports ahead of the next ones, where that is safe.

The callers are programs in an environment of their own, in which packages lie that tests made up.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from pynisher_exec.caller.lessons import MOST_SCOUTS, Lesson
from pynisher_exec.task import imports

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 40

PACKAGES = {
    "probe_plain": """
        import os
        PID = os.getpid()
        THREADS = {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")}
        os.environ.setdefault("PROBE_PLAIN", "set by its import")
        """,
    "probe_thread": """
        import os, threading, time
        PID = os.getpid()
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        """,
    "probe_socket": "import os, socket\nPID, PAIR = os.getpid(), socket.socketpair()\n",
    "probe_device": "import os\nPID, FILE = os.getpid(), open('/dev/full', 'w')\n",
    "probe_signal": """
        import os, signal
        PID = os.getpid()
        signal.signal(signal.SIGUSR1, lambda *_: None)
        """,
    "probe_file": "import os\nPID, FILE = os.getpid(), open(__file__)\n",
    "probe_lock": "import multiprocessing, os\nPID, LOCK = os.getpid(), multiprocessing.Lock()\n",
    "probe_map": "import mmap, os\nPID, MAP = os.getpid(), mmap.mmap(-1, 4096)\n",
    "probe_random": "import os, random\nPID, OWN = os.getpid(), random.Random()\n",
    "probe_limit": """
        import os, resource
        from pathlib import Path
        PID = os.getpid()
        if Path("/proc/self/comm").read_text().startswith("limit-"):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        """,
    "probe_umask": """
        import os
        from pathlib import Path
        PID = os.getpid()
        if Path("/proc/self/comm").read_text().startswith("limit-"):
            os.umask(0o123)
        """,
    "probe_depth": "import os, sys\nPID, DEPTH = os.getpid(), sys.setrecursionlimit(3000)\n",
    "probe_stream": """
        import io, os, sys
        from pathlib import Path
        PID = os.getpid()
        if Path("/proc/self/comm").read_text().startswith("limit-"):
            sys.stdout = io.StringIO()
        """,
    "probe_chatty": """
        import os
        from pathlib import Path
        PID = os.getpid()
        if Path("/proc/self/comm").read_text().startswith("limit-"):
            print("BANNER", end="")
            os.environ.pop("PROBE_GONE", None)
        """,
    "probe_settings": "import os\nimport own_settings\nPID = os.getpid()\n",
    "probe_fickle": """
        import os
        from pathlib import Path
        PID = os.getpid()
        if Path("/proc/self/comm").read_text() == "limit-template\\n" and Path("fails").exists():
            os._exit(3)
        """,
    "probe_slow": """
        import os, time
        from pathlib import Path
        if Path("/proc/self/comm").read_text() == "limit-template\\n":
            Path(os.environ["PROBE_SLOW"]).write_text(str(os.getpid()))
            time.sleep(600)
        PID = os.getpid()
        """,
}

HEAD = """
import os, signal, sys, time
import mine
from pynisher_exec import LimitedProcessExecutor

def until(found, what, *arguments):
    deadline = time.monotonic() + 60
    while True:
        value = executor.submit(what, *arguments).result(60)
        if found(value):
            return value
        assert time.monotonic() < deadline, value
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has ours below it, and the packages above."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    names = {"base": str(place), "platbase": str(place)}
    packages = Path(sysconfig.get_path("purelib", "posix_prefix", names))
    ours = "; ".join(f"site.addsitedir({path!r})" for path in sys.path if "-packages" in path)
    (packages / "ours.pth").write_text(f"import site; {ours}\n")
    for name, code in PACKAGES.items():
        (packages / f"{name}.py").write_text(dedent(code))
    return place / "bin" / "python"


def start(
    python: Path, folder: Path, mine: str, code: str, **environment: str
) -> subprocess.Popen[str]:
    """Start a program beside a module of its user's."""
    (folder / "mine.py").write_text(dedent(mine))
    (folder / "program.py").write_text(HEAD + dedent(code))
    return subprocess.Popen(
        [python, "program.py"],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def output(python: Path, folder: Path, mine: str, code: str, **environment: str) -> str:
    """Run a program to its end, and give what it printed."""
    with start(python, folder, mine, code, **environment) as program:
        text, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode == 0
    return text


AHEAD = """
import os, sys
import probe_plain
VERSION = 1
def ahead(): return probe_plain.PID != os.getpid()
def version(): return VERSION, ahead()
def threads(): return probe_plain.THREADS, ahead()
def variable(): return os.environ.get("PROBE_PLAIN"), os.environ.get("OTHER"), ahead()
"""


def test_installed_modules_are_imported_ahead_after_a_few_tasks(
    python: Path, tmp_path: Path
) -> None:
    """The first task pays for its imports, later ones find them done."""
    code = """
    with LimitedProcessExecutor(1) as executor:
        print(executor.submit(mine.ahead).result(), until(bool, mine.ahead))
    """
    assert output(python, tmp_path, AHEAD, code) == "False True\n"


def test_queued_tasks_have_them_ahead_after_the_first(python: Path, tmp_path: Path) -> None:
    """A `map` is not through before that: whoever waits makes the second report needless."""
    code = """
    with LimitedProcessExecutor(1) as executor:
        futures = [executor.submit(mine.ahead) for _ in range(400)]
        print(futures[0].result(), futures[-1].result())
    """
    assert output(python, tmp_path, AHEAD, code) == "False True\n"


def test_an_edit_to_the_users_module_is_seen_by_the_next_task(python: Path, tmp_path: Path) -> None:
    """Only installed modules are imported ahead, so each task loads the file as it is."""
    code = """
    from pathlib import Path
    with LimitedProcessExecutor(1) as executor:
        print(until(lambda found: found[1], mine.version))
        for number in 2, 3:
            text = Path("mine.py").read_text()
            edited = text.replace(f"VERSION = {number - 1}", f"VERSION = {number}")
            Path("mine.py").write_text(edited + "\\n")  # as long, Python takes it for the same
            print(executor.submit(mine.version).result())
    """
    expected = "(1, True)\n(2, True)\n(3, True)\n"
    assert output(python, tmp_path, AHEAD, code) == expected


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_thread_variables_reach_what_is_imported_ahead(
    python: Path, tmp_path: Path, name: str
) -> None:
    """Libraries read them when they are loaded: another value means another template."""
    code = f"""
    with LimitedProcessExecutor(1) as executor:
        for number in "35":
            os.environ[{name!r}] = number
            found = executor.submit(mine.threads).result(), until(lambda f: f[1], mine.threads)
            print(found[0][0][{name!r}], found[1][0][{name!r}], found[1][1])
    """
    assert output(python, tmp_path, AHEAD, code) == "3 3 True\n5 5 True\n"


def test_variables_set_by_an_import_are_there_in_tasks(python: Path, tmp_path: Path) -> None:
    """As if the task had imported it, also where the caller's environment has changed since."""
    code = """
    del os.environ["PROBE_PLAIN"]  # the caller has imported it, too
    with LimitedProcessExecutor(1) as executor:
        print(until(lambda found: found[2], mine.variable))
        os.environ["OTHER"] = "changed"
        print(executor.submit(mine.variable).result())
    """
    expected = "('set by its import', None, True)\n('set by its import', 'changed', True)\n"
    assert output(python, tmp_path, AHEAD, code) == expected


def test_generators_that_nobody_has_seeded_are_fresh_in_each_task() -> None:
    """Those that a module keeps for itself; one with a seed draws what it would without us."""
    code = """
    import pickle
    import numpy as np
    from pynisher_exec.task import generators
    made = [np.random.default_rng(), np.random.RandomState(), np.random.default_rng(5)]
    made.append(np.random.RandomState(5))
    generators.note()
    before = [pickle.dumps(each) for each in made]
    generators.reseed()
    after = [pickle.dumps(each) for each in made]
    print([one != other for one, other in zip(before, after)])
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[True, True, False, False]\n"


def test_what_an_import_ahead_says_and_deletes_is_no_other_tasks(
    python: Path, tmp_path: Path
) -> None:
    """One that never asked for it has its own output, and its caller's variables."""
    mine = """
    import os, sys
    import probe_chatty
    def ahead():
        return probe_chatty.PID != os.getpid()
    def other():
        print("mine")
        return os.environ.get("PROBE_GONE")
    """
    code = """
    with LimitedProcessExecutor(1, capture_output=True) as executor:
        until(lambda found: found, mine.ahead)
        report = executor.submit(mine.other).wait_for_report()
        print(repr(report.stdout), report.result)
    """
    assert output(python, tmp_path, mine, code, PROBE_GONE="here") == "'mine\\n' here\n"


@pytest.mark.parametrize(
    "kind",
    [
        "thread", "socket", "device", "signal", "file", "lock", "map", "random", "limit",
        "umask", "depth", "stream",
    ],
)  # fmt: skip
def test_a_package_that_makes_forks_unsafe_is_left_to_the_tasks(
    python: Path, tmp_path: Path, kind: str
) -> None:
    """It has a thread, what forks would share, or changes what all would have; others go ahead."""
    package = f"probe_{kind}"
    mine = f"""
    import os
    import {package}, probe_plain
    def ahead(): return probe_plain.PID != os.getpid(), {package}.PID != os.getpid()
    """
    code = """
    with LimitedProcessExecutor(1) as executor:
        print(until(lambda found: found[0], mine.ahead))
        print([executor.submit(mine.ahead).result() for _ in range(3)])
    """
    expected = f"(True, False)\n{[(True, False)] * 3}\n"
    assert output(python, tmp_path, mine, code) == expected


def test_an_installed_module_that_imports_the_users_is_left_to_the_tasks(
    python: Path, tmp_path: Path
) -> None:
    """Also where a link in the folder of installed modules leads to the user's file."""
    (tmp_path / "own_settings.py").write_text("VALUE = 1\n")
    mine = """
    import os
    import probe_plain, probe_settings, own_settings
    def ahead(): return probe_plain.PID != os.getpid(), own_settings.VALUE
    """
    code = """
    from pathlib import Path
    with LimitedProcessExecutor(1) as executor:
        print(until(lambda found: found[0], mine.ahead))
        Path("own_settings.py").write_text("VALUE = 22\\n")
        print(executor.submit(mine.ahead).result())
    """
    assert output(python, tmp_path, mine, code) == "(True, 1)\n(True, 22)\n"


def test_what_cannot_be_imported_ahead_any_more_is_done_without(
    python: Path, tmp_path: Path
) -> None:
    """The next template of that key fails at what the one before had imported."""
    mine = """
    import os
    import probe_fickle
    def ahead(): return probe_fickle.PID != os.getpid()
    """
    code = """
    from pathlib import Path
    with LimitedProcessExecutor(1, startup_time=20) as executor:
        print(until(bool, mine.ahead))
        Path("fails").touch()
        for number in "345":  # other keys take the two slots
            os.environ["OMP_NUM_THREADS"] = number
            executor.submit(abs, -1).result()
        del os.environ["OMP_NUM_THREADS"]
        print([executor.submit(mine.ahead).result() for _ in range(3)])
    """
    assert output(python, tmp_path, mine, code) == "True\n[False, False, False]\n"


def test_a_template_let_go_before_it_was_up_is_not_distrusted(python: Path, tmp_path: Path) -> None:
    """Nothing was wrong with what it imports ahead: the next one of its key does that too."""
    code = """
    with LimitedProcessExecutor(1) as executor:
        print(until(bool, mine.ahead))
        hosts = executor._pool._monitor._hosts
        for number in "34":  # other keys take the two slots
            os.environ["OMP_NUM_THREADS"] = number
            executor.submit(abs, -1).result()
        del os.environ["OMP_NUM_THREADS"]
        let_go = []
        keep = hosts._keep
        def keep_and_let_go(host):
            del hosts._keep
            let_go.append(keep(host))
            hosts.release(host)
            return host
        hosts._keep = keep_and_let_go
        print(executor.submit(mine.ahead).result(), len(let_go), bool(let_go[0].ahead))
    """
    expected = "True\nTrue 1 True\n"
    assert output(python, tmp_path, AHEAD, code) == expected


def test_preload_given_is_all_that_is_imported_ahead(python: Path, tmp_path: Path) -> None:
    """An empty one: nothing."""
    code = """
    with LimitedProcessExecutor(1, preload=[]) as executor:
        found = [executor.submit(mine.ahead).result() for _ in range(5)]
        time.sleep(0.5)
        print(any(found), executor.submit(mine.ahead).result())
    """
    assert output(python, tmp_path, AHEAD, code) == "False False\n"


HANGING = """
import os, time
import probe_plain
if probe_plain.PID != os.getpid():
    with open("hung", "a") as file:
        file.write("once ")
    {}
def number(value): return value
def ahead(): return probe_plain.PID != os.getpid()
"""


@pytest.mark.parametrize("how", ["time.sleep(600)", "os.abort()"])
def test_a_task_that_does_not_come_up_is_tried_without(
    python: Path, tmp_path: Path, how: str
) -> None:
    """Its loading hangs or crashes where a module was imported ahead, and only there.

    Once is enough, also where another child of that template is on its way.
    """
    code = """
    with LimitedProcessExecutor(2, startup_time=3, core_size=0) as executor:
        deadline = time.monotonic() + 60
        while not os.path.exists("hung") and time.monotonic() < deadline:
            assert executor.submit(mine.number, 7).result() == 7
        print(open("hung").read(), executor.submit(mine.ahead).result())
    """
    assert output(python, tmp_path, HANGING.format(how), code) == "once  False\n"


@contextlib.contextmanager
def slow_scout(
    python: Path, folder: Path, code: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A program whose scout hangs in an import, and the scout's pid; ended in the end."""
    note = folder / "scout"
    mine = "import os\nimport probe_slow\ndef number(value): return value\n"
    with start(python, folder, mine, code, PROBE_SLOW=str(note)) as program:
        try:
            deadline = time.monotonic() + PATIENCE
            while not (note.exists() and note.read_text()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield program, int(note.read_text())
        finally:
            program.kill()


def wait_until_gone(pid: int) -> None:
    """See a process go."""
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


ENDLESS = """
executor = LimitedProcessExecutor(1, startup_time={})
print([executor.submit(mine.number, n).result() for n in range(3)], flush=True)
while not os.path.exists(os.environ["PROBE_SLOW"]):
    time.sleep(0.01)
{}
"""


def test_shutdown_does_not_wait_for_a_scout(python: Path, tmp_path: Path) -> None:
    """It imports something that hangs; it is ended at once."""
    code = ENDLESS.format(600, "executor.shutdown()")
    with slow_scout(python, tmp_path, code) as (program, scout):
        began = time.monotonic()
        assert program.communicate(timeout=PATIENCE)[0] == "[0, 1, 2]\n"
        wait_until_gone(scout)
        assert time.monotonic() - began < 5


def test_a_scout_that_hangs_is_ended_in_time(python: Path, tmp_path: Path) -> None:
    """After `startup_time`; tasks go on as before."""
    rest = "time.sleep(6)\nprint(executor.submit(mine.number, 7).result())\nexecutor.shutdown()"
    with slow_scout(python, tmp_path, ENDLESS.format(3, rest)) as (program, scout):
        wait_until_gone(scout)
        assert program.poll() is None
        assert program.communicate(timeout=PATIENCE)[0] == "[0, 1, 2]\n7\n"


def test_a_scout_goes_with_its_caller(python: Path, tmp_path: Path) -> None:
    """The caller is killed while the scout imports, and hears nothing."""
    code = ENDLESS.format(600, "time.sleep(600)")
    with slow_scout(python, tmp_path, code) as (program, scout):
        program.kill()
        program.communicate()
        wait_until_gone(scout)


# Without a process -------------------------------------------------------------------------------


def test_lesson_sends_a_scout_once_two_tasks_have_reported() -> None:
    """One that others wait behind is enough; what is known needs none."""
    lesson = Lesson()
    assert not lesson.note(["one"], eager=False)
    assert lesson.note(["one"], eager=False)
    assert lesson.begin() == ("one",)
    lesson.ahead = ("one",)
    assert not lesson.note(["one"], eager=True)
    assert lesson.note(["two"], eager=True)
    assert lesson.begin() == ("one", "two")


def test_lesson_leaves_out_what_is_unfit_and_gives_up_in_the_end() -> None:
    """A whole package at a time; a bounded number of scouts."""
    lesson = Lesson()
    names = ["a", "a.b", *(f"unfit{number}" for number in range(20))]
    assert lesson.note(names, eager=True)
    for number in range(MOST_SCOUTS):
        assert "a.b" in lesson.begin()
        assert lesson.refuse(f"unfit{number}.part") == (number < MOST_SCOUTS - 1)
    assert not lesson.note(["c"], eager=True)
    assert Lesson().note(["a.b"], eager=True)


def test_what_a_task_tells_of_its_imports_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Submodules are left out first: importing a package brings most of them."""
    before = imports.count()
    for number in range(3000):
        for name in (f"pack{number}", f"pack{number}.part", f"pack{number}.part.of_it"):
            monkeypatch.setitem(sys.modules, name, json)
    told = imports.installed_since(before).splitlines()
    assert set(told) == {f"pack{number}" for number in range(3000)}
