"""One step of AdamW as a function φ' = U(φ, g) of the parameters φ and the gradient g.

The hypergradient needs two things from it: its transposed derivative (∂U/∂g)ᵀ v, which is diagonal
and known in closed form (SAMA, arXiv 2310.05674, uses the same idea), and its inverse, which gives
φ back from φ'. Both are computed from the optimizer's state just after the step, so no copy of the
parameters or of the moments is kept.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch

PIECE = {"cpu": 2**18, "cuda": 2**24}  # numbers that are worked on at a time


class AdamWStep:
    """A step of ``torch.optim.AdamW`` that has just been taken.

    Args:
        optimizer: the one that took the step.
        gradients: g of every parameter, before clipping; :meth:`pull_back` overwrites them.
        clip: the factor ≤ 1 by which gradient clipping multiplied g.
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
        self._along: float | torch.Tensor = 0.0  # ⟨g, u⟩ of the parameters pulled back so far

    def parameters(self) -> list[torch.nn.Parameter]:
        """φ', in the order of the gradients."""
        return [parameter for parameter, _, _ in self._groups]

    def again(self) -> AdamWStep:
        """The same step with a copy of g, so that one more vector can be pulled back through it."""
        other = copy.copy(self)
        other.gradients = [gradient.clone() for gradient in self.gradients]
        other._waiting, other._along = [], 0.0
        return other

    @functools.cached_property
    def _times(self) -> list[float]:
        """The number of steps of every parameter, read together: each reading waits for a GPU."""
        states = [self._optimizer.state[parameter] for parameter in self.parameters()]
        return torch.stack([state["step"] for state in states]).tolist()

    def remembered(self, steps: int) -> list[float]:
        """How far the gradient of each of the last ``steps`` steps reaches φ'; the last one's is 1.

        A gradient of step t stays in m, so it acts on every step s from t to the last step T:
        Σ_s β₁^(s-t) (1 - β₁^T) / (1 - β₁^s). Taken as constant are √v and the learning rate, and
        steps that a loss scaler skipped count as taken.
        """
        beta, last = self._groups[0][1]["betas"][0], round(self._times[0])
        factors, factor = [], 0.0
        for time in range(last, last - steps, -1):
            factor = factor * beta + (1 - beta**last) / (1 - beta ** max(1, time))
            factors.append(factor)
        return factors[::-1]

    def _pieces(self, number: int, *tensors: torch.Tensor):
        """Yield the step's factors, the parameter, m, √v and ``tensors``, piece by piece.

        √v is a copy that the caller may overwrite. The time goes into memory traffic: pieces keep
        it within the CPU's cache and, on a GPU, keep the copies small.
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
        """u = (∂U/∂g)ᵀ v of one parameter; the tensor returned is filled by :meth:`finish`.

        It takes the place of g, unless the step was clipped: then :meth:`finish` needs all of g.
        """
        gradient = self.gradients[number]
        found = gradient if self.clip == 1 else torch.empty_like(gradient)
        self._waiting.append((number, vector, found))
        # One small parameter between matrix products takes several times as long as among others.
        if sum(v.numel() for _, v, _ in self._waiting) >= PIECE.get(found.device.type, 0):
            self._pull_back()
        return found

    @torch.no_grad()
    def _pull_back(self) -> None:
        """Pull back the parameters that are waiting.

        U moves a parameter by -η m̂ / (√v̂ + ε); g enters m linearly and v quadratically. With the
        bias corrections c₁ and c₂ and κ = √c₂, so that √v̂ = √v / κ:

            ∂U/∂g = -η κ / (c₁ (√v + κε)) [ (1 - β₁) - (1 - β₂) g m / (√v (√v + κε)) ]
        """
        for number, vector, found in self._waiting:
            gradient = self.gradients[number]
            for f, _, mean, root, g, v, u in self._pieces(number, gradient, vector, found):
                if f.rounded:  # v contains g² itself, although 8 bits may have lost it
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
        """Complete u in ``vector``, the clipping included; return ⟨g, u⟩ and release g."""
        self._pull_back()
        along = float(self._along)
        if self.clip < 1:
            # A clipped g enters as c·g with c = max/‖g‖: only its direction counts.
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
    """The numbers of one AdamW step: ``eps`` as it is added to √v, ``rate`` = η κ / c₁.

    ``rounded`` says that the moments are kept in 8 bits.
    """

    def __init__(self, group: dict, learning_rate: float, time: float, rounded: bool) -> None:
        self.rounded = rounded
        self.beta1, self.beta2 = group["betas"]
        correction1, correction2 = 1 - self.beta1**time, 1 - self.beta2**time
        self.eps = group["eps"] * correction2**0.5
        self.rate = learning_rate * correction2**0.5 / correction1
        self.shrink = 1 - learning_rate * group["weight_decay"]

    @property
    def least_root(self) -> float:
        """1 / K, where |m| ≤ K √v whatever the gradients were (Cauchy-Schwarz).

        8 bits may round a small v to zero beside a larger m.
        """
        beta1, beta2 = self.beta1, self.beta2
        return ((1 - beta2) * (1 - beta1**2 / beta2)) ** 0.5 / (1 - beta1)


def _moment(state: torch.Tensor) -> torch.Tensor:
    """A moment of AdamW as a plain tensor; torchao keeps it in 8 bits."""
    return state.dequantize() if hasattr(state, "block_size") else state


def inner(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """⟨left, right⟩ over lists of tensors, summed in float64: terms of both signs cancel."""
    return sum(
        (a * b).sum(dtype=torch.float64)
        for tensors in zip(left, right, strict=True)
        for a, b in pieces(*tensors)
    ).item()


def pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors of one shape; if they are large, flat views of corresponding parts of them."""
    first, *_ = tensors
    size = PIECE.get(first.device.type, first.numel())
    if first.numel() <= size or not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
    else:
        yield from zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
