"""A few steps of gradient descent."""

from __future__ import annotations

from typing import Any

import torch as _torch

__all__ = ["work"]

torch: Any = _torch


def work(size: int) -> float:
    """Fit a line."""
    inputs = torch.linspace(0, 1, 100 * size)
    weight, loss = torch.zeros(1, requires_grad=True), torch.zeros(1)
    for _ in range(20):
        loss = ((inputs * weight - 2 * inputs) ** 2).mean()
        loss.backward()
        with torch.no_grad():
            weight -= weight.grad
            weight.grad.zero_()
    return float(loss)
