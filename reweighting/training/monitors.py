"""What is watched of the weights while they are learned, and what a checkpoint keeps of it.

One monitor watches the weights of domains, the other those of single records. Both have the same
methods, so that the engine and its reports need not know which of them is there.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path

import torch

from ..bilevel.batches import TrainBatch
from ..bilevel.problems import Lower, Upper
from ..records.dataset import Data
from ..system.checkpoints.weight_tables import save_domain_weights, save_instance_weights
from .statistics import MetaLosses, WeightHistory, divergence, entropy

RECENT = 1000  # records whose weights are looked at together
ENOUGH = 100  # records whose weights show whether the upper level diverges


class _Monitor:
    """Watches the upper level: the losses of the meta chains, and the weights.

    Args:
        data: of the run.
        upper: the upper level.
    """

    def __init__(self, data: Data, upper: Upper) -> None:
        self.data = data
        self.upper = upper
        self.weighting = upper.module
        share = float(data.meta.truth.mean())
        self.meta_losses = MetaLosses(share, upper.loss)
        self._noted: list[tuple[Callable, list[torch.Tensor]]] = []
        self.history = WeightHistory()  # stays empty where records are weighed

    def judged(self, losses: torch.Tensor, true_false: torch.Tensor) -> None:
        """After the meta loss of an upper step, see :meth:`~.statistics.MetaLosses.add`."""
        self._note(self.meta_losses.add, losses, true_false)

    def _note(self, add: Callable, *tensors: torch.Tensor) -> None:
        """Call ``add`` with the rows of all processes: now, or at the next :meth:`collect`."""
        if self.upper.processes.count == 1:
            add(*tensors)
        else:
            self._noted.append((add, [tensor.detach().cpu() for tensor in tensors]))

    def collect(self) -> None:
        """Let every process know what all have seen since the last time."""
        shares = self.upper.processes.gather([tensors for _, tensors in self._noted])
        for (add, _), *rows in zip(self._noted, *shares, strict=True):
            add(*(torch.cat(parts) for parts in zip(*rows, strict=True)))
        self._noted.clear()

    def trained(self, batch: TrainBatch, weights: torch.Tensor) -> None:
        """After a lower step on ``batch`` with ``weights`` ``[B]``."""

    def stepped(self, lower: Lower) -> None:
        """After an upper step."""
        raise NotImplementedError

    def by_domain(self) -> dict[str, float]:
        """{domain: weight}."""
        raise NotImplementedError

    def sample(self) -> torch.Tensor:
        """The weights that are looked at together, ``[n]``."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the weights for people and for other tools."""
        raise NotImplementedError

    def divergence(self) -> str | None:
        """Why the weights show that the upper level diverges, or None."""
        return divergence(self.sample(), (self.weighting.low, self.weighting.high))

    def latest(self) -> dict:
        """The numbers of the upper level in the progress line."""
        weights = self.sample().tolist() or [1.0]
        return {
            "meta_loss": self.upper.last_loss,
            "weight_range": (min(weights), max(weights)),
            "hypergradient_norm": self.upper.hypergradient_norm,
        }

    def numbers(self, upper_steps: int) -> dict:
        """The numbers of the upper level in a line of metrics."""
        compared = self.meta_losses.compared()
        numbers = {
            "meta_loss": self.upper.last_loss,
            "meta_loss_of_one_score": None if compared is None else compared.constant,
            "meta_loss_at_chance": None if compared is None else compared.at_chance,
            "upper_steps": upper_steps,
            "upper_steps_lost": sum(self.upper.lost.values()),
            "hypergradient_norm": self.upper.hypergradient_norm,
            "weights": self.by_domain(),
            "weight_entropy": entropy(self.sample()),
        }
        if len(self.history):
            for name in ("sign_agreement", "signal_to_noise"):
                values = getattr(self.history, name)().tolist()
                numbers[name] = dict(zip(self.data.domains, values, strict=True))
            ranking = self.history.ranking()  # None before enough upper steps
            looked_back = self.history.looked_back
            numbers["spread_to_noise"] = None if ranking is None else ranking.after(looked_back)
            numbers["upper_steps_needed"] = None if ranking is None else ranking.steps
        return numbers

    def state_dict(self) -> dict:
        """For a checkpoint."""
        return {"meta_losses": self.meta_losses.state_dict(), "history": self.history.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint."""
        self.history.load_state_dict(state["history"])
        if "meta_losses" in state:  # checkpoints written before version 0.1.0 lack it
            self.meta_losses.load_state_dict(state["meta_losses"])


class DomainMonitor(_Monitor):
    """Watches a weight for every domain, and the hypergradients that move it."""

    def stepped(self, lower: Lower) -> None:
        self.history.add(self.weighting.raw_weights.grad, self.weighting.weights())

    def by_domain(self) -> dict[str, float]:
        return self.weighting.named_weights()

    def sample(self) -> torch.Tensor:
        # Weights change in upper steps only, after which the history has them on the processor.
        return self.history.last() if len(self.history) else self.weighting.weights().detach()

    def save(self, folder: Path) -> None:
        average = self.history.average().tolist() if len(self.history) else None
        save_domain_weights(folder, self.weighting, average)


class InstanceMonitor(_Monitor):
    """Watches the weights of single records: the last one of each, and the last ones learned."""

    def __init__(self, data: Data, upper: Upper) -> None:
        super().__init__(data, upper)
        rows = int(data.train.numbers.max())
        self.last = torch.full((rows,), float("nan"))  # NaN: never trained on
        self.visits = torch.zeros(rows, dtype=torch.int32)
        self._recent: collections.deque[tuple[int, float]] = collections.deque(maxlen=RECENT)

    def trained(self, batch: TrainBatch, weights: torch.Tensor) -> None:
        self._note(self._visit, batch.records, weights)

    def _visit(self, records: torch.Tensor, weights: torch.Tensor) -> None:
        self.last[records - 1] = weights.float().cpu()
        self.visits[records - 1] += 1

    def stepped(self, lower: Lower) -> None:
        for batch in (batch for step in lower.window for batch in step):
            weights = lower.weights(batch, batch.features).float().cpu()
            self._note(self._learn, batch.records, batch.domains, weights)

    def _learn(self, records: torch.Tensor, domains: torch.Tensor, weights: torch.Tensor) -> None:
        self.last[records - 1] = weights
        self._recent.extend(zip(domains.tolist(), weights.tolist(), strict=True))

    def by_domain(self) -> dict[str, float]:
        """{domain: mean weight} of the last records that an upper step learned from."""
        found: dict[int, list[float]] = {}
        for domain, weight in self._recent:
            found.setdefault(domain, []).append(weight)
        return {self.data.domains[d]: sum(w) / len(w) for d, w in sorted(found.items())}

    def sample(self) -> torch.Tensor:
        return torch.tensor([weight for _, weight in self._recent])

    def save(self, folder: Path) -> None:
        save_instance_weights(folder, self.weighting, self.data.train, self)

    def divergence(self) -> str | None:
        enough = len(self._recent) >= min(ENOUGH, len(self.data.train))
        return super().divergence() if enough else None

    def state_dict(self) -> dict:
        records = {"last": self.last, "visits": self.visits, "recent": list(self._recent)}
        return {**super().state_dict(), "records": records}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        records = state["records"]
        self.last, self.visits = records["last"], records["visits"]
        self._recent.extend(tuple(item) for item in records["recent"])
