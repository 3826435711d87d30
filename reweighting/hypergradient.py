"""The derivative of the meta loss with respect to the weights of the training data.

One lower step maps the parameters φ to φ' = U(φ, g) with g = 1/B Σ_j w_j(α) ∇ℓ_j(φ). Through this
step

    dL_meta/dα = Σ_j ∂w_j/∂α · s_j,   s_j = 1/B ⟨∇ℓ_j(φ), u⟩,   u = (∂U/∂g)ᵀ v,   v = ∇L_meta(φ')

which is the *exact* one-step-unrolled hypergradient. For AdamW ∂U/∂g is diagonal and known in
closed form (SAMA, arXiv 2310.05674, uses the same idea), so no second derivative of the network
and no finite difference is needed. The inner products s_j come

- from the stored lower gradient, when all records of the step share one weight: for free;
- from one forward-mode pass at φ along u otherwise, without a graph. φ itself is recovered from
  φ' by undoing the optimizer step, which costs no memory between steps. The largest group of
  records that share a weight is spared the pass: what ⟨g, u⟩ leaves is theirs.

The function is registered with Betty under the name ``unrolled`` and called by its engine; the
published finite difference, mended, is there as ``finite_difference``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from betty.hypergradient import jvp_fn_mapping
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

PIECE = {"cpu": 2**16, "cuda": 2**24}  # numbers worked on at a time
SMALLEST_WEIGHT = 0.1  # of the largest; a remainder divided by less would lose digits
DIFFERENCE_RADIUS = 0.01  # length of the finite difference's step, as in Betty and DARTS


@dataclass
class Alongside:
    """How one micro-batch moves along u, all divided by the number of records of its step."""

    losses: torch.Tensor  # s_j = ⟨∇ℓ_j, u⟩, [B]
    # Only for weights that the reward model itself reaches through its features:
    features: torch.Tensor | None = None  # ⟨∇f, u⟩, [R, F]; not divided
    values: torch.Tensor | None = None  # ℓ_j, [B]

    def objective(self, weighting, batch) -> torch.Tensor:
        """A function of α whose gradient is the batch's part of the hypergradient.

        The derivative of Σ_j w_j ℓ_j along u: Σ_j w_j s_j + Σ_j ℓ_j ⟨∂w_j/∂f, ⟨∇f, u⟩⟩.
        """
        total = (weighting(batch, batch.features) * self.losses).sum()
        if self.features is not None:
            _, weights = torch.func.jvp(
                lambda features: weighting(batch, features), (batch.features,), (self.features,)
            )
            total = total + (weights * self.values).sum()
        return total


def register(name: str, products: Callable) -> None:
    """Let Betty's engine reach the weights through ``products`` under ``name``.

    Betty calls ``hypergradient(vector, curr, prev, sync)`` with v for each parameter of ``curr``,
    the lower problem; with ``sync`` the result belongs into the gradients of ``prev``, the upper.
    """

    def hypergradient(vector, curr, prev, sync):
        scale = curr.loss_scaler.get_scale()  # 1 unless computing in fp16
        found = products(curr, [v / scale for v in vector] if scale != 1 else vector)
        batches = [batch for step in curr.window for batch in step]
        with torch.enable_grad():
            objective = sum(
                along.objective(prev.module, batch)
                for batch, along in zip(batches, found, strict=True)
            )
        gradients = torch.autograd.grad(objective, prev.trainable_parameters())
        if not sync:
            return gradients
        prev.set_grads(prev.trainable_parameters(), gradients)
        return None

    jvp_fn_mapping[name] = hypergradient


@torch.no_grad()
def inner_products(lower, vector: list[torch.Tensor]) -> list[Alongside]:
    """s_j of every record in the lower problem's window, by micro-batch.

    The window holds the last lower step, for which s_j is exact. If it holds earlier ones too,
    their records are taken at the same φ and u: the parameters moved little in between. ``vector``
    is overwritten.
    """
    step = lower.last_step
    if step is None:  # the loss scaler skipped the step: the parameters do not depend on g
        return _constant(lower, 0.0)
    step.pull_back(vector)
    group = _largest_group(lower)
    total = inner(vector, step.gradients) if group else None  # Σ_j w_j s_j
    step.gradients = None  # their memory is needed for φ

    @functools.cache
    def line() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        names = lower.parameter_names()
        return dict(zip(names, step.undo(), strict=True)), dict(zip(names, vector, strict=True))

    def move(batch) -> Alongside:
        return directional_derivatives(lower, *line(), batch)

    return _with_remainder(lower, group, total, move) if group else _by_batch(lower, move)


@torch.no_grad()
def finite_differences(lower, vector: list[torch.Tensor]) -> list[Alongside]:
    """The published hypergradient's s_j = -⟨∇ℓ_j(φ'), v⟩, by a central difference along v.

    It leaves out the optimizer and is taken at the point after the step. The losses are computed
    in fp32 at perturbed *copies* of the parameters: rounding would swallow the step in bf16, and
    nothing needs to be restored.
    """
    lower.last_step = None  # its gradients are not needed, their memory is
    parameters = dict(zip(lower.parameter_names(), lower.trainable_parameters(), strict=True))
    radius = DIFFERENCE_RADIUS / (inner(vector, vector) ** 0.5 + 1e-15)

    def losses(batch, sign: int) -> torch.Tensor:
        moved = {
            name: parameter + sign * radius * v
            for (name, parameter), v in zip(parameters.items(), vector, strict=True)
        }
        return lower.record_losses(batch, lambda p: functional_call(lower.module, moved, (p,)))

    def difference(batch) -> Alongside:
        return Alongside((losses(batch, -1) - losses(batch, +1)) / (2 * radius))

    return _by_batch(lower, difference)


register("unrolled", inner_products)
register("finite_difference", finite_differences)  # Betty's own "darts" stays what it is


def _by_batch(lower, move: Callable) -> list[Alongside]:
    """``move(batch)`` of all micro-batches, over the number of records of their step."""
    found = []
    for batches in lower.window:
        records = sum(len(batch.records) for batch in batches)
        for batch in batches:
            along = move(batch)
            values = None if along.values is None else along.values / records
            found.append(Alongside(along.losses / records, along.features, values))
    return found


def _constant(lower, value: float) -> list[Alongside]:
    return [
        Alongside(torch.full_like(batch.domains, value, dtype=torch.float32))
        for batches in lower.window
        for batch in batches
    ]


@dataclass
class _Group:
    """Records that share a weight, and the trees that hold no others."""

    weight: float
    trees: list[list[int]]  # by micro-batch
    tokens: int = 0


def _largest_group(lower) -> _Group | None:
    """The group with the most tokens, if s_j of its records need not be told apart."""
    if len(lower.window) > 1 or not lower.weighting.detached:
        return None
    [batches] = lower.window
    groups: dict[int, _Group] = {}
    heaviest = 0.0
    for index, batch in enumerate(batches):
        weights = lower.weights(batch, batch.features).tolist()
        heaviest = max(heaviest, *map(abs, weights))
        served = batch.records_of_trees()
        for number, trees in batch.trees_by_weight(lower.weighting.sharing(batch)).items():
            new = _Group(weights[min(served[trees[0]])], [[] for _ in batches])
            group = groups.setdefault(number, new)
            group.trees[index] += trees
            packed = [batch.prompts.trees[tree] for tree in trees]
            group.tokens += sum(tree.end - tree.start for tree in packed)
    able = [
        group
        for group in groups.values()
        if abs(group.weight) >= SMALLEST_WEIGHT * heaviest and group.weight
    ]
    return max(able, key=lambda group: group.tokens, default=None)


def _with_remainder(lower, group: _Group, total: float, move: Callable) -> list[Alongside]:
    """``move(part)`` of what is not in ``group``, whose records share what is left of ``total``."""
    [batches] = lower.window
    records = sum(len(batch.records) for batch in batches)
    losses, left = [], []
    for batch, known in zip(batches, group.trees, strict=True):
        losses.append(torch.zeros_like(batch.domains, dtype=torch.float32))
        left.append(torch.ones_like(batch.domains, dtype=torch.bool))
        others = [tree for tree in range(len(batch.prompts.trees)) if tree not in known]
        if others:
            part, numbers = batch.part(others)
            left[-1][numbers] = False
            losses[-1][numbers] = move(part).losses.float() / records
            weights = lower.weights(batch, batch.features)
            total -= float((weights * losses[-1]).sum(dtype=torch.float64))
    each = total / group.weight / sum(int(mask.sum()) for mask in left)
    return [
        Alongside(torch.where(mask, each, found)) for mask, found in zip(left, losses, strict=True)
    ]


def directional_derivatives(
    lower,
    parameters: dict[str, torch.Tensor],
    direction: dict[str, torch.Tensor],
    batch,
) -> Alongside:
    """⟨∇ℓ_j(φ), direction⟩ of every record of ``batch``, by forward-mode differentiation.

    Fused attention kernels have no forward derivative, hence the plain ("math") one where the
    model's attention is not ours (:func:`~reweighting.layers.attention_along`).
    """
    unpack = torch.autograd.forward_ad.unpack_dual
    with torch.autograd.forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
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
            return Alongside(along)
        return Alongside(along, unpack(features).tangent, values)


def inner(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """⟨left, right⟩ over lists of tensors, summed in float64: terms of both signs cancel."""
    return sum(
        (a * b).sum(dtype=torch.float64)
        for tensors in zip(left, right, strict=True)
        for a, b in pieces(*tensors)
    ).item()


def pieces(*tensors: torch.Tensor | None) -> Iterator[tuple[torch.Tensor | None, ...]]:
    """Corresponding parts of tensors of one shape, as flat views; None stays None."""
    present = [tensor for tensor in tensors if tensor is not None]
    if not all(tensor.is_contiguous() for tensor in present):
        yield tensors
        return
    flat = [None if tensor is None else tensor.view(-1) for tensor in tensors]
    size = PIECE.get(present[0].device.type, present[0].numel())
    for start in range(0, present[0].numel(), size):
        yield tuple(None if t is None else t[start : start + size] for t in flat)


def _moment(state: torch.Tensor) -> torch.Tensor:
    """A moment of AdamW as a plain tensor; torchao keeps it in 8 bits."""
    return state.dequantize() if hasattr(state, "block_size") else state


class AdamWStep:
    """One step of ``torch.optim.AdamW`` seen as a function φ' = U(φ, g), just after it was taken.

    Args:
        optimizer: has just stepped.
        gradients: g of every parameter, before clipping.
        clip: factor ≤ 1 that gradient clipping multiplied g with.
    """

    def __init__(
        self, optimizer: torch.optim.AdamW, gradients: list[torch.Tensor], clip: float
    ) -> None:
        self.optimizer = optimizer
        self.gradients = gradients
        self.clip = clip
        # The scheduler changes the rate after the step and before the hypergradient asks for it.
        self.learning_rates = [float(group["lr"]) for group in optimizer.param_groups]

    def _blocks(self, vector: list[torch.Tensor | None]):
        """Piece by piece of every parameter: itself, its part of ``vector``, g, m, √v and factors.

        √v is a copy, for the caller to work in. Time here goes into memory traffic, and pieces
        keep it within the processor's cache, or on a GPU the copies small.
        """
        others = zip(vector, self.gradients or itertools.repeat(None), strict=False)
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            for parameter, (v, g) in zip(group["params"], others, strict=False):
                state = self.optimizer.state[parameter]
                factors = _Factors(group, rate, float(state["step"]))
                moments = _moment(state["exp_avg"]), _moment(state["exp_avg_sq"])
                rounded = moments[0] is not state["exp_avg"]
                for p, v_part, g_part, mean, square in pieces(parameter, v, g, *moments):
                    root = square.sqrt()
                    if rounded:
                        root = torch.maximum(root, mean.abs() * factors.least_root)
                        if g is not None:  # v holds g² itself, though 8 bits may have lost it
                            own = g_part.abs() * ((1 - factors.beta2) ** 0.5 * self.clip)
                            root = torch.maximum(root, own)
                    yield p, v_part, g_part, mean, root, factors

    def pull_back(self, vector: list[torch.Tensor]) -> None:
        """Turn v into u = (∂U/∂g)ᵀ v, in place, with g the gradient before clipping.

        U moves a parameter by -η m̂ / (√v̂ + ε); g enters m linearly and v quadratically. With the
        bias corrections c₁ and c₂ and κ = √c₂, so that √v̂ = √v / κ:

            ∂U/∂g = -η κ / (c₁ (√v + κε)) [ (1 - β₁) - (1 - β₂) g m / (√v (√v + κε)) ]
        """
        for _, v, g, mean, root, f in self._blocks(vector):
            denominator = root + f.eps
            # Where g and its history are zero, √v = 0 and the second term has the limit 0.
            second = (g / root.clamp_(min=torch.finfo(root.dtype).tiny)).mul_(mean)
            second.div_(denominator)
            first = -f.rate * (1 - f.beta1)
            factor = torch.rsub(second, first, alpha=-f.rate * (1 - f.beta2) * self.clip)
            v.mul_(factor.div_(denominator))
        if self.clip < 1:
            # Clipped, g enters as c·g with c = max/‖g‖: only its direction counts.
            shift = inner(vector, self.gradients) / inner(self.gradients, self.gradients)
            for v, g in zip(vector, self.gradients, strict=True):
                v.sub_(shift * g).mul_(self.clip)

    def undo(self) -> list[torch.Tensor]:
        """φ, the parameters before the step, up to rounding."""
        before = [
            torch.empty_like(parameter, memory_format=torch.contiguous_format)
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        ]
        for p, out, _, mean, root, f in self._blocks(before):
            moved = torch.addcdiv(p.to(root.dtype), mean, root.add_(f.eps), value=f.rate)
            out.copy_(moved.div_(f.shrink))
        return before


class _Factors:
    """The numbers of one AdamW step: ε as it stands beside √v, and η κ / c₁ as ``rate``."""

    def __init__(self, group: dict, learning_rate: float, time: float) -> None:
        self.beta1, self.beta2 = group["betas"]
        correction1, correction2 = 1 - self.beta1**time, 1 - self.beta2**time
        self.eps = group["eps"] * correction2**0.5
        self.rate = learning_rate * correction2**0.5 / correction1
        self.shrink = 1 - learning_rate * group["weight_decay"]

    @property
    def least_root(self) -> float:
        """|m| ≤ K √v whatever the gradients were (Cauchy-Schwarz): 1 / K.

        8 bits may make a small v zero beside a larger m.
        """
        beta1, beta2 = self.beta1, self.beta2
        return ((1 - beta2) * (1 - beta1**2 / beta2)) ** 0.5 / (1 - beta1)
