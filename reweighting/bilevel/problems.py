"""The two levels of DreamPRM as a pair of Betty problems (DreamPRM, section 3).

    lower   φ*(α) = argmin_φ  mean_j  w_j(α) · ℓ(V_φ(prefix_j), accuracy_j)
    upper   α*    = argmin_α  mean_m  ℓ_meta( σ( mean_i z_{m,i}(φ*(α)) ), true_false_m )

Betty's engine gives each problem the other one under its name: ``lower.upper`` holds the weighting,
``upper.lower`` the reward model. It takes ``unroll_steps`` lower steps, then one upper step, whose
gradient reaches α through the lower step by a function of
:mod:`reweighting.bilevel.hypergradient`.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from betty.problems import ImplicitProblem
from torch.func import functional_call

from ..system.device import autocast
from ..system.processes import Processes
from . import hypergradient
from .batches import MetaBatch, TrainBatch, whole_size
from .objectives import chain_losses, group_means, mean_log_odds, pair_losses, record_losses
from .weighting import Weighting

FP16_LOSS_SCALE = 2.0**12  # initial scale of the meta loss, far from overflow and underflow

# Why an upper step teaches nothing. In the first two cases the step is skipped; in the third it
# follows the optimizer's memory of earlier hypergradients.
NOT_FINITE = "the hypergradient was not finite"
NO_LOWER_STEP = "the loss scaler had skipped the lower step"
ONE_WEIGHT_CLIPPED = "clipping leaves only the direction of a gradient whose records share a weight"


class NonFiniteLoss(Exception):
    """A loss became NaN or infinite; the message names the records of its batch."""


class _Problem(ImplicitProblem):
    """What both levels change in Betty's defaults.

    Betty rebuilds optimizers from their default options, autocasts on CUDA only, and differentiates
    frozen parameters too. Here optimizers stay as they are, every device computes in ``precision``,
    and only trainable parameters take part.

    Args:
        batches: endless; an item is a batch that has a method ``to(device)``.
        precision: of the computation, ``fp32``, ``bf16`` or ``fp16``.
        lr_scheduler: stepped by the problem itself after each of its optimizer steps; Betty would
            step its own after every micro-batch.
        max_grad_norm: larger gradients are scaled down to this norm; 0 turns clipping off.
        processes: that share every batch; this one alone if not given.
    """

    def __init__(
        self,
        *args,
        batches: Iterator,
        precision: str = "fp32",
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        max_grad_norm: float = 0.0,
        processes: Processes | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches
        self.processes = processes or Processes()
        self.compute_precision = precision
        self.lr_scheduler = lr_scheduler
        self.max_grad_norm = max_grad_norm
        self.last_loss = float("nan")
        self.waited = 0.0  # seconds spent waiting for batches

    def next_batch(self):
        """The next batch, on the device of this problem."""
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

    def check_finite(self, loss: torch.Tensor | float, records: torch.Tensor) -> float:
        """The value of ``loss``, which is that of all processes.

        Raises:
            NonFiniteLoss: it is NaN or infinite.
        """
        value = float(loss)
        if not math.isfinite(value):
            raise NonFiniteLoss(
                f"the {self.name} loss is {value} for records "
                f"{self.processes.join(records).tolist()} "
                f"of the {'train' if self.name == 'lower' else 'meta'} file"
            )
        return value

    def state_dict(self) -> dict:
        """The optimizer and its schedule, for a checkpoint."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])


class Lower(_Problem):
    """Lower level: minimise the weighted loss of the training records over the reward model φ.

    Args:
        loss: ``bce`` or ``mse``, see :func:`~.objectives.record_losses`.
        accumulation: micro-batches per step; all of them enter the hypergradient.
        loss_scaler: keeps fp16 gradients from vanishing; disabled otherwise.
        window: number of the last lower steps whose records enter the hypergradient.
        fixed_weights: weights ``[K]`` of the domains, used when there is no upper level.
        cold: whether the run begins with a cold start, in which every weight is 1.
        compiled: let ``torch.compile`` fuse what the hypergradient does with the optimizer's state.
    """

    def __init__(
        self,
        *args,
        loss: str = "bce",
        accumulation: int = 1,
        loss_scaler: torch.amp.GradScaler | None = None,
        window: int = 1,
        fixed_weights: torch.Tensor | None = None,
        cold: bool = False,
        compiled: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.compiled = compiled
        self.loss = loss
        self.accumulation = accumulation
        self.loss_scaler = loss_scaler or torch.amp.GradScaler(enabled=False)
        self.window: collections.deque[list[TrainBatch]] = collections.deque(maxlen=window)
        self.fixed_weights = fixed_weights
        self.cold = cold
        self.last_step: hypergradient.AdamWStep | None = None
        self.on_losses: Callable[[TrainBatch, torch.Tensor, torch.Tensor], None] = (
            lambda batch, losses, weights: None
        )

    def get_batch(self) -> list[TrainBatch]:
        """The micro-batches of one step."""
        return [self.next_batch() for _ in range(self.accumulation)]

    def losses_and_features(
        self, batch: TrainBatch, forward=None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Unweighted losses ``[B]`` of the records, and the features ``[R, F]`` of the weighting.

        The loss of a record is the mean over its prompts.

        Args:
            forward: called instead of the module, for other parameters.
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
    def weighting(self) -> Weighting:
        """The module of the upper level."""
        return self.upper.module

    def weights(self, batch: TrainBatch, features: torch.Tensor | None = None) -> torch.Tensor:
        """The weights w ``[B]`` of the records, with α held constant.

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
        records = whole_size(self.cur_batch)
        losses = []
        for micro_batch in self.cur_batch:
            loss = self.training_step_exec(micro_batch) / records
            self.loss_scaler.scale(loss).backward()
            losses.append(loss.detach())
        # Reading a loss waits for a GPU, so all work of the step is handed to it before.
        values = self.processes.sum_step(self.gradients(), torch.stack(losses))
        self.last_loss = sum(
            self.check_finite(loss, micro_batch.records)
            for loss, micro_batch in zip(values, self.cur_batch, strict=True)
        )
        self.optimizer_step()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.zero_grad()
        return {"loss": self.last_loss}

    def gradients(self) -> list[torch.Tensor]:
        """The gradient of every trainable parameter."""
        parameters = self.trainable_parameters()
        for parameter in parameters:
            if parameter.grad is None:  # this batch does not reach that part of the model
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in parameters]

    def optimizer_step(self) -> None:
        self.loss_scaler.unscale_(self.optimizer)
        parameters, gradients = self.trainable_parameters(), self.gradients()
        clip = 1.0
        if self.max_grad_norm > 0:
            norm = float(torch.nn.utils.get_total_norm(gradients))
            clip = self.max_grad_norm / max(norm, self.max_grad_norm)  # the norm may be 0
            if clip < 1:
                for parameter in parameters:
                    # A new tensor: the unclipped gradient is kept for the hypergradient.
                    parameter.grad = parameter.grad * clip
        scale = self.loss_scaler.get_scale()
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()
        skipped = self.loss_scaler.get_scale() < scale
        if self.parents and self.keeps_steps and not skipped:
            self.last_step = hypergradient.AdamWStep(
                self.optimizer, gradients, clip, self.compiled, self.processes
            )

    @property
    def keeps_steps(self) -> bool:
        """Whether the hypergradient differentiates the optimizer step itself."""
        return self.config.type == hypergradient.UNROLLED

    def loses_the_weights(self) -> bool:
        """Whether the last step does not depend on the weights, so that its derivative is zero.

        Only the direction of a clipped gradient counts, and a factor that all records of the step
        share does not change the direction.
        """
        step = self.last_step
        if step is None or step.clip == 1 or len(self.window) > 1 or not self.weighting.detached:
            return False
        numbers = torch.cat([self.weighting.sharing(batch) for batch in self.cur_batch])
        return len(self.processes.join(numbers).unique()) == 1

    def end_cold_start(
        self,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Go on with learned weights and a new optimizer."""
        self.cold = False
        self.window.clear()
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler

    def state_dict(self) -> dict:
        return {**super().state_dict(), "loss_scaler": self.loss_scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.loss_scaler.load_state_dict(state["loss_scaler"])

    def replay(self, features: Sequence[list[torch.Tensor | None]]) -> None:
        """Read again the batches of the last lower steps, which the next hypergradient needs.

        Args:
            features: those that the weighting saw, ``[R, F]`` for each micro-batch of each step, on
                all processes; they depend on parameters that are gone.
        """
        for seen_in_step in features:
            step = self.get_batch()
            for batch, seen in zip(step, seen_in_step, strict=True):
                if seen is not None:
                    sizes = self.processes.gather(len(batch.accuracy))
                    own = seen.split(sizes)[self.processes.rank]
                    batch.features = own.to(self.device)
            self.window.append(step)


class Upper(_Problem):
    """Upper level: minimise the meta loss of the reward model just updated over the weights α.

    Args:
        loss: ``mse`` or ``bce``, see :func:`~.objectives.chain_losses`; or ``rank``, see
            :func:`~.objectives.pair_losses`, whose batches hold whole questions.
        target: what is compared with true/false: the aggregated score of a ``chain``, or the score
            of every ``prefix`` by itself (the ablation without the aggregation loss). Only chains
            can be ranked.
    """

    def __init__(
        self,
        *args,
        loss: str = "mse",
        target: str = "chain",
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.loss = loss
        self.target = target
        self._loss, self._records = torch.tensor(float("nan")), torch.empty(0)
        self.hypergradient_norm = float("nan")
        self.loss_scale = FP16_LOSS_SCALE if self.compute_precision == "fp16" else 1.0
        self.lost: collections.Counter[str] = collections.Counter()  # upper steps, by reason
        self.on_losses: Callable[[float, torch.Tensor, torch.Tensor], None] = (
            lambda loss, losses, true_false: None
        )
        self.on_step: Callable[[], None] = lambda: None

    def get_batch(self) -> MetaBatch:
        return self.next_batch()

    def training_step(self, batch: MetaBatch) -> torch.Tensor:
        """Aggregation loss of the meta chains under the present parameters of the reward model.

        Of several processes each computes its share of the mean over all losses.
        """
        log_odds, chains = self.lower.module(batch.prompts), len(batch.true_false)
        self._true_false = batch.true_false
        if self.target == "prefix":
            losses = chain_losses(log_odds, batch.true_false[batch.chain], self.loss)
            self._losses = group_means(losses.detach(), batch.chain, chains)
            return self._mean(losses, batch)
        aggregated = mean_log_odds(log_odds, batch.chain, chains)
        if self.loss == "rank":
            losses = pair_losses(aggregated, batch.true_false, batch.question)
            # Whether the first of a pair is the right chain is what is asked, and always true.
            self._true_false = torch.ones_like(losses)
        else:
            losses = chain_losses(aggregated, batch.true_false, self.loss)
        self._losses = losses.detach()
        return self._mean(losses, batch)

    def _mean(self, losses: torch.Tensor, batch: MetaBatch) -> torch.Tensor:
        if batch.whole is None:
            return losses.mean()
        if batch.idle:
            self._losses, self._true_false = self._losses[:0], self._true_false[:0]
            return losses.sum() * 0
        return losses.sum() / batch.whole

    def get_loss(self, batch: MetaBatch) -> tuple[torch.Tensor, dict[str, float]]:
        loss = self.training_step_exec(batch)
        self._loss, self._records = loss.detach(), batch.records
        return loss * self.loss_scale, {}

    def backward(self, *args, **kwargs) -> None:
        """The meta gradient and, by Betty, the hypergradient that follows from it."""
        with hypergradient.pulled_back(self.lower.last_step):
            super().backward(*args, **kwargs)
        self._sum_over_processes()
        self.on_losses(self.last_loss, self._losses, self._true_false)

    def _sum_over_processes(self) -> None:
        """Add up the meta loss and the hypergradient, of which each process has its share."""
        loss = self._loss.float().reshape(1)
        reached = [p for p in self.trainable_parameters() if p.grad is not None]
        self.processes.sum_([loss, *(p.grad for p in reached if not p.grad.is_sparse)])
        for parameter in reached:
            if parameter.grad.is_sparse:  # a table, of which a step reaches few rows
                parameter.grad = self.processes.join_sparse(parameter.grad)
        self.last_loss = self.check_finite(loss, self._records)

    def grad_callback(self) -> None:
        """Called by Betty when the hypergradient is known."""
        gradients = [p.grad for p in self.trainable_parameters() if p.grad is not None]
        self.hypergradient_norm = total_norm(gradients)

    def optimizer_step(self) -> None:
        """One step of the weights; without a usable hypergradient it is skipped and counted."""
        if not math.isfinite(self.hypergradient_norm):
            self.lost[NOT_FINITE] += 1
            if self.compute_precision == "fp16":
                self.loss_scale /= 2
        elif self.lower.keeps_steps and self.lower.last_step is None:
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

    def state_dict(self) -> dict:
        return {
            **super().state_dict(),
            "module": self.module.state_dict(),
            "features": [
                [None if b.features is None else self.processes.join(b.features) for b in step]
                for step in self.lower.window
            ],
            "last_loss": self.last_loss,
            "hypergradient_norm": self.hypergradient_norm,
            "loss_scale": self.loss_scale,
            "lost": dict(self.lost),
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.module.load_state_dict(state["module"])
        self.last_loss = state["last_loss"]
        self.hypergradient_norm = state["hypergradient_norm"]
        # Checkpoints written before version 0.1.0 lack the last two.
        self.loss_scale = state.get("loss_scale", self.loss_scale)
        self.lost.update(state.get("lost", {}))


def total_norm(gradients: Sequence[torch.Tensor]) -> float:
    """Euclidean norm over all ``gradients``, dense or sparse."""
    dense = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    return float(torch.nn.utils.get_total_norm(dense))
