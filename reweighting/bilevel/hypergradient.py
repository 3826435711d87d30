"""The hypergradient: the derivative of the meta loss with respect to the weights of the train data.

One lower step maps the parameters φ to φ' = U(φ, g) with g = 1/B Σ_j w_j(α) ∇ℓ_j(φ). Through this
step

    dL_meta/dα = Σ_j ∂w_j/∂α · s_j,   s_j = 1/B ⟨∇ℓ_j(φ), u⟩,   u = (∂U/∂g)ᵀ v,   v = ∇L_meta(φ')

which is the *exact* one-step-unrolled hypergradient. It needs no second derivative of the network
and no finite difference:

- v becomes u parameter by parameter while the backward pass of the meta loss runs, and takes the
  place of g (:func:`pulled_back`, :class:`~.adamw_step.AdamWStep`);
- the inner products s_j come from one forward-mode pass at φ along u, which builds no graph
  (:func:`inner_products`). φ is recovered from φ' by undoing the optimizer step, which costs no
  memory between steps. Records that share one weight are spared the pass (:mod:`.largest_group`).

Of several processes (:mod:`~reweighting.system.processes`) each has a share of the records of both
levels. g and v are their sums, B counts the records of all; each process finds s_j of its own
records, and the upper level sums what follows for α.

Betty's engine calls this function under the name ``unrolled``. The published central difference,
with its errors mended, is registered as ``finite_difference``.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from betty.hypergradient import jvp_fn_mapping
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .adamw_step import AdamWStep, inner
from .batches import whole_size
from .largest_group import largest_group, with_remainder

DIFFERENCE_RADIUS = 0.01  # length of the finite difference's step, as in Betty and DARTS
# Names under which Betty finds the two; its own "darts" is left as it is.
UNROLLED, FINITE_DIFFERENCE = "unrolled", "finite_difference"
HYPERGRADIENTS = {"unrolled": UNROLLED, "darts": FINITE_DIFFERENCE}  # by --hypergradient
FP16_LENGTH = 64.0  # of u in fp16's forward-mode pass: far from both ends of fp16's range


@dataclass
class Products:
    """Inner products with u of one micro-batch's gradients."""

    losses: torch.Tensor  # s_j = ⟨∇ℓ_j, u⟩ / B, [B]
    # Only for weights through whose features the reward model itself is trained:
    features: torch.Tensor | None = None  # ⟨∇f, u⟩, [R, F]; not divided by B
    values: torch.Tensor | None = None  # ℓ_j / B, [B]

    def times(self, factor: float) -> Products:
        """The products with ``factor`` · u."""
        features = None if self.features is None else self.features * factor
        return Products(self.losses * factor, features, self.values)

    def objective(self, weighting, batch) -> torch.Tensor:
        """A function of α whose gradient is the micro-batch's part of the hypergradient.

        It is the derivative of Σ_j w_j ℓ_j along u: Σ_j w_j s_j + Σ_j ℓ_j ⟨∂w_j/∂f, ⟨∇f, u⟩⟩.
        """
        total = (weighting(batch, batch.features) * self.losses).sum()
        if self.features is not None:
            _, weights = torch.func.jvp(
                lambda features: weighting(batch, features), (batch.features,), (self.features,)
            )
            total = total + (weights * self.values).sum()
        return total


def register(name: str, products: Callable) -> None:
    """Let Betty's engine compute the hypergradient from ``products`` under ``name``.

    Betty calls ``hypergradient(vector, curr, prev, sync)`` with the gradient of each parameter of
    ``curr``, the lower problem. With ``sync`` the result is stored in the gradients of ``prev``,
    the upper problem, otherwise it is returned.
    """

    def hypergradient(vector, curr, prev, sync):
        found = products(curr, vector)
        batches = [batch for step in curr.window for batch in step]
        with torch.enable_grad():
            objective = sum(
                part.objective(prev.module, batch)
                for batch, part in zip(batches, found, strict=True)
            )
            # v was computed from the scaled meta loss; the scale is 1 except in fp16.
            objective = objective / prev.loss_scale
        gradients = torch.autograd.grad(objective, prev.trainable_parameters())
        if not sync:
            return gradients
        prev.set_grads(prev.trainable_parameters(), gradients)
        return None

    jvp_fn_mapping[name] = hypergradient


@contextlib.contextmanager
def pulled_back(step: AdamWStep | None) -> Iterator[None]:
    """Within this context every backward pass returns u instead of v as the gradient of φ'.

    Each parameter's v is pulled back as soon as it is computed, so the meta gradient never exists
    as a whole: it takes only the memory of the largest parameter. Without a step, v stays v.
    """
    hooks = []
    if step is not None:
        for number, parameter in enumerate(step.parameters()):
            hooks.append(parameter.register_hook(functools.partial(step.pull_back, number)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def inner_products(lower, vector: list[torch.Tensor]) -> list[Products]:
    """s_j of every record in the lower problem's window, by micro-batch.

    The window holds the last lower step, for which s_j is exact. If it holds earlier steps too,
    their records are taken at the same φ and u, times what AdamW's m makes of their gradients
    (:meth:`AdamWStep.remembered`): the parameters and √v moved little in between. ``vector`` is u
    (:func:`pulled_back`), which :meth:`AdamWStep.finish` completes.
    """
    step = lower.last_step
    if step is None:  # the loss scaler skipped the step: φ' does not depend on g
        return _by_batch(lower, _nothing)
    total = step.finish(vector)  # ⟨g, u⟩ = Σ_j w_j s_j
    products = products_along(lower, step, vector)
    if group := largest_group(lower):
        found = with_remainder(lower, group, total, lambda part: products(part).losses)
        return [Products(losses) for losses in found]
    return _by_batch(lower, products, step.remembered(len(lower.window)))


def products_along(lower, step: AdamWStep, vector: list[torch.Tensor]) -> Callable:
    """The function of a train batch that gives its :class:`Products` with u, not divided by B.

    φ, the parameters before ``step``, is found when a batch first needs it. ``vector`` is u,
    complete.
    """

    @functools.cache
    def line() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
        names = lower.parameter_names()
        length = _shorten(vector) if lower.compute_precision == "fp16" else 1.0
        before = dict(zip(names, step.undo(), strict=True))
        return before, dict(zip(names, vector, strict=True)), length

    def products(batch) -> Products:
        before, direction, length = line()
        return directional_derivatives(lower, before, direction, batch).times(length)

    return products


@torch.no_grad()
def finite_differences(lower, vector: list[torch.Tensor]) -> list[Products]:
    """The published hypergradient's s_j = -⟨∇ℓ_j(φ'), v⟩ / B, by a central difference along v.

    It leaves out the optimizer and is taken at the point after the step. The losses are computed
    in fp32 at perturbed *copies* of the parameters: bf16 would round the perturbation away, and
    nothing has to be restored afterwards.
    """
    lower.processes.sum_(vector)
    parameters = dict(zip(lower.parameter_names(), lower.trainable_parameters(), strict=True))
    radius = DIFFERENCE_RADIUS / (inner(vector, vector) ** 0.5 + 1e-15)

    def losses(batch, sign: int) -> torch.Tensor:
        moved = {
            name: parameter + sign * radius * v
            for (name, parameter), v in zip(parameters.items(), vector, strict=True)
        }
        return lower.record_losses(batch, lambda p: functional_call(lower.module, moved, (p,)))

    def difference(batch) -> Products:
        return Products((losses(batch, -1) - losses(batch, +1)) / (2 * radius))

    return _by_batch(lower, difference)


register(UNROLLED, inner_products)
register(FINITE_DIFFERENCE, finite_differences)


def _shorten(vector: list[torch.Tensor]) -> float:
    """Scale u to the length :data:`FP16_LENGTH` in place; return what it was divided by.

    AdamW divides by √v, so u can have any length, and the tangents along it would overflow or
    underflow in fp16. They are proportional to u: its length is multiplied back afterwards.
    """
    length = inner(vector, vector) ** 0.5 / FP16_LENGTH
    if not 0 < length < math.inf:  # u is zero, or v is lost already
        return 1.0
    torch._foreach_div_(vector, length)
    return length


def _nothing(batch) -> Products:
    return Products(torch.zeros_like(batch.domains, dtype=torch.float32))


def _by_batch(
    lower, products: Callable, factors: Iterable[float] = itertools.repeat(1.0)
) -> list[Products]:
    """``products(batch)`` of all micro-batches, divided by the number of records of their step.

    Args:
        factors: of the steps, oldest first.
    """
    found = []
    for batches, factor in zip(lower.window, factors, strict=False):
        records = whole_size(batches)
        for batch in batches:
            part = products(batch).times(factor)
            values = None if part.values is None else part.values / records
            found.append(Products(part.losses / records, part.features, values))
    return found


def directional_derivatives(
    lower,
    parameters: dict[str, torch.Tensor],
    direction: dict[str, torch.Tensor],
    batch,
) -> Products:
    """⟨∇ℓ_j(φ), direction⟩ of every record of ``batch``, by forward-mode differentiation.

    Fused attention kernels have no forward derivative. Attention that is not ours
    (:func:`~reweighting.reward_model.attention.attention_along`) therefore runs in the plain
    ("math") implementation.
    """
    unpack = torch.autograd.forward_ad.unpack_dual
    with (
        without_checkpoints(lower.module),
        torch.autograd.forward_ad.dual_level(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        dual = {
            name: torch.autograd.forward_ad.make_dual(value, direction[name])
            for name, value in parameters.items()
        }
        with lower.autocast():
            losses, features = lower.losses_and_features(
                batch, lambda *inputs: functional_call(lower.module, dual, inputs)
            )
        values, along = unpack(losses)
        if lower.weighting.detached:
            return Products(along)
        return Products(along, unpack(features).tangent, values)


@contextlib.contextmanager
def without_checkpoints(module: torch.nn.Module) -> Iterator[None]:
    """Switch gradient checkpointing off; transformers has it in training mode only.

    A pass that builds no graph has nothing to keep, and torch 2.11 cannot differentiate a
    checkpointed function in forward mode.
    """
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
