"""`python -m benchmarks.reliability [--quick] [NUMBER...]`: see the package."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING

from benchmarks.reliability.check import Found
from benchmarks.rows import print_environment

if TYPE_CHECKING:
    from benchmarks.reliability.check import Check

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


def main() -> int:
    """Run all, or those named; 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(prog="benchmarks.reliability", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="try each promise less often")
    parser.add_argument("numbers", nargs="*", type=int, help="rows to run; default: all")
    options = parser.parse_args()
    # A shell that starts this in the background has it ignore Ctrl-C, which callers are sent here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print_environment()
    chosen = [each for each in CHECKS if not options.numbers or each.number in options.numbers]
    kept = [run(check, quick=options.quick) for check in chosen]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
