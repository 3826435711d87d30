"""From the log-odds of a chain's prefixes to one number, and from N numbers to a choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

LogOdds = list[list[float]]  # of one question: one list of step prefixes a candidate


# From the log-odds z of a chain's prefixes ``[steps]`` to one number; larger is better.
AGGREGATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean_log_odds": torch.mean,  # the paper's
    "sum_log_odds": torch.sum,
    "mean": lambda z: torch.sigmoid(z).mean(),
    "min": lambda z: torch.sigmoid(z).min(),
    "max": lambda z: torch.sigmoid(z).max(),
    "product": lambda z: torch.nn.functional.logsigmoid(z).sum(),  # its logarithm: no underflow
    "last": lambda z: torch.sigmoid(z[-1]),  # as an outcome reward model
}


def aggregate(log_odds: Sequence[float], aggregation: str) -> float:
    """One number for a chain; ``aggregation`` is a name of :data:`AGGREGATIONS`.

    A chain without steps is below every other.
    """
    if not log_odds:
        return -math.inf
    return float(AGGREGATIONS[aggregation](torch.tensor(log_odds, dtype=torch.float64)))


def select(log_odds: LogOdds, aggregation: str = "mean_log_odds") -> int:
    """Index of the best candidate, the first one among equals."""
    scores = [aggregate(z, aggregation) for z in log_odds]
    return scores.index(max(scores))
