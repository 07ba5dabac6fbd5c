"""Run the benchmarks, from the folder above: `python -m benchmarks`.

python -m benchmarks            all
python -m benchmarks core       those named: core, legacy
"""

from __future__ import annotations

import sys
from runpy import run_module

NAMES = ("core", "legacy")


def main(names: list[str]) -> int:
    """Run each in this process; 1 when one of its promises was missed."""
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
        return 2
    # Under a name that no task can import, as a script's: its functions travel by value.
    modules = [run_module(f"benchmarks.{name}", run_name=f"<{name}>") for name in names or NAMES]
    missed = [module["main"]() for module in modules]
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
