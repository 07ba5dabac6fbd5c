"""Orders of events, drawn by Hypothesis, against small models of both ends of the protocol."""

from __future__ import annotations

import traceback

from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    run_state_machine_as_test,
)

from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.slot_model import SlotModel
from benchmarks.reliability.watch_model import WatchModel

__all__ = ["CHECKS"]

NOBODY = (1 << 31) - 1
"""No process has this pid (proc(5), pid_max)."""


def interleavings(count: int) -> Found:
    """Row 24."""
    failures = []
    plan = settings(
        max_examples=count,
        stateful_step_count=40,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    ran = 0
    for model in (WatchModel, SlotModel):
        model.runs = 0
        try:
            run_state_machine_as_test(model, settings=plan)
        except Exception as error:  # noqa: BLE001 - whatever comes is what is looked for
            failures.append(f"{model.__name__}: {''.join(traceback.format_exception(error))}")
        ran += model.runs
    return Found(ran, failures, f"{ran} orders of up to 40 events")


CHECKS = (
    Check(
        24,
        "each task gets exactly one verdict that fits, and no state waits for ever",
        "orders of events against models of both ends of the protocol",
        interleavings,
        100_000,
        500,
    ),
)
