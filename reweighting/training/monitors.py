"""Can the learned weights be told from a random walk, and do they mean anything?

At small batches a weight moves by noise as readily as by evidence (AdamW makes steps of the same
size of either). What tells them apart is whether a domain's hypergradients agree with each other.
And weights are learned from a reward model's verdicts on the meta chains: where these are no better
than one constant score for all, the weights say nothing about the data.
"""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass

import torch
from torch import nn

from ..bilevel.objectives import chain_losses

WINDOW = 100  # upper steps looked back on
ENOUGH_STEPS = 30  # upper steps before which nothing is said of what was learned
RESAMPLES = 1000  # of the bootstrap
CONFIDENCE = 0.95  # of its interval
AVERAGED = 4  # the last quarter of the upper steps so far enters the average weights
RECENT = 1000  # records whose weights are looked at together
COLLAPSED = 0.5  # entropy below which few weights count
SAMPLED = 65_536  # parameters compared with their start


class WeightHistory:
    """The last hypergradients of the upper level, and the weights after every step."""

    def __init__(self) -> None:
        self._gradients = collections.deque(maxlen=WINDOW)  # each [domains]
        self._weights: list[torch.Tensor] = []  # each [domains]

    def add(self, hypergradient: torch.Tensor, weights: torch.Tensor) -> None:
        """Remember one upper step: its hypergradient and the weights after it, ``[domains]``."""
        self._gradients.append(hypergradient.detach().double().cpu())
        self._weights.append(weights.detach().float().cpu())

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def looked_back(self) -> int:
        """Upper steps that :meth:`sign_agreement` and :meth:`signal_to_noise` rest on."""
        return len(self._gradients)

    def sign_agreement(self) -> torch.Tensor:
        """How far the last hypergradients of each domain point the same way, ``[domains]``.

        1 if all have one sign, 0 if half of them have either; about 0.1 by chance over 100 steps.
        """
        return torch.stack(list(self._gradients)).sign().mean(0).abs()

    def signal_to_noise(self) -> torch.Tensor:
        """Mean of the last hypergradients over its standard error, ``[domains]``, never negative.

        Below 2 a weight's drift cannot be told from chance. NaN before :data:`ENOUGH_STEPS` upper
        steps: so few agree by chance often enough.
        """
        gradients = torch.stack(list(self._gradients))
        if len(gradients) < ENOUGH_STEPS:
            return torch.full_like(gradients[0], float("nan"))
        error = gradients.std(0) / len(gradients) ** 0.5
        return gradients.mean(0).abs() / error.clamp(min=1e-30)

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
    """The meta chains' losses of the last upper steps, beside those of one score for all chains.

    Args:
        share: of right chains in the meta set, the best score there is for one who sees nothing.
        loss: ``mse`` or ``bce``, as of the upper level.
    """

    def __init__(self, share: float, loss: str) -> None:
        self._loss = loss
        self._constant = torch.logit(torch.tensor(share, dtype=torch.float64))
        self._steps = collections.deque(maxlen=WINDOW)  # each [M, 2]: loss, 1 if right

    def add(self, losses: torch.Tensor, true_false: torch.Tensor) -> None:
        """Remember one upper step: losses ``[M]`` of its chains, and which are right, ``[M]``."""
        self._steps.append(torch.stack([losses.detach().double(), true_false.double()], 1).cpu())

    def __len__(self) -> int:
        return len(self._steps)

    def compared(self) -> Compared | None:
        """The last chains' mean loss against the constant score's; None if they are too few."""
        if len(self._steps) < ENOUGH_STEPS:
            return None
        losses, true_false = torch.cat(list(self._steps)).unbind(1)
        constant = chain_losses(self._constant.expand_as(losses), true_false, self._loss)
        gained = losses - constant
        # Numbers of its own: the run's must not depend on how often it is looked at.
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
    """What a reward model's scores of meta chains are worth."""

    loss: float  # mean over the chains
    constant: float  # of the same chains, were all scored with the meta set's share of right ones
    chains: int
    at_chance: bool  # the loss is not below the constant's by more than the draw of chains explains


class RecordWeights:
    """The weights of single records: the last of each, and of the last ones learned from.

    Args:
        rows: records in the training file.
        domains: names of the domains.
    """

    def __init__(self, rows: int, domains: list[str]) -> None:
        self.domains = domains
        self.last = torch.full((rows,), float("nan"))  # NaN: never seen
        self.visits = torch.zeros(rows, dtype=torch.int32)
        self._recent = collections.deque(maxlen=RECENT)  # (domain index, weight)

    def visit(self, records: torch.Tensor, weights: torch.Tensor) -> None:
        """Remember with which ``weights`` ``[B]`` records, numbered from 1, were trained on."""
        self.last[records - 1] = weights.float().cpu()
        self.visits[records - 1] += 1

    def update(self, records: torch.Tensor, domains: torch.Tensor, weights: torch.Tensor) -> None:
        """Remember their weights after an upper step that learned from them, all ``[B]``."""
        weights = weights.float().cpu()
        self.last[records - 1] = weights
        self._recent.extend(zip(domains.tolist(), weights.tolist(), strict=True))

    def by_domain(self) -> dict[str, float]:
        """Mean weight of every domain among the last records learned from."""
        found: dict[int, list[float]] = {}
        for domain, weight in self._recent:
            found.setdefault(domain, []).append(weight)
        return {self.domains[d]: sum(w) / len(w) for d, w in sorted(found.items())}

    def recent(self) -> torch.Tensor:
        """Weights of the last records learned from, ``[n]``."""
        return torch.tensor([weight for _, weight in self._recent])

    def state_dict(self) -> dict:
        """For a checkpoint."""
        return {"last": self.last, "visits": self.visits, "recent": list(self._recent)}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint."""
        self.last, self.visits = state["last"], state["visits"]
        self._recent.extend(tuple(item) for item in state["recent"])


def entropy(weights: torch.Tensor) -> float:
    """Entropy of the shares that ``weights`` ``[n]`` give, over its maximum: 1 if all are equal.

    Near 0 a few records or domains take everything. Negative weights count as 0.
    """
    shares = weights.double().clamp(min=0)
    if len(shares) < 2 or not shares.sum() > 0:
        return 0.0 if len(shares) > 1 else 1.0
    found = torch.special.entr(shares / shares.sum()).sum() / math.log(len(shares))
    return min(1.0, float(found))


def divergence(weights: torch.Tensor, bounds: tuple[float, float]) -> str | None:
    """What is wrong with an upper level that gives these weights ``[n]``, or None."""
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
    """Share of a model's trainable parameters that differ from the start of the run.

    At a learning rate of 5e-7, bf16 parameters swallow most updates whole; this shows it. A fixed
    sample of evenly spaced parameters stands for all of them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        total = sum(p.numel() for p in self._parameters)
        self._stride = max(1, total // SAMPLED)
        self.start = self._sample()

    def _sample(self) -> torch.Tensor:
        offset, parts = 0, []
        for parameter in self._parameters:
            parts.append(parameter.detach().reshape(-1)[offset :: self._stride].float())
            offset = (offset - parameter.numel()) % self._stride
        return torch.cat(parts).cpu()

    def value(self) -> float:
        """The share, between 0 and 1."""
        return float((self._sample() != self.start).float().mean())
