"""`private_tmp=True`: a temporary directory of each task's own, gone when its future resolves."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import crashes
import pytest
from capabilities import requires
from conftest import descendant_pids, name_of, wait_until

from pynisher_exec import LimitedProcessExecutor, limited

PATIENCE = 40
MS_BIND = 0x1000


@pytest.fixture(autouse=True)
def folder(own_tmpdir: Path) -> Path:
    """Where this process has its temporary files."""
    return own_tmpdir


def leave_files(then: str = "return") -> str:
    """Fill the temporary directory as tasks and their programs do."""
    place = tempfile.gettempdir()
    Path(tempfile.mkdtemp(), "file").write_text("x")
    subprocess.run(["sh", "-c", 'echo x > "$TMPDIR/of-a-program"'], check=True)
    closed = Path(place, "closed")
    (closed / "inner").mkdir(parents=True)
    (closed / "inner" / "file").write_text("x")
    (closed / "inner").chmod(0)
    closed.chmod(0)
    if then == "sleep":
        time.sleep(60)
    if then == "crash":
        crashes.segfault()
    return place


@pytest.mark.parametrize("context", [None, "loky", "spawn", "forkserver", "fork"])
def test_directory_is_the_tasks_own_and_goes_with_it(folder: Path, context: str | None) -> None:
    """Below the caller's, under a name of its own; nothing is left in the caller's."""
    with LimitedProcessExecutor(2, private_tmp=True, context=context) as executor:
        places = [executor.submit(leave_files).result(PATIENCE) for _ in range(2)]
        assert list(folder.glob("pynisher_exec-*")) == []  # multiprocessing has a folder of its own
        view = executor.limit(wall_time=30)
        places.append(view.submit(leave_files).result(PATIENCE))
    assert len(set(places)) == 3
    assert {Path(place).parent for place in places} == {folder}
    assert list(folder.glob("pynisher_exec-*")) == []
    assert tempfile.gettempdir() == str(folder)


@pytest.mark.parametrize("then", ["sleep", "crash"])
def test_directory_goes_with_a_task_that_is_killed(folder: Path, then: str) -> None:
    """It is gone when the done-callbacks run."""
    seen: list[list[Path]] = []
    with LimitedProcessExecutor(1, private_tmp=True, wall_time=1) as executor:
        future = executor.submit(leave_files, then)
        future.add_done_callback(lambda _: seen.append(list(folder.iterdir())))
        assert future.exception(PATIENCE) is not None
    assert seen == [[]]


def test_without_it_a_task_shares_the_callers(folder: Path) -> None:
    """As it is by default."""
    with LimitedProcessExecutor(1) as executor:
        assert executor.submit(tempfile.gettempdir).result(PATIENCE) == str(folder)


def test_limited_function_has_one_too(folder: Path) -> None:
    """For one call."""
    assert Path(limited(leave_files, private_tmp=True)()).parent == folder
    assert list(folder.iterdir()) == []


def replace_by_a_link(target: str) -> None:
    """Put a symbolic link to something else in the place of the own directory."""
    place = Path(tempfile.gettempdir())
    place.rmdir()
    place.symlink_to(target)


def link_from_within(target: str) -> None:
    """Have links to something else in it, and take its rights away."""
    place = Path(tempfile.gettempdir())
    (place / "link").symlink_to(target)
    (place / "closed").mkdir()
    (place / "closed").chmod(0)


@pytest.mark.parametrize("task", [replace_by_a_link, link_from_within])
def test_what_links_lead_to_is_left_alone(folder: Path, task: object) -> None:
    """Only the link goes."""
    kept = folder / "kept"
    kept.mkdir()
    (kept / "file").write_text("the user's")
    kept.chmod(0o750)
    with LimitedProcessExecutor(1, private_tmp=True) as executor:
        executor.submit(task, str(kept)).result(PATIENCE)  # type: ignore[arg-type]
    assert (kept / "file").read_text() == "the user's"
    assert kept.stat().st_mode & 0o777 == 0o750
    assert list(folder.iterdir()) == [kept]


def test_directory_goes_with_a_lost_supervisor(folder: Path) -> None:
    """The caller removes it then, before the future resolves."""
    with LimitedProcessExecutor(1, private_tmp=True) as executor:
        future = executor.submit(leave_files, "sleep")
        wait_until(lambda: list(folder.glob("*/closed")))
        (slot,) = (pid for pid in descendant_pids() if name_of(pid) == "limit-slot")
        os.kill(slot, signal.SIGKILL)
        assert future.exception(PATIENCE) is not None
        assert future.report is not None
        assert future.report.status == "supervisor_lost"
        assert not list(folder.iterdir())


def go_deep(depth: int) -> None:
    """Make folders in each other, deeper than a path can be long."""
    os.chdir(tempfile.gettempdir())
    for _ in range(depth):
        Path("deeper").mkdir()
        os.chdir("deeper")
        Path("file").touch()


def test_depth_costs_nothing(folder: Path) -> None:
    """Neither recursion nor a descriptor for each level."""
    with LimitedProcessExecutor(1, private_tmp=True) as executor:
        executor.submit(go_deep, 1500).result(PATIENCE)
        assert list(folder.iterdir()) == []
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def mount_over(target: str, name: str) -> None:
    """Bind something of the user's into the own directory, or over it."""
    place = Path(tempfile.gettempdir(), name)
    place.mkdir(exist_ok=True)
    if ctypes.CDLL(None).mount(target.encode(), bytes(place), None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), "mount")


@requires("root")
@pytest.mark.parametrize("name", ["inner", "."])
def test_what_is_mounted_there_is_left_alone(
    folder: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says that the directory is still there."""
    kept = folder / "kept"
    kept.mkdir()
    (kept / "file").write_text("the user's")
    with LimitedProcessExecutor(1, private_tmp=True) as executor:
        future = executor.submit(mount_over, str(kept), name)
        future.result(PATIENCE)
    (left,) = folder.glob("pynisher_exec-*")
    try:
        assert (kept / "file").read_text() == "the user's"
        assert f"private_tmp cannot be removed: {left}" in caplog.text
    finally:
        ctypes.CDLL(None).umount2(bytes(left / name), 0)
        shutil.rmtree(left)


def test_rights_that_were_taken_from_it_are_taken_back(folder: Path) -> None:
    """Also of the directory itself."""
    with LimitedProcessExecutor(1, private_tmp=True) as executor:
        executor.submit(close_it).result(PATIENCE)
        assert list(folder.iterdir()) == []


def close_it() -> None:
    """Take all rights away."""
    place = Path(tempfile.gettempdir())
    (place / "file").touch()
    place.chmod(0)


def test_directory_that_cannot_be_made_fails_the_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is a failure to start, which names the directory."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with LimitedProcessExecutor(1, private_tmp=True) as executor:
        error = executor.submit(crashes.value).exception(PATIENCE)
    assert "/nowhere/at/all" in str(error)


def test_relative_directory_is_the_callers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the caller goes elsewhere: it is removed where it was made."""
    for name in ("one", "two"):
        place = folder / name
        (place / "relative").mkdir(parents=True)
        monkeypatch.chdir(place)
        monkeypatch.setattr(tempfile, "tempdir", "relative")
        with LimitedProcessExecutor(1, private_tmp=True) as executor:
            assert executor.submit(tempfile.gettempdir).result(PATIENCE).startswith(str(place))
        assert not list((place / "relative").iterdir())


def test_submit_without_a_free_descriptor_says_nothing_of_directories(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`tempfile` finds no directory then, for want of a file to try them with."""

    def find_none() -> str:
        msg = "No usable temporary directory found"
        raise FileNotFoundError(msg)

    with LimitedProcessExecutor(1, private_tmp=True) as executor:
        monkeypatch.setattr(tempfile, "gettempdir", find_none)
        future = executor.submit(crashes.value)
        assert future.result(PATIENCE) == 42
