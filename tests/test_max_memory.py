"""Admission by memory: the limits of all tasks that run fit into a bound, and none overtakes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from conftest import wait_until

from pynisher_exec import LimitedProcessExecutor, PynisherError, Report

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 40
MIB = 1 << 20


def run_until(folder: Path, name: str) -> str:
    """Tell that this runs, and run until a file of its name is there."""
    (folder / f"{name}.runs").touch()
    wait_until((folder / name).exists, PATIENCE)
    return name


def running(folder: Path) -> set[str]:
    """Which tasks have begun."""
    return {path.stem for path in folder.glob("*.runs")}


def wait_for(folder: Path, *names: str) -> None:
    """Wait until just these have begun."""
    wait_until(lambda: running(folder) == set(names), PATIENCE)


@pytest.mark.parametrize("context", [None, "loky"])
def test_tasks_run_together_only_if_all_that_they_may_take_fits(
    tmp_path: Path, context: str | None
) -> None:
    """The one that does not fit waits, and is not overtaken by one that would."""
    with LimitedProcessExecutor(
        4, max_memory="300MiB", memory="100MiB", context=context
    ) as executor:
        large = executor.limit(memory="250MiB")
        futures = {
            "a": executor.submit(run_until, tmp_path, "a"),
            "b": executor.submit(run_until, tmp_path, "b"),
            "large": large.submit(run_until, tmp_path, "large"),
            "c": executor.submit(run_until, tmp_path, "c"),
        }
        wait_for(tmp_path, "a", "b")
        (tmp_path / "a").touch()
        assert futures["a"].result(PATIENCE) == "a"
        executor.limit(memory="1MiB").submit(int)  # what comes later waits, too
        assert running(tmp_path) == {"a", "b"}
        (tmp_path / "b").touch()
        wait_for(tmp_path, "a", "b", "large")
        assert not futures["c"].running()
        (tmp_path / "large").touch()
        wait_for(tmp_path, "a", "b", "large", "c")
        (tmp_path / "c").touch()
        assert futures["c"].result(PATIENCE) == "c"


def test_bound_holds_beside_more_slots_than_fit(tmp_path: Path) -> None:
    """Never more at once than fit, and all are done in the end."""
    with LimitedProcessExecutor(4, max_memory=200 * MIB, memory=100 * MIB) as executor:
        counts = list(executor.map(count_running, [tmp_path] * 30, range(30)))
    assert max(counts) == 2


def count_running(folder: Path, number: int) -> int:
    """How many there are at this moment, this one included; the first wait for another."""
    mine = folder / f"{number}.here"
    mine.touch()
    if number < 2:
        wait_until(lambda: len(list(folder.iterdir())) >= 2, PATIENCE)
        (folder / f"{number}.met").touch()  # who comes later finds two there, whoever has gone
    time.sleep(0.03)  # all four would meet, if they might
    found = len(list(folder.glob("*.here")))
    mine.unlink()
    return found


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (None, "max_memory=200 MiB admits no task without a memory limit"),
        (201 * MIB, "memory=201 MiB can never fit into max_memory=200 MiB"),
    ],
)
def test_what_never_fits_is_refused_at_once(
    tmp_path: Path, limit: int | None, message: str
) -> None:
    """Though others wait and run; they go on."""
    with LimitedProcessExecutor(1, max_memory=200 * MIB, memory=200 * MIB) as executor:
        first = executor.submit(run_until, tmp_path, "a")
        second = executor.submit(int)
        refused = executor.limit(memory=limit).submit(int)
        assert refused.done()
        with pytest.raises(PynisherError, match=message) as caught:
            refused.result()
        report = refused.report
        assert isinstance(report, Report)
        assert report.status == "refused"
        assert caught.value.report is report
        assert report.exit_status is PynisherError
        assert [each.status for each in executor.limit(memory=limit).reports(abs, [1])] == [
            "refused"
        ]
        assert not second.done()
        (tmp_path / "a").touch()
        assert (first.result(PATIENCE), second.result(PATIENCE)) == ("a", 0)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.limit(memory=limit).submit(int)


def test_task_that_was_killed_makes_room(tmp_path: Path) -> None:
    """As one that returned does; one that is cancelled while it waits is not waited for."""
    with LimitedProcessExecutor(2, max_memory="100MiB", memory="100MiB") as executor:
        killed = executor.limit(wall_time=0.3).submit(run_until, tmp_path, "never")
        cancelled = executor.submit(run_until, tmp_path, "neither")
        last = executor.submit(int)
        assert cancelled.cancel()
        assert killed.exception(PATIENCE) is not None
        assert last.result(PATIENCE) == 0
    assert running(tmp_path) == {"never"}


def test_cancel_of_the_first_in_turn_lets_the_next_one_start(tmp_path: Path) -> None:
    """At once, and not when the one that runs has ended."""
    with LimitedProcessExecutor(3, max_memory="300MiB", memory="100MiB") as executor:
        first = executor.submit(run_until, tmp_path, "a")
        wait_for(tmp_path, "a")
        large = executor.limit(memory="250MiB").submit(int)
        third = executor.submit(int)
        assert not third.done()
        assert large.cancel()
        assert third.result(PATIENCE) == 0
        (tmp_path / "a").touch()
        assert first.result(PATIENCE) == "a"


@pytest.mark.parametrize("bound", [0, -1, "1kB", "101%", True, 1.5, float("nan")])
def test_nonsense_is_refused(bound: object) -> None:
    """By name."""
    with pytest.raises((ValueError, TypeError), match="max_memory"):
        LimitedProcessExecutor(max_memory=bound)  # type: ignore[arg-type]


def test_share_of_the_machine_is_taken() -> None:
    """As text, as for a limit."""
    with LimitedProcessExecutor(1, max_memory="80%", memory="64MiB") as executor:
        assert executor.submit(int).result(PATIENCE) == 0
