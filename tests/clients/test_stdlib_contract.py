"""The standard library's own tests of what an executor is, where the interpreter ships them."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

PROGRAM = """
import sys
import unittest
from pynisher_exec import LimitedProcessExecutor

if sys.version_info >= (3, 12):
    from test.test_concurrent_futures import test_as_completed, test_shutdown, test_wait, util
    from test.test_concurrent_futures.executor import ExecutorTest
else:
    from test import test_concurrent_futures as util
    from test.test_concurrent_futures import ExecutorTest
    test_as_completed = test_shutdown = test_wait = util

class Ours(util.ExecutorMixin):
    executor_type = LimitedProcessExecutor

class Executors(Ours, ExecutorTest, util.BaseTestCase):
    pass

class Waits(Ours, test_wait.WaitTests, util.BaseTestCase):
    pass

class AsCompleted(Ours, test_as_completed.AsCompletedTests, util.BaseTestCase):
    pass

class Shutdowns(Ours, test_shutdown.ExecutorShutdownTest, util.BaseTestCase):
    pass

for name in (
    # Programs that import the executor's class from concurrent.futures.
    "test_interpreter_shutdown",
    "test_submit_after_interpreter_shutdown",
    "test_hang_gh83386",
    "test_hang_gh94440",
    "test_hang_issue39205",
    # Wants a call to have begun by the time that the shutdown cancels what has not, at once after
    # the first submit: before the interpreter that tasks are forked from is there.
    "test_cancel_futures",
):
    setattr(Shutdowns, name, None)

del ExecutorTest
unittest.main(argv=["contract", "-v"])
"""

if find_spec("test.test_concurrent_futures") is None:
    pytest.skip("this interpreter ships no tests of its own", allow_module_level=True)


@pytest.mark.timeout(240)
def test_executor_keeps_the_contract() -> None:
    """All that does not assume a pool that breaks, or is named by its module."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Ran " in done.stderr
