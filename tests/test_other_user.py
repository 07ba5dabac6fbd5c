"""The same promises to a normal user, who has no capability at all."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from other_user import OtherUser


RUNS = [
    # Of the five ways of starting, the default: the others differ in what starts the first process.
    (("test_crash_table.py", "-kNone"), 50),
    (("test_limits_held.py",), 10),
    (("test_slots.py",), 10),
]


@pytest.mark.timeout(280)
def test_suite_passes_as_a_normal_user(as_nobody: OtherUser) -> None:
    """Run there at once, from copies that this user may read; enough of it must have passed."""
    with ThreadPoolExecutor(len(RUNS)) as threads:
        runs = [
            threads.submit(as_nobody.pytest, *arguments, "-q", timeout=270) for arguments, _ in RUNS
        ]
        ends = [run.result() for run in runs]
    for done, (_, fewest) in zip(ends, RUNS, strict=True):
        closing = done.stdout.strip().splitlines()[-1]
        assert done.returncode == 0, done.stdout[-3000:]
        passed = re.search(r"(\d+) passed", closing)
        assert passed is not None
        assert int(passed[1]) >= fewest, closing
