"""The derivative of the meta loss with respect to the weights of the training data.

One lower step maps the parameters φ to φ' = U(φ, g) with g = 1/B Σ_j w_j(α) ∇ℓ_j(φ). Through this
step

    dL_meta/dα = Σ_j ∂w_j/∂α · s_j,   s_j = 1/B ⟨∇ℓ_j(φ), u⟩,   u = (∂U/∂g)ᵀ v,   v = ∇L_meta(φ')

which is the *exact* one-step-unrolled hypergradient. For AdamW ∂U/∂g is diagonal and known in
closed form (SAMA, arXiv 2310.05674, uses the same idea), so no second derivative of the network
and no finite difference is needed: v becomes u parameter by parameter while the meta loss's
backward pass runs, and takes the place of g. The inner products s_j come

- from the stored lower gradient, when all records of the step share one weight: for free;
- from one forward-mode pass at φ along u otherwise, without a graph. φ itself is recovered from
  φ' by undoing the optimizer step, which costs no memory between steps. The largest group of
  records that share a weight is spared the pass: what ⟨g, u⟩ leaves is theirs.

The function is registered with Betty under the name ``unrolled`` and called by its engine; the
published finite difference, mended, is there as ``finite_difference``.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from betty.hypergradient import jvp_fn_mapping
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

PIECE = {"cpu": 2**18, "cuda": 2**24}  # numbers worked on at a time
SMALLEST_WEIGHT = 0.1  # of the largest; a remainder divided by less would lose digits
DIFFERENCE_RADIUS = 0.01  # length of the finite difference's step, as in Betty and DARTS
# Names under which Betty finds the two; its own "darts" stays what it is.
UNROLLED, FINITE_DIFFERENCE = "unrolled", "finite_difference"
HYPERGRADIENTS = {"unrolled": UNROLLED, "darts": FINITE_DIFFERENCE}  # by --hypergradient
FP16_LENGTH = 64.0  # of u in fp16's forward-mode pass: far from both ends of fp16's range


@dataclass
class Alongside:
    """How one micro-batch moves along u, all divided by the number of records of its step."""

    losses: torch.Tensor  # s_j = ⟨∇ℓ_j, u⟩, [B]
    # Only for weights that the reward model itself reaches through its features:
    features: torch.Tensor | None = None  # ⟨∇f, u⟩, [R, F]; not divided
    values: torch.Tensor | None = None  # ℓ_j, [B]

    def times(self, factor: float) -> Alongside:
        """What it were along ``factor`` · u."""
        features = None if self.features is None else self.features * factor
        return Alongside(self.losses * factor, features, self.values)

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

    Betty calls ``hypergradient(vector, curr, prev, sync)`` with the gradient of each parameter of
    ``curr``, the lower problem; with ``sync`` the result belongs into the gradients of ``prev``,
    the upper.
    """

    def hypergradient(vector, curr, prev, sync):
        found = products(curr, vector)
        batches = [batch for step in curr.window for batch in step]
        with torch.enable_grad():
            objective = sum(
                along.objective(prev.module, batch)
                for batch, along in zip(batches, found, strict=True)
            )
            # The meta loss was scaled, and all that follows from it; 1 unless computing in fp16.
            objective = objective / prev.loss_scale
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
    is u already (:func:`pulled_back`), but for what :meth:`AdamWStep.finish` does to it.
    """
    step = lower.last_step
    if step is None:  # the loss scaler skipped the step: the parameters do not depend on g
        return _constant(lower, 0.0)
    total = step.finish(vector)  # Σ_j w_j s_j
    group = _largest_group(lower)

    @functools.cache
    def line() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
        names = lower.parameter_names()
        length = _shorten(vector) if lower.compute_precision == "fp16" else 1.0
        before = dict(zip(names, step.undo(), strict=True))
        return before, dict(zip(names, vector, strict=True)), length

    def move(batch) -> Alongside:
        before, direction, length = line()
        return directional_derivatives(lower, before, direction, batch).times(length)

    return _with_remainder(lower, group, total, move) if group else _by_batch(lower, move)


@contextlib.contextmanager
def pulled_back(step: AdamWStep | None) -> Iterator[None]:
    """Meanwhile the gradient of φ' leaves every backward pass as u: ``unrolled``.

    Each parameter's v is pulled back as soon as it is there, so that the meta gradient never exists
    as a whole: it takes no memory but that of the largest parameter's. Without a step, v it stays.
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
def finite_differences(lower, vector: list[torch.Tensor]) -> list[Alongside]:
    """The published hypergradient's s_j = -⟨∇ℓ_j(φ'), v⟩, by a central difference along v.

    It leaves out the optimizer and is taken at the point after the step. The losses are computed
    in fp32 at perturbed *copies* of the parameters: rounding would swallow the step in bf16, and
    nothing needs to be restored.
    """
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


register(UNROLLED, inner_products)
register(FINITE_DIFFERENCE, finite_differences)


def _shorten(vector: list[torch.Tensor]) -> float:
    """Bring u to the length :data:`FP16_LENGTH`, in place; returns by what it was divided.

    AdamW divides by √v, so u may be as long as it likes: what moves along it would leave fp16's
    range, above or below. It moves in proportion to u, whose length is multiplied back afterwards.
    """
    length = inner(vector, vector) ** 0.5 / FP16_LENGTH
    if not 0 < length < math.inf:  # nothing moves, or v is lost already
        return 1.0
    torch._foreach_div_(vector, length)
    return length


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
    model's attention is not ours (:func:`~reweighting.reward_model.attention.attention_along`).
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
            return Alongside(along)
        return Alongside(along, unpack(features).tangent, values)


@contextlib.contextmanager
def without_checkpoints(module: torch.nn.Module) -> Iterator[None]:
    """Gradient checkpointing off, as transformers has it in training mode only.

    A pass that builds no graph has nothing to keep, and torch 2.11 has no forward derivative of it.
    """
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def inner(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """⟨left, right⟩ over lists of tensors, summed in float64: terms of both signs cancel."""
    return sum(
        (a * b).sum(dtype=torch.float64)
        for tensors in zip(left, right, strict=True)
        for a, b in pieces(*tensors)
    ).item()


def pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors of one shape, or if they are large, flat views of corresponding parts."""
    first, *_ = tensors
    size = PIECE.get(first.device.type, first.numel())
    if first.numel() <= size or not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
    else:
        yield from zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)


def _moment(state: torch.Tensor) -> torch.Tensor:
    """A moment of AdamW as a plain tensor; torchao keeps it in 8 bits."""
    return state.dequantize() if hasattr(state, "block_size") else state


class AdamWStep:
    """One step of ``torch.optim.AdamW`` seen as a function φ' = U(φ, g), just after it was taken.

    Args:
        optimizer: has just stepped.
        gradients: g of every parameter, before clipping; overwritten by :meth:`pull_back`.
        clip: factor ≤ 1 that gradient clipping multiplied g with.
    """

    def __init__(
        self, optimizer: torch.optim.AdamW, gradients: list[torch.Tensor], clip: float
    ) -> None:
        self.gradients: list[torch.Tensor] | None = gradients
        self.clip = clip
        self._optimizer = optimizer
        # The scheduler changes the rate after the step and before the hypergradient asks for it.
        self._groups = [
            (parameter, group, float(group["lr"]))
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        self._waiting: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # number, v, u
        self._along: float | torch.Tensor = 0.0  # ⟨g, u⟩ of the parameters pulled back

    def parameters(self) -> list[torch.nn.Parameter]:
        """φ', in the order of the gradients."""
        return [parameter for parameter, _, _ in self._groups]

    @functools.cached_property
    def _times(self) -> list[float]:
        """How many steps each parameter has taken, read at once: to read one waits for a GPU."""
        states = [self._optimizer.state[parameter] for parameter in self.parameters()]
        return torch.stack([state["step"] for state in states]).tolist()

    def _pieces(self, number: int, *tensors: torch.Tensor):
        """The factors of a parameter, and by pieces itself, m, √v and its part of ``tensors``.

        √v is a copy, for the caller to work in. Time here goes into memory traffic, and pieces
        keep it within the processor's cache, or on a GPU the copies small.
        """
        parameter, group, rate = self._groups[number]
        state = self._optimizer.state[parameter]
        mean, square = _moment(state["exp_avg"]), _moment(state["exp_avg_sq"])
        rounded = mean is not state["exp_avg"]
        factors = _Factors(group, rate, self._times[number], rounded)
        for p, m, v, *parts in pieces(parameter, mean, square, *tensors):
            root = v.sqrt()
            if rounded:
                root = torch.maximum(root, m.abs() * factors.least_root)
            yield factors, p, m, root, *parts

    def pull_back(self, number: int, vector: torch.Tensor) -> torch.Tensor:
        """u = (∂U/∂g)ᵀ v of one parameter; its numbers are there after :meth:`finish`.

        Written over g, unless clipping, which knows all of g, needs g once more.
        """
        gradient = self.gradients[number]
        found = gradient if self.clip == 1 else torch.empty_like(gradient)
        self._waiting.append((number, vector, found))
        # Alone among matrix products a small parameter takes several times as long as with others.
        if sum(v.numel() for _, v, _ in self._waiting) >= PIECE.get(found.device.type, 0):
            self._pull_back()
        return found

    @torch.no_grad()
    def _pull_back(self) -> None:
        """Of all parameters that wait for it.

        U moves a parameter by -η m̂ / (√v̂ + ε); g enters m linearly and v quadratically. With the
        bias corrections c₁ and c₂ and κ = √c₂, so that √v̂ = √v / κ:

            ∂U/∂g = -η κ / (c₁ (√v + κε)) [ (1 - β₁) - (1 - β₂) g m / (√v (√v + κε)) ]
        """
        for number, vector, found in self._waiting:
            gradient = self.gradients[number]
            for f, _, mean, root, g, v, u in self._pieces(number, gradient, vector, found):
                if f.rounded:  # v holds g² itself, though 8 bits may have lost it
                    root = torch.maximum(root, g.abs() * ((1 - f.beta2) ** 0.5 * self.clip))
                first, ratio = -f.rate * (1 - f.beta1), (1 - f.beta2) / (1 - f.beta1) * self.clip
                denominator = root + f.eps
                # Where g and its history are zero, √v = 0 and the second term has the limit 0.
                root.mul_(denominator).clamp_(min=torch.finfo(root.dtype).tiny)
                share = torch.div(g, root, out=root).mul_(mean)
                pulled = torch.div(v, denominator, out=denominator)
                pulled.addcmul_(pulled, share, value=-ratio)
                along = torch.dot(pulled.reshape(-1), g.reshape(-1).to(pulled.dtype))
                self._along = self._along + first * along.double()
                torch.mul(pulled, first, out=u)
        self._waiting.clear()

    def finish(self, vector: list[torch.Tensor]) -> float:
        """⟨g, u⟩; u is complete, the clipping in it, and the memory of g is free."""
        self._pull_back()
        along = float(self._along)
        if self.clip < 1:
            # Clipped, g enters as c·g with c = max/‖g‖: only its direction counts.
            shift = along / inner(self.gradients, self.gradients)
            for u, g in zip(vector, self.gradients, strict=True):
                u.sub_(shift * g).mul_(self.clip)
            along = 0.0
        self.gradients = None
        return along

    def undo(self) -> list[torch.Tensor]:
        """φ, the parameters before the step, up to rounding."""
        before = []
        for number, parameter in enumerate(self.parameters()):
            out = torch.empty_like(parameter, memory_format=torch.contiguous_format)
            for f, p, mean, root, part in self._pieces(number, out):
                moved = torch.addcdiv(p.to(root.dtype), mean, root.add_(f.eps), value=f.rate)
                part.copy_(moved.div_(f.shrink))
            before.append(out)
        return before


class _Factors:
    """The numbers of one AdamW step: ε as it stands beside √v, and η κ / c₁ as ``rate``."""

    def __init__(self, group: dict, learning_rate: float, time: float, rounded: bool) -> None:
        self.rounded = rounded  # whether the moments are, to 8 bits
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
