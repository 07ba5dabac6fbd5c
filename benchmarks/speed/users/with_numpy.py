"""A small system of equations."""

from __future__ import annotations

import numpy as np

__all__ = ["work"]


def work(size: int) -> float:
    """Solve one."""
    matrix = np.eye(40 * size) + 0.1
    return float(np.linalg.solve(matrix, np.ones(40 * size)).sum())
