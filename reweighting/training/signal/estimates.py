"""How sure the derivatives of the domains are, and what explains them.

Every domain d has a matrix of contributions y ``[K_d, G]``: unit k of the train sample with meta
group g. Units and groups are drawn independently, so y is a two-way layout,

    y_kg = s_d + a_k + c_g + e_kg,

and the variances of a (train), c (meta) and e (both) follow from mean squares. A batch of b units
of the domain and q meta units, of which a group holds n, has

    Var = σ_a² / b + σ_c² n / q + σ_e² n / (b q).

The weights average 1, so only the differences between domains count: s_d and c are taken less
their means over the domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..statistics import RankingSignal

SPLITS = 100  # random halves over which the agreement is averaged


@dataclass
class Estimate:
    """What was measured with one meta loss.

    Args:
        raw: s_d, ``[D]``, in the meta loss's unit at this learning rate.
        error: standard error of s_d less the mean over the domains, ``[D]``.
        agreement: mean Spearman correlation of s_d from two disjoint halves of train and meta.
        with_label: Spearman correlation of s_d with the domains' mean labels.
        explained: R² of the linear fit of s_d on the mean label, with the sign of its slope.
        ranking: how many upper steps tell the domains apart.
    """

    raw: torch.Tensor
    error: torch.Tensor
    agreement: float
    with_label: float
    explained: float
    ranking: RankingSignal

    @property
    def pull(self) -> torch.Tensor:
        """s_d less its mean over the domains, in standard deviations over the domains, ``[D]``."""
        return (self.raw - self.raw.mean()) / self._unit

    @property
    def pull_error(self) -> torch.Tensor:
        """The standard error of :attr:`pull`, ``[D]``."""
        return self.error / self._unit

    @property
    def _unit(self) -> torch.Tensor:
        return self.raw.std().clamp(min=torch.finfo(self.raw.dtype).tiny)


def contributions(
    products: torch.Tensor, records: list[list[int]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For every domain y ``[K, G]``, and the records of its units over their mean ``[K]``.

    Args:
        products: of every record, ``[J, G]``, domain after domain and unit after unit.
        records: number of records of each unit, by domain.
    """
    found, start = [], 0
    for sizes in records:
        size = torch.tensor(sizes, dtype=products.dtype)
        rows = torch.split(products[start : start + sum(sizes)], sizes)
        start += sum(sizes)
        found.append((torch.stack([row.sum(0) for row in rows]) / size.mean(), size / size.mean()))
    return found


def estimate(
    found: list[tuple[torch.Tensor, torch.Tensor]],
    labels: list[float],
    units: list[float],
    batches: float,
) -> Estimate:
    """All that is said about one meta loss.

    Args:
        found: what :func:`contributions` gives.
        labels: mean label of every domain.
        units: b_d, train units of each domain that an upper step sees, on average.
        batches: q / n, the size of a meta batch over that of a group.
    """
    groups, domains = found[0][0].shape[1], len(found)
    by_group = torch.stack([y.mean(0) for y, _ in found])  # [D, G]
    raw = by_group.mean(1)
    train, both, error_train = (torch.zeros(domains, dtype=raw.dtype) for _ in range(3))
    for d, (y, size) in enumerate(found):
        rest = y - size[:, None] * by_group[d]  # of a ratio: the mean over records, not units
        main = rest.mean(1)
        count = len(y)
        both[d] = (rest - main[:, None]).square().sum() / ((count - 1) * (groups - 1))
        train[d] = (main.square().sum() / (count - 1) - both[d] / groups).clamp(min=0)
        error_train[d] = train[d] / count
    counts = torch.tensor([len(y) for y, _ in found], dtype=raw.dtype)
    meta_raw = by_group.var(1)
    centred = by_group - by_group.mean(0)
    meta_error = centred.var(1) / groups  # contains what both share
    error2 = error_train * (1 - 2 / domains) + error_train.sum() / domains**2 + meta_error
    spread2 = float(((raw - raw.mean()).square().sum() - error2.sum()) / (domains - 1))
    # One upper step. A batch holds a random number of units of each domain, hence s² beside σ_a².
    meta = float((centred.var(1).sum() / (domains - 1) - (both / counts).mean()).clamp(min=0))
    common = (meta_raw - both / counts).clamp(min=0)
    seen = torch.tensor(units, dtype=raw.dtype)
    single = train + raw.square() + (both + common) / batches
    noise2 = float((single / seen).mean()) + meta / batches
    label = torch.tensor(labels, dtype=raw.dtype)
    return Estimate(
        raw=raw,
        error=error2.sqrt(),
        agreement=split_half(found),
        with_label=spearman(raw, label),
        explained=explained(raw, label),
        ranking=RankingSignal(spread2, noise2),
    )


def split_half(found: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Mean rank correlation over the domains of s_d from two halves that share nothing.

    The halves are of train units and of meta groups, and :data:`SPLITS` random ones are taken.
    """
    generator, values = torch.Generator().manual_seed(0), []
    for _ in range(SPLITS):
        groups = torch.randperm(found[0][0].shape[1], generator=generator)
        halves: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for y, size in found:
            order = torch.randperm(len(y), generator=generator)
            for half, values_of_half in enumerate(halves):
                rows = order[half::2]
                mean = y[rows][:, groups[half::2]].mean() / size[rows].mean()
                values_of_half.append(mean)
        values.append(spearman(torch.stack(halves[0]), torch.stack(halves[1])))
    return sum(values) / len(values)


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 1; equal values share the mean of their ranks."""
    below = (values[:, None] > values[None, :]).sum(1)
    equal = (values[:, None] == values[None, :]).sum(1)
    return below + (equal + 1) / 2


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's rank correlation; NaN if all values of one are equal."""
    return _correlation(ranks(first).double(), ranks(second).double())


def explained(values: torch.Tensor, by: torch.Tensor) -> float:
    """R² of the linear fit of ``values`` on ``by``, negative where the line falls."""
    r = _correlation(values.double(), by.double())
    return r * abs(r)


def _correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    a, b = first - first.mean(), second - second.mean()
    length = a.norm() * b.norm()
    return float(a @ b / length) if length > 0 else float("nan")
