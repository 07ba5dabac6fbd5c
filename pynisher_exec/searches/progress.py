"""How far a search is: a bar in a terminal or a notebook, a line now and then in a file."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from pynisher_exec.report import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

__all__ = ["Painter", "Progress", "View", "duration"]

REFRESH = 0.5
"""Seconds between two looks at what runs."""

FAREWELL = 2.0
"""Seconds that the last one may take: a terminal may stand still (Ctrl-S)."""

LINE_EVERY = 30.0
"""Seconds between two lines where the output is no terminal."""

_COLOURS = {
    Status.OK: 32,
    Status.MEMORY: 35,
    Status.CPU_TIME: 33,
    Status.WALL_TIME: 33,
    Status.PROCESSES: 36,
    Status.CANCELLED: 90,
}
_FAILURE = 31

_FULL, _SMALL, _SHORT = 55, 35, 22
"""Characters that a line takes beside name, total and counts: with tqdm's bar, with one of ten
characters, without."""


class View(Protocol):
    """Where it is shown."""

    def show(self, progress: Progress) -> None:
        """Show how far it is; called as things change, and twice a second."""

    def close(self, progress: Progress) -> None:
        """Show it for the last time."""


class Progress:
    """The figures: `total` items (None: not known), `done`, `running`, and how they ended."""

    def __init__(
        self,
        total: int | None,
        label: str,
        view: View | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.label = label
        self.done = 0
        self.running = 0
        self.statuses: Counter[Status] = Counter()
        self.clock = clock
        self._began = clock()
        self._view = _view() if view is None else view

    def skip(self) -> None:
        """An item is not run."""
        if self.total is not None:
            self.total -= 1

    def end(self, status: Status) -> None:
        """A task has ended."""
        self.done += 1
        self.statuses[status] += 1

    def show(self, running: int) -> None:
        """Bring what is seen up to date; called in one thread alone."""
        self.running = running
        self._view.show(self)

    def close(self) -> None:
        """The search has ended."""
        self.running = 0
        self._view.close(self)

    def counts(self, *, colour: bool) -> str:
        """`running 4  ok 112  memory 7`, in the order of `Status`."""
        parts = [f"running {self.running}"] if self.running else []
        for status in Status:
            if self.statuses[status]:
                text = f"{status.value} {self.statuses[status]}"
                number = _COLOURS.get(status, _FAILURE)
                parts.append(f"\x1b[{number}m{text}\x1b[0m" if colour else text)
        return "  ".join(parts)

    @property
    def rate(self) -> float:
        """Items a second so far; cancelled ones took no time."""
        ended = self.done - self.statuses[Status.CANCELLED]
        return ended / max(self.clock() - self._began, 1e-9)


def _view() -> View:
    try:
        from tqdm import auto  # noqa: PLC0415  (an extra)
    except ImportError as error:
        msg = "progress=True needs tqdm: pip install 'pynisher_exec[progress]'"
        raise ImportError(msg) from error
    notebook = "notebook" in auto.tqdm.__mro__[1].__module__
    if notebook:
        return Bar(auto.tqdm, colour=False, size={})
    if sys.stderr is None or getattr(sys.stderr, "closed", False):  # a daemon's
        return Lines(io.StringIO())
    if not _is_terminal(sys.stderr):
        return Lines(_unbuffered(sys.stderr))
    # One that does not say how wide it is would get an empty bar.
    is_known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    size: dict[str, Any] = {"dynamic_ncols": True} if is_known else {"ncols": 80, "nrows": 20}
    size |= {"file": _unbuffered(sys.stderr)}
    return Bar(auto.tqdm, colour="NO_COLOR" not in os.environ, size=size)


def _is_terminal(file: Any) -> bool:
    """Whether it is one of the system's; it may be an object with no more than a `write`."""
    try:
        return bool(file.isatty() and os.isatty(file.fileno()))
    except (OSError, ValueError, AttributeError):
        return False


def _unbuffered(file: TextIO) -> TextIO:
    """Give the same file without its buffer: what could not be written leaves nothing behind.

    What stays in the buffer of a terminal that has gone away is tried again as Python ends, and
    makes its exit status 120.
    """
    if type(file) is not io.TextIOWrapper:  # a test's, a notebook's, one that copies to a log
        return file
    with contextlib.suppress(OSError):  # gone already
        file.flush()
    try:
        raw = io.FileIO(file.fileno(), "w", closefd=False)
    except OSError:  # its descriptor is closed
        return file
    return io.TextIOWrapper(raw, encoding=file.encoding, errors=file.errors, write_through=True)


class Painter:
    """Shows a progress, in a thread of its own: a terminal that stands still holds up nothing.

    Nor does one that has gone. `running` tells how many tasks run.
    """

    def __init__(self, progress: Progress, running: Callable[[], int]) -> None:
        self._progress = progress
        self._running = running
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._paint, name="pynisher_exec progress", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Show it for the last time, unless that takes too long."""
        self._ended.set()
        self._thread.join(FAREWELL)

    def _paint(self) -> None:
        with contextlib.suppress(Exception):  # a terminal that has gone: nobody is there to see
            self._progress.show(0)
            while not self._ended.wait(REFRESH):
                self._progress.show(self._running())
            self._progress.close()


class Bar:
    """tqdm's, drawn by one thread alone."""

    def __init__(self, kind: Any, *, colour: bool, size: dict[str, Any]) -> None:
        class Quiet(kind):  # type: ignore[misc]
            """Without tqdm's thread, which outlives its bars, and its lock between processes."""

            monitor_interval = 0

        Quiet.set_lock(threading.RLock())
        self._kind = Quiet
        self._colour = colour
        self._size = size
        self._bar: Any = None

    def show(self, progress: Progress) -> None:
        """Draw it, unless it was drawn a moment ago."""
        if self._bar is None:
            self._bar = self._kind(total=progress.total, desc=progress.label, **self._size)
        self._bar.total = progress.total
        self._bar.bar_format = self._format(progress)
        self._bar.set_postfix_str(progress.counts(colour=self._colour), refresh=False)
        if progress.done != self._bar.n:
            self._bar.update(progress.done - self._bar.n)
        else:
            self._bar.refresh()

    def _format(self, progress: Progress) -> str | None:
        """None for tqdm's own; shorter ones where its end, the counts, would be cut off."""
        if not self._size:  # a notebook's
            return None
        width = self._size.get("ncols") or os.get_terminal_size(self._size["file"].fileno()).columns
        left = width - len(progress.counts(colour=False)) - len(f"{progress.total}") * 2
        if left >= len(progress.label) + _FULL:
            return None
        if left >= len(progress.label) + _SMALL:
            bar = "{percentage:3.0f}%|{bar:10}|"
            return "{desc}: " + bar + " {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        if left >= len(progress.label) + _SHORT:
            return "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        return "{n_fmt}/{total_fmt}{postfix}"

    def close(self, progress: Progress) -> None:
        """Leave it standing as it ended."""
        self.show(progress)
        self._bar.refresh()
        self._bar.close()


class Lines:
    """One line every half minute, and one at the end."""

    def __init__(self, file: TextIO, every: float = LINE_EVERY) -> None:
        self._file = file
        self._every = every
        self._next: float | None = None

    def show(self, progress: Progress) -> None:
        """Write a line, where the last one is long enough ago."""
        now = progress.clock()
        if self._next is not None and now >= self._next:
            self._write(progress)
        if self._next is None or now >= self._next:
            self._next = now + self._every

    def close(self, progress: Progress) -> None:
        """Write how it ended."""
        self._write(progress, is_last=True)

    def _write(self, progress: Progress, *, is_last: bool = False) -> None:
        of = "" if progress.total is None else f" of {progress.total}"
        left = ""
        if not is_last and progress.total is not None and 0 < progress.done < progress.total:
            left = f", {duration((progress.total - progress.done) / max(progress.rate, 1e-9))} left"
        counts = progress.counts(colour=False)
        line = f"{progress.label}: {progress.done}{of} done, {progress.rate:.3g}/s{left}"
        print(f"{line}: {counts}" if counts else line, file=self._file, flush=True)


def duration(seconds: float) -> str:
    """`1 h 05 min`, `3 min 20 s`, `12 s`, `0.35 s`."""
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
