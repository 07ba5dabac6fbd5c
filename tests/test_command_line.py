"""`python -m pynisher_exec`, as a shell sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

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
        (["--memory", "100MiB"], [sys.executable, "-c", HOG], 137, "memory limit of 100.0 MiB"),
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


def test_ignored_signals_are_not_passed_on() -> None:
    """Python ignores SIGPIPE; a program that runs under it must not."""
    done = run("run", "--", "sh", "-c", "yes | head -1")
    assert (done.stdout, done.stderr, done.returncode) == ("y\n", "", 0)


def test_terminated_command_line_takes_its_tree_along() -> None:
    """SIGTERM to the command line ends what it runs."""
    child = subprocess.Popen(
        [sys.executable, "-m", "pynisher_exec", "run", "--", "sh", "-c", "echo $$; sleep 60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    with child.stdout:
        shell = int(child.stdout.readline())
        child.terminate()
        assert child.wait(20) == 128 + signal.SIGINT
        assert child.stdout.read() == b""
    with pytest.raises(ProcessLookupError):
        os.kill(shell, 0)


@pytest.mark.parametrize(
    "arguments", [["run", "--memory", "2 apples", "--", "true"], ["run", "--"], ["run"], []]
)
def test_wrong_use_is_explained(arguments: list[str]) -> None:
    """Status 2 and a usage line."""
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_doctor_tells_every_limit() -> None:
    """Level and mechanism of each, on this machine."""
    done = run("doctor")
    assert done.returncode == 0
    for name in ("memory", "cpu_time", "wall_time", "processes", "file_size"):
        assert any(line.startswith(name) for line in done.stdout.splitlines())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_reads_well(arguments: list[str]) -> None:
    """No line is wider than a terminal."""
    done = run(*arguments)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 100
