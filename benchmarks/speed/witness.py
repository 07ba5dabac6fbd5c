"""Another process that tells when tasks end, whatever the caller is busy with."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["Witness"]


class Witness:
    """Watches processes by their pidfds.

    A task introduces itself by a line in the named pipe `told`: its pid, and when it began.
    """

    def __init__(self) -> None:
        self._folder = TemporaryDirectory()
        self.told = str(Path(self._folder.name, "told"))
        os.mkfifo(self.told)
        self._process = subprocess.Popen(
            [sys.executable, __file__, self.told], stdout=subprocess.PIPE, text=True
        )

    def next(self) -> tuple[float, float]:
        """When the next of them began, as it said itself, and when it ended."""
        assert self._process.stdout is not None
        begun, ended = map(float, self._process.stdout.readline().split())
        return begun, ended

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


def main(path: str) -> None:
    """Be the witness."""
    with open(os.open(path, os.O_RDWR)) as lines:  # to write as well: so it never ends
        for line in lines:
            pid, begun = line.split()
            descriptor = os.pidfd_open(int(pid))
            select.select([descriptor], [], [])
            print(begun, time.monotonic(), flush=True)
            os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1])
