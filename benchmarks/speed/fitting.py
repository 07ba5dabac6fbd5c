"""A user's module: what it needs is imported at its top."""

from __future__ import annotations

import os
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.tree import DecisionTreeClassifier

__all__ = ["fit", "was_imported_ahead"]


def fit(depth: int) -> float:
    """Fit a small tree."""
    data, target = load_digits(return_X_y=True)
    model = DecisionTreeClassifier(max_depth=depth, random_state=0)
    return float(model.fit(data[:600], target[:600]).score(data, target))


def was_imported_ahead() -> bool:
    """Whether the process that forked this one has scikit-learn's libraries mapped."""
    return "sklearn" in Path(f"/proc/{os.getppid()}/maps").read_text()
