"""How many rollouts of a prefix are sampled: schedules that look only at the counts so far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

PRIOR = 0.5  # Jeffreys' prior for a proportion, Beta(1/2, 1/2)
SHORT = 30  # characters; the published rule ignores completions that are no longer


class Schedule(Protocol):
    """Says how many more rollouts are wanted when ``score`` of ``times`` rollouts are right."""

    counts_own_chain: bool  # whether the chain that a prefix was cut from is its first rollout

    def wanted(self, score: int, times: int, asked: int) -> int:
        """The number of rollouts to ask for at once; 0 ends the sampling.

        Args:
            asked: rollouts asked for so far, including those that did not count.
        """
        ...

    def counts(self, text: str, last_step: bool) -> bool:
        """Whether a completion counts as a rollout."""
        ...


def half_width(score: int, times: int) -> float:
    """Standard deviation of the accuracy's posterior: half the width of its 68 % interval.

    Under Jeffreys' prior the posterior soon becomes narrow near 0 and 1 (0 of 5: 0.11; 8 of 16:
    0.12), where the frequency is indeed more exact.
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
        """Whether the sampling may end."""
        known = times >= self.min_rollouts and half_width(score, times) <= self.tolerance
        return known or times >= self.max_rollouts

    def wanted(self, score: int, times: int, asked: int) -> int:
        """The fewest rollouts that can end it: they run side by side, and none is superfluous."""
        if self.enough(score, times):
            return 0
        more = 1
        # The half-width shrinks fastest if all new rollouts are right, or all are wrong.
        while not any(self.enough(score + right, times + more) for right in (0, more)):
            more += 1
        return more

    def counts(self, text: str, last_step: bool) -> bool:
        return True


@dataclass(frozen=True)
class Published:
    """The rule of the published pipeline (MC/*.py in the history of its repository).

    A prefix's own chain is its first rollout. It is extended to four rollouts, and further as long
    as right and wrong ones are mixed. The published script is then started again as often as one
    likes; here ``max_rollouts`` ends it. Completions of at most 30 characters do not count, except
    after the last step, where there is little left to say.
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
