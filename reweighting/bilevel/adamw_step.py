"""One step of AdamW as a function φ' = U(φ, g) of the parameters φ and the gradient g.

The hypergradient needs two things from it: its transposed derivative (∂U/∂g)ᵀ v, which is diagonal
and known in closed form (SAMA, arXiv 2310.05674, uses the same idea), and its inverse, which gives
φ back from φ'. Both are computed from the optimizer's state just after the step, so no copy of the
parameters or of the moments is kept.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..system.processes import Processes, StreamedSum

PIECE = {"cpu": 2**18, "cuda": 2**24}  # numbers that are worked on at a time
SMALL = {"cpu": 2**14, "cuda": 2**18}  # numbers of a parameter that is worked on with others
JOINED = {"cpu": 2**16, "cuda": 2**24}  # numbers of such parameters together


class AdamWStep:
    """A step of ``torch.optim.AdamW`` that has just been taken.

    Args:
        optimizer: the one that took the step.
        gradients: g of every parameter, before clipping; :meth:`pull_back` overwrites them.
        clip: the factor ≤ 1 by which gradient clipping multiplied g.
        compiled: let ``torch.compile`` fuse the arithmetic.
        processes: which together have the meta batch: v is summed over them before it is pulled
            back, since the step is no linear function of g.
    """

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        gradients: list[torch.Tensor],
        clip: float,
        compiled: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.gradients: list[torch.Tensor] | None = gradients
        self.compiled = compiled
        self.clip = clip
        self._optimizer = optimizer
        # The scheduler changes the rate after the step and before the hypergradient asks for it.
        self._groups = [
            (parameter, group, float(group["lr"]))
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        self._processes = processes or Processes()
        self._begin()

    def _begin(self) -> None:
        self._places: dict[int, torch.Tensor] = {}  # where u of a parameter is written to
        self._waiting: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # number, v, u
        self._along: float | torch.Tensor = 0.0  # ⟨g, u⟩ of the parameters pulled back so far
        self._sums = StreamedSum(self._processes, self.gradients, self._take)

    def parameters(self) -> list[torch.nn.Parameter]:
        """φ', in the order of the gradients."""
        return [parameter for parameter, _, _ in self._groups]

    def again(self) -> AdamWStep:
        """The same step with a copy of g, so that one more vector can be pulled back through it."""
        other = copy.copy(self)
        other.gradients = [gradient.clone() for gradient in self.gradients]
        other._begin()
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

    def _pieces(
        self, numbers: Iterable[int], results: Iterable[torch.Tensor], *lists: Iterable
    ) -> Iterator[tuple]:
        """The tensors of the parameters ``numbers``, piece by piece.

        Yields the factors of the step, then of each piece the parameter, m, v and the tensors of
        ``lists``, and last the ``results`` to be written to, see :func:`_spread`. Time goes into
        memory traffic and, on a GPU, into starting kernels: pieces of a large parameter stay within
        the CPU's cache and keep copies small; small parameters make one piece together.
        """
        together: dict[tuple, list[tuple]] = {}
        for number, result, *tensors in zip(numbers, results, *lists, strict=True):
            parameter, group, rate = self._groups[number]
            state = self._optimizer.state[parameter]
            mean, square = _moment(state["exp_avg"]), _moment(state["exp_avg_sq"])
            rounded = mean is not state["exp_avg"]
            factors = _Factors.of(group, rate, self._times[number], self.clip, rounded)
            row = (parameter.detach(), mean, square, *tensors, result)
            if parameter.numel() > SMALL.get(parameter.device.type, 0):
                if all(tensor.is_contiguous() for tensor in row):
                    row = tuple(tensor.view(-1) for tensor in row)
                for *piece, part in pieces(*row):
                    yield factors, *piece, [part]
                continue
            rows = together.setdefault((factors, parameter.dtype), [])
            rows.append(row)
            if sum(row[0].numel() for row in rows) > JOINED[parameter.device.type]:
                yield factors, *_joined(rows)
                rows.clear()
        for (factors, _), rows in together.items():
            if rows:
                yield factors, *_joined(rows)

    def pull_back(self, number: int, vector: torch.Tensor) -> torch.Tensor:
        """u = (∂U/∂g)ᵀ v of one parameter; the tensor returned is filled by :meth:`finish`.

        It takes the place of g, unless the step was clipped: then :meth:`finish` needs all of g.
        """
        gradient = self.gradients[number]
        found = gradient if self.clip == 1 else torch.empty_like(gradient)
        self._places[number] = found
        self._sums.add(number, vector)
        return found

    def _take(self, number: int, vector: torch.Tensor) -> None:
        """Pull v of a parameter back, now that it is summed, or soon."""
        self._waiting.append((number, vector, self._places[number]))
        # One small parameter between matrix products takes several times as long as among others.
        if sum(v.numel() for _, v, _ in self._waiting) >= PIECE.get(vector.device.type, 0):
            self._pull_back()

    @torch.no_grad()
    def _pull_back(self) -> None:
        """Pull back the parameters that are waiting."""
        numbers = [number for number, _, _ in self._waiting]
        vectors = [vector for _, vector, _ in self._waiting]
        found = [result for _, _, result in self._waiting]
        gradients = [self.gradients[number] for number in numbers]
        function = _compiled(_pull) if self.compiled else _pull
        for piece in self._pieces(numbers, found, gradients, vectors):
            factors, _, mean, square, g, v, parts = piece
            u, along = function(g, v, mean, square, _numbers(factors), factors.rounded)
            self._along = self._along + along
            _spread(u, parts)
        self._waiting.clear()

    def finish(self, vector: Sequence[torch.Tensor]) -> float:
        """Complete u in ``vector``, the clipping included; return ⟨g, u⟩ and release g."""
        for number in self._sums.missing():  # v is zero here, but not on other processes
            self._places[number] = vector[number]
        self._sums.finish()
        self._pull_back()
        along = float(self._along)
        if self.clip < 1:
            # A clipped g enters as c·g with c = max/‖g‖: only its direction counts.
            shift = along / inner(self.gradients, self.gradients)
            for u, g in zip(vector, self.gradients, strict=True):
                u.sub_(shift * g).mul_(self.clip)
            along = 0.0
        self.gradients = None
        self._places.clear()
        return along

    @torch.no_grad()
    def undo(self) -> list[torch.Tensor]:
        """φ, the parameters before the step, up to rounding."""
        before = [
            torch.empty_like(parameter, memory_format=torch.contiguous_format)
            for parameter in self.parameters()
        ]
        function = _compiled(_undo) if self.compiled else _undo
        for factors, parameter, mean, square, parts in self._pieces(range(len(before)), before):
            moved = function(parameter, mean, square, _numbers(factors), factors.rounded)
            _spread(moved, parts)
        return before


@dataclass(frozen=True)
class _Factors:
    """The numbers of one AdamW step.

    ``rounded`` says that the moments are kept in 8 bits.
    """

    beta1: float
    beta2: float
    eps: float  # as it is added to √v
    rate: float  # η κ / c₁
    shrink: float
    clip: float
    rounded: bool

    @classmethod
    def of(cls, group: dict, learning_rate: float, time: float, clip: float, rounded: bool):
        """Those of a group of parameters at its step number ``time``."""
        beta1, beta2 = group["betas"]
        root = (1 - beta2**time) ** 0.5
        return cls(
            beta1,
            beta2,
            eps=group["eps"] * root,
            rate=learning_rate * root / (1 - beta1**time),
            shrink=1 - learning_rate * group["weight_decay"],
            clip=clip,
            rounded=rounded,
        )


@functools.lru_cache(maxsize=8)
def _numbers(f: _Factors) -> tuple[torch.Tensor, ...]:
    """What :func:`_pull` and :func:`_undo` need, as scalars that a compiler keeps variable."""
    # 1 / K, where |m| ≤ K √v whatever the gradients were (Cauchy-Schwarz).
    least = ((1 - f.beta2) * (1 - f.beta1**2 / f.beta2)) ** 0.5 / (1 - f.beta1)
    first, ratio = -f.rate * (1 - f.beta1), (1 - f.beta2) / (1 - f.beta1) * f.clip
    share = (1 - f.beta2) ** 0.5 * f.clip
    found = [f.eps, f.rate, f.shrink, least, first, ratio, share]
    return torch.tensor(found, dtype=torch.float64).unbind()


def _pull(gradient, vector, mean, square, numbers: tuple, rounded: bool):
    """u = (∂U/∂g)ᵀ v, and ⟨g, u⟩.

    U moves a parameter by -η m̂ / (√v̂ + ε); g enters m linearly and v quadratically. With the
    bias corrections c₁ and c₂ and κ = √c₂, so that √v̂ = √v / κ:

        ∂U/∂g = -η κ / (c₁ (√v + κε)) [ (1 - β₁) - (1 - β₂) g m / (√v (√v + κε)) ]
    """
    eps, _, _, least, first, ratio, share = numbers
    root = _root(mean, square, least, rounded)
    if rounded:  # v contains g² itself, although 8 bits may have lost it
        root = torch.maximum(root, gradient.abs() * share)
    denominator = root + eps
    # Where g and its history are zero, √v = 0 and the second term has the limit 0.
    root.mul_(denominator).clamp_(min=torch.finfo(root.dtype).tiny)
    second = torch.div(gradient, root, out=root).mul_(mean).mul_(ratio)
    pulled = torch.div(vector, denominator, out=denominator)
    pulled.addcmul_(pulled, second, value=-1)
    along = torch.dot(pulled.reshape(-1), gradient.reshape(-1).to(pulled.dtype))
    return pulled.mul_(first), along.double() * first


def _undo(parameter, mean, square, numbers: tuple, rounded: bool):
    """The parameter before the step."""
    eps, rate, shrink, least, *_ = numbers
    root = _root(mean, square, least, rounded).add_(eps)
    moved = torch.div(mean, root, out=root).mul_(rate).add_(parameter)
    return moved.div_(shrink)


def _root(mean, square, least, rounded: bool):
    """√v; 8 bits may have rounded a small v to zero beside a larger m."""
    root = square.sqrt()
    return torch.maximum(root, mean.abs() * least) if rounded else root


@functools.cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=True)


def _joined(rows: list[tuple]) -> tuple:
    """The tensors of several parameters one after another, but the last of each as a list."""
    *columns, results = zip(*rows, strict=True)
    return *(torch.cat([tensor.reshape(-1) for tensor in c]) for c in columns), list(results)


def _spread(values: torch.Tensor, results: list[torch.Tensor]) -> None:
    """Write values to one tensor of their shape, or one after another to several."""
    parts = values.reshape(-1).split([result.numel() for result in results])
    shaped = [part.view(result.shape) for part, result in zip(parts, results, strict=True)]
    torch._foreach_copy_(results, shaped)


def _moment(state: torch.Tensor) -> torch.Tensor:
    """A moment of AdamW as a plain tensor; torchao keeps it in 8 bits."""
    return state.dequantize() if hasattr(state, "block_size") else state


def inner(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
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
