"""The two levels of DreamPRM as a pair of Betty problems (DreamPRM, section 3).

    lower   φ*(α) = argmin_φ  mean_j  w_{d(j)}(α) · ℓ(V_φ(prefix_j), accuracy_j)
    upper   α*    = argmin_α  mean_m  ℓ_meta( σ( mean_i z_{m,i}(φ*(α)) ), true_false_m )

Betty's engine takes ``unroll_steps`` lower steps, then one upper step, whose gradient reaches α
through the lower step by the function registered in :mod:`reweighting.bilevel.hypergradient`.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Iterator

import torch
from betty.problems import ImplicitProblem
from torch.func import functional_call

from ..reward_model.network import autocast
from . import hypergradient
from .batches import MetaBatch, TrainBatch
from .objectives import chain_losses, group_means, mean_log_odds, record_losses
from .weighting import total_norm

FP16_LOSS_SCALE = 2.0**12  # of the meta loss at first: as far from overflow as from vanishing

# Why an upper step teaches nothing. The first two are not taken; the third follows what earlier
# hypergradients left in the optimizer.
NOT_FINITE = "the hypergradient was not finite"
NO_LOWER_STEP = "the loss scaler had skipped the lower step"
ONE_WEIGHT_CLIPPED = "clipping leaves only the direction of a gradient whose records share a weight"


class NonFiniteLoss(Exception):
    """A loss became NaN or infinite; carries the record numbers of its batch."""


class _Problem(ImplicitProblem):
    """What both levels do otherwise than Betty's defaults.

    Betty rebuilds optimizers from their defaults, autocasts on CUDA only and hands out frozen
    parameters; here the optimizer stays as it was made, any device computes in the precision asked
    for, and only trainable parameters take part.
    """

    def __init__(self, *args, batches: Iterator, precision: str = "fp32", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches
        self.compute_precision = precision
        self.last_loss = float("nan")
        self.waited = 0.0  # seconds, for batches

    def next_batch(self):
        """The next batch on this problem's device; counts the time it takes to come."""
        started = time.monotonic()
        batch = next(self.batches)
        self.waited += time.monotonic() - started
        return batch.to(self.device)

    def patch_optimizer(self) -> None:
        """Keep the optimizer as it is, with its parameter groups."""

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def parameter_names(self) -> list[str]:
        """Names of :meth:`trainable_parameters`, in their order."""
        return [name for name, p in self.module.named_parameters() if p.requires_grad]

    def autocast(self):
        return autocast(self.device, self.compute_precision)

    def training_step_exec(self, batch) -> torch.Tensor:
        with self.autocast():
            return self.training_step(batch)

    def check_finite(self, loss: torch.Tensor, records: torch.Tensor) -> float:
        """The loss as a number.

        Raises:
            NonFiniteLoss: it is none.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLoss(
                f"the {self.name} loss is {value} for records {records.tolist()} "
                f"of the {'train' if self.name == 'lower' else 'meta'} file"
            )
        return value


class Lower(_Problem):
    """Lower level: the reward model φ, trained on weighted records.

    Args:
        loss: ``bce`` or ``mse``, see :func:`~reweighting.bilevel.objectives.record_losses`.
        accumulation: micro-batches a step; all of them count in the hypergradient.
        max_grad_norm: gradient norm is clipped to this; 0 turns clipping off.
        lr_scheduler: stepped once a lower step (Betty would step its own once a micro-batch).
        loss_scaler: keeps fp16 gradients from vanishing; disabled otherwise.
        window: last lower steps whose records enter the hypergradient.
    """

    def __init__(
        self,
        *args,
        loss: str = "bce",
        accumulation: int = 1,
        max_grad_norm: float = 0.0,
        lr_scheduler=None,
        loss_scaler: torch.amp.GradScaler | None = None,
        window: int = 1,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.loss = loss
        self.accumulation = accumulation
        self.max_grad_norm = max_grad_norm
        self.lr_scheduler = lr_scheduler
        self.loss_scaler = loss_scaler or torch.amp.GradScaler(enabled=False)
        self.fixed_weights: torch.Tensor | None = None  # [domains]
        self.window: collections.deque[list[TrainBatch]] = collections.deque(maxlen=window)
        self.last_step: hypergradient.AdamWStep | None = None
        self.cold = False  # before reweighting starts, all weights are 1
        self.on_losses: Callable[[TrainBatch, torch.Tensor, torch.Tensor], None] = (
            lambda batch, losses, weights: None
        )

    def get_batch(self) -> list[TrainBatch]:
        """The micro-batches of one step."""
        return [self.next_batch() for _ in range(self.accumulation)]

    def losses_and_features(
        self, batch: TrainBatch, forward=None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Unweighted loss of every record, ``[B]``, and what an instance net looks at, ``[R, F]``.

        A record's loss is the mean over its prompts. ``forward`` replaces the module.
        """
        forward, needs = forward or self.module, self.weighting.needs if self.parents else None
        hidden = features = None
        if needs == "hidden":
            log_odds, hidden = forward(batch.prompts, True)
        else:
            log_odds = forward(batch.prompts)
        if needs is not None:
            features = self.weighting.features(batch, log_odds, hidden)
        losses = record_losses(log_odds, batch.accuracy, self.loss)
        return group_means(losses, batch.record_of_prompt, len(batch.records)), features

    def record_losses(self, batch: TrainBatch, forward=None) -> torch.Tensor:
        """The losses of :meth:`losses_and_features` alone."""
        return self.losses_and_features(batch, forward)[0]

    @property
    def weighting(self) -> torch.nn.Module:
        """What the upper level learns."""
        return self.upper.module

    def weights(self, batch: TrainBatch, features: torch.Tensor | None = None) -> torch.Tensor:
        """w of every record, ``[B]``; what the upper level learns is constant at this level.

        Without an upper level they are the ``fixed_weights`` of the domains, or 1.
        """
        if self.parents and not self.cold:
            learned = {name: p.detach() for name, p in self.weighting.named_parameters()}
            return functional_call(self.weighting, learned, (batch, features))
        if self.fixed_weights is not None:
            return self.fixed_weights[batch.domains]
        return torch.ones_like(batch.domains, dtype=torch.float32)

    def training_step(self, batch: TrainBatch) -> torch.Tensor:
        """Σ_j w_j ℓ_j over one micro-batch."""
        losses, features = self.losses_and_features(batch)
        if features is not None:
            batch.features = features.detach()
            features = batch.features if self.weighting.detached else features
        weights = self.weights(batch, features)
        self.on_losses(batch, losses.detach(), weights.detach())
        return (weights * losses).sum()

    def one_step_descent(self, batch=None) -> dict[str, float]:
        """One optimizer step over all micro-batches."""
        self.last_step = None  # frees its gradients before new ones are made
        self.cur_batch = self.get_batch()
        self.window.append(self.cur_batch)
        records = sum(len(batch.records) for batch in self.cur_batch)
        self.last_loss = 0.0
        for micro_batch in self.cur_batch:
            loss = self.training_step_exec(micro_batch) / records
            self.last_loss += self.check_finite(loss, micro_batch.records)
            self.loss_scaler.scale(loss).backward()
        self.optimizer_step()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.zero_grad()
        return {"loss": self.last_loss}

    def optimizer_step(self) -> None:
        parameters = self.trainable_parameters()
        for parameter in parameters:
            if parameter.grad is None:  # a part of the model this batch does not reach
                parameter.grad = torch.zeros_like(parameter)
        self.loss_scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in parameters]
        clip = 1.0
        if self.max_grad_norm > 0:
            norm = float(torch.nn.utils.get_total_norm(gradients))
            clip = self.max_grad_norm / max(norm, self.max_grad_norm)  # weights of 0 have norm 0
            if clip < 1:
                for parameter in parameters:
                    # A new tensor: the unclipped gradient is kept for the hypergradient.
                    parameter.grad = parameter.grad * clip
        scale = self.loss_scaler.get_scale()
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()
        skipped = self.loss_scaler.get_scale() < scale
        if self.parents and self.config.type == "unrolled" and not skipped:
            self.last_step = hypergradient.AdamWStep(self.optimizer, gradients, clip)

    def loses_the_weights(self) -> bool:
        """Whether the last step is the same whatever the weights are: its derivative is zero.

        A clipped gradient counts by its direction alone, and a factor that all its records share
        does not turn it.
        """
        step = self.last_step
        if step is None or step.clip == 1 or len(self.window) > 1 or not self.weighting.detached:
            return False
        numbers = [self.weighting.sharing(batch) for batch in self.cur_batch]
        return len(torch.cat(numbers).unique()) == 1


class Upper(_Problem):
    """Upper level: the weights α, trained so that the reward model just updated does well.

    Args:
        loss: ``mse`` or ``bce``, see :func:`~reweighting.bilevel.objectives.chain_losses`.
        target: what is compared with true/false: the aggregated score of a ``chain``, or the score
            of every ``prefix`` by itself (the ablation without the aggregation loss).
        max_grad_norm: the hypergradient's norm is clipped to this; 0 turns clipping off.
        lr_scheduler: stepped once an upper step.
    """

    def __init__(
        self,
        *args,
        loss: str = "mse",
        target: str = "chain",
        max_grad_norm: float = 0.0,
        lr_scheduler=None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.loss = loss
        self.target = target
        self.max_grad_norm = max_grad_norm
        self.lr_scheduler = lr_scheduler
        self.hypergradient_norm = float("nan")
        self.loss_scale = FP16_LOSS_SCALE if self.compute_precision == "fp16" else 1.0
        self.lost: collections.Counter[str] = collections.Counter()  # upper steps by reason
        self.on_losses: Callable[[float, torch.Tensor, torch.Tensor], None] = (
            lambda loss, losses, true_false: None
        )
        self.on_step: Callable[[], None] = lambda: None

    def get_batch(self) -> MetaBatch:
        return self.next_batch()

    def training_step(self, batch: MetaBatch) -> torch.Tensor:
        """Aggregation loss of the meta chains under the lower level's present parameters."""
        log_odds, chains = self.lower.module(batch.prompts), len(batch.true_false)
        if self.target == "prefix":
            losses = chain_losses(log_odds, batch.true_false[batch.chain], self.loss)
            self._losses = group_means(losses.detach(), batch.chain, chains)
        else:
            aggregated = mean_log_odds(log_odds, batch.chain, chains)
            losses = chain_losses(aggregated, batch.true_false, self.loss)
            self._losses = losses.detach()
        return losses.mean()

    def get_loss(self, batch: MetaBatch) -> tuple[torch.Tensor, dict[str, float]]:
        loss = self.training_step_exec(batch)
        self.last_loss = self.check_finite(loss, batch.records)
        self.on_losses(self.last_loss, self._losses, batch.true_false)
        return loss * self.loss_scale, {"loss": self.last_loss}

    def backward(self, *args, **kwargs) -> None:
        """Betty's: the meta gradient, and from it the hypergradient."""
        with hypergradient.pulled_back(self.lower.last_step):
            super().backward(*args, **kwargs)

    def grad_callback(self) -> None:
        """Called by Betty once the hypergradient is there."""
        gradients = [p.grad for p in self.trainable_parameters() if p.grad is not None]
        self.hypergradient_norm = total_norm(gradients)

    def optimizer_step(self) -> None:
        """One step of the weights; one that has nothing to go by is left out and counted."""
        if not math.isfinite(self.hypergradient_norm):
            self.lost[NOT_FINITE] += 1
            if self.compute_precision == "fp16":
                self.loss_scale /= 2
        elif self.lower.config.type == "unrolled" and self.lower.last_step is None:
            self.lost[NO_LOWER_STEP] += 1
        else:
            if self.lower.loses_the_weights():
                self.lost[ONE_WEIGHT_CLIPPED] += 1
            if 0 < self.max_grad_norm < self.hypergradient_norm:
                for parameter in self.trainable_parameters():
                    parameter.grad = parameter.grad * (self.max_grad_norm / self.hypergradient_norm)
            self.optimizer.step()
            self.on_step()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
