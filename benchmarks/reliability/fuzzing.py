"""Row 23: engines that draw bytes, and lead them by coverage, for what reads them."""

from __future__ import annotations

import atexit
import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.reliability import readers
from benchmarks.reliability.check import Check, Found

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CHECKS"]

MOST_MEMORY = 4 << 30
HANGS = 60
"""Seconds after which an input, or 500 that Hypothesis draws, has hung."""


def _streams() -> Callable[[], None]:
    @given(readers.streams, st.lists(st.integers(0, 1 << 20), max_size=4))
    def read_anything(data: bytes, cuts: list[int]) -> None:
        readers.read_stream(data, cuts)

    tracemalloc.start()
    return read_anything


def _words() -> Callable[[], None]:
    supervisor = readers.Supervisor()
    atexit.register(supervisor.close)
    null = os.open(os.devnull, os.O_RDONLY)

    @given(st.lists(readers.said, max_size=6), st.sampled_from([None, null]))
    def hear_anything(datagrams: list[bytes], descriptor: int | None) -> None:
        supervisor.hear(datagrams, descriptor)

    return hear_anything


def _claims() -> Callable[[], None]:
    claimant = readers.Claimant()
    atexit.register(claimant.close)
    leaves = st.sampled_from(["", "", "when asked", "at once"])

    @given(readers.claimed, st.just(b"") | readers.streams, readers.replies, leaves)
    def read_any_claim(claims: list[tuple[int, int]], wild: bytes, reply: bytes, gone: str) -> None:
        claimant.read(claims, wild, reply, gone)

    return read_any_claim


SIDES = {"streams": _streams, "claims": _claims, "words": _words}
PLAN = settings(
    max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def by_hypothesis(side: str, seconds: int) -> None:
    """Draw for as long, in a process that cannot have more than there is room for."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    test = PLAN(SIDES[side]())
    tried = test.hypothesis.inner_test  # type: ignore[attr-defined]
    runs = 0

    def counted(*args: object, **kwargs: object) -> None:
        nonlocal runs
        runs += 1
        tried(*args, **kwargs)

    test.hypothesis.inner_test = counted  # type: ignore[attr-defined]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        signal.alarm(HANGS)  # its default action ends this process
        test()
    signal.alarm(0)
    print(f"Done {runs} runs", file=sys.stderr)


def by_atheris(side: str, seconds: int) -> None:
    """Let coverage lead: atheris mutates the bytes from which Hypothesis draws."""
    import atheris  # noqa: PLC0415 - it has no wheel for every Python

    bounds = f"-timeout={HANGS}", f"-rss_limit_mb={MOST_MEMORY >> 20}", "-max_len=4096"
    arguments = [side, f"-max_total_time={seconds}", *bounds]
    atheris.Setup(arguments, PLAN(SIDES[side]()).hypothesis.fuzz_one_input)  # type: ignore[attr-defined]
    atheris.Fuzz()


def _engines() -> dict[str, str]:
    """Programs that fuzz; atheris must see the modules that it measures being imported."""
    begin = f"import sys; sys.path[:] = {sys.path!r}\n"
    load = "from benchmarks.reliability import fuzzing\n"
    engines = {"hypothesis": begin + load + "fuzzing.by_hypothesis(*{!r})"}
    if importlib.util.find_spec("atheris"):
        watched = f"import atheris\nwith atheris.instrument_imports(['pynisher_exec']): {load}"
        engines["atheris"] = begin + watched + "fuzzing.by_atheris(*{!r})"
    return engines


def _run(side: str, engine: str, program: str, seconds: int) -> tuple[int, str]:
    """How many inputs were tried, and what failed."""
    with tempfile.TemporaryDirectory() as folder:  # atheris leaves the input that failed there
        try:
            done = subprocess.run(
                [sys.executable, "-c", program.format((side, seconds))],
                capture_output=True,
                check=False,
                cwd=folder,
                text=True,
                timeout=seconds * 2 + 2 * HANGS,
            )
        except subprocess.TimeoutExpired:
            return 0, f"{side} by {engine}: does not end"
    told = re.search(r"Done (\d+) runs", done.stderr)
    if done.returncode or told is None:
        return (
            0,
            f"{side} by {engine}, {done.returncode}: {done.stdout[-500:]} {done.stderr[-2000:]}",
        )
    return int(told[1]), ""


def fuzz(seconds: int) -> Found:
    """Row 23: each engine has an equal part of the seconds for each side; both sides at once."""
    engines = _engines()
    part = max(1, seconds // len(engines))
    runs, failures = [], []
    for engine, program in engines.items():
        with ThreadPoolExecutor(len(SIDES)) as threads:
            tries = [threads.submit(_run, side, engine, program, part) for side in SIDES]
        for side, attempt in zip(SIDES, tries, strict=True):
            count, failure = attempt.result()
            runs.append((count, f"{count} {side} by {engine}"))
            failures += [failure] if failure else []
    return Found(sum(count for count, _ in runs), failures, ", ".join(text for _, text in runs))


CHECKS = (
    Check(
        23,
        "no bytes that a task can send crash, hang or bloat its reader",
        "streams and claims for the caller, words for the supervisor; 30 minutes each",
        fuzz,
        1800,
        20,
    ),
)
