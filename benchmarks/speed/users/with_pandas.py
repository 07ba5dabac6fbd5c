"""A small table."""

from __future__ import annotations

import pandas as pd

__all__ = ["work"]


def work(groups: int) -> float:
    """Take the mean of each group."""
    table = pd.DataFrame({"group": [n % groups for n in range(3000)], "value": range(3000)})
    return float(table.groupby("group")["value"].mean().sum())
