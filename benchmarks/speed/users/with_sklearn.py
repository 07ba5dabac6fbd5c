"""A small fit on the digits."""

from __future__ import annotations

from sklearn.datasets import load_digits
from sklearn.tree import DecisionTreeClassifier

__all__ = ["work"]


def work(depth: int) -> float:
    """Fit a tree to them."""
    data, target = load_digits(return_X_y=True)
    model = DecisionTreeClassifier(max_depth=depth, random_state=0)
    return float(model.fit(data, target).score(data, target))
