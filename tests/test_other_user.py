"""The same promises to a normal user, who has no capability at all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from other_user import OtherUser


# Of the five ways of starting, the default: the others differ in what starts the first process.
@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("arguments", "fewest"),
    [
        (("test_crash_table.py", "-kNone"), 50),
        (("test_limits_held.py", "test_slots.py"), 21),
    ],
)
def test_suite_passes_as_a_normal_user(
    as_nobody: OtherUser, arguments: tuple[str, ...], fewest: int
) -> None:
    """Run there from copies that this user may read; enough of it must have passed."""
    done = as_nobody.pytest(*arguments, "-q", timeout=270)
    closing = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", closing)
    assert passed is not None
    assert int(passed[1]) >= fewest, closing
