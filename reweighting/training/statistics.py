"""Can the learned weights be told from a random walk, and do they mean anything?

With small batches noise moves a weight as far as evidence does, because AdamW takes steps of the
same size for both. The two differ in whether the hypergradients of a domain agree with each other.
Moreover, weights are learned from the scores of the meta chains: where these are no better than one
constant score for all chains, the weights say nothing about the data.
"""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass

import torch
from torch import nn

from ..bilevel.objectives import chain_losses
from ..records.dataset import Data

WINDOW = 100  # last upper steps that are looked at
ENOUGH_STEPS = 30  # fewer upper steps cannot be told from noise
RESAMPLES = 1000  # of the bootstrap
CONFIDENCE = 0.95  # of its interval
AVERAGED = 4  # average weights are over the last quarter of the upper steps
COLLAPSED = 0.5  # below this entropy only few weights count
KNOWN = 3.0  # the ranking of the domains is known when their spread is so many standard errors
FAR_APART = 0.05  # base rates that differ by more than this are reported
SAMPLED = 65_536  # parameters that are compared with their start


@dataclass
class RankingSignal:
    """Whether the domains' mean hypergradients can be ranked, from their spread and their noise.

    ``python -m reweighting.training.signal`` estimates both before a run, a run estimates them from
    its hypergradients.

    Args:
        spread2: variance over the domains of the true means; not above 0 if none is seen.
        noise2: variance of one upper step's value of a domain, the mean over the domains.
    """

    spread2: float
    noise2: float

    @property
    def of_a_step(self) -> float:
        """Spread of the domains over the noise of one upper step."""
        return self.after(1)

    def after(self, steps: int) -> float:
        """Spread of the domains over the standard error of their means after ``steps``."""
        if self.noise2 <= 0:
            return float("inf") if self.spread2 > 0 else 0.0
        return (steps * max(0.0, self.spread2) / self.noise2) ** 0.5

    @property
    def steps(self) -> int | None:
        """Upper steps until the spread is :data:`KNOWN` standard errors: ⌈9 noise² / spread²⌉.

        None if no spread is seen.
        """
        if not self.spread2 > 0:
            return None
        return max(1, math.ceil(KNOWN**2 * self.noise2 / self.spread2))


class WeightHistory:
    """The last hypergradients of the upper level, and the weights after every step."""

    def __init__(self) -> None:
        self._gradients = collections.deque(maxlen=WINDOW)  # each [domains]
        self._weights: list[torch.Tensor] = []  # each [domains]

    def add(self, hypergradient: torch.Tensor, weights: torch.Tensor) -> None:
        """Remember one upper step: its hypergradient and the weights after it, ``[domains]``."""
        self._gradients.append(hypergradient.detach().double().cpu())
        self._weights.append(weights.detach().float().cpu())

    def last(self) -> torch.Tensor:
        """The weights after the last upper step, ``[domains]``."""
        return self._weights[-1]

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def looked_back(self) -> int:
        """Upper steps that :meth:`sign_agreement` and :meth:`signal_to_noise` rest on."""
        return len(self._gradients)

    def sign_agreement(self) -> torch.Tensor:
        """Agreement of the signs of each domain's last hypergradients, ``[domains]``.

        1 if all signs are equal, 0 if half are positive; about 0.1 by chance over 100 steps.
        """
        return torch.stack(list(self._gradients)).sign().mean(0).abs()

    def signal_to_noise(self) -> torch.Tensor:
        """Absolute mean of the last hypergradients over its standard error, ``[domains]``.

        Below 2 the drift of a weight cannot be told from chance. NaN before :data:`ENOUGH_STEPS`
        upper steps, because so few often agree by chance.
        """
        gradients = torch.stack(list(self._gradients))
        if len(gradients) < ENOUGH_STEPS:
            return torch.full_like(gradients[0], float("nan"))
        error = gradients.std(0) / len(gradients) ** 0.5
        return gradients.mean(0).abs() / error.clamp(min=1e-30)

    def ranking(self) -> RankingSignal | None:
        """How well the last hypergradients rank the domains; None before :data:`ENOUGH_STEPS`."""
        if len(self._gradients) < ENOUGH_STEPS:
            return None
        gradients = torch.stack(list(self._gradients))
        gradients = gradients - gradients.mean(1, keepdim=True)  # the weights average 1
        domains = gradients.shape[1]
        # Less their mean, the domains have the part (domains - 1) / domains of their variance.
        noise2 = float(gradients.var(0).sum() / (domains - 1))
        spread2 = float(gradients.mean(0).square().sum() / (domains - 1))
        return RankingSignal(spread2 - noise2 / len(gradients), noise2)

    def average(self) -> torch.Tensor:
        """Weights averaged over the last part of the run so far, ``[domains]``."""
        last = self._weights[-max(1, len(self._weights) // AVERAGED) :]
        return torch.stack(last).double().mean(0)

    def state_dict(self) -> dict:
        """For a checkpoint."""
        return {"gradients": list(self._gradients), "weights": self._weights}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint."""
        self._gradients.extend(state["gradients"])
        self._weights = list(state["weights"])


class MetaLosses:
    """Losses of the meta chains in the last upper steps, beside those of one constant score.

    Args:
        share: share of right chains in the meta set, which is the best constant score.
        loss: of the upper level, ``mse``, ``bce`` or ``rank``.
    """

    def __init__(self, share: float, loss: str) -> None:
        if loss == "rank":  # cross-entropy of the difference; one score for all makes it log 2
            share, loss = 0.5, "bce"
        self._loss = loss
        self._constant = torch.logit(torch.tensor(share, dtype=torch.float64))
        self._steps = collections.deque(maxlen=WINDOW)  # each [M, 2]: loss, 1 if right

    def add(self, losses: torch.Tensor, true_false: torch.Tensor) -> None:
        """Remember one upper step: losses ``[M]`` of its chains, and which are right, ``[M]``.

        With ``rank`` they are the losses of its questions and ones, ``[Q]``.
        """
        self._steps.append(torch.stack([losses.detach().double(), true_false.double()], 1).cpu())

    def __len__(self) -> int:
        return len(self._steps)

    def compared(self) -> Compared | None:
        """Mean loss of the last chains beside that of the constant score; None if too few."""
        if len(self._steps) < ENOUGH_STEPS:
            return None
        losses, true_false = torch.cat(list(self._steps)).unbind(1)
        constant = chain_losses(self._constant.expand_as(losses), true_false, self._loss)
        gained = losses - constant
        # A generator of its own, so that looking does not change the random numbers of the run.
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(len(gained), (RESAMPLES, len(gained)), generator=generator)
        high = gained[drawn].mean(1).quantile((1 + CONFIDENCE) / 2)
        return Compared(float(losses.mean()), float(constant.mean()), len(losses), bool(high >= 0))

    def state_dict(self) -> dict:
        """For a checkpoint."""
        return {"steps": list(self._steps)}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint."""
        self._steps.extend(state["steps"])


@dataclass
class Compared:
    """Whether the scores of the meta chains are better than a constant one."""

    loss: float  # mean over the chains
    constant: float  # the same if every chain had the meta set's share of right chains as its score
    chains: int  # or questions, where their chains are ranked
    at_chance: bool  # the bootstrap interval of their difference reaches 0


def base_rates(data: Data, loss: str) -> str | None:
    """Why the weights may follow the domains' mean accuracies, in one sentence, or None.

    Where the train labels are right more often than the meta chains, or less often, the cheapest
    way to lower a ``loss`` of single chains is to lower or raise all scores alike.
    """
    labelled = float(data.train.mean_labels().mean())
    share = float(data.meta.truth.mean())
    if loss == "rank" or abs(labelled - share) <= FAR_APART:
        return None
    return (
        f"mean train accuracy {labelled:.2f}, right meta chains {share:.2f}: weights may follow "
        "the domains' mean accuracies instead of quality; --meta_loss rank keeps them from it"
    )


def entropy(weights: torch.Tensor) -> float:
    """Entropy of ``weights`` ``[n]`` as shares, divided by its maximum: 1 if all are equal.

    Near 0 a few records or domains have all the weight. Negative weights count as 0.
    """
    shares = weights.double().clamp(min=0)
    if len(shares) < 2 or not shares.sum() > 0:
        return 0.0 if len(shares) > 1 else 1.0
    found = torch.special.entr(shares / shares.sum()).sum() / math.log(len(shares))
    return min(1.0, float(found))


def divergence(weights: torch.Tensor, bounds: tuple[float, float]) -> str | None:
    """Why ``weights`` ``[n]`` show that the upper level diverges, in one sentence, or None."""
    low, high = bounds
    tolerance = 0.01 * (high - low) if math.isfinite(high - low) else 0.0
    at_low, at_high = weights <= low + tolerance, weights >= high - tolerance
    if bool((at_low | at_high).all()):
        where = (
            "both their bounds"
            if at_low.any() and at_high.any()
            else (f"their bound of {low if at_low.any() else high:g}")
        )
        return f"all weights are at {where}"
    if entropy(weights) < COLLAPSED:
        return f"the weights have collapsed: their entropy is {entropy(weights):.2f} of 1"
    return None


class MovedShare:
    """Share of the trainable parameters that differ from their values at the start of the run.

    At a learning rate of 5e-7 most updates vanish in the rounding of bf16 parameters; this shows
    it. A fixed sample of evenly spaced parameters stands for all of them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        total = sum(p.numel() for p in self._parameters)
        self._stride = max(1, total // SAMPLED)
        self.start = self.sample()

    def sample(self) -> torch.Tensor:
        """The sampled parameters, ``[n]`` in fp32."""
        offset, parts = 0, []
        for parameter in self._parameters:
            parts.append(parameter.detach().reshape(-1)[offset :: self._stride].float())
            offset = (offset - parameter.numel()) % self._stride
        return torch.cat(parts).cpu()

    def value(self) -> float:
        """The share, between 0 and 1."""
        return float((self.sample() != self.start).float().mean())

    def state_dict(self) -> torch.Tensor:
        """The sampled parameters at the start of the run, for a checkpoint."""
        return self.start

    def load_state_dict(self, state: torch.Tensor) -> None:
        """Continue from a checkpoint."""
        self.start = state
