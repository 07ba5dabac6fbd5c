"""The process that forks supervisors: it is as its calls want it, or says why it cannot be."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import crashes

from pynisher_exec import LimitedProcessExecutor, PynisherError
from pynisher_exec.caller import launch

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PATIENCE = 40


def test_call_whose_template_cannot_start_fails_beside_one_that_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wants another one, by its `sys.path`: what waits in the first one proves nothing."""
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with LimitedProcessExecutor(1, preload=["only_here"]) as executor:
        assert executor.submit(crashes.value).result(PATIENCE) == 42
        sys.path.remove(str(tmp_path))
        error = executor.submit(crashes.value).exception(PATIENCE)
        assert isinstance(error, PynisherError)
        what = "preload failed: ModuleNotFoundError: No module named 'only_here'"
        assert str(error).endswith(what)
        assert "import_module" in str(error.__cause__)
        assert error.report is not None
        assert error.report.message == str(error)
        assert error.report.traceback == getattr(error.__cause__, "text", None)
        sys.path.insert(0, str(tmp_path))
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def test_variables_may_change_while_a_template_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are copied on the way, and another thread may take one away just then."""
    original = vars(launch)["fork_exec"]
    refusals = [KeyError("GONE"), RuntimeError("dictionary changed size during iteration")]

    def fork_exec(*args: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return original(*args)

    monkeypatch.setattr(launch, "fork_exec", fork_exec)
    with LimitedProcessExecutor(1) as executor:
        assert executor.submit(crashes.value).result(PATIENCE) == 42
    assert not refusals


def hash_of_a_word() -> int:
    """What the seed of hashes, which is read at the start of an interpreter, makes of it."""
    return hash("word")


def test_template_has_the_variables_of_the_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has become of them until it is started, or has been added."""
    program = [sys.executable, "-c", "print(hash('word'))"]
    seeded = {**os.environ, "PYTHONHASHSEED": "5"}
    expected = int(subprocess.run(program, env=seeded, stdout=subprocess.PIPE, check=True).stdout)
    may_go_on = threading.Event()
    with LimitedProcessExecutor(1) as executor:
        executor.submit(crashes.value).add_done_callback(lambda _: may_go_on.wait(PATIENCE))
        monkeypatch.setenv("PYTHONHASHSEED", "5")
        future = executor.submit(hash_of_a_word)
        monkeypatch.delenv("PYTHONHASHSEED")
        monkeypatch.setenv("PYTHONOPTIMIZE", "2")
        may_go_on.set()
        assert future.result(PATIENCE) == expected
        monkeypatch.delenv("PYTHONOPTIMIZE")


def test_future_that_failed_to_start_goes_with_its_last_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it raises has no traceback that holds it."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(11, "not now")

    monkeypatch.setattr(launch, "start_template", refuse)
    gc.disable()
    try:
        with LimitedProcessExecutor(1) as executor:
            future = executor.submit(abs, -1)
            assert isinstance(future.exception(PATIENCE), PynisherError)
        is_there = weakref.ref(future)
        del executor, future
        assert is_there() is None
    finally:
        gc.enable()


def test_refused_connection_of_a_context_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fork server may have been killed just now, and be started anew."""
    start, left = launch.start_in_context, [ConnectionRefusedError(111, "Connection refused")]

    def refuse_once(*arguments: Any) -> Any:
        if left:
            raise left.pop()
        return start(*arguments)

    monkeypatch.setattr(launch, "start_in_context", refuse_once)
    with LimitedProcessExecutor(1, context="spawn") as executor:
        assert executor.submit(abs, -1).result(PATIENCE) == 1
    assert not left


def test_call_does_not_fail_by_a_template_that_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path has changed since the call before it, whose template finds no module."""
    (tmp_path / "only_there.py").touch()
    for _ in range(3):
        with LimitedProcessExecutor(1, preload=["only_there"]) as executor:
            without = executor.submit(abs, -1)
            monkeypatch.syspath_prepend(tmp_path)
            right = executor.submit(abs, -2)
            without.cancel()
            assert right.result(PATIENCE) == 2
        monkeypatch.undo()
