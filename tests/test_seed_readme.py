"""The README of pynisher 0.6, kept: its code blocks as scripts, and each sentence that promises.

The blocks stand here as they stand there. What is changed before one runs: the import always; for
the ways of starting, a `context` argument; and to be quick, seconds become quarters of a second
(`quick`), which leaves the order of sleeps and limits as it was. One test runs both scripts in
whole seconds.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import crashes
import plain
import pytest
from capabilities import requires
from loky.backend import context as loky_context

import pynisher_exec as pynisher

if TYPE_CHECKING:
    from pathlib import Path

CONTEXTS = [None, "fork", "forkserver", "spawn", "loky"]
EVER: dict[str, Any] = {"wall_time_in_s": 20}

DECORATOR = """
import pynisher
import time

# using it as a decorator for every call to this function
@pynisher.enforce_limits(wall_time_in_s=2)
def my_function (t):
    time.sleep(t)
    return(t)

for t in range(5):
    print(my_function(t))
"""

ARGUMENTS = """
import pynisher

pynisher.enforce_limits(
    mem_in_mb=None, cpu_time_in_s=None,
    wall_time_in_s=None, num_processes=None,
    grace_period_in_s=None, logger=None,
    capture_output=False, context=None)
"""

OBJECT = """
import pynisher
import time

def my_function (t):
    print("Going to sleep for %f seconds" % t)
    time.sleep(t)
    return(t)

for t in range(5):
    obj = pynisher.enforce_limits(wall_time_in_s=2, capture_output=True)(my_function)
    result = obj(t)
    print(
        result, obj.result, obj.exit_status, obj.wall_clock_time,
        obj.stdout, obj.stderr, obj.exitcode,
    )
"""

STATUSES = """
import pynisher

pynisher.CpuTimeoutException        # CPU time limit was reached
pynisher.TimeoutException       # Wall clock time limit exceeded
pynisher.MemorylimitException       # function hit the memory constraint
pynisher.SubprocessException        # OSError in the subprocess, check the field obj.os_errno
pynisher.PynisherError          # An internal error - this should not happen
pynisher.SignalException        # pynisher caught a signal
pynisher.AnythingException      # Something else went wrong, e.g., your function received a signal and just died.
"""  # noqa: E501  (as it stands there)


def ours(block: str) -> str:
    """Change the import, and nothing else."""
    assert block.count("import pynisher\n") == 1
    return block.replace("import pynisher\n", "import pynisher_exec as pynisher\n")


def quick(block: str) -> str:
    """Turn seconds into quarters: the limit, and the sleeps, which are printed whole."""
    assert block.count("wall_time_in_s=2") == block.count("time.sleep(t)") == 1
    return block.replace("wall_time_in_s=2", "wall_time_in_s=0.5").replace(
        "time.sleep(t)", "time.sleep(t / 4)"
    )


def through(block: str, context: str | None) -> str:
    """Add the `context` argument where the limits are given, by an object as the README has it."""
    if context is None:
        return block
    source = "loky.backend.context" if context == "loky" else "multiprocessing"
    object_ = f"__import__({source!r}, fromlist=['get_context']).get_context({context!r})"
    changed = re.sub(r"wall_time_in_s=[0-9.]+", rf"\g<0>, context={object_}", block)
    assert changed.count("context=") == 1
    return changed


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    """Start it as a user's script."""
    script = folder / "script.py"
    script.write_text(code)
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for it; it ends well and is silent on standard error. Its output."""
    try:
        output, errors = process.communicate(timeout=50)
    finally:
        process.kill()
    assert (errors, process.returncode) == ("", 0), output
    return output


def check_values(output: str) -> None:
    """What returned within the limit is printed, None for what did not.

    The call that sleeps for exactly as long as the limit is a tie, which either may win.
    """
    lines = output.splitlines()
    assert lines[:2] == ["0", "1"]
    assert lines[2] in ("2", "None")
    assert lines[3:] == ["None", "None"]


ENTRY = re.compile(
    r"(?P<result>\S+) (?P<attribute>\S+) (?P<status>0|<class '[\w.]+'>) (?P<time>\d+\.\d+) "
    r"Going to sleep for (?P<sleep>\d\.0+) seconds\n (?P<stderr>.*) (?P<exitcode>-?\d+)\n"
)


def check_entries(output: str, unit: float) -> None:
    """Value, attributes and captured output of five calls, `unit` seconds to each second."""
    entries = [entry.groupdict() for entry in ENTRY.finditer(output)]
    assert "".join(entry[0] for entry in ENTRY.finditer(output)) == output
    assert [float(entry["sleep"]) for entry in entries] == [0, 1, 2, 3, 4]
    for t, entry in enumerate(entries):
        assert entry["result"] == entry["attribute"]
        assert entry["stderr"] == ""
        assert min(t, 2) * unit <= float(entry["time"]) < 20
        ended = (entry["result"], entry["status"], entry["exitcode"])
        in_time = (str(t), "0", "0")
        late = ("None", "<class 'pynisher_exec.errors.TimeoutException'>", "-15")
        tied = (*late[:2], "0")  # over the limit, and at its end all the same before the kill
        accepted = [in_time] if t < 2 else [in_time, late, tied] if t == 2 else [late]
        assert ended in accepted, output


def check_both(decorator: str, object_: str, unit: float, folder: Path) -> None:
    """Run both at once, in folders of their own, and check what they print."""
    for name in ("decorator", "object"):
        (folder / name).mkdir()
    first = start(decorator, folder / "decorator")
    try:
        output = finish(start(object_, folder / "object"))
    finally:
        values = finish(first)
    check_values(values)
    check_entries(output, unit)


# The blocks --------------------------------------------------------------------------------------


def test_both_scripts_run_in_whole_seconds(tmp_path: Path) -> None:
    """With nothing but the import changed, they print what the README lets one expect."""
    check_both(ours(DECORATOR), ours(OBJECT), 1, tmp_path)


@pytest.mark.parametrize("context", CONTEXTS)
def test_both_scripts_through_a_context(context: str | None, tmp_path: Path) -> None:
    """In time there is a value, beyond the wall limit None; the object tells all of each call."""
    decorator, object_ = (through(quick(ours(block)), context) for block in (DECORATOR, OBJECT))
    check_both(decorator, object_, 0.25, tmp_path)


def test_arguments_block(tmp_path: Path) -> None:
    """Every argument is taken by its name, with the value that means none."""
    assert finish(start(ours(ARGUMENTS), tmp_path)) == ""


def test_statuses_block(tmp_path: Path) -> None:
    """The seven classes stand in the module under their names."""
    assert finish(start(ours(STATUSES), tmp_path)) == ""
    names = re.findall(r"pynisher\.(\w+)", STATUSES)
    assert len({getattr(pynisher, name) for name in names}) == 7


# The sentences -----------------------------------------------------------------------------------


def ended(function: Any, *args: Any, **limits: Any) -> Any:
    """Wrap, call once, and give the object."""
    wrapped = pynisher.enforce_limits(**limits)(function)
    wrapped(*args)
    return wrapped


def test_a_new_process_is_started() -> None:
    """A new process is started for each call: not the caller's, and gone after it."""
    function = pynisher.enforce_limits(**EVER)(os.getpid)
    first, second = function(), function()
    assert len({first, second, os.getpid()}) == 3
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)


def test_the_value_is_returned() -> None:
    """The function's return value comes back in the end, equal and of its type."""
    for value in (0, 1.5, "text", [1, {"a": (2, None)}], {1, 2}, b"\x00" * 100_000):
        again = pynisher.enforce_limits(**EVER)(plain.echo)(value)
        assert again == ((value,), {})
        assert type(again[0][0]) is type(value)


@pytest.mark.parametrize(
    "function", [crashes.raise_value_error, crashes.segfault, crashes.open_nothing, os.abort]
)
def test_none_is_returned_for_whatever_reason(function: Any) -> None:
    """A call that is not successful returns None and raises nothing, whatever the reason."""
    assert pynisher.enforce_limits(**EVER)(function)() is None


def test_memory_is_limited() -> None:
    """First of the four constraints: the memory of the function."""
    assert ended(crashes.hoard, mem_in_mb=200, **EVER).exit_status is pynisher.MemorylimitException


def test_cpu_time_is_limited() -> None:
    """Second: CPU time, which sleep does not use."""
    function = ended(crashes.burn, cpu_time_in_s=1, **EVER)
    assert function.exit_status is pynisher.CpuTimeoutException
    assert 0.9 < function.report.cpu_time < 1.5
    assert ended(time.sleep, 0.6, cpu_time_in_s=0.5, **EVER).exit_status == 0


def test_wall_time_is_limited() -> None:
    """Third: wall time, which sleep does use."""
    function = ended(time.sleep, 60, wall_time_in_s=1)
    assert function.exit_status is pynisher.TimeoutException
    assert 1 <= function.wall_clock_time < 5


@requires("seccomp")
def test_subprocesses_are_limited() -> None:
    """Fourth: the number of the function's subprocesses."""
    assert ended(plain.fork_children, 3, num_processes=3, **EVER).result == 3
    function = ended(plain.fork_children, 4, num_processes=3, **EVER)
    assert (function.result, function.exit_status) == (None, pynisher.SubprocessException)


def test_interpreter_is_included_in_the_memory() -> None:
    """The footnote: the interpreter is in the limit, so that less than it is left to the function.

    A function that holds as much as the limit fails, and one that holds half of it does not.
    """
    held = pynisher.enforce_limits(mem_in_mb=200, **EVER)(plain.hold)
    assert held(100 << 20) == 100 << 20
    assert held(195 << 20) is None
    assert held.exit_status is pynisher.MemorylimitException


def test_integers_and_none_are_values_and_none_restricts_nothing() -> None:
    """Every constraint is an integer, or None for no restriction."""
    function = ended(
        plain.hold,
        500 << 20,
        mem_in_mb=None,
        cpu_time_in_s=None,
        wall_time_in_s=None,
        num_processes=None,
    )
    assert function.result == 500 << 20
    assert ended(abs, -1, mem_in_mb=500, cpu_time_in_s=5, wall_time_in_s=5).result == 1


def test_grace_period_lets_the_function_end_properly() -> None:
    """The signal arrives as an exception, whose handler may still return or clean up."""
    function = ended(crashes.sleep_until_told, wall_time_in_s=1, grace_period_in_s=10)
    assert (function.result, function.exit_status, function.exitcode) == ("best so far", 0, 0)
    assert function.wall_clock_time < 9


@requires("fork_signals")
def test_grace_period_after_cpu_time_lets_the_function_end_properly() -> None:
    """The same at the CPU limit, by the other signal."""
    function = ended(crashes.work_until_told, cpu_time_in_s=1, grace_period_in_s=10)
    assert (function.result, function.exit_status) == ("best so far", 0)


def signals_received(path: str) -> None:
    """Note the number of the signal, and go on."""
    import signal  # noqa: PLC0415  (what a user's function would do)

    def note(number: int, _: object) -> None:
        with open(path, "a") as file:
            file.write(f"{number}\n")

    for number in (signal.SIGXCPU, signal.SIGALRM):
        signal.signal(number, note)
    while True:
        pass


@pytest.mark.parametrize(("limit", "number"), [("cpu_time_in_s", 24), ("wall_time_in_s", 14)])
def test_limit_sends_its_signal_and_then_kills(limit: str, number: int, tmp_path: Path) -> None:
    """SIGXCPU or SIGALRM at the limit, and the kill once the grace period is over."""
    limits: dict[str, Any] = {limit: 1, "grace_period_in_s": 1}
    function = ended(signals_received, str(tmp_path / "signals"), **limits)
    assert set((tmp_path / "signals").read_text().split()) == {str(number)}
    assert function.exitcode == (-9 if number == 24 else -15)
    assert 1.8 < function.wall_clock_time < 10


def test_cause_is_right_even_without_a_grace_period() -> None:
    """The README warns that it may be unknown then ("AnythingException"); here it is known."""
    function = ended(crashes.burn, cpu_time_in_s=1)
    assert (function.exit_status, function.exitcode) == (pynisher.CpuTimeoutException, -9)
    function = ended(crashes.sleep_long, wall_time_in_s=1)
    assert (function.exit_status, function.exitcode) == (pynisher.TimeoutException, -15)


def test_logger_gets_lines_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    """Additional information goes to the logger that was given, mostly at debug level."""
    logger = logging.getLogger("of the user")
    with caplog.at_level(logging.DEBUG, logger=logger.name):
        ended(abs, -1, wall_time_in_s=5, logger=logger)
    assert {(record.name, record.levelname) for record in caplog.records} == {
        ("of the user", "DEBUG")
    }
    assert any("5 seconds wall time" in record.getMessage() for record in caplog.records)


def test_object_is_used_as_the_original_function() -> None:
    """It takes the same arguments and returns the same value."""
    function = pynisher.enforce_limits(**EVER)(plain.add)
    assert function(1, 2, third=3) == plain.add(1, 2, third=3)
    assert list(map(function, range(3))) == list(map(plain.add, range(3)))


def test_object_contains_the_result_and_what_happened() -> None:
    """After the call: the actual result, and an indicator of what happened."""
    function = ended(plain.add, 1, **EVER)
    assert (function.result, function.exit_status) == (6, 0)


def raise_os_error() -> None:
    """Fail as a program that cannot write does."""
    raise OSError(28, "no space")


@pytest.mark.parametrize(
    ("function", "limits", "status"),
    [
        (crashes.value, EVER, 0),
        (crashes.burn, {"cpu_time_in_s": 1}, pynisher.CpuTimeoutException),
        (crashes.sleep_long, {"wall_time_in_s": 1}, pynisher.TimeoutException),
        (crashes.hoard, {"mem_in_mb": 200}, pynisher.MemorylimitException),
        (raise_os_error, EVER, pynisher.SubprocessException),
        (crashes.segfault, EVER, pynisher.AnythingException),
        (os.abort, EVER, pynisher.AnythingException),
    ],
)
def test_exit_status_is_zero_or_one_of_the_exceptions(
    function: Any, limits: dict[str, Any], status: Any
) -> None:
    """Each has the meaning that its comment gives it."""
    assert ended(function, **limits).exit_status == status


def test_signal_that_is_caught_has_a_class_of_its_own() -> None:
    """What pynisher caught is SIGQUIT, which raises inside the function."""
    assert ended(crashes.kill_itself, 3, **EVER).exit_status is pynisher.SignalException


def test_internal_error_has_a_class_of_its_own() -> None:
    """An internal error should not happen: a call that cannot be loaded is one."""
    function = ended(crashes.take, crashes.FailsWhenLoaded(), context="spawn", **EVER)
    assert function.exit_status is pynisher.PynisherError


def test_os_error_fills_os_errno() -> None:
    """The field has the number of an OSError in the subprocess."""
    assert ended(raise_os_error, **EVER).os_errno == 28


@pytest.mark.parametrize("code", [0, 1, 7, -9])
def test_exitcode_is_that_of_multiprocessing(code: int) -> None:
    """The same as `multiprocessing.Process.exitcode` says for the same function."""
    function, argument = (os._exit, code) if code >= 0 else (crashes.kill_itself, -code)
    process = multiprocessing.get_context("fork").Process(target=function, args=(argument,))
    process.start()
    process.join()
    exitcode = process.exitcode
    process.close()
    assert ended(function, argument, **EVER).exitcode == exitcode == code


@pytest.mark.parametrize("context", CONTEXTS)
def test_used_from_threads_there_is_no_deadlock(context: str | None) -> None:
    """Beside Python threads no call hangs, with the default or a context for starting processes."""
    source: Any = loky_context if context == "loky" else multiprocessing
    given = None if context is None else source.get_context(context)
    function = pynisher.enforce_limits(context=given, **EVER)(plain.add)
    results: list[int | None] = []
    threads = [threading.Thread(target=lambda n=n: results.append(function(n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert sorted(result or 0 for result in results) == list(range(5, 13))


def test_script_with_everything_at_once(tmp_path: Path) -> None:
    """All arguments with values, in a script of one's own."""
    code = """
        import logging
        import multiprocessing
        import pynisher

        def work(x):
            print("working")
            return x

        obj = pynisher.enforce_limits(
            mem_in_mb=2000, cpu_time_in_s=10, wall_time_in_s=20, num_processes=5,
            grace_period_in_s=1, logger=logging.getLogger("mine"),
            capture_output=True, context=multiprocessing.get_context("forkserver"))(work)
        print(obj(5), obj.exit_status, repr(obj.stdout))
    """
    output = finish(start(ours(textwrap.dedent(code)), tmp_path))
    assert output == "5 0 'working\\n'\n"
