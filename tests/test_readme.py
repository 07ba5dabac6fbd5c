"""Every block of Python in the README runs, and prints what the README says that it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

README = Path(__file__).parent.parent / "README.md"
PATIENCE = 120

if not README.exists():  # a test run from a copy of the tests alone
    pytest.skip("the README is not beside the tests", allow_module_level=True)


class Block(NamedTuple):
    """One block, the heading that it stands under, and the plain block that follows at once."""

    heading: str
    code: str
    output: str | None


BEFORE = {
    "More ways in": """
import numpy as np
from pynisher_exec import LimitedProcessExecutor

def train(*what):
    return len(what)

big, configs, X = "big", ["a", "b"], np.ones(1000)
executor = LimitedProcessExecutor(2)
future = executor.submit(train)
""",
    "Searches that run for hours": """
from pynisher_exec import LimitedProcessExecutor

def train(config):
    return f"score of {config}"

configs = ["a", "b"]
""",
}
BEFORE["On a Dask cluster"] = BEFORE["Searches that run for hours"]
BEFORE["At scale"] = BEFORE["Searches that run for hours"]
BEFORE["Recipes"] = BEFORE["Searches that run for hours"] + "executor = LimitedProcessExecutor(2)\n"
"""What a reader has by then, by headings."""


def blocks() -> list[Block]:
    """Read them."""
    found = []
    heading = ""
    pattern = r"^## ([^\n]*)$|^```python\n(.*?)^```\n(?:\n```\n(.*?)^```$)?"
    for match in re.finditer(pattern, README.read_text(), re.MULTILINE | re.DOTALL):
        heading = match[1] or heading
        if match[2] is not None:
            found.append(Block(heading, match[2], match[3]))
    return found


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.heading or "the first one")
def test_block_runs(block: Block, tmp_path: Path) -> None:
    """As a script, in a directory of its own."""
    for name in re.findall(r"^(?:import|from) (\w+)", block.code, re.MULTILINE):
        environment = "smac" if name == "smac" else "clients"
        reason = f"{name} is not installed: see tox's environment {environment}"
        pytest.importorskip(name, reason=reason)
    script = tmp_path / "block.py"
    script.write_text(BEFORE.get(block.heading, "") + block.code)
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    if block.output is not None and not block.output.startswith("python"):
        assert done.stdout == block.output


def test_no_block_is_missed() -> None:
    """As many as there are."""
    assert len(blocks()) == README.read_text().count("```python") > 3
