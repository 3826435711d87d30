"""What the upper level learns: the weight of every training record's loss.

A :class:`Weighting` gives the weights ``[B]`` of a batch's records: by domain (DreamPRM), by a
table with an entry for each record, or by a small net that looks at how the reward model scores the
record (both DreamPRM-1.5).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .batches import TrainBatch
from .objectives import group_means
from .row_adamw import START, RowAdamW


class Weighting(nn.Module):
    """The weights of training records; subclasses say what they depend on.

    Attributes:
        needs: the features of the reward model that the weights depend on, a name that
            :meth:`features` knows; None if they depend on the record alone.
        detached: whether the reward model is kept from lowering its loss by changing its features.
        low, high: the bounds of the weights, before any weights of the domains are multiplied in.
    """

    needs: str | None = None
    detached = True
    low: float
    high: float

    def forward(self, batch: TrainBatch, features: torch.Tensor | None = None) -> torch.Tensor:
        """The weights ``[B]`` of the records of ``batch``, from ``features`` ``[R, F]`` if any."""
        raise NotImplementedError

    def features(
        self, batch: TrainBatch, log_odds: torch.Tensor, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        """What the weights depend on, ``[R, F]``, from z ``[R]`` and states ``[R, hidden]``."""
        raise NotImplementedError

    def sharing(self, batch: TrainBatch) -> torch.Tensor:
        """Numbers ``[B]``: records with the same number always have the same weight."""
        raise NotImplementedError

    def reach(self, distance: float) -> float:
        """A weight after the raw value behind it has risen by ``distance`` from its start."""
        raise NotImplementedError

    @property
    def start(self) -> float:
        """Every weight before anything is learned: 1 where the bounds allow it."""
        return START if self.low < START < self.high else (self.low + self.high) / 2


class DomainTable(Weighting):
    """One weight per domain, w = softplus(α) / mean(softplus(α)) (DreamPRM, section 3).

    All raw weights α start at 0, so every weight starts at 1; they stay positive and average 1.

    Args:
        domains: names, in the order in which the training file first mentions them.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        super().__init__()
        self.domains = list(domains)
        self.low, self.high = 0.0, float(len(self.domains))
        self.raw_weights = nn.Parameter(torch.zeros(len(self.domains)))

    def weights(self) -> torch.Tensor:
        """The weights of all domains, ``[K]``."""
        positive = F.softplus(self.raw_weights)
        return positive / positive.mean()

    def forward(self, batch: TrainBatch, features: torch.Tensor | None = None) -> torch.Tensor:
        return self.weights()[batch.domains]

    def sharing(self, batch: TrainBatch) -> torch.Tensor:
        return batch.domains

    def named_weights(self) -> dict[str, float]:
        """``{domain: weight}``, for people and for other tools."""
        return dict(zip(self.domains, self.weights().tolist(), strict=True))

    def reach(self, distance: float) -> float:
        """A domain's weight after its raw weight alone has risen by ``distance``."""
        positive = F.softplus(torch.tensor([distance] + [0.0] * (len(self.domains) - 1)))
        return float(positive[0] / positive.mean())


class _InstanceWeighting(Weighting):
    """A weight for every single record, times the weight of its domain if there is one.

    Args:
        bounds: of the weights, before the domain's weight is multiplied in.
        domain_weights: ``[K]``.
    """

    def __init__(self, bounds: tuple[float, float], domain_weights: Sequence[float] | None) -> None:
        super().__init__()
        self.low, self.high = bounds
        found = None if domain_weights is None else torch.tensor(domain_weights)
        self.register_buffer("domain_weights", found)

    def sharing(self, batch: TrainBatch) -> torch.Tensor:
        return batch.records

    def _times_domain(self, weights: torch.Tensor, batch: TrainBatch) -> torch.Tensor:
        if self.domain_weights is None:
            return weights
        return weights * self.domain_weights[batch.domains]


class InstanceTable(_InstanceWeighting):
    """One weight for each record of the training file (DreamPRM-1.5, Instance Table).

    Row r - 1 belongs to record r. The gradient is sparse: a step touches the rows of its batch
    only, whatever the size of the table (see :class:`RowAdamW`).

    Args:
        rows: records in the training file.
        bounds: ``clip`` keeps the entries between these.
        activation: ``clip``, the entry itself within bounds; or the published ``relu`` and
            ``leaky_relu`` of it, and ``none``, all three without bounds.
        domain_weights: ``[K]``, multiplied in, so that the table learns what differs within a
            domain.
    """

    ACTIVATIONS = {  # noqa: RUF012
        "clip": lambda raw: raw,  # kept within its bounds by the optimizer
        "leaky_relu": F.leaky_relu,
        "relu": F.relu,
        "none": lambda raw: raw,
    }

    def __init__(
        self,
        rows: int,
        bounds: tuple[float, float] = (0.0, 3.0),
        activation: str = "clip",
        domain_weights: Sequence[float] | None = None,
    ) -> None:
        unbounded = (float("-inf"), float("inf"))
        super().__init__(bounds if activation == "clip" else unbounded, domain_weights)
        self.activation = self.ACTIVATIONS[activation]
        self.raw_weights = nn.Parameter(
            torch.full((rows, 1), self.start if activation == "clip" else START)
        )

    def reach(self, distance: float) -> float:
        """A record's weight after its entry has risen by ``distance``."""
        raw = self.raw_weights.new_tensor(self.start + distance)
        return float(self.activation(raw).clamp(self.low, self.high))

    def forward(self, batch: TrainBatch, features: torch.Tensor | None = None) -> torch.Tensor:
        rows = batch.records.to(self.raw_weights.device) - 1
        raw = F.embedding(rows, self.raw_weights, sparse=True)[:, 0]
        return self._times_domain(self.activation(raw), batch)


class InstanceNet(_InstanceWeighting):
    """The weight of a record from what the reward model makes of it (DreamPRM-1.5, Instance Net).

    A small perceptron maps the features of every prompt of the record to a number; the mean over
    the prompts goes through a sigmoid that is stretched between the bounds. Its last layer starts
    at zero, so that every weight starts at 1.

    Args:
        features: ``scores``, (p₊, p₋) as published; ``labels``, the same and the agreement of
            score and label, (2 p₊ - 1)(2 accuracy - 1), which is 0 where either is undecided, so
            that an unclear label is not taken for a wrong one; ``hidden``, the final hidden state
            of the reward model, as the paper has it.
        hidden_size: of the reward model, for ``hidden``.
        width: of the perceptron's hidden layers.
        layers: number of hidden layers.
        bounds: of the weights.
        detached: the reward model is not trained through the features. In the published code it
            is, and can lower its loss by lowering the weights.
        domain_weights: ``[K]``, multiplied in.
    """

    SIZES = {"scores": 2, "labels": 3}  # noqa: RUF012

    def __init__(
        self,
        features: str = "scores",
        hidden_size: int = 0,
        width: int = 10,
        layers: int = 1,
        bounds: tuple[float, float] = (0.0, 3.0),
        detached: bool = True,
        domain_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(bounds, domain_weights)
        self.needs = features
        self.detached = detached
        sizes = [self.SIZES.get(features, hidden_size)] + [width] * layers
        parts: list[nn.Module] = [nn.LayerNorm(hidden_size)] if features == "hidden" else []
        for size, following in itertools.pairwise(sizes):
            parts += [nn.Linear(size, following), nn.LeakyReLU()]
        last = nn.Linear(sizes[-1], 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, self._start_bias)
        self.net = nn.Sequential(*parts, last)

    @property
    def _start_bias(self) -> float:
        return torch.logit(torch.tensor((self.start - self.low) / (self.high - self.low))).item()

    def reach(self, distance: float) -> float:
        """Every record's weight after the last bias alone has risen by ``distance``."""
        stretched = torch.sigmoid(torch.tensor(self._start_bias + distance))
        return float(self.low + (self.high - self.low) * stretched)

    def features(
        self, batch: TrainBatch, log_odds: torch.Tensor, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        if self.needs == "hidden":
            return hidden.float()
        score = torch.sigmoid(log_odds)
        columns = [score, 1 - score]
        if self.needs == "labels":
            columns.append((2 * score - 1) * (2 * batch.accuracy - 1))
        return torch.stack(columns, dim=1)

    def forward(self, batch: TrainBatch, features: torch.Tensor | None = None) -> torch.Tensor:
        answers = self.net(features)[:, 0]
        mean = group_means(answers, batch.record_of_prompt, len(batch.records))
        weights = self.low + (self.high - self.low) * torch.sigmoid(mean)
        return self._times_domain(weights, batch)


def make_meta_optimizer(
    weighting: Weighting, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW over the parameters of ``weighting``."""
    if isinstance(weighting, InstanceTable):
        bounds = (weighting.low, weighting.high)
        return RowAdamW(weighting.raw_weights, lr, weight_decay=weight_decay, bounds=bounds)
    return torch.optim.AdamW(weighting.parameters(), lr=lr, weight_decay=weight_decay)
