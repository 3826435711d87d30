"""Can the learned weights be told from a random walk?

At small batches a weight moves by noise as readily as by evidence (AdamW makes steps of the same
size of either). What tells them apart is whether a domain's hypergradients agree with each other.
"""

from __future__ import annotations

import collections

import torch
from torch import nn

WINDOW = 100  # upper steps looked back on
AVERAGED = 4  # the last quarter of the upper steps so far enters the average weights
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

    def sign_agreement(self) -> torch.Tensor:
        """How far the last hypergradients of each domain point the same way, ``[domains]``.

        1 if all have one sign, 0 if half of them have either; about 0.1 by chance over 100 steps.
        """
        return torch.stack(list(self._gradients)).sign().mean(0).abs()

    def signal_to_noise(self) -> torch.Tensor:
        """Mean of the last hypergradients over its standard error, ``[domains]``, never negative.

        Below 2 a weight's drift cannot be told from chance. NaN before the second upper step.
        """
        gradients = torch.stack(list(self._gradients))
        error = gradients.std(0) / len(gradients) ** 0.5
        return gradients.mean(0).abs() / error.clamp(min=torch.finfo(error.dtype).tiny)

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
            parts.append(parameter.detach().reshape(-1)[offset :: self._stride].float().cpu())
            offset = (offset - parameter.numel()) % self._stride
        return torch.cat(parts)

    def value(self) -> float:
        """The share, between 0 and 1."""
        return float((self._sample() != self.start).float().mean())
