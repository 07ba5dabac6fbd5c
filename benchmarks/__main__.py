"""Run the benchmarks: `python .` in this folder, or `python -m benchmarks` above it.

python -m benchmarks            all scripts
python -m benchmarks core       those named: core, legacy
"""

from __future__ import annotations

import sys
from pathlib import Path
from runpy import run_path

FOLDER = Path(__file__).parent
SCRIPTS = {name: FOLDER / f"{name}.py" for name in ("core", "legacy")}


def main(names: list[str]) -> int:
    """Run each script in this process; 1 when one of its promises was missed."""
    unknown = set(names) - set(SCRIPTS)
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(SCRIPTS)}")
        return 2
    sys.path.insert(0, str(FOLDER))  # as for a script: they import each other
    missed = [run_path(str(SCRIPTS[name]))["main"]() for name in names or SCRIPTS]
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
