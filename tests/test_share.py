"""Objects that are given to an executor once, and that all of its tasks have by reference."""

from __future__ import annotations

import contextlib
import copy
import gc
import mmap
import os
import pickle
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pynisher_exec import LimitedProcessExecutor, MemorylimitException, Shared, UnpicklableError
from pynisher_exec.caller.shared import MOST_REFERENCES
from pynisher_exec.kernel import libc, sealed_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 40
MIB = 1 << 20
LIMIT = 64 * MIB
LENGTH = 160 * MIB // 8


@pytest.fixture
def executor() -> Iterator[LimitedProcessExecutor]:
    """One whose tasks may hold much less than what is shared with them."""
    with LimitedProcessExecutor(2, memory=LIMIT, wall_time=30) as made:
        yield made


@dataclass
class Config:
    """A call's argument that holds others."""

    data: Any
    rate: float = 0.1


# What tasks get ----------------------------------------------------------------------------------


def total(array: Any) -> float:
    """Read all of it."""
    return float(array.sum())


def total_deep(config: Config, *, more: dict[str, list[Any]]) -> tuple[float, bool]:
    """Read what lies deep in the arguments; whether the same handle gave the same object."""
    return total(config.data), more["arrays"][0] is config.data


def test_object_is_there_at_any_depth(executor: LimitedProcessExecutor) -> None:
    """As an argument, by keyword, in a list in a dictionary, as an attribute, in a closure."""
    array: Any = np.arange(LENGTH, dtype=float)
    handle = executor.share(array)
    assert executor.submit(total, handle).result(PATIENCE) == array.sum()
    assert executor.submit(total, array=handle).result(PATIENCE) == array.sum()
    deep = executor.submit(total_deep, Config(handle), more={"arrays": [handle]})
    assert deep.result(PATIENCE) == (array.sum(), True)
    assert executor.submit(lambda: float(handle.sum())).result(PATIENCE) == array.sum()  # type: ignore[attr-defined]
    assert list(executor.map(total, [handle] * 3)) == [array.sum()] * 3
    assert executor.limit(memory=None).submit(total, handle).result(PATIENCE) == array.sum()


def test_object_is_as_it_was_when_it_was_shared(executor: LimitedProcessExecutor) -> None:
    """What the caller changes later is not seen."""
    array = np.ones(1000)
    handle = executor.share(array)
    array[:] = 2
    assert executor.submit(total, handle).result(PATIENCE) == 1000


class Plain:
    """An object of the caller's own class."""

    def __init__(self, words: list[str]) -> None:
        self.words = words


def join(plain: Plain) -> str:
    """Read a plain object, whose class is the very one that the task knows."""
    assert type(plain) is Plain
    return " ".join(plain.words)


@pytest.mark.parametrize(
    ("thing", "read", "found"),
    [
        (Plain(["a", "b"]), join, "a b"),
        (pd.DataFrame({"x": np.arange(100_000.0), "y": ["z"] * 100_000}),
         lambda frame: (float(frame.x.sum()), frame.y[7]), (4999950000.0, "z")),
        (sparse.csr_matrix(np.eye(300)), lambda matrix: float(matrix.sum()), 300.0),
        (np.arange(20000.0)[::2], lambda array: float(array.sum()), 99_990_000.0),
        (None, lambda nothing: nothing, None),
        (b"", len, 0),
        (lambda: 7, lambda function: function(), 7),
        ([np.zeros(1 << 16), np.ones(1 << 17)], lambda pair: [float(each.sum()) for each in pair],
         [0.0, float(1 << 17)]),
    ],
    ids=["plain", "frame", "sparse", "strided", "None", "empty", "lambda", "several"],
)  # fmt: skip
def test_all_kinds_of_objects_can_be_shared(thing: Any, read: Any, found: Any) -> None:
    """Arrays are where they are; all else is loaded in each task."""
    with LimitedProcessExecutor(1) as executor:
        assert executor.submit(read, executor.share(thing)).result(PATIENCE) == found


def look_at_tensors(model: Any, pair: Any) -> tuple[float, float, str]:
    """Use a model; what is seen through one tensor of a change by the other; its type."""
    import torch  # noqa: PLC0415  (where it is installed)

    first, second = pair
    first[1] = 7
    return model(torch.ones(1, 1000)).sum().item(), second[0].item(), str(second.dtype)


def test_tensors_lie_in_the_memory_that_is_shared() -> None:
    """PyTorch's, with what they have in common; a model's, too. The caller's are as they were."""
    torch = pytest.importorskip("torch")  # from the index, for x86, some gigabytes of CUDA
    many = torch.ones(2 * LIMIT // 4)
    model, pair = torch.nn.Linear(1000, 10), torch.zeros(100, dtype=torch.bfloat16)
    with LimitedProcessExecutor(1, memory=LIMIT, wall_time=60, preload=["torch"]) as executor:
        future = executor.submit(total, executor.share(many))
        assert future.result(PATIENCE) == 2 * LIMIT // 4
        assert future.report is not None
        assert future.report.peak_memory < LIMIT // 4
        handles = executor.share(model), executor.share((pair, pair[1:]))
        made, *others = executor.submit(look_at_tensors, *handles).result(PATIENCE)
        assert made == pytest.approx(model(torch.ones(1, 1000)).sum().item())
        assert others == [7, "torch.bfloat16"]
        empty = executor.submit(total, executor.share(torch.zeros(0)))
        assert empty.result(PATIENCE) == 0
    assert many.resize_(3 * LIMIT // 4).shape == (3 * LIMIT // 4,)


def test_tasks_cannot_change_it_for_others(executor: LimitedProcessExecutor) -> None:
    """Neither by writing to their object, which is their own, nor by the memory behind it."""

    def scribble(array: Any) -> bool:
        array[:10] = 7
        with open("/proc/self/maps") as file:
            where = next(line.split()[0] for line in file if "memfd:shared" in line)
        try:
            behind = os.open(f"/proc/self/map_files/{where}", os.O_RDWR)
            os.pwrite(behind, b"x" * 80, 0)
        except PermissionError:
            return bool(array[0] == 7)
        return False

    handle = executor.share(np.ones(LENGTH))
    assert executor.submit(scribble, handle).result(PATIENCE)
    assert executor.submit(total, handle).result(PATIENCE) == LENGTH


# What is charged ---------------------------------------------------------------------------------


def read_in_children(array: Any, count: int) -> float:
    """Read it all here and in several children at once, for long enough to be looked at."""
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            for _ in range(10):
                array.sum()
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count
    return total(array)


def test_reading_is_not_charged(executor: LimitedProcessExecutor) -> None:
    """Not to the task, not to its children, and not in the peak."""
    handle = executor.share(np.ones(LENGTH))
    future = executor.submit(read_in_children, handle, 3)
    assert future.result(PATIENCE) == LENGTH
    assert future.report is not None
    assert future.report.peak_memory < LIMIT


def write(array: Any) -> None:
    """Write to all of its pages, which copies them, and stay."""
    array += 1
    time.sleep(PATIENCE)


def test_writing_is_charged(executor: LimitedProcessExecutor) -> None:
    """A task that copies more than its limit is ended."""
    future = executor.submit(write, executor.share(np.ones(LENGTH)))
    with pytest.raises(MemorylimitException):
        future.result(PATIENCE)
    assert future.report is not None
    assert future.report.peak_memory > LIMIT


def write_at_once(array: Any) -> None:
    """Copy all of its pages, as fast as one process can, and be done."""

    def write(part: Any) -> None:
        part[:: mmap.PAGESIZE // part.itemsize] = 7

    threads = [threading.Thread(target=write, args=[part]) for part in np.split(array, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_nobody_writes_far_beyond_the_limit_before_it_is_seen() -> None:
    """No rlimit holds what had been mapped before, so samples have to be in time."""
    with LimitedProcessExecutor(1, memory="100MiB", wall_time=30, preload=["numpy"]) as executor:
        handle = executor.share(np.ones(300 * MIB // 8))
        futures = [executor.submit(write_at_once, handle) for _ in range(10)]
        found = [type(future.exception(PATIENCE)) for future in futures]
    assert found.count(MemorylimitException) >= 9, found  # a busy machine may hold one look up


def hold_beside(array: Any, size: int) -> int:
    """Hold memory of the own, having read nothing."""
    kept = np.ones(size // 8)
    return len(array) + len(kept)


def test_own_memory_is_charged_beside_it(executor: LimitedProcessExecutor) -> None:
    """What is shared gives nobody more room, read or not."""
    handle = executor.share(np.ones(LENGTH))
    held = 40 * MIB
    future = executor.submit(hold_beside, handle, held)
    assert future.result(PATIENCE) == LENGTH + held // 8
    assert future.report is not None
    assert held * 0.9 < future.report.peak_memory < held + 8 * MIB
    with pytest.raises(MemorylimitException):
        executor.submit(hold_beside, handle, 2 * LIMIT).result(PATIENCE)


def hold_shared(_: Any, children: int) -> None:
    """Hold shared memory of the own, here or in children, for long enough to be found."""
    for _ in range(children):
        if os.fork() == 0:
            break
    held = mmap.mmap(-1, 100 * MIB)
    held.write(b"x" * 100 * MIB)
    time.sleep(PATIENCE)


@pytest.mark.parametrize("children", [0, 3])
def test_shared_memory_of_the_own_is_charged_beside_it(
    executor: LimitedProcessExecutor, children: int
) -> None:
    """Only what was given to the task is not."""
    handle = executor.share(np.ones(LENGTH))
    with pytest.raises(MemorylimitException):
        executor.limit(memory=130 * MIB if children else LIMIT).submit(
            hold_shared, handle, children
        ).result(PATIENCE)


# Where it ends -----------------------------------------------------------------------------------


def shared_files() -> int:
    """How many descriptors of memory that is shared this process has."""
    gc.collect()
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing
            found += "memfd:shared" in str(link.readlink())
    return found


def test_memory_goes_with_the_handle(executor: LimitedProcessExecutor) -> None:
    """Dropped or closed; a task that has it goes on."""
    first, second = executor.share(np.ones(1000)), executor.share(np.ones(10))
    assert shared_files() == 2
    future = executor.submit(total, first)
    del first
    assert future.result(PATIENCE) == 1000
    second.close()
    second.close()
    executor.submit(int).result(PATIENCE)
    del future
    assert shared_files() == 0


class Unpicklable:
    """Refuses for a reason of its own."""

    def __reduce__(self) -> str:
        try:
            int("none")
        except ValueError as error:
            reason = "not this one"
            raise TypeError(reason) from error
        return ""


def test_call_that_failed_does_not_hold_its_memory(executor: LimitedProcessExecutor) -> None:
    """Though its future is kept, and with it the error, which tells where it was raised."""
    handle = executor.share(np.ones(1000))
    future = executor.submit(print, handle, Unpicklable())
    error = future.exception(PATIENCE)
    assert isinstance(error, UnpicklableError)
    assert isinstance(error.__cause__, TypeError)
    assert "in __reduce__" in str(error.__cause__.__cause__)
    assert future.report is not None
    assert "in __reduce__" in str(future.report.traceback)
    del handle
    assert shared_files() == 0


def test_task_has_no_descriptor_of_it(executor: LimitedProcessExecutor) -> None:
    """It is mapped, and its descriptor closed, before the function begins."""
    handle = executor.share(np.ones(LENGTH))
    assert executor.submit(lambda _: shared_files(), handle).result(PATIENCE) == 0


def test_handle_is_good_for_calls_of_its_executor_only(executor: LimitedProcessExecutor) -> None:
    """Each other use says what is wrong, and harms nothing else."""
    handle = executor.share(np.ones(10))
    with LimitedProcessExecutor(1) as other:
        with pytest.raises(UnpicklableError, match="belongs to another executor"):
            other.submit(total, handle).result(PATIENCE)
        assert other.submit(int).result(PATIENCE) == 0
    with pytest.raises(pickle.PicklingError, match="not to be pickled or shared"):
        pickle.dumps(handle)
    with pytest.raises(pickle.PicklingError, match="not to be pickled or shared"):
        executor.share([handle])
    handle.close()
    with pytest.raises(
        UnpicklableError, match=r"call of total .* was closed before this call began"
    ):
        executor.submit(total, handle).result(PATIENCE)
    assert repr(handle) == f"<Shared ndarray, {handle.nbytes} bytes, closed>"


def count_up(numbers: Any) -> Any:
    """Sum them."""
    return sum(numbers)


@dataclass
class Settings:
    """Holds a handle, as configurations do."""

    data: Any


def test_copy_of_a_handle_is_that_handle(executor: LimitedProcessExecutor) -> None:
    """What copies the configuration that it stands in finds nothing to copy there."""
    handle = executor.share([1, 2])
    for made in (copy.copy(handle), copy.deepcopy([handle])[0], asdict(Settings(handle))["data"]):
        assert made is handle
    assert executor.submit(count_up, copy.deepcopy(handle)).result(PATIENCE) == 3


def test_object_that_cannot_be_pickled_is_refused_at_once(executor: LimitedProcessExecutor) -> None:
    """By what pickling raises."""
    with pytest.raises(TypeError, match="generator"):
        executor.share(number for number in range(3))
    assert shared_files() == 0


def count(*arrays: Any) -> int:
    """Count them."""
    return len(arrays)


def test_call_refers_to_as_many_as_a_message_takes(executor: LimitedProcessExecutor) -> None:
    """One more is an error that says so."""
    handles = [executor.share(number) for number in range(MOST_REFERENCES + 1)]
    assert executor.submit(count, *handles[1:]).result(PATIENCE) == MOST_REFERENCES
    with pytest.raises(UnpicklableError, match=f"{MOST_REFERENCES} shared objects at most"):
        executor.submit(count, *handles).result(PATIENCE)


@pytest.mark.parametrize("context", ["loky", "spawn", "forkserver"])
def test_contexts_share_as_well(context: str) -> None:
    """Whatever starts the processes."""
    with LimitedProcessExecutor(1, memory=LIMIT, context=context) as executor:
        handle = executor.share(np.ones(LENGTH))
        assert executor.submit(total, handle).result(PATIENCE) == LENGTH
        assert executor.submit(total_deep, Config(handle), more={"arrays": [handle]}).result(
            PATIENCE
        ) == (LENGTH, True)


def test_forks_of_the_caller_need_no_share() -> None:
    """They inherit it, and the error says so."""
    with LimitedProcessExecutor(1, context="fork") as executor:
        with pytest.raises(ValueError, match="inherit the caller's objects"):
            executor.share([])
        assert executor.submit(int).result(PATIENCE) == 0


def test_output_is_captured_beside_it() -> None:
    """Its descriptors and those of the streams do not get into each other's places."""
    kept: list[Any] = []
    with LimitedProcessExecutor(1, capture_output=True, private_tmp=True) as executor:
        handle = executor.share("hello")
        future = executor.submit(lambda text: sys.stdout.write(f"{text} {len(kept)}"), handle)
        future.result(PATIENCE)
    assert future.report is not None
    assert future.report.stdout == "hello 0"


def test_it_survives_the_death_of_its_helpers(executor: LimitedProcessExecutor) -> None:
    """The memory is the caller's: whoever takes the place of a supervisor has it again."""
    handle = executor.share(np.ones(LENGTH))

    def strike(_: Any) -> None:
        os.kill(os.getppid(), signal.SIGKILL)

    with LimitedProcessExecutor(1, no_new_privs=False) as bare:  # Landlock would not let it
        other = bare.share(7)
        bare.submit(strike, other).exception(PATIENCE)
        assert bare.submit(str, other).result(PATIENCE) == "7"
    assert executor.submit(total, handle).result(PATIENCE) == LENGTH


def test_small_pages_do_as_well(
    monkeypatch: pytest.MonkeyPatch, executor: LimitedProcessExecutor
) -> None:
    """Where the kernel gives no huge pages to shared memory, before Linux 6.1 say."""

    def refuse(*_: int) -> int:
        raise OSError(22, "refused")

    real = libc.syscall
    numbers = {libc.number("madvise")}
    monkeypatch.setattr(
        libc, "syscall", lambda call, *rest: (refuse if call in numbers else real)(call, *rest)
    )
    handle: Shared = executor.share(np.ones(LENGTH))
    assert executor.submit(total, handle).result(PATIENCE) == LENGTH


def test_views_leave_no_address_space_reserved() -> None:
    """What is reserved to find a place for huge pages is given back, by a failed map as well."""
    size = (3 << 20) + 5
    descriptor = sealed_memory.create([(0, b"x")], size)

    def reserved() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

    try:
        sealed_memory.view(descriptor, size).release()
        before = reserved()
        for _ in range(50):
            view = sealed_memory.view(descriptor, size)
            assert bytes(view[:1]) == b"x"
            del view
        with pytest.raises(OSError, match="Bad file descriptor"):
            sealed_memory.view(-1, size)
        assert reserved() - before < 2 << 20
    finally:
        os.close(descriptor)


def test_share_after_shutdown_is_told() -> None:
    """As a submit is."""
    executor = LimitedProcessExecutor(1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.share([1])
