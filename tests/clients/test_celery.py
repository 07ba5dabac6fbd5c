"""Limits inside Celery: its prefork pool's workers are daemonic, and one template serves each."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from conftest import name_of, wait_until
from trial_text import TRIAL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Mark

celery = pytest.importorskip("celery", reason="celery is not installed")

PATIENCE = 60
TRIALS = (
    TRIAL
    + """
from celery import Celery

endless = limited(behave, memory="200MiB", wall_time=600)
folder = os.environ["FOLDER"]
app = Celery("trials", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{folder}/queue",
    "data_folder_out": f"{folder}/queue",
    "control_folder": f"{folder}/control",
}

@app.task
def trial(how):
    return safe.report(how).status.value

@app.task
def without_end():
    with open(f"{folder}/pid", "w") as file:
        file.write(str(os.getpid()))
    endless("hang")
"""
)


@pytest.fixture
def trials(marked: Mark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The tasks, and a worker that runs them until the test has ended."""
    (tmp_path / "trials.py").write_text(dedent(TRIALS))
    for name in ("queue", "results", "control"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    options = "--pool prefork -c 1 --without-gossip --without-mingle --without-heartbeat"
    command = [sys.executable, "-m", "celery", "-A", "trials", "worker", *options.split()]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path) as worker,
    ):
        try:
            yield importlib.import_module("trials")
        finally:
            worker.terminate()
            worker.wait(PATIENCE)
            del sys.modules["trials"]
    wait_until(lambda: not marked.scan())


def test_each_trial_ends_as_its_limits_say(trials: Any) -> None:
    """In a worker that goes on."""
    found = [trials.trial.delay(how) for how in ("well", "hang", "eat", "well")]
    statuses = [each.get(timeout=PATIENCE) for each in found]
    assert statuses == ["ok", "wall_time", "memory", "ok"]


def test_killed_worker_takes_its_task_along(marked: Mark, trials: Any, tmp_path: Path) -> None:
    """Celery starts another, in which limits hold as before."""
    trials.without_end.delay()
    note = tmp_path / "pid"
    wait_until(lambda: note.exists() and bool(note.read_text()), PATIENCE)
    wait_until(lambda: bool(tasks_of(marked)), PATIENCE)
    before = tasks_of(marked)
    os.kill(int(note.read_text()), signal.SIGKILL)
    wait_until(lambda: not before & tasks_of(marked), PATIENCE)
    assert trials.trial.delay("hang").get(timeout=PATIENCE) == "wall_time"


def tasks_of(marked: Mark) -> set[int]:
    """Processes that limited tasks run in."""
    return {pid for pid in marked.scan() if name_of(pid) == "limit-task"}
