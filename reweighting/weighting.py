"""What the upper level learns: the weight of a training record's loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class DomainTable(nn.Module):
    """One weight per domain, w = softplus(α) / mean(softplus(α)) (DreamPRM, section 3).

    All raw weights α start at 0, so every weight starts at 1; they stay positive and average 1.

    Args:
        domains: names, in the order in which the training file first mentions them.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        super().__init__()
        self.domains = list(domains)
        self.raw_weights = nn.Parameter(torch.zeros(len(self.domains)))

    def weights(self) -> torch.Tensor:
        """The weights of all domains, ``[K]``."""
        positive = F.softplus(self.raw_weights)
        return positive / positive.mean()

    def forward(self, domains: torch.Tensor) -> torch.Tensor:
        """The weights ``[B]`` of records with domain indices ``domains`` ``[B]``."""
        return self.weights()[domains]

    def named_weights(self) -> dict[str, float]:
        """``{domain: weight}``, for people and for other tools."""
        return dict(zip(self.domains, self.weights().tolist(), strict=True))
