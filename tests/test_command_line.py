"""`python -m pynisher_exec`, as a shell sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from capabilities import available

if TYPE_CHECKING:
    from pathlib import Path

HOG = "pieces = [bytearray(10_000_000) for _ in range(100)]"


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "pynisher_exec", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_command_has_its_streams_arguments_and_status() -> None:
    """Input, output, errors and the exit status pass through unchanged."""
    done = run("run", "--", "sh", "-c", 'cat; echo "$1" >&2; exit 7', "sh", "a b", stdin="in\n")
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "a b\n", 7)


@pytest.mark.parametrize(
    ("limits", "command", "status", "text"),
    [
        (["--wall-time", "0.3"], ["sleep", "60"], 124, "wall_time limit of 0.3 s passed after 0.3"),
        (["--wall-time", "300ms", "--grace-period", "5"], ["sleep", "60"], 124, "wall_time"),
        (["--cpu-time", "0.3s"], ["sh", "-c", "while :; do :; done"], 124, "cpu_time limit"),
        (["--memory", "100MiB"], [sys.executable, "-c", HOG], 137, "memory limit of 100 MiB"),
        ([], ["/nonexistent"], 127, "No such file"),
        ([], ["/etc/passwd"], 126, "Permission denied"),
        ([], ["sh", "-c", "kill -SEGV $$"], 128 + signal.SIGSEGV, ""),
        (["--open-files", "5"], ["sh", "-c", "ulimit -n; exit 3"], 3, ""),
    ],
)
def test_ending_is_told_by_status_and_one_line(
    limits: list[str], command: list[str], status: int, text: str
) -> None:
    """124 for a time limit, 137 for memory, 126 and 127 as a shell, 128 + n for a signal."""
    done = run("run", *limits, "--", *command)
    assert done.returncode == status, done.stderr
    assert text in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_report_is_written_as_json(tmp_path: Path) -> None:
    """Of success and of failure, with what was used."""
    path = tmp_path / "report.json"
    run("run", "--json", str(path), "--", "true")
    assert json.loads(path.read_text())["status"] == "ok"
    run("run", "--memory", "100MiB", "--json", str(path), "--", sys.executable, "-c", HOG)
    report = json.loads(path.read_text())
    assert report["status"] == "memory"
    assert report["peak_memory"] > 100 << 20
    assert report["limits"]["memory"]["value"] == 100 << 20
    assert report["command"][1:] == ["-c", HOG]


def test_command_that_exited_did_not_fail_to_return(tmp_path: Path) -> None:
    """The words for a function are not those for a command."""
    path = tmp_path / "report.json"
    done = run("run", "--json", str(path), "--", "sh", "-c", "exit 5")
    report = json.loads(path.read_text())
    assert (done.returncode, report["status"], report["exit_code"]) == (5, "exit", 5)
    assert report["message"] == report["exception"]["message"] == "exited with code 5"


def test_peak_of_a_short_command_is_its_own(tmp_path: Path) -> None:
    """Not that of the interpreter which the process was before it became the command."""
    path = tmp_path / "report.json"
    for _ in range(3):
        done = run("run", "--json", str(path), "--", "true")
        assert done.returncode == 0, done.stderr
        assert 0 <= json.loads(path.read_text())["peak_memory"] < 10_000_000


@pytest.mark.parametrize("path", ["/nonexistent/report.json", "/"])
def test_report_that_cannot_be_written_is_told_before_the_run(path: str) -> None:
    """Status 125, one line, and the command does not run."""
    done = run("run", "--json", path, "--", "echo", "ran")
    assert (done.stdout, done.returncode) == ("", 125)
    assert len(done.stderr.splitlines()) == 1
    assert f"--json={path}: " in done.stderr


def test_report_that_failed_to_be_written_is_told() -> None:
    """Status 125 and one line where the space ran out only after the command."""
    done = run("run", "--json", "/dev/full", "--", "echo", "ran")
    assert (done.stdout, done.returncode) == ("ran\n", 125)
    assert done.stderr == "pynisher_exec: --json=/dev/full: No space left on device\n"


@pytest.mark.parametrize(
    ("shell", "status"),
    [
        ("sleep 1 & sleep 1 & sleep 1 & wait", 137),
        ("(sleep 1 & sleep 1 & sleep 1 & wait); exit 0", 0),
        ("(sleep 1 & sleep 1 & sleep 1 & wait); kill -TERM $$", 137),
    ],
)
def test_refused_forks_are_told(tmp_path: Path, shell: str, status: int) -> None:
    """137 and a line with limit and use, where the command then ended by itself; 0 stays 0."""
    path = tmp_path / "report.json"
    done = run("run", "--processes", "2", "--json", str(path), "--", "sh", "-c", shell)
    lines = [line for line in done.stderr.splitlines() if line.startswith("pynisher_exec: ")]
    assert lines == [
        "pynisher_exec: processes limit of 2 met: forks were refused, 2 alive at once"
    ], done.stderr
    assert done.returncode == status
    assert json.loads(path.read_text())["limit_reached"] == "processes"


@pytest.mark.parametrize(("code", "status"), [(3, 124), (0, 0)])
def test_command_that_heeds_the_soft_signal_is_told(code: int, status: int) -> None:
    """It may end with success; any other status of its own gives way to 124."""
    shell = f'trap "exit {code}" ALRM; while :; do sleep 0.05; done'
    limits = ["--wall-time", "0.3", "--grace-period", "20"]
    done = run("run", *limits, "--", "sh", "-c", shell)
    assert done.returncode == status
    assert done.stderr.startswith("pynisher_exec: wall_time limit of 0.3 s passed: ran for 0.")
    assert len(done.stderr.splitlines()) == 1


def test_ignored_signals_are_not_passed_on() -> None:
    """Python ignores SIGPIPE; a program that runs under it must not."""
    done = run("run", "--", "sh", "-c", "yes | head -1")
    assert (done.stdout, done.stderr, done.returncode) == ("y\n", "", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_terminated_command_line_takes_its_tree_along(number: signal.Signals) -> None:
    """It ends what it runs, and then as if by the signal; a second one changes nothing."""
    child = subprocess.Popen(
        [sys.executable, "-m", "pynisher_exec", "run", "--", "sh", "-c", "echo $$; sleep 60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    shell = int(child.stdout.readline())
    child.send_signal(number)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=20)
    assert child.returncode in (128 + number, 128 + signal.SIGTERM)  # as they are delivered
    name = signal.Signals(child.returncode - 128).name
    assert (out, err) == ("", f"pynisher_exec: {name} received: the command was ended\n")
    with pytest.raises(ProcessLookupError):
        os.kill(shell, 0)


def test_hangup_that_is_ignored_stays_ignored() -> None:
    """As nohup has it for what it starts."""
    command = [sys.executable, "-m", "pynisher_exec", "run", "--", "sh", "-c", "echo up; read line"]
    child = subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    with open(f"/proc/{child.pid}/status", encoding="ascii") as file:
        [ignored] = [line.split()[1] for line in file if line.startswith("SigIgn:")]
    child.send_signal(signal.SIGHUP)
    child.communicate("on\n", timeout=20)
    assert int(ignored, 16) & 1 << signal.SIGHUP - 1
    assert child.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "--memory", "2 apples", "--", "touch", "ran"], "--memory=2 apples is not"),
        (["run", "--memory", "1kB", "--", "touch", "ran"], "--memory=1kB is below"),
        (["run", "--wall-time=-1", "--", "touch", "ran"], "--wall-time=-1 is not"),
        (["run", "--cpu-time", "nan", "--", "touch", "ran"], "--cpu-time=nan is not"),
        (["run", "--processes=-3", "--", "touch", "ran"], "--processes=-3 is not"),
        (["run", "--processes", "x", "--", "touch", "ran"], "argument --processes: invalid"),
        (
            ["run", "--grace-period", "5s", "--", "touch", "ran"],
            "=5s serves no limit: it lies between the soft signal and the kill of --cpu-time or --",
        ),
        (["run", "--bogus", "--", "touch", "ran"], "unknown option: --bogus"),
        (["run", "--"], "run: error: no command given"),
        (["run"], "run: error: no command given"),
        ([], "ACTION"),
        (["doctor", "--bogus"], "doctor: error: unknown option: --bogus"),
    ],
)
def test_wrong_use_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    """Status 125, the usage, and the option as it was typed; nothing is run."""
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    usage, complaint = done.stderr.splitlines()
    assert done.returncode == 125
    assert usage.startswith("usage: ")
    assert text in complaint
    assert "_" not in complaint.replace("pynisher_exec", "")
    assert list(tmp_path.iterdir()) == []


def test_doctor_tells_every_limit() -> None:
    """Level and mechanism of each, on this machine."""
    done = run("doctor")
    assert done.returncode == 0
    for name in ("memory", "cpu_time", "wall_time", "processes", "file_size"):
        assert any(line.startswith(name) for line in done.stdout.splitlines())
    assert ("by Landlock" in done.stdout) == available("landlock")
    assert ("can be made for each slot" in done.stdout) == available("cgroup")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_reads_well(arguments: list[str]) -> None:
    """No line is wider than a terminal."""
    done = run(*arguments)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 100
