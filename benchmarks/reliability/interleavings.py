"""Orders of events, drawn by Hypothesis, against small models of both ends of the protocol."""

from __future__ import annotations

import traceback

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    run_state_machine_as_test,
)

from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.slot_model import SlotModel
from benchmarks.reliability.watch_model import WatchModel

__all__ = ["CHECKS"]

WITHOUT_IO = 5
"""Orders for the supervisor's decisions for each of the caller's end, which has its sockets."""


def interleavings(count: int) -> Found:
    """Row 24."""
    failures = []
    ran = 0
    for model, times in ((WatchModel, WITHOUT_IO * count), (SlotModel, count)):
        plan = settings(
            max_examples=times,
            stateful_step_count=40,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # to shrink what was found would take minutes
            suppress_health_check=list(HealthCheck),
        )
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
        10_000,
        500,
    ),
)
