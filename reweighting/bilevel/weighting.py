"""What the upper level learns: the weight of a training record's loss.

Every weighting answers ``weighting(batch, features)`` with the weights ``[B]`` of the batch's
records: by their domain (DreamPRM), by a table with an entry for each record, or by a small net
that looks at what the reward model makes of the record (both DreamPRM-1.5).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .batches import TrainBatch
from .objectives import group_means

START = 1.0  # every record's weight before anything is learned


class DomainTable(nn.Module):
    """One weight per domain, w = softplus(α) / mean(softplus(α)) (DreamPRM, section 3).

    All raw weights α start at 0, so every weight starts at 1; they stay positive and average 1.

    Args:
        domains: names, in the order in which the training file first mentions them.
    """

    needs = None  # no features of the reward model
    detached = True

    def __init__(self, domains: Sequence[str]) -> None:
        super().__init__()
        self.domains = list(domains)
        self.raw_weights = nn.Parameter(torch.zeros(len(self.domains)))

    def weights(self) -> torch.Tensor:
        """The weights of all domains, ``[K]``."""
        positive = F.softplus(self.raw_weights)
        return positive / positive.mean()

    def forward(self, batch: TrainBatch, features: torch.Tensor | None = None) -> torch.Tensor:
        """The weights ``[B]`` of the records of ``batch``."""
        return self.weights()[batch.domains]

    def sharing(self, batch: TrainBatch) -> torch.Tensor:
        """``[B]``: records with the same number always have the same weight."""
        return batch.domains

    def named_weights(self) -> dict[str, float]:
        """``{domain: weight}``, for people and for other tools."""
        return dict(zip(self.domains, self.weights().tolist(), strict=True))

    def bounds(self) -> tuple[float, float]:
        """Between which the weights lie."""
        return 0.0, float(len(self.domains))

    @property
    def start(self) -> float:
        """The weight before anything is learned."""
        return START

    def reach(self, distance: float) -> float:
        """A domain's weight once its raw weight has risen by ``distance`` and no other has."""
        positive = F.softplus(torch.tensor([distance] + [0.0] * (len(self.domains) - 1)))
        return float(positive[0] / positive.mean())


class _Instances(nn.Module):
    """What both weightings of single records share: bounds, and the weights of domains."""

    def __init__(self, bounds: tuple[float, float], domain_weights: Sequence[float] | None) -> None:
        super().__init__()
        self.low, self.high = bounds
        found = None if domain_weights is None else torch.tensor(domain_weights)
        self.register_buffer("domain_weights", found)

    def sharing(self, batch: TrainBatch) -> torch.Tensor:
        """``[B]``: records with the same number always have the same weight."""
        return batch.records

    def bounds(self) -> tuple[float, float]:
        """Between which the weights lie, those of the domains left out."""
        return self.low, self.high

    def _times_domain(self, weights: torch.Tensor, batch: TrainBatch) -> torch.Tensor:
        if self.domain_weights is None:
            return weights
        return weights * self.domain_weights[batch.domains]

    @property
    def start(self) -> float:
        """The weight before anything is learned: 1 where the bounds allow it."""
        return START if self.low < START < self.high else (self.low + self.high) / 2


class InstanceTable(_Instances):
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

    needs = None
    detached = True
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
        """A record's weight once its entry has risen by ``distance``."""
        raw = self.raw_weights.new_tensor(self.start + distance)
        return float(self.activation(raw).clamp(self.low, self.high))

    def forward(self, batch: TrainBatch, features: torch.Tensor | None = None) -> torch.Tensor:
        """The weights ``[B]`` of the records of ``batch``."""
        rows = batch.records.to(self.raw_weights.device) - 1
        raw = F.embedding(rows, self.raw_weights, sparse=True)[:, 0]
        return self._times_domain(self.activation(raw), batch)


class InstanceNet(_Instances):
    """The weight of a record from what the reward model makes of it (DreamPRM-1.5, Instance Net).

    A small perceptron looks at every prompt of the record; the mean of its answers goes through a
    sigmoid that is stretched between the bounds. Its last layer starts at zero, and so does every
    weight at 1.

    Args:
        features: ``scores``, (p₊, p₋) as published; ``labels``, the same and how far the record's
            label agrees, (2 p₊ - 1)(2 accuracy - 1), which is 0 where either is undecided and so
            takes no unclear label for a wrong one; ``hidden``, the reward model's final
            representation, as the paper says.
        hidden_size: of the reward model, for ``hidden``.
        width: of the perceptron's hidden layers.
        layers: number of hidden layers.
        bounds: of the weights.
        detached: the reward model is not trained through the features. The published net lets the
            lower level lower its loss by lowering its own weights.
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
        """Every record's weight once the last bias, and nothing else, has risen by ``distance``."""
        stretched = torch.sigmoid(torch.tensor(self._start_bias + distance))
        return float(self.low + (self.high - self.low) * stretched)

    def features(
        self, batch: TrainBatch, log_odds: torch.Tensor, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        """What the net looks at, ``[R, F]``, from z ``[R]`` and representations ``[R, hidden]``."""
        if self.needs == "hidden":
            return hidden.float()
        score = torch.sigmoid(log_odds)
        columns = [score, 1 - score]
        if self.needs == "labels":
            columns.append((2 * score - 1) * (2 * batch.accuracy - 1))
        return torch.stack(columns, dim=1)

    def forward(self, batch: TrainBatch, features: torch.Tensor | None = None) -> torch.Tensor:
        """The weights ``[B]`` of the records of ``batch`` from the features of its prompts."""
        answers = self.net(features)[:, 0]
        mean = group_means(answers, batch.record_of_prompt, len(batch.records))
        weights = self.low + (self.high - self.low) * torch.sigmoid(mean)
        return self._times_domain(weights, batch)


class RowAdamW(torch.optim.Optimizer):
    """AdamW for a table of which a step touches a few rows.

    Every row counts its own visits, so the moments of a row that is rarely seen are corrected for
    their start at zero as if the row were alone: torch's ``SparseAdam`` counts all steps, and its
    first step on a row seen late is three times too long. Weight decay, like everything else,
    reaches a row when it is visited, and pulls to the start at 1. A row takes 16 bytes: the entry,
    two moments, its visits.

    Args:
        table: ``[rows, 1]``, with sparse gradients.
        bounds: entries are kept between these after every step (projected gradient).
    """

    def __init__(
        self,
        table: nn.Parameter,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bounds: tuple[float, float] = (float("-inf"), float("inf")),
    ) -> None:
        super().__init__([table], {"lr": lr, "betas": betas, "eps": eps,
                                   "weight_decay": weight_decay, "bounds": bounds})  # fmt: skip
        state = self.state[table]
        state["exp_avg"] = torch.zeros_like(table)
        state["exp_avg_sq"] = torch.zeros_like(table)
        # Float as torch's own step counters are: a checkpoint restores it as it is.
        state["visits"] = torch.zeros_like(table)

    @torch.no_grad()
    def step(self) -> None:
        """Move the rows that have a gradient."""
        [group] = self.param_groups
        [table] = group["params"]
        if table.grad is None:
            return
        gradient = table.grad.coalesce()
        rows, g = gradient.indices()[0], gradient.values()
        state = self.state[table]
        beta1, beta2 = group["betas"]
        mean, square, visits = (state[name] for name in ("exp_avg", "exp_avg_sq", "visits"))
        visits[rows] += 1
        mean[rows] = mean[rows].lerp(g, 1 - beta1)
        square[rows] = square[rows].lerp(g.square(), 1 - beta2)
        count = visits[rows]
        direction = (mean[rows] / (1 - beta1**count)) / (
            (square[rows] / (1 - beta2**count)).sqrt() + group["eps"]
        )
        entries = table[rows]
        entries -= group["lr"] * (direction + group["weight_decay"] * (entries - START))
        table[rows] = entries.clamp(*group["bounds"])


def make_meta_optimizer(weighting: nn.Module, lr: float, weight_decay: float):
    """AdamW over what the upper level learns."""
    if isinstance(weighting, InstanceTable):
        options = {"lr": lr, "weight_decay": weight_decay, "bounds": weighting.bounds()}
        return RowAdamW(weighting.raw_weights, **options)
    return torch.optim.AdamW(weighting.parameters(), lr=lr, weight_decay=weight_decay)


def total_norm(gradients: Sequence[torch.Tensor]) -> float:
    """Euclidean norm over all ``gradients``, dense or sparse."""
    dense = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    return float(torch.nn.utils.get_total_norm(dense))
