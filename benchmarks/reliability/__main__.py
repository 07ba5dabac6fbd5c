"""`python -m benchmarks.reliability [--quick] [NUMBER...]`: see the package."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING

from benchmarks.processes import pids_with
from benchmarks.reliability.check import Found
from benchmarks.rows import environment

if TYPE_CHECKING:
    from benchmarks.reliability.check import Check

LONGEST = 3600
"""Seconds after which a row is given up: it hangs."""

PATIENCE = 5
"""Seconds that what has been told to end has for it."""

ROW = "PYNISHER_EXEC_RELIABILITY_ROW"
"""Variable by which all that a row has started is known."""

MODULES = (
    "bombs",
    "callers",
    "causes",
    "descriptors",
    "endings",
    "fuzzing",
    "groups",
    "helpers",
    "interleavings",
    "jails",
    "kills",
    "races",
    "secrecy",
    "shortages",
    "source",
    "values",
)
CHECKS: list[Check] = sorted(
    chain.from_iterable(import_module(f"benchmarks.reliability.{name}").CHECKS for name in MODULES)
)


def run(check: Check, *, quick: bool) -> bool:
    """Try one promise and print its row; whether it was kept."""
    began = time.monotonic()
    try:
        found = check.run(check.quick if quick else check.full)
    except Exception:  # noqa: BLE001 - a row that cannot be run is one that has failed
        found = Found(0, [traceback.format_exc()[-2000:]], "the row itself broke")
    took = time.monotonic() - began
    refused = found.refused and not found.failures
    word = "refused" if refused else f"{len(found.failures)} of {found.tries} failed"
    print(f"{check.number:2} {check.promise}\n   {check.how}: {word}; {found.worst} ({took:.0f} s)")
    for line in [found.refused, *found.failures[:5]]:
        if line:
            print(f"     {line}")
    sys.stdout.flush()
    return not found.failures


def run_apart(number: int, *, quick: bool) -> bool:
    """Try one promise in a process of its own, which leaves none behind and comes to an end."""
    flags = ["--quick"] if quick else []
    command = [sys.executable, "-m", "benchmarks.reliability", *flags, "--here", str(number)]
    mark = secrets.token_hex(12)
    trouble = ""
    try:
        kept = not subprocess.run(
            command, check=False, env={**os.environ, ROW: mark}, timeout=LONGEST
        ).returncode
    except subprocess.TimeoutExpired:
        kept, trouble = False, f"no end within {LONGEST} s"
    deadline = time.monotonic() + PATIENCE
    while (left := pids_with(ROW, [mark])) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        trouble += f" {len(left)} processes left: {left[:10]}"
        for pid in left:  # nothing of a row lives on beside the next one
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if trouble:
        print(f"{number:2} {trouble}", flush=True)
    return kept and not trouble


def main() -> int:
    """Run all, or those named; 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(prog="benchmarks.reliability", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="try each promise less often")
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)
    parser.add_argument("numbers", nargs="*", type=int, help="rows to run; default: all")
    options = parser.parse_args()
    # A shell that starts this in the background has it ignore Ctrl-C, which callers are sent here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    by_number = {check.number: check for check in CHECKS}
    if options.here:
        return int(not run(by_number[options.here], quick=options.quick))
    print(*environment(), sep="\n", flush=True)
    kept = [run_apart(each, quick=options.quick) for each in options.numbers or by_number]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
