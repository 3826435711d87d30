"""Standard errors, agreement and steps of derivatives whose truth is known."""

from __future__ import annotations

import math

import pytest
import torch

from reweighting.training.signal.estimates import (
    contributions,
    estimate,
    explained,
    ranks,
    spearman,
    split_half,
)
from reweighting.training.statistics import RankingSignal


def test_rank_correlation_and_explained_share_by_hand():
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
    # Σd² = 0 + 1 + 1 + 0: ρ = 1 - 6 · 2 / (4 · 15)
    assert spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 9, 5, 99])) == pytest.approx(
        0.8
    )
    assert math.isnan(spearman(torch.ones(3), torch.tensor([1.0, 2, 3])))
    # r = (-1 · -1 + 0 + 1 · 0.5 …): values 1, 2, 2 on 0, 1, 2 have r² = 3 / 4
    assert explained(torch.tensor([1.0, 2, 2]), torch.tensor([0.0, 1, 2])) == pytest.approx(0.75)
    assert explained(-torch.tensor([1.0, 2, 2]), torch.tensor([0.0, 1, 2])) == pytest.approx(-0.75)


def test_a_domain_is_the_mean_over_its_records():
    products = torch.tensor([[1.0], [3.0], [5.0], [7.0], [2.0], [4.0]])
    (first, _), (second, size) = contributions(products, [[1, 2], [1, 2]])
    assert first.mean() == 3 and second.mean() == pytest.approx(13 / 3)
    assert size.tolist() == pytest.approx([2 / 3, 4 / 3])


def test_halves_of_pure_signal_agree_and_of_pure_noise_do_not():
    generator = torch.Generator().manual_seed(1)
    level = [(torch.full((8, 4), float(d)), torch.ones(8)) for d in range(12)]
    assert split_half(level) == pytest.approx(1)
    noise = [(torch.randn(8, 4, generator=generator), torch.ones(8)) for _ in range(12)]
    assert abs(split_half(noise)) < 0.5


TRUTH = torch.linspace(-0.5, 0.7, 8).double()


def draw(generator, domain_means, units, groups, train=1.0, meta=0.5, both=0.7, common=0.4):
    """y of every domain; the meta noise has a part that all domains share."""
    shared = common * torch.randn(groups, generator=generator).double()
    found = []
    for mean in domain_means:
        a = train * torch.randn(units, 1, generator=generator).double()
        c = meta * torch.randn(1, groups, generator=generator).double()
        e = both * torch.randn(units, groups, generator=generator).double()
        found.append((mean + shared + a + c + e, torch.ones(units, dtype=torch.float64)))
    return found


def test_standard_errors_and_steps_are_those_of_repeated_draws():
    """One upper step is simulated as a run takes it: a random number of units of each domain."""
    generator = torch.Generator().manual_seed(0)
    labels, units, batches = [0.5 + d / 20 for d in range(8)], [2.0] * 8, 0.5
    runs = [estimate(draw(generator, TRUTH, 24, 8), labels, units, batches) for _ in range(200)]
    centred = torch.stack([run.raw - run.raw.mean() for run in runs])
    errors = torch.stack([run.error.square() for run in runs]).mean(0)
    torch.testing.assert_close(errors, centred.var(0), rtol=0.35, atol=0)
    spread2 = sum(run.ranking.spread2 for run in runs) / len(runs)
    assert spread2 == pytest.approx(float(TRUTH.var()), rel=0.1)

    steps, size = [], 16  # two units a domain on average; a batch is half a group: variance · 2
    for _ in range(4000):
        domains = torch.randint(8, (size,), generator=generator)
        shared = 0.4 * 2**0.5 * torch.randn(1, generator=generator).double()
        c = 0.5 * 2**0.5 * torch.randn(8, generator=generator).double()
        unit = torch.randn(size, generator=generator).double()
        e = 0.7 * 2**0.5 * torch.randn(size, generator=generator).double()
        y = TRUTH[domains] + shared + c[domains] + unit + e
        steps.append(torch.zeros(8, dtype=torch.float64).index_add(0, domains, y) / 2)
    values = torch.stack(steps)
    values = values - values.mean(1, keepdim=True)
    noise2 = float(values.var(0).sum() / 7)
    predicted = sum(run.ranking.noise2 for run in runs) / len(runs)
    assert predicted == pytest.approx(noise2, rel=0.2)


def test_steps_until_the_spread_is_three_standard_errors():
    signal = RankingSignal(spread2=0.04, noise2=1.0)
    assert signal.steps == 225 and signal.of_a_step == pytest.approx(0.2)
    assert signal.after(225) == pytest.approx(3)
    assert RankingSignal(-0.1, 1.0).steps is None and RankingSignal(-0.1, 1.0).after(9) == 0
