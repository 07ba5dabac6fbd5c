"""Limits inside Spark: `limited` in a local session's Python workers; no code of ours but that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from trial_text import TRIAL

pytest.importorskip("pyspark", reason="pyspark is not installed: see tox's environment spark")
pytestmark = [
    pytest.mark.skipif(
        shutil.which("java") is None and "JAVA_HOME" not in os.environ, reason="Spark needs Java"
    ),
    pytest.mark.timeout(120),
]

SCRIPT = (
    TRIAL
    + """
from pyspark.sql import SparkSession

def run(how):
    report = safe.report(how)
    return report.status.value, report.result, os.getpid()

quiet = {"spark.ui.enabled": "false", "spark.log.level": "OFF"}
builder = SparkSession.builder.master("local[2]")
for name, value in quiet.items():
    builder = builder.config(name, value)
session = builder.getOrCreate()
rows = session.sparkContext.parallelize(["a", "hang", "eat", "b"], 2).map(run).collect()
print([row[:2] for row in rows], len({pid for *_, pid in rows}))
session.stop()
"""
)


def test_limits_hold_and_workers_live() -> None:
    """What hangs or eats memory fails alone: both workers go on to their next item."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
    )
    expected = [("ok", "a"), ("wall_time", None), ("memory", None), ("ok", "b")]
    assert done.stdout == f"{expected} 2\n", done.stderr[-2000:]
