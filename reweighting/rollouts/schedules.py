"""From outcomes of rollouts to labels: when to stop sampling, what the accuracy is, what is kept.

Pure functions of counts. Nothing here knows in which order rollouts came back.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..records.subsets import balanced

PRIOR = 0.5  # Jeffreys' prior for a proportion, Beta(1/2, 1/2)
SHORT = 30  # characters; the published rule ignores completions no longer than that


class Schedule(Protocol):
    """Says after ``score`` right ones among ``times`` rollouts how many more are wanted."""

    counts_own_chain: bool  # is the chain a prefix was cut from its first rollout?

    def wanted(self, score: int, times: int, asked: int) -> int:
        """Rollouts to ask for at once; 0: it is enough.

        Args:
            asked: rollouts asked for so far, including those that did not count.
        """
        ...

    def counts(self, text: str, last_step: bool) -> bool:
        """Whether a completion is a rollout at all."""
        ...


def half_width(score: int, times: int) -> float:
    """Standard deviation of the accuracy's posterior: half the width of its 68 % interval.

    Under Jeffreys' prior, which near 0 and 1 is narrow early (0 of 5: 0.11; 8 of 16: 0.12), as
    the frequency there is indeed more exact.
    """
    right, wrong = score + PRIOR, times - score + PRIOR
    total = right + wrong
    return math.sqrt(right * wrong / (total + 1)) / total


@dataclass(frozen=True)
class Adaptive:
    """Sample until the half-width is at most ``tolerance``."""

    min_rollouts: int = 4
    max_rollouts: int = 16
    tolerance: float = 0.11
    counts_own_chain = False

    def enough(self, score: int, times: int) -> bool:
        known = times >= self.min_rollouts and half_width(score, times) <= self.tolerance
        return known or times >= self.max_rollouts

    def wanted(self, score: int, times: int, asked: int) -> int:
        """The fewest that can end it, so that rollouts run side by side and none is in vain."""
        if self.enough(score, times):
            return 0
        more = 1
        # The half-width shrinks fastest if all that come are right, or all wrong.
        while not any(self.enough(score + right, times + more) for right in (0, more)):
            more += 1
        return more

    def counts(self, text: str, last_step: bool) -> bool:
        return True


@dataclass(frozen=True)
class Published:
    """The rule of the published pipeline (MC/*.py in its history, deleted later).

    A prefix's own chain is its first rollout. It is extended up to four, and on as long as right
    and wrong ones are mixed; there the published script is started again as often as one likes,
    here ``max_rollouts`` ends it. Completions of at most 30 characters do not count, except after
    the last step, where there is little left to say.
    """

    max_rollouts: int = 16
    counts_own_chain = True

    def wanted(self, score: int, times: int, asked: int) -> int:
        left = max(0, self.max_rollouts - 1 - asked)
        if times < 4:
            return min(4 - times, left)
        return left if 0 < score < times else 0

    def counts(self, text: str, last_step: bool) -> bool:
        return last_step or len(text.strip()) > SHORT


def posterior_accuracies(
    scores: Sequence[int], times: Sequence[int], iterations: int = 200
) -> list[float]:
    """Posterior means of the accuracies of prefixes of one domain (empirical Bayes).

    The prior is the distribution of accuracies that makes the domain's own counts likeliest: the
    non-parametric maximum likelihood estimate (Kiefer and Wolfowitz, 1956) on a grid, by EM. On
    average closer to the truth than score / times, but each value is drawn towards its domain.
    When sampling stopped does not matter to a likelihood.
    """
    grid = np.linspace(0.005, 0.995, 100)
    counts, where = np.unique(np.stack([scores, times], axis=1), axis=0, return_inverse=True)
    how_often = np.bincount(where.ravel())
    right, wrong = counts[:, :1], counts[:, 1:] - counts[:, :1]
    likelihood = grid**right * (1 - grid) ** wrong  # [distinct counts, grid]
    prior = np.full(len(grid), 1 / len(grid))
    for _ in range(iterations):
        posterior = likelihood * prior
        posterior /= posterior.sum(1, keepdims=True)
        prior = how_often @ posterior / how_often.sum()
    return (posterior @ grid)[where.ravel()].tolist()


def select_prefixes(records: Sequence[dict], per_domain: int, seed: int) -> list[dict]:
    """At most ``per_domain`` train records of every domain, in their order, by the paper's rule.

    Accuracies strictly between 0 and 1 first: such a prefix is neither hopeless nor safe. Then
    certain ones, right and wrong in equal numbers while they last, then whatever is left.
    """
    domains: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, record in enumerate(records):
        accuracy = record["accuracy"]
        if record.get("times"):  # --estimate posterior never says 0 or 1
            accuracy = record["score"] / record["times"]
        kind = {0: "wrong", 1: "right"}.get(accuracy, "fractional")
        domains[record["dataset"]][kind].append(index)
    kept: set[int] = set()
    for name, kinds in domains.items():
        rng = random.Random(f"{seed}/{name}")
        for kind in ("fractional", "right", "wrong"):
            rng.shuffle(kinds[kind])
        fractional = kinds["fractional"][:per_domain]
        certain = balanced(kinds["right"], kinds["wrong"], per_domain - len(fractional))
        kept.update(fractional, certain)
    return [records[index] for index in sorted(kept)]


def most_alike(right: Iterable[str], wrong: Iterable[str]) -> tuple[str, str] | None:
    """A right and a wrong chain of most equal length, so that length tells the label least."""
    wrong = list(wrong)
    pairs = [(a, b) for a in right for b in wrong]
    return min(pairs, key=lambda pair: abs(len(pair[0]) - len(pair[1])), default=None)
