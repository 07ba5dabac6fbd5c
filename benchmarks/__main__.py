"""Run the benchmarks, from the folder above.

python -m benchmarks                  what isolation costs, against the peers: see benchmarks.speed
python -m benchmarks ROW...           those rows; --quick, --json FILE and --picture FILE go with it
python -m benchmarks core legacy      promises of the core, and of `enforce_limits`
python -m benchmarks.reliability      promises that are kept or broken: see there
"""

from __future__ import annotations

import sys
from runpy import run_module

from benchmarks.speed.__main__ import main as speed

NAMES = ("core", "legacy")


def main(arguments: list[str]) -> int:
    """Run each in this process; 1 when one of its promises was missed."""
    if not arguments or not set(arguments) <= set(NAMES):
        return speed()
    # Under a name that no task can import, as a script's: its functions travel by value.
    modules = [run_module(f"benchmarks.{name}", run_name=f"<{name}>") for name in arguments]
    missed = [module["main"]() for module in modules]
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
