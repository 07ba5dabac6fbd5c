"""Where a user may start tasks: scripts, engines' workers, tasks, notebooks, forks."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Mark

CONTEXTS = [None, "loky", "spawn", "forkserver", "fork"]

SCRIPT = """
from pynisher_exec import LimitedProcessExecutor

def double(x):
    return 2 * x

executor = LimitedProcessExecutor(1, wall_time=20, context={context!r})
print(executor.submit(double, 21).result(30))
executor.shutdown()
"""


def run_script(
    code: str, *arguments: str, stdin: str | None = None, timeout: float = 50
) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, as a user would."""
    command = [sys.executable, *arguments]
    if not arguments:
        command += ["-c", textwrap.dedent(code)]
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        start_new_session=True,
    )


@pytest.mark.parametrize("context", CONTEXTS)
def test_script_needs_no_main_guard(context: str | None, tmp_path: Path) -> None:
    """A script that starts tasks at its top level works with every way of starting."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(context=context))
    done = run_script("", str(script))
    assert (done.stdout, done.stderr, done.returncode) == ("42\n", "", 0)


@pytest.mark.parametrize("context", CONTEXTS)
def test_code_on_the_command_line_works(context: str | None) -> None:
    """`python -c` works with every way of starting."""
    done = run_script(SCRIPT.format(context=context))
    assert (done.stdout, done.stderr, done.returncode) == ("42\n", "", 0)


def test_code_from_standard_input_works() -> None:
    """A program that is piped into Python works, and the task does not eat its input."""
    done = run_script("", "-", stdin=SCRIPT.format(context=None))
    assert (done.stdout, done.stderr, done.returncode) == ("42\n", "", 0)


@pytest.mark.parametrize("flags", [["-O"], ["-I"], ["-W", "error"], ["-X", "dev"]])
def test_interpreter_flags_pass_on_to_tasks(flags: list[str], tmp_path: Path) -> None:
    """A task runs with the flags of its caller's interpreter."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from pynisher_exec import LimitedProcessExecutor\n"
        "def look():\n"
        "    return list(sys.flags), sys.warnoptions\n"
        "with LimitedProcessExecutor(1) as executor:\n"
        "    assert executor.submit(look).result() == look(), executor.submit(look).result()\n"
    )
    done = run_script("", *flags, str(script))
    assert (done.stderr, done.returncode) == ("", 0)


def square(x: int) -> int:
    """Return the square."""
    return x * x


def test_sixteen_threads_share_an_executor() -> None:
    """Submits from many threads at once are each answered."""
    with LimitedProcessExecutor(2) as executor, ThreadPoolExecutor(16) as threads:
        answers = threads.map(lambda x: executor.submit(square, x).result(30), range(64))
        assert list(answers) == [x * x for x in range(64)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_daemonic_process_may_start_tasks(method: str, context: str | None, tmp_path: Path) -> None:
    """Workers of Dask and of Pools are daemonic: multiprocessing would refuse, this does not."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing
from pynisher_exec import LimitedProcessExecutor

def work(x):
    with LimitedProcessExecutor(1, wall_time=20, context={context!r}) as executor:
        return executor.submit(pow, x, 2).result(30)

if __name__ == "__main__":
    with multiprocessing.get_context({method!r}).Pool(1) as pool:
        print(pool.map(work, [6]))
        pool.close()
        pool.join()
""")
    done = run_script("", str(script))
    assert (done.stdout, done.stderr, done.returncode) == ("[36]\n", "", 0)


def test_task_may_have_an_executor_of_its_own() -> None:
    """A task inside a task has limits of its own, and they are told apart."""

    def inner() -> tuple[str, int]:
        with LimitedProcessExecutor(1, wall_time=0.3, processes=1) as executor:
            slow = executor.submit(time.sleep, 30)
            quick = executor.submit(square, 3)
            return str(slow.exception(20)), quick.result(20)

    with LimitedProcessExecutor(1, wall_time=25, processes=20) as executor:
        message, value = executor.submit(inner).result(30)
    assert "wall_time limit of 0.3 s" in message
    assert value == 9


MAIN_INSIDE = """
from pynisher_exec import LimitedProcessExecutor

def square(x):
    return x * x

def in_pool():
    import multiprocessing
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        return pool.map(square, range(4))

def in_joblib():
    import joblib
    return joblib.Parallel(2)(joblib.delayed(square)(x) for x in range(4))

with LimitedProcessExecutor(1, wall_time=40) as executor:
    print(executor.submit({function}).result(45))
"""


@pytest.mark.parametrize(("function", "method"), [("in_pool", "fork"), ("in_joblib", "loky")])
def test_names_of_main_are_found_by_workers_inside_a_task(function: str, method: str) -> None:
    """What travelled from the caller's `__main__` is found by name in the task's."""
    if function == "in_joblib":
        pytest.importorskip("joblib")
    done = run_script(MAIN_INSIDE.format(function=function, method=method))
    # joblib's own workers may complain before it that their pool has gone while they started.
    assert (done.stdout.splitlines()[-1], done.returncode) == ("[0, 1, 4, 9]", 0), done.stderr


def test_value_of_a_class_of_main_comes_back_as_the_callers_own() -> None:
    """A class of `__main__` travels by value; its instances come home by name."""
    done = run_script("""
        from pynisher_exec import LimitedProcessExecutor
        class Model:
            pass
        class Bad(Exception):
            pass
        def train(model):
            assert type(model) is Model
            return model
        def fail():
            raise Bad("reason")
        with LimitedProcessExecutor(1) as executor:
            print(type(executor.submit(train, Model()).result()) is Model)
            try:
                executor.submit(fail).result()
            except Bad as error:
                print(error)
    """)
    assert done.stdout == "True\nreason\n", done.stderr


def test_fork_of_the_caller_has_to_make_an_executor_of_its_own() -> None:
    """In a fork the executor says so, a new one works, and the parent's is not harmed."""
    with LimitedProcessExecutor(1) as executor:
        assert executor.submit(square, 2).result(30) == 4
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with pytest.raises(RuntimeError, match="forked"):
                    executor.submit(square, 3)
                with LimitedProcessExecutor(1) as own:
                    code = 0 if own.submit(square, 3).result(30) == 9 else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert executor.submit(square, 4).result(30) == 16


def test_fork_that_lives_on_does_not_keep_tasks_alive() -> None:
    """A fork of the caller holds no end of the lines: shutdown ends everything all the same."""
    executor = LimitedProcessExecutor(1)
    executor.submit(square, 2).result(30)
    keep, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        os.read(keep, 1)
        os._exit(0)
    os.close(keep)
    executor.shutdown()  # would hang
    os.close(release)
    os.waitpid(pid, 0)


def test_asyncio_timeout_frees_the_slot() -> None:
    """`wait_for` cancels the future, so the running task is ended."""
    done = run_script("""
        import asyncio, time
        from pynisher_exec import LimitedProcessExecutor
        async def main():
            with LimitedProcessExecutor(1) as executor:
                slow = executor.submit(time.sleep, 60)
                try:
                    await asyncio.wait_for(asyncio.wrap_future(slow), 0.3)
                except asyncio.TimeoutError:
                    print("timeout")
                loop = asyncio.get_running_loop()
                print(await asyncio.wait_for(loop.run_in_executor(executor, pow, 7, 2), 20))
                print(slow.cancelled(), slow.report.status)
        asyncio.run(main())
    """)
    assert done.stdout == "timeout\n49\nTrue cancelled\n", done.stderr


def test_interpreter_exit_waits_for_pending_work() -> None:
    """What was submitted is done before the interpreter ends, with nobody asking for it."""
    done = run_script("""
        import time
        from pynisher_exec import LimitedProcessExecutor
        executor = LimitedProcessExecutor(1)
        for n in range(3):
            future = executor.submit(time.sleep, 0.05)
            future.add_done_callback(lambda f, n=n: print(n, f.report.status))
    """)
    assert done.stdout == "0 ok\n1 ok\n2 ok\n", done.stderr


STUBBORN = """
import os, signal, subprocess, sys, time
from pynisher_exec import LimitedProcessExecutor
def stubborn():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    subprocess.Popen(["setsid", "sleep", "60"])
    os.write(1, b"up\\n")
    while True:
        time.sleep(1)
try:
    with LimitedProcessExecutor(2) as executor:
        futures = [executor.submit(stubborn) for _ in range(2)]
        executor.submit(stubborn)
        for future in futures:
            future.result()
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


class Stubborn:
    """A caller with two tasks that ignore signals and have daemons, all with a mark."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", STUBBORN],
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,  # `select` must see every line that has not been read
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        for _ in range(2):
            self.line()

    def line(self) -> bytes:
        """Wait for a line of its output."""
        assert select.select([self.output], [], [], 30)[0]
        return self.output.readline()

    def close(self) -> None:
        """Reap it."""
        self.process.kill()
        self.process.wait()
        self.output.close()


def wait_until_gone(marked: Mark, seconds: float) -> float:
    """Give the seconds after which no process with the mark is left."""
    began = time.monotonic()
    while left := marked.scan():
        assert time.monotonic() - began < seconds, left
        time.sleep(0.01)
    return time.monotonic() - began


def test_ctrl_c_in_a_with_block_ends_everything(marked: Mark) -> None:
    """The interrupt goes on, and within a second (three on a busy machine) nothing is left."""
    caller = Stubborn()
    try:
        caller.process.send_signal(signal.SIGINT)
        assert caller.line() == b"interrupted\n"
        wait_until_gone(marked, 3)
    finally:
        caller.close()


def test_ctrl_c_reaches_no_task_by_itself() -> None:
    """The terminal's Ctrl-C goes to the foreground group: neither tasks nor template are in it."""
    done = run_script("""
        import os, signal, time
        from pynisher_exec import LimitedProcessExecutor
        signal.signal(signal.SIGINT, lambda *_: None)
        with LimitedProcessExecutor(2) as executor:
            futures = [executor.submit(time.sleep, 0.5) for _ in range(2)]
            for _ in range(20):
                os.killpg(0, signal.SIGINT)
                time.sleep(0.01)
            print([future.result(20) for future in futures])
    """)
    assert done.stdout == "[None, None]\n", done.stderr


def test_sigkill_of_the_caller_ends_everything(marked: Mark) -> None:
    """Nobody is left to ask for it, and still nothing is left after a second (three here)."""
    caller = Stubborn()
    try:
        caller.process.kill()
        caller.process.wait()
        wait_until_gone(marked, 3)
    finally:
        caller.close()


def test_dropped_executor_finishes_and_goes(marked: Mark) -> None:
    """An executor that nobody holds any more does what was submitted, then ends its processes."""
    future = LimitedProcessExecutor(1).submit(square, 5)
    assert future.result(30) == 25
    wait_until_gone(marked, 5)


def test_deleted_current_directory_fails_that_future_only(tmp_path: Path) -> None:
    """A call submitted from a directory that is gone says so; the executor goes on."""
    here = os.getcwd()
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    with LimitedProcessExecutor(1) as executor:
        try:
            os.chdir(doomed)
            doomed.rmdir()
            lost = executor.submit(square, 5)
        finally:
            os.chdir(here)
        error = lost.exception(30)
        assert "directory" in str(error)
        assert executor.submit(square, 5).result(30) == 25


def test_task_takes_on_directory_environment_path_and_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the caller changes between two submits is what the second task sees."""

    def look() -> tuple[str, str | None, str, int, str | None]:
        mask = os.umask(0)
        return os.getcwd(), os.environ.get("PROBE"), sys.path[0], mask, os.environ.get("TZ")

    with LimitedProcessExecutor(1) as executor:
        executor.submit(square, 1).result(30)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PROBE", "caf\udce9")  # a byte that is no UTF-8
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        monkeypatch.syspath_prepend("/nowhere")
        before = os.umask(0o027)
        try:
            found = executor.submit(look).result(30)
        finally:
            os.umask(before)
    assert found == (str(tmp_path), "caf\udce9", "/nowhere", 0o027, "Asia/Tokyo")


def test_environment_is_what_stands_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain dict, as `unittest.mock.patch` puts it there."""
    with LimitedProcessExecutor(1) as executor:
        monkeypatch.setattr(os, "environ", {"PROBE": "caf\udce9"})
        future = executor.submit(lambda: dict(os.environ))
        monkeypatch.undo()
        found = future.result(30)
    said = {name for name in found if name.endswith("_NUM_THREADS")}  # by us: see `inner_threads`
    assert {name: found[name] for name in found.keys() - said} == {"PROBE": "caf\udce9"}


def test_task_takes_on_affinity_and_nice_value() -> None:
    """What the main thread has given itself meanwhile, though other threads have the old ones."""
    code = """
        import os
        from pynisher_exec import LimitedProcessExecutor
        def look(): return os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)
        with LimitedProcessExecutor(1) as executor:
            before = executor.submit(look).result()
            os.sched_setaffinity(0, {max(before[0])})
            os.nice(3)
            print(executor.submit(look).result() == ({max(before[0])}, before[1] + 3))
    """
    done = run_script(code)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize(
    ("library", "function"),
    [("random", "random.random"), ("numpy", "numpy.random.random"), ("torch", "torch.rand")],
)
def test_two_tasks_never_draw_the_same_random_numbers(library: str, function: str) -> None:
    """All tasks come from one template, and yet their generators are fresh."""
    pytest.importorskip(library)
    module, _, name = function.rpartition(".")

    def draw() -> tuple[float, int]:
        arguments = [1] if library == "torch" else []
        return float(getattr(import_module(module), name)(*arguments)), os.getpid()

    with LimitedProcessExecutor(2, preload=[library]) as executor:
        futures = [executor.submit(draw) for _ in range(20)]
        drawn = [future.result(30) for future in futures]
    assert len({number for number, _ in drawn}) == 20
    assert len({pid for _, pid in drawn}) == 20


def test_fork_of_another_thread_does_not_disturb() -> None:
    """A user who forks in a thread all the time harms neither the executor nor the forks."""
    stop = threading.Event()

    def fork_on() -> None:
        while not stop.is_set():
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)

    thread = threading.Thread(target=fork_on)
    thread.start()
    try:
        with LimitedProcessExecutor(2) as executor:
            assert list(executor.map(square, range(20))) == [x * x for x in range(20)]
    finally:
        stop.set()
        thread.join()
