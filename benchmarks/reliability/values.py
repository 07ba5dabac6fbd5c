"""What a task gives back arrives as it was; what it leaves besides processes goes."""

from __future__ import annotations

import builtins
import json
import os
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loky import ProcessPoolExecutor

from benchmarks.reliability.check import Check, Found
from pynisher_exec import LimitedProcessExecutor, UnpicklableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    Trial = tuple[str, Callable[..., Any], tuple[Any, ...], Callable[[Any], bool]]
    """Its name, a call, and whether its value is the right one."""

__all__ = ["CHECKS"]

PATIENCE = 120
SHARED = "/dev/shm"  # noqa: S108 - the kernel's place for named memory


# Results -----------------------------------------------------------------------------------------


def identity(thing: Any) -> Any:
    """Give back what came."""
    return thing


def nested(depth: int) -> list[Any]:
    """A list in a list, and so on."""
    thing: list[Any] = []
    for _ in range(depth):
        thing = [thing]
    return thing


def filled(size: int) -> bytes:
    """That many bytes that are not all alike."""
    return bytes(range(256)) * (size // 256) + bytes(size % 256)


def strided() -> Any:
    """An array whose elements do not lie side by side."""
    import numpy as np  # noqa: PLC0415 - the peer of this one value

    return np.arange(10_000_000).reshape(1000, 10_000)[::7, ::3]


def fail_with_a_history() -> None:
    """An exception with a cause, a context and, from Python 3.11 on, a note."""
    try:
        try:
            raise KeyError("inner")  # noqa: EM101, TRY301 - a history
        except KeyError as inner:
            raise ValueError("middle") from inner  # noqa: EM101
    except ValueError as middle:
        error = RuntimeError("outer")
        if hasattr(error, "add_note"):
            error.add_note("a note")
        raise error from middle


def raise_a_group() -> None:
    """Fail with a group of exceptions (Python 3.11)."""
    group: Any = vars(builtins)["ExceptionGroup"]
    error = group("group", [ValueError(1), group("inner", [KeyError("k")])])
    raise error


def count_up() -> Iterator[int]:
    """Be a generator."""
    yield 1


def _wrong_refusals(executor: LimitedProcessExecutor) -> list[str]:
    """What is wrong with a group of exceptions, and with what cannot be a value."""
    wrong = []
    if hasattr(builtins, "ExceptionGroup"):
        group: Any = executor.submit(raise_a_group).exception(PATIENCE)
        parts = repr(getattr(group, "exceptions", group))
        if parts != "(ValueError(1), ExceptionGroup('inner', [KeyError('k')]))":
            wrong.append(f"a group came as {parts}")
    for name, future, kind in (
        ("a generator function", executor.submit(count_up), TypeError),
        ("a generator", executor.submit(lambda: (n for n in (1, 2))), UnpicklableError),
    ):
        error = future.exception(PATIENCE)
        if not isinstance(error, kind) or "generator" not in str(error):
            wrong.append(f"{name} was answered by {error!r}")
    return wrong


def _has_depth(depth: int, thing: list[Any]) -> bool:
    found = 0
    while thing:
        thing = thing[0]
        found += 1
    return found == depth


def _same(size: int) -> Callable[[Any], bool]:
    return lambda value: bool(value == filled(size))


def _wrong_history(error: BaseException | None) -> str:
    if not isinstance(error, RuntimeError) or error.args != ("outer",):
        return f"raised {error!r}"
    text = str(error.__cause__)
    told = ("KeyError: 'inner'", "ValueError: middle", "RuntimeError: outer")
    missing = [line for line in told if line not in text]
    if hasattr(error, "add_note") and getattr(error, "__notes__", []) != ["a note"]:
        missing.append("the note")
    return f"lost: {', '.join(missing)}" if missing else ""


def _values(
    largest: int,
) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...], Callable[[Any], bool]]]:
    for power in range(0, largest + 1, 3):
        yield f"{1 << power} bytes", filled, (1 << power,), _same(1 << power)
    for depth in (10, 100, 400):
        yield f"{depth} deep", nested, (depth,), partial(_has_depth, depth)
    yield "an argument of 64 MiB", len, (filled(1 << 26),), lambda value: bool(value == 1 << 26)
    try:
        import numpy as np  # noqa: F401, PLC0415 - a value of its kind is tried where it is there
    except ImportError:
        return
    yield "a strided array", strided, (), lambda value: bool((value == strided()).all())


def results(count: int) -> Found:
    """Row 20."""
    failures: list[str] = []
    tries = 0
    slowest = 0.0
    largest = 30 if count > 1 else 24
    with LimitedProcessExecutor(1, preload=[__name__]) as executor:
        for _ in range(count):
            for name, function, arguments, is_right in _values(largest):
                tries += 1
                began = time.monotonic()
                try:
                    value = executor.submit(function, *arguments).result(PATIENCE)
                except BaseException as error:  # noqa: BLE001 - whatever comes is a failure here
                    failures.append(f"{name}: {error!r}"[:200])
                else:
                    failures += [] if is_right(value) else [f"{name}: another value"]
                slowest = max(slowest, time.monotonic() - began)
            tries += 1
            failures += _wrong_refusals(executor)
            wrong = _wrong_history(executor.submit(fail_with_a_history).exception(PATIENCE))
            failures += [wrong] if wrong else []
    return Found(tries, failures, f"up to {1 << largest} bytes, slowest {slowest:.1f} s")


# Names in file systems ---------------------------------------------------------------------------


def use_names() -> None:
    """Have pools, their semaphores, shared memory and files; wait to be killed.

    Each library has a resource tracker of its own: the standard one, and loky's. Tells what is new
    in /dev/shm, the other task's names perhaps among it, after what is surely its own.
    """
    before = set(os.listdir(SHARED))
    Path(tempfile.mkdtemp(), "file").write_text("of a task")
    of_loky = ProcessPoolExecutor(1)
    of_loky.submit(abs, -1).result()
    pool = get_context("spawn").Pool(1)
    memory = SharedMemory(create=True, size=1 << 16)
    lock = get_context("spawn").Lock()
    own = [tempfile.gettempdir(), f"{SHARED}/{memory.name}"]
    new = [f"{SHARED}/{name}" for name in set(os.listdir(SHARED)) - before]
    print(json.dumps([own, new]), flush=True)
    time.sleep(60)
    del pool, memory, lock, of_loky


def names_in_shared_memory(count: int) -> Found:
    """Row 25: those that a killed task has left there, and in the temporary directory."""
    failures: list[str] = []
    new: set[str] = set()

    def look(future: Future[None]) -> None:
        report: Any = future.report  # type: ignore[attr-defined]
        if report.status != "wall_time" or not report.stdout:
            failures.append(f"ended by {report}"[:200])
            return
        own, others = json.loads(report.stdout)
        new.update(own, others)
        failures.extend(f"there when it resolved: {path}" for path in own if Path(path).exists())

    with LimitedProcessExecutor(
        2, wall_time=3, private_tmp=True, capture_output=True, preload=[__name__]
    ) as executor:
        for _ in range(count):
            executor.submit(use_names).add_done_callback(look)
    left = [path for path in new if Path(path).exists()]
    failures += [f"left: {path}" for path in left]
    return Found(count, failures, f"{len(left)} of {len(new)} names left")


CHECKS = (
    Check(
        20,
        "a result arrives as it was, from 1 byte to 1 GiB",
        "sizes, depths, a strided array, exceptions with cause, context and note",
        results,
        10,
        1,
    ),
    Check(
        25,
        "nothing of a killed task is left in /dev/shm or the temporary directory",
        "killed at a wall limit with pools, a Lock, SharedMemory, files; private_tmp=True",
        names_in_shared_memory,
        100,
        4,
    ),
)
