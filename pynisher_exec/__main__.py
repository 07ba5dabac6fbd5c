"""`python -m pynisher_exec`: see `pynisher_exec.cli`."""

import sys

from pynisher_exec.cli import main

if __name__ == "__main__":
    sys.exit(main())
