"""How far a run is, in lower and in upper steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """Lower steps done, out of how many, and what follows from them.

    Args:
        total: lower steps of the whole run, the cold start included.
        cold_steps: lower steps of the cold start, which comes before reweighting.
        unroll_steps: lower steps for each upper step.
        units: what an epoch draws, single train records or chains of them.
        iteration: lower steps done.
    """

    total: int
    cold_steps: int
    unroll_steps: int
    units: int
    iteration: int = 0

    @property
    def finished(self) -> bool:
        """Whether all lower steps are done."""
        return self.iteration >= self.total

    @property
    def cold(self) -> bool:
        """Whether the run is still in its cold start."""
        return self.iteration < self.cold_steps

    @property
    def bilevel_steps(self) -> int:
        """Lower steps done since reweighting started."""
        return max(0, self.iteration - self.cold_steps)

    @property
    def upper_steps(self) -> int:
        """Upper steps done, including those that were skipped for lack of a hypergradient."""
        return self.bilevel_steps // self.unroll_steps

    @property
    def since_upper_step(self) -> int:
        """Lower steps done since the last upper step."""
        return self.bilevel_steps % self.unroll_steps
