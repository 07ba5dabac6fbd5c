"""The limits of a task: how they are written, checked and handed on.

Pure: nothing here asks the kernel for anything but the caller's own hard rlimits and, for a
percentage, the size of the machine's memory. What enforces a limit is told by
`pynisher_exec.supports`.
"""

from __future__ import annotations

import math
import re
import resource
import signal
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Final, NoReturn

__all__ = [
    "FORK_FILTER",
    "MINIMUM_MEMORY",
    "SOFT_SIGNALS",
    "UNSET",
    "Limits",
    "Unset",
    "duration",
    "is_bool",
    "size",
    "size_text",
]

_LARGEST = (1 << 63) - 1
"""What a rlimit can be (getrlimit(2))."""

_LONGEST = float(1 << 31)
"""Seconds, 68 years: what the clocks and timers in use can all take."""

MINIMUM_MEMORY = 1 << 20
"""Bytes: below this a task could not even pickle the report of its own MemoryError."""

SOFT_SIGNALS: Final = {"cpu_time": signal.SIGXCPU, "wall_time": signal.SIGALRM}
"""What the supervisor sends at a limit when there is a grace period."""

FORK_FILTER: Final = "seccomp filter"
"""The mechanism of `processes=0` inside another task's gate: it refuses without being asked."""

_UNITS = {
    "b": 1,
    **{f"{letter}b": 1000**n for n, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**n for n, letter in enumerate("kmgt", 1)},
}
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+|%)")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|min|s|h|d)\s*")
_SIZE_HELP = "an int (bytes), a string such as '2GiB' or '500MB', or '50%' of the machine's memory"
_TIME_HELP = "an int or float (seconds), or a string such as '90s', '5min' or '1h30min'"


class Unset:
    """The type of `UNSET`, the default of a limit that a view inherits."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset()


def _refuse(
    name: str, value: object, accepted: str, error: type[Exception] = ValueError
) -> NoReturn:
    msg = f"{name}={value!r} is not a valid limit: {accepted} is accepted"
    raise error(msg)


def size(name: str, value: object) -> int:
    """Turn a size into bytes; ValueError or TypeError names the argument and what is accepted."""
    if isinstance(value, str):
        return _size_of_text(name, value)
    number = _integer(name, value, _SIZE_HELP)
    if not 0 <= number <= _LARGEST:
        _refuse(name, value, _SIZE_HELP)
    return number


def size_text(count: float) -> str:
    """`812 B`, `3.5 MiB`, `1.25 GiB`; and `200 MB` for what is whole in that unit alone."""
    text, value = _scaled(count, 1024, ("B", "KiB", "MiB", "GiB"))
    if count >= 10**6 and count % 10**6 == 0 and float(f"{value:.4g}") != value:
        return _scaled(count, 1000, ("B", "kB", "MB", "GB"))[0]
    return text


def _scaled(count: float, step: int, units: tuple[str, ...]) -> tuple[str, float]:
    value, unit = float(count), 0
    while value >= step and unit < len(units) - 1:
        value /= step
        unit += 1
    return f"{value:.4g} {units[unit]}", value


def is_bool(value: object) -> bool:
    """Whether it is a truth value, numpy's included: no number that anybody means."""
    return type(value).__name__ in ("bool", "bool_")


def _integer(name: str, value: object, accepted: str) -> int:
    """Take ints and what says it is one (numpy's integers), but no bool and no float."""
    if is_bool(value) or isinstance(value, float) or not hasattr(value, "__index__"):
        _refuse(name, value, accepted, TypeError)
    return int(value.__index__())


def _size_of_text(name: str, text: str) -> int:
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or (match[2] != "%" and match[2] not in _UNITS):
        _refuse(name, text, _SIZE_HELP)
    if match[2] == "%":
        percent = float(match[1])
        if not 0 < percent <= 100:  # noqa: PLR2004  (a percentage)
            _refuse(name, text, _SIZE_HELP)
        # Only a percentage needs it, and what it imports costs milliseconds.
        from pynisher_exec import machine  # noqa: PLC0415

        return int(machine.memory() * percent / 100)
    number = float(match[1]) * _UNITS[match[2]]
    if number > _LARGEST:
        _refuse(name, text, _SIZE_HELP)
    return int(number)


def duration(name: str, value: object) -> float:
    """Turn a duration into seconds; ValueError or TypeError names the argument and the value."""
    if isinstance(value, str):
        return _duration_of_text(name, value)
    if is_bool(value) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        _refuse(name, value, _TIME_HELP, TypeError)
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except OverflowError:
        seconds = math.inf
    if not 0 <= seconds <= _LONGEST:  # nor NaN
        _refuse(name, value, _TIME_HELP)
    return seconds


def _duration_of_text(name: str, text: str) -> float:
    rest, total = text.strip().lower(), 0.0
    if not rest:
        _refuse(name, text, _TIME_HELP)
    while rest:
        match = _DURATION_PART.match(rest)
        if match is None:
            _refuse(name, text, _TIME_HELP)
        total += float(match[1]) * _SECONDS[match[2]]
        rest = rest[match.end() :]
    if total > _LONGEST:
        _refuse(name, text, _TIME_HELP)
    return total


@dataclass(frozen=True)
class Limits:
    """What one task may use. None means no limit. Sizes are bytes, durations seconds.

    The last two are not for users. `from_zero`: `memory` counts from zero, not from a baseline, and
    is held over the tree alone (the command line, whose process becomes another program).
    `address_space`: RLIMIT_AS, as pynisher 0.6 set it for its memory limit.
    """

    memory: int | None = None
    cpu_time: float | None = None
    wall_time: float | None = None
    processes: int | None = None
    grace_period: float | None = None
    open_files: int | None = None
    file_size: int | None = None
    core_size: int | None = None
    startup_time: float | None = None
    address_space: int | None = None
    from_zero: bool = False

    def __post_init__(self) -> None:
        self._take("memory", size)
        self._take("open_files", _count)
        self._take("processes", _count)
        self._take("file_size", size)
        self._take("core_size", size)
        for name in ("cpu_time", "wall_time", "startup_time", "grace_period"):
            self._take(name, duration)
        for name in ("cpu_time", "wall_time", "startup_time"):
            if getattr(self, name) == 0:
                _refuse(name, 0, f"{_TIME_HELP}, more than zero")
        self._check_memory()
        self._check_grace_period()
        self._check_rlimits()

    def _take(self, name: str, convert: Any) -> None:
        value = getattr(self, name)
        if value is not None:
            object.__setattr__(self, name, convert(name, value))

    def _check_memory(self) -> None:
        if self.memory is None or self.address_space is not None:
            return
        if self.memory < MINIMUM_MEMORY:
            msg = (
                f"memory={self.memory} bytes is below 1 MiB, what a Python process needs to report"
            )
            raise ValueError(msg)

    def _check_grace_period(self) -> None:
        if self.grace_period is not None and self.cpu_time is None and self.wall_time is None:
            msg = (
                f"grace_period={self.grace_period} serves no limit: "
                "it lies between the soft signal and the kill of cpu_time or wall_time, set one"
            )
            raise ValueError(msg)

    def _check_rlimits(self) -> None:
        """A task cannot be given more than the caller itself may have: setrlimit(2), EPERM."""
        for name, kind in RLIMITS.items():
            value = getattr(self, name)
            hard = resource.getrlimit(kind)[1]
            if value is not None and hard != resource.RLIM_INFINITY and value > hard:
                msg = f"{name}={value} is above the hard limit {hard} of this process itself"
                raise ValueError(msg)

    def changed(self, **changes: object) -> Limits:
        """The same limits with some replaced: what is UNSET stays, None removes."""
        given = {name: value for name, value in changes.items() if value is not UNSET}
        unknown = set(given) - {field.name for field in fields(self)}
        if unknown:
            msg = f"unknown limit: {', '.join(sorted(unknown))}"
            raise TypeError(msg)
        return replace(self, **given)  # type: ignore[arg-type]

    @cached_property
    def as_message(self) -> dict[str, Any]:
        """Those that are set, as plain values for a control message; made once, never written."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value
            for name, value in given.items()
            if value is not None and value is not False  # 0 is a limit
        }

    @classmethod
    def received(cls, message: dict[str, Any]) -> Limits:
        """Take what `as_message` gave: checked by who sent it, so not again in each task."""
        limits = object.__new__(cls)
        limits.__dict__.update(message)  # the rest are the class's defaults
        return limits


RLIMITS = {
    "open_files": resource.RLIMIT_NOFILE,
    "file_size": resource.RLIMIT_FSIZE,
    "core_size": resource.RLIMIT_CORE,
}
"""Limits that are one rlimit and nothing else."""


def _count(name: str, value: object) -> int:
    number = _integer(name, value, "a whole number, zero or more,")
    if not 0 <= number <= _LARGEST:
        _refuse(name, value, "a whole number, zero or more,")
    return number
