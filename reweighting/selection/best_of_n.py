"""From step scores to a choice among N candidates, and what choosing is worth.

Every method sees the same pool of candidates. Accuracies at N are averages over the subsets of size
N of the pool, all of them where there are few, so that no lucky subset is ever picked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from ..records.answers.comparison import parties
from ..records.answers.extraction import extract
from ..reward_model.aggregation import LogOdds, aggregate

SUBSETS = 200  # at least, where not all are looked at
RESAMPLES = 2000  # of the bootstrap


@dataclass
class Pool:
    """The candidates of one question as choosing sees them.

    Args:
        parties: which candidates give the same final answer ``[n]``: equal numbers for the same,
            by the comparison that decides truth; -1 where no answer can be read.
        right: whether a candidate is right, ``[n]``.
        scores: aggregated scores ``[n]`` by aggregation.
        probability: of being right, ``[n]``: the sigmoid of the mean log-odds; weighs votes.
    """

    parties: np.ndarray
    right: np.ndarray
    scores: dict[str, np.ndarray]
    probability: np.ndarray

    @classmethod
    def of(
        cls,
        candidates: Sequence[str],
        true_false: Sequence[bool],
        log_odds: LogOdds,
        aggregations: Sequence[str],
        choices: Sequence[str] | None = None,
    ) -> Pool:
        """From responses, their truth and the log-odds of their prefixes.

        Args:
            choices: texts of the question's options, if it has any.
        """
        means = torch.tensor([aggregate(z, "mean_log_odds") for z in log_odds], dtype=torch.float64)
        return cls(
            np.array(parties([extract(text, choices) for text in candidates], choices)),
            np.array(true_false, dtype=float),
            {name: np.array([aggregate(z, name) for z in log_odds]) for name in aggregations},
            torch.sigmoid(means).numpy(),
        )

    def accuracies(self, size: int) -> dict[str, float]:
        """Share of subsets of ``size`` candidates from which each method picks a right one."""
        chosen = subsets(len(self.right), min(size, len(self.right)))  # [subsets, size]
        right = self.right[chosen]
        party = self.parties[chosen]
        same = (party[:, :, None] == party[:, None, :]) & (party >= 0)[:, None, :]
        weight = self.probability[chosen][:, None, :]
        support = {
            "majority": same.sum(-1),  # votes for each candidate's answer
            "weighted vote": (same * weight).sum(-1),
            **{name: scores[chosen] for name, scores in self.scores.items()},
        }
        rows = np.arange(len(chosen))
        # argmax takes the first among equals
        found = {name: right[rows, value.argmax(-1)].mean() for name, value in support.items()}
        return {"one sample": right.mean(), **found, "oracle": right.max(-1).mean()}


@cache
def subsets(pool: int, size: int) -> np.ndarray:
    """Subsets of ``size`` of ``pool`` candidates, in order: all, or :data:`SUBSETS` random ones."""
    if math.comb(pool, size) <= SUBSETS:
        return np.array(list(itertools.combinations(range(pool), size)))
    rng = np.random.default_rng(0)
    draws = [np.sort(rng.choice(pool, size, replace=False)) for _ in range(SUBSETS)]
    return np.array(draws)


def sizes(pool: int) -> list[int]:
    """N = 1, 2, 4, 8 … up to the size of the pool, which is included."""
    powers = [2**k for k in range(pool.bit_length()) if 2**k <= pool]
    return powers if powers[-1] == pool else [*powers, pool]


def interval(values: np.ndarray) -> tuple[float, float, float, float]:
    """Mean over questions, its standard error, and its 95 % bootstrap interval.

    Args:
        values: of every question, ``[questions]``, or of several runs, ``[runs, questions]``; both
            runs and questions are drawn anew, the same questions for every run.
    """
    table = np.atleast_2d(values)
    rng = np.random.default_rng(0)
    runs, questions = table.shape
    means = [
        table[rng.integers(0, runs, runs)][:, rng.integers(0, questions, questions)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(table.mean()), float(np.std(means)), float(low), float(high)


def evaluate(
    pools: Sequence[Pool], at: Sequence[int] | None = None
) -> dict[str, dict[int, np.ndarray]]:
    """Accuracy of every method at every N (of ``at``, or of :func:`sizes`), a value a question."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for size in at or sizes(max(len(pool.right) for pool in pools)):
        by_question = [pool.accuracies(size) for pool in pools]
        for name in by_question[0]:
            found.setdefault(name, {})[size] = np.array([values[name] for values in by_question])
    return found
