"""Methods of choosing among N candidates, and the accuracy of their choices.

Every method sees the same pool of candidates. The accuracy at N is an average over subsets of N
candidates of the pool (all subsets if there are few), so that it does not depend on a lucky one.
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

SUBSETS = 200  # drawn at random if there are more
RESAMPLES = 2000  # of the bootstrap


@dataclass
class Pool:
    """The candidates of one question, as the methods of choosing see them.

    Args:
        parties: equal numbers for candidates with the same final answer ``[n]``, by the comparison
            that also decides what is right; -1 where no answer can be read.
        right: whether a candidate is right, ``[n]``.
        scores: aggregated scores ``[n]`` by aggregation.
        probability: of being right, ``[n]``: the sigmoid of the mean log-odds; weights the votes.
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
        """The pool of responses, whether they are right, and the log-odds of their prefixes.

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
        """The share of subsets of ``size`` candidates from which a method picks a right one.

        Returns:
            The share by method: ``one sample``, ``majority``, ``weighted vote``, the aggregations,
            ``oracle``.
        """
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
    """Subsets of ``size`` of ``pool`` candidates, ``[subsets, size]``, the candidates in order.

    All subsets, or :data:`SUBSETS` random ones if there are more.
    """
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
        values: of every question, ``[questions]``, or of several runs, ``[runs, questions]``. The
            bootstrap draws runs and questions, the same questions for every run.

    Returns:
        Mean, standard error, and the lower and upper end of the interval.
    """
    table = np.atleast_2d(values)
    rng = np.random.default_rng(0)
    runs, questions = table.shape
    if runs == 1:  # the same draws at once, in a sixth of the time
        means = table[0][rng.integers(0, questions, (RESAMPLES, questions))].mean(1)
    else:
        draws = (
            table[rng.integers(0, runs, runs)][:, rng.integers(0, questions, questions)].mean()
            for _ in range(RESAMPLES)
        )
        means = np.array(list(draws))
    low, high = (float(np.percentile(means, percent)) for percent in (2.5, 97.5))
    return float(table.mean()), float(np.std(means)), low, high


def evaluate(
    pools: Sequence[Pool], at: Sequence[int] | None = None
) -> dict[str, dict[int, np.ndarray]]:
    """Accuracy of every method at every N, one value per question: {method: {N: ``[questions]``}}.

    Args:
        at: the values of N; by default those of :func:`sizes`.
    """
    found: dict[str, dict[int, np.ndarray]] = {}
    for size in at or sizes(max(len(pool.right) for pool in pools)):
        by_question = [pool.accuracies(size) for pool in pools]
        for name in by_question[0]:
            found.setdefault(name, {})[size] = np.array([values[name] for values in by_question])
    return found
