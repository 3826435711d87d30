"""Choosing a response: from the log-odds of its prefixes to one number, and from N to the best.

``mean_log_odds`` is the aggregation that the upper level is trained through. There it is computed
for a batch, with gradients (``mean_log_odds`` in :mod:`reweighting.bilevel.objectives`); here it is
one of several ways to aggregate finished scores, one chain at a time in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

LogOdds = list[list[float]]  # of one question: for each candidate, z of its step prefixes

# From the log-odds z of a chain's prefixes ``[steps]`` to one number; larger is better.
AGGREGATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean_log_odds": torch.mean,  # DreamPRM, section 3
    "sum_log_odds": torch.sum,
    "mean": lambda z: torch.sigmoid(z).mean(),
    "min": lambda z: torch.sigmoid(z).min(),
    "max": lambda z: torch.sigmoid(z).max(),
    "product": lambda z: torch.nn.functional.logsigmoid(z).sum(),  # its logarithm: no underflow
    "last": lambda z: torch.sigmoid(z[-1]),  # as an outcome reward model
}


def aggregate(log_odds: Sequence[float], aggregation: str) -> float:
    """One number for a chain; ``aggregation`` is a name in :data:`AGGREGATIONS`.

    A chain without steps gets -∞ and so ranks below every other.
    """
    if not log_odds:
        return -math.inf
    return float(AGGREGATIONS[aggregation](torch.tensor(log_odds, dtype=torch.float64)))


def select(log_odds: LogOdds, aggregation: str = "mean_log_odds") -> int:
    """Index of the best candidate, the first one among equals."""
    scores = [aggregate(z, aggregation) for z in log_odds]
    return scores.index(max(scores))
