"""What a task gives back arrives as it was; what it leaves besides processes goes."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import random
import re
import stat
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from loky import ProcessPoolExecutor

from benchmarks.processes import pids
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.marks import Looks
from pynisher_exec import LimitedProcessExecutor, UnpicklableError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    Trial = tuple[str, Callable[..., Any], tuple[Any, ...], Callable[[Any], bool]]
    """Its name, a call, and whether its value is the right one."""

__all__ = ["CHECKS"]

PATIENCE = 120
PIECE = 1_000_003
"""Odd, as with its number: no two chunks of a power of two bytes lie alike in their pieces."""

TOO_DEEP = 100_000
"""Lists in lists: pickle follows some 500, and newer ones some thousands."""

SHARED = Path("/dev/shm")  # noqa: S108 - the kernel's place for named memory
LIVING = 2
"""Seconds in which a name that is not ours vanishes, or is mapped by who made it."""


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
    """That many bytes, of which no two parts are alike: pieces at random, each with a number."""
    piece = random.Random(PIECE).randbytes(PIECE)  # noqa: S311 - the same in both processes
    numbers = [number.to_bytes(8, "big") for number in range(size // (PIECE + 8) + 1)]
    parts = [part for number in numbers[:-1] for part in (piece, number)]  # one piece in memory
    return b"".join([*parts, (piece + numbers[-1])[: size % (PIECE + 8)]])


def is_filled(data: bytes, size: int) -> bool:
    """Whether they are those."""
    return data == filled(size)


def strided() -> Any:
    """An array whose elements do not lie side by side."""
    import numpy as np  # noqa: PLC0415 - the peer of this one value

    return np.arange(10_000_000).reshape(1000, 10_000)[::7, ::3]


def noted(error: BaseException) -> BaseException:
    """Add a note, from Python 3.11 on."""
    if hasattr(error, "add_note"):
        error.add_note("a note")
    return error


def are_noted(*errors: object) -> bool:
    """Whether all have that note still."""
    if not hasattr(BaseException, "add_note"):
        return True
    return all(getattr(error, "__notes__", None) == ["a note"] for error in errors)


def fail_with_a_history() -> None:
    """An exception with a cause that has a context; each has a note."""
    try:
        try:
            raise noted(KeyError("inner"))
        except KeyError:
            raise noted(ValueError("middle"))  # noqa: B904 - its context
    except ValueError as middle:
        raise noted(RuntimeError("outer")) from middle


def raise_a_group() -> None:
    """Fail with a group of exceptions (Python 3.11), one of which has a cause; each has a note."""
    group: Any = vars(builtins)["ExceptionGroup"]
    member = noted(ValueError(1))
    member.__cause__ = noted(OSError(2, "why"))
    inner = noted(group("inner", [noted(KeyError("k"))]))
    raise noted(group("group", [member, inner]))


def count_up() -> Iterator[int]:
    """Be a generator."""
    yield 1


def _wrong_refusals(executor: LimitedProcessExecutor) -> list[str]:
    """What is wrong with a group of exceptions, and with what cannot be a value."""
    wrong = []
    if hasattr(builtins, "ExceptionGroup"):
        group: Any = executor.submit(raise_a_group).exception(PATIENCE)
        wrong += [f"a group came as {group!r}"] if repr(group) != GROUP else []
        wrong += _wrong_members(group)
    for name, future, kind in (
        ("a generator function", executor.submit(count_up), TypeError),
        ("a generator", executor.submit(lambda: (n for n in (1, 2))), UnpicklableError),
        (f"{TOO_DEEP} deep", executor.submit(nested, TOO_DEEP), UnpicklableError),
    ):
        error = future.exception(PATIENCE)
        if not isinstance(error, kind) or name.split()[-1] not in str(error):
            wrong.append(f"{name} was answered by {error!r}"[:200])
    return wrong


GROUP = "ExceptionGroup('group', [ValueError(1), ExceptionGroup('inner', [KeyError('k')])])"


def _wrong_members(group: Any) -> list[str]:
    """What has been lost of a group's members, and of what one of them was raised from."""
    try:
        member, inner = group.exceptions
        cause = member.__cause__
        innermost = inner.exceptions[0]
    except (AttributeError, TypeError, ValueError) as error:
        return [f"a group has come otherwise: {error!r}"]
    if not are_noted(group, member, cause, inner, innermost):
        return ["a group came without a note"]
    good = repr(cause) == "FileNotFoundError(2, 'why')"
    return [] if good else [f"a member's cause came as {cause!r}"]


def _has_depth(depth: int, thing: list[Any]) -> bool:
    found = 0
    while thing:
        thing = thing[0]
        found += 1
    return found == depth


def _is_strided(value: Any) -> bool:
    expected = strided()
    alike = (value.shape, value.dtype) == (expected.shape, expected.dtype)
    return bool(alike and (value == expected).all())


def _has_numpy() -> bool:
    with contextlib.suppress(ImportError):
        import numpy as np  # noqa: F401, PLC0415 - a value of its kind is tried where it is there

        return True
    return False


HISTORY = (
    "KeyError: 'inner'",
    "During handling of the above exception",
    "ValueError: middle",
    "The above exception was the direct cause",
    "RuntimeError: outer",
)


def _wrong_history(error: BaseException | None) -> str:
    if not isinstance(error, RuntimeError) or error.args != ("outer",):
        return f"raised {error!r}"
    wrong = _wrong_lineage(error)
    if wrong:
        return wrong
    text = str(error.__cause__)  # as of the standard executors: the remote traceback
    places = [text.find(line) for line in HISTORY]
    missing = [line for line, place in zip(HISTORY, places, strict=True) if place < 0]
    if places != sorted(places):
        missing.append("the order")
    return f"lost: {', '.join(missing)}" if missing else ""


def _wrong_lineage(error: RuntimeError) -> str:
    """The exceptions that it was raised from, as objects: the cause behind the traceback."""
    middle = getattr(error.__cause__, "cause", None)
    inner = getattr(middle, "__context__", None)
    if not isinstance(middle, ValueError) or middle.args != ("middle",):
        return f"the cause came as {middle!r}"
    if not isinstance(inner, KeyError) or inner.args != ("inner",):
        return f"the context of the cause came as {inner!r}"
    if not are_noted(error, middle, inner):
        return "a note is lost"
    return "" if error.__context__ is middle else f"the context came as {error.__context__!r}"


def _values(
    largest: int,
) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...], Callable[[Any], bool]]]:
    for power in range(0, largest + 1, 3):
        size = 1 << power
        yield f"{size} bytes", filled, (size,), partial(is_filled, size=size)
    for depth in (10, 100, 400):
        yield f"{depth} deep", nested, (depth,), partial(_has_depth, depth)
    yield "an argument of 64 MiB", is_filled, (filled(1 << 26), 1 << 26), bool
    if _has_numpy():
        yield "a strided array", strided, (), _is_strided


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
    worst = f"up to {1 << largest} bytes, slowest {slowest:.1f} s"
    return Found(tries, failures, worst if _has_numpy() else f"{worst}; no numpy, so no array")


# Names in file systems ---------------------------------------------------------------------------


def use_names() -> None:
    """Have pools, their semaphores, shared memory and files; wait to be killed.

    Each library has a resource tracker of its own: the standard one, and loky's. Tells its
    temporary folder and the names in /dev/shm that are its own.
    """
    Path(tempfile.mkdtemp(), "file").write_text("of a task")
    of_loky = ProcessPoolExecutor(1)
    of_loky.submit(abs, -1).result()
    pool = get_context("spawn").Pool(1)
    memory = SharedMemory(create=True, size=1 << 16)
    lock = get_context("spawn").Lock()
    mapped = _mapped(os.getpid())
    names = [name for name, inode in _names().items() if inode in mapped]
    print(json.dumps([tempfile.gettempdir(), names]), flush=True)
    time.sleep(60)
    del pool, memory, lock, of_loky


def _names() -> dict[str, int]:
    """Files of this user in /dev/shm, and their inodes. A folder there is some other program's."""
    found = {}
    for path in SHARED.iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if status.st_uid == os.getuid() and stat.S_ISREG(status.st_mode):
                found[path.name] = status.st_ino
    return found


def _mapped(pid: int) -> set[int]:
    """Inodes in /dev/shm of what a process has mapped: sem_open(3) maps by another name first."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:  # it has gone, or is another user's
        return set()
    return {int(line.split()[4]) for line in lines if f" {SHARED}/" in line}


def _left_in_shared_memory(before: Collection[str]) -> list[str]:
    """What is new there and nobody's: other programs of this user may have names there too."""
    deadline = time.monotonic() + LIVING
    while True:
        mapped = set().union(*map(_mapped, pids()))
        left = [n for n, inode in _names().items() if n not in before and inode not in mapped]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.1)


@contextlib.contextmanager
def _own_temporary_folder() -> Iterator[Path]:
    """One for this process and what it starts, in which nobody else makes files."""
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, TMPDIR=folder),
        patch.object(tempfile, "tempdir", None),
    ):
        yield Path(folder)


MOST_FOR_NAMES = 3.0
"""Seconds from a task's end to its future: the trackers get one, and what they do takes time."""

MADE = {"psm", "sem.loky"}
"""Shared memory and loky's semaphores; those of multiprocessing lose their names at once."""


class _Names:
    """Those that tasks have told, looked at when their futures resolve."""

    def __init__(self, folder: Path) -> None:
        self.told: set[str] = set()
        self.slowest = 0.0
        """Seconds from the end of a task's own process to its future: the trackers' time."""
        self._folder = folder

    def look(self, future: Any) -> Iterator[str]:
        """Say what is wrong with one."""
        took = time.time() - future.report.started_at - future.report.wall_time
        self.slowest = max(self.slowest, took)
        temporary, names = json.loads(future.report.stdout)
        self.told.update(names)
        if future.report.status != "wall_time":
            yield f"ended by {future.report.status}"
        missing = MADE.difference(re.split("[-_]", name)[0] for name in names)
        if Path(temporary).parent != self._folder or missing:
            yield f"it had only {temporary} and {names}"
        for path in (Path(temporary), *(SHARED / name for name in names)):
            if path.exists():
                yield f"there when it resolved: {path}"


def names_in_shared_memory(count: int) -> Found:
    """Row 25: those that a killed task has left there, and in the temporary directory."""
    looks = Looks()
    before = _names()
    with _own_temporary_folder() as folder:
        names = _Names(folder)
        with LimitedProcessExecutor(
            2, wall_time=3, private_tmp=True, capture_output=True, preload=[__name__]
        ) as executor:
            for _ in range(count):
                looks.at(executor.submit(use_names), names.look)
        left = [*map(str, folder.iterdir()), *_left_in_shared_memory(before)]
    left += [name for name in names.told if (SHARED / name).exists()]
    failures = looks.failures(count) + [f"left: {name}" for name in left]
    if names.slowest > MOST_FOR_NAMES:
        failures.append(f"{names.slowest:.1f} s from a task's end to its future")
    worst = f"{len(left)} left of {len(names.told)} told and all new names"
    after = f"{names.slowest * 1000:.0f} ms at most from a task's end to its future"
    return Found(count, failures, f"{worst}; {after}, the trackers' time")


CHECKS = (
    Check(
        20,
        "a result arrives as it was, from 1 byte to 1 GiB",
        "sizes, depths, a strided array; exceptions and groups with their notes, causes and"
        " contexts, as objects and as text; generators, and what is too deep, refused",
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
