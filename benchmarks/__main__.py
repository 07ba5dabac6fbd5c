"""Run the benchmarks, from the folder above: `python -m benchmarks`.

python -m benchmarks            all
python -m benchmarks core       those named: core, legacy
"""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = ("core", "legacy")


def main(names: list[str]) -> int:
    """Run each in this process; 1 when one of its promises was missed."""
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
        return 2
    missed = [import_module(f"benchmarks.{name}").main() for name in names or NAMES]
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
