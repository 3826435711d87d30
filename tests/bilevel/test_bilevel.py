"""Lower, Upper, the weights and the hypergradient between them."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from torch import nn

from benchmarks.hypergradient import as_double, build, hypergradient_and_oracle, oracle
from reweighting.bilevel import adamw_step, hypergradient
from reweighting.bilevel.batches import (
    MetaBatch,
    TrainBatch,
)
from reweighting.bilevel.objectives import chain_losses, mean_log_odds, record_losses
from reweighting.bilevel.problems import (
    NO_LOWER_STEP,
    NOT_FINITE,
    ONE_WEIGHT_CLIPPED,
    Lower,
    NonFiniteLoss,
)
from reweighting.bilevel.weighting import DomainTable, InstanceTable
from tests.conftest import DOMAINS


def test_weights_start_at_one_and_average_one():
    table = DomainTable(["a", "b", "c"])
    assert table.weights().tolist() == pytest.approx([1, 1, 1])
    with torch.no_grad():
        table.raw_weights.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    raised = [math.log1p(math.exp(x)) for x in (-1, 0, 2)]
    mean = sum(raised) / 3
    assert table.weights().tolist() == pytest.approx([x / mean for x in raised])
    batch = TrainBatch(None, None, torch.tensor([2, 0, 2]), None, None)
    assert table(batch).tolist() == pytest.approx(
        [raised[2] / mean, raised[0] / mean, raised[2] / mean]
    )
    assert list(table.named_weights()) == ["a", "b", "c"]


def test_aggregation_is_the_mean_of_the_log_odds():
    scores = torch.tensor([0.9, 0.6, 0.2, 0.7])
    log_odds = torch.log(scores / (1 - scores))
    by_hand = [
        (math.log(0.9 / 0.1) + math.log(0.6 / 0.4)) / 2,
        (math.log(0.2 / 0.8) + math.log(0.7 / 0.3)) / 2,
    ]
    aggregated = mean_log_odds(log_odds, torch.tensor([0, 0, 1, 1]), 2)
    assert aggregated.tolist() == pytest.approx(by_hand, abs=1e-6)
    losses = chain_losses(aggregated, torch.tensor([1.0, 0.0]), "mse")
    sigmoid = [1 / (1 + math.exp(-z)) for z in by_hand]
    assert losses.tolist() == pytest.approx([(1 - sigmoid[0]) ** 2, sigmoid[1] ** 2], abs=1e-6)


def test_losses_of_saturated_scores_are_finite():
    log_odds = torch.tensor([200.0, -200.0], requires_grad=True)
    for loss in ("bce", "mse"):
        value = record_losses(log_odds, torch.tensor([0.0, 1.0]), loss).sum()
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(log_odds.grad).all()
    bce = record_losses(torch.tensor([0.3]), torch.tensor([0.25]), "bce")
    p = 1 / (1 + math.exp(-0.3))
    assert bce.item() == pytest.approx(-0.25 * math.log(p) - 0.75 * math.log(1 - p), abs=1e-6)


@dataclass
class Rows:
    """Prompts that are ready-made features ``[N, 8]``, each a tree of its own."""

    features: torch.Tensor

    @property
    def trees(self) -> list:
        return [SimpleNamespace(start=row, end=row + 1) for row in range(len(self.features))]

    def tree_of_prompt(self) -> torch.Tensor:
        return torch.arange(len(self.features))

    def part(self, trees: list[int]) -> Rows:
        return Rows(self.features[trees])

    def to(self, device) -> Rows:
        return self

    def double(self) -> Rows:
        return Rows(self.features.double())


class Linear(nn.Module):
    """A reward model on ready-made features."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 1)

    def forward(self, rows: Rows) -> torch.Tensor:
        return self.head(rows.features)[:, 0]


def toy(seed: int, steps: int, batch_size: int = 8):
    """Domain 0 labels by a fixed direction, domain 1 at random; the meta set knows the truth."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(8, generator=generator)

    def train():
        for _ in range(steps):
            features = torch.randn(batch_size, 8, generator=generator)
            domains = torch.randint(2, (batch_size,), generator=generator)
            noise = torch.randint(2, (batch_size,), generator=generator).float()
            clean = (features @ truth > 0).float()
            accuracy = torch.where(domains == 0, clean, noise)
            records = torch.arange(batch_size)
            yield TrainBatch(Rows(features), accuracy, domains, records, record_of_prompt=records)

    def meta():
        while True:
            features = torch.randn(2 * batch_size, 8, generator=generator)
            chain = torch.arange(batch_size).repeat_interleave(2)
            margin = (features @ truth).view(batch_size, 2).sum(1)
            records = torch.arange(batch_size)
            yield MetaBatch(Rows(features), chain, (margin > 0).float(), records, records)

    return train(), meta()


@pytest.mark.parametrize("seed", range(5))
def test_the_clean_domain_gains_weight_and_the_noisy_one_loses(seed):
    torch.manual_seed(seed)
    engine = build(Linear(), ["clean", "noisy"], *toy(seed, 150), lr=0.03)
    for step in range(1, 151):
        engine.global_step = step
        engine.train_step()
        assert engine.upper.module.weights().mean().item() == pytest.approx(1, abs=1e-6)
    clean, noisy = engine.upper.module.weights().tolist()
    assert clean > 1.1 and noisy < 0.9


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_grad_norm": 0.05},
        {"accumulation": 3},
        {"single_domain": True},
        {"conversations": True},
        {"conversations": True, "single_domain": True, "accumulation": 2},
    ],
    ids=["batch", "clipped", "accumulated", "one-domain", "several-prompts", "several-one-domain"],
)
def test_hypergradient_equals_float64_autograd_through_adamw(options):
    """On a linear model, where only the bilevel arithmetic can go wrong."""
    options = dict(options)
    single = options.pop("single_domain", False)
    conversations = options.pop("conversations", False)
    accumulation = options.get("accumulation", 1)
    torch.manual_seed(0)
    train, meta = toy(3, 4 * accumulation)
    train, meta = list(train), list(itertools.islice(meta, 4))
    if single:
        for batch in train:
            batch.domains.fill_(1)
    if conversations:  # 1, 2 or 5 of the 8 prompts belong to a record
        train = [
            replace(
                batch,
                domains=batch.domains[:3],
                records=batch.records[:3],
                record_of_prompt=torch.tensor([0, 1, 1, 2, 2, 2, 2, 2]),
            )
            for batch in train
        ]
    engine = build(Linear(), ["a", "b"], [], [], lr=0.05, **options)
    ours, exact = hypergradient_and_oracle(engine, train, meta, 4)
    assert exact.abs().max() > 1e-5
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("batch_size, piece", [(1, 2**18), (4, 2**18), (4, 1000)])
def test_hypergradient_of_the_real_architecture(
    reward_model, batches, batch_size, piece, monkeypatch
):
    """Stored gradient (one record) and forward mode (several) against the float64 oracle.

    Small parameters are pulled back together, large ones piece by piece.
    """
    monkeypatch.setitem(adamw_step.PIECE, "cpu", piece)
    sizes = [parameter.numel() for parameter in reward_model.parameters()]
    assert min(sizes) < piece < sum(sizes) and (piece == 2**18 or max(sizes) > piece)
    train, meta = batches(batch_size, 3)
    engine = build(copy.deepcopy(reward_model), DOMAINS, [], [], lr=1e-4)
    ours, exact = hypergradient_and_oracle(engine, train, meta, 3)
    assert torch.cosine_similarity(ours, exact, dim=0) >= 0.9999
    assert (ours - exact).norm() / exact.norm() <= 1e-3


def test_the_largest_group_is_spared_the_forward_mode_pass(reward_model, batches, monkeypatch):
    """Of records in two domains, only those of the smaller one are differentiated."""
    train, meta = batches(4, 3)
    train[-1].domains = torch.tensor([0, 1, 0, 0])
    passed = []
    real = hypergradient.directional_derivatives
    monkeypatch.setattr(
        hypergradient,
        "directional_derivatives",
        lambda *inputs: passed.append(inputs[-1].records.tolist()) or real(*inputs),
    )
    engine = build(copy.deepcopy(reward_model), DOMAINS, [], [], lr=1e-4)
    ours, exact = hypergradient_and_oracle(engine, train, meta, 3)
    assert passed[-1] == [train[-1].records[1].item()]
    assert (ours - exact).norm() / exact.norm() <= 1e-3
    # A group whose weight is almost nothing cannot be had by division: all others' errors would.
    with torch.no_grad():
        engine.upper.module.raw_weights[0] = -20.0
    ours, exact = hypergradient_and_oracle(engine, train, meta, 3)
    assert passed[-1] == [train[-1].records[i].item() for i in (0, 2, 3)]
    assert (ours - exact).norm() / exact.norm() <= 1e-3


def test_the_finite_difference_matches_its_float64_limit(reward_model, batches, monkeypatch):
    """-Σ_j ∂w_j/∂α ⟨∇ℓ_j(φ'), v⟩ / B; the parameters stay what they were, bit for bit.

    At the published radius of 0.01 the trained model's curvature costs 6 %; hence a smaller one.
    """
    monkeypatch.setattr(hypergradient, "DIFFERENCE_RADIUS", 0.001)
    train, meta = batches(4, 1)
    engine = build(
        copy.deepcopy(reward_model), DOMAINS, train, meta, lr=1e-4, kind="finite_difference"
    )
    upper, module = engine.upper, engine.lower.module
    found = []
    upper.grad_callback = lambda: found.append(upper.module.raw_weights.grad.double())
    after = []
    step = engine.lower.optimizer_step
    engine.lower.optimizer_step = lambda: (step(), after.append(copy.deepcopy(module.state_dict())))
    upper.hypergradient_norm = 0.0
    engine.train_step()
    assert all(torch.equal(after[0][name], value) for name, value in module.state_dict().items())

    exact = copy.deepcopy(module).double()
    [batch], [chains] = train, meta
    log_odds = exact(as_double(chains.prompts))
    aggregated = mean_log_odds(log_odds, chains.chain, len(chains.true_false))
    loss = chain_losses(aggregated, chains.true_false.double(), "mse").mean()
    v = torch.autograd.grad(loss, exact.parameters())
    losses = record_losses(exact(as_double(batch.prompts)), batch.accuracy.double(), "bce")
    products = torch.stack(
        [
            sum((a * b).sum() for a, b in zip(g, v, strict=True))
            for g in (torch.autograd.grad(x, exact.parameters(), retain_graph=True) for x in losses)
        ]
    )
    raw = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    positive = nn.functional.softplus(raw)
    weights = (positive / positive.mean())[batch.domains]
    [limit] = torch.autograd.grad(-(weights * products).mean(), raw)
    assert torch.cosine_similarity(found[0], limit, dim=0) > 0.999
    assert (found[0] - limit).norm() / limit.norm() < 0.02


def test_all_batches_since_the_upper_step_enter_the_hypergradient():
    torch.manual_seed(0)
    train, meta = toy(1, 3)
    train = list(train)
    for index, batch in enumerate(train):  # every step knows another domain
        batch.domains.fill_(index)
    found = {}
    for window in (1, 3):
        torch.manual_seed(0)
        engine = build(
            Linear(), ["a", "b", "c", "d"], train, meta, 0.01, unroll_steps=3, window=window
        )
        upper = engine.upper
        upper.grad_callback = lambda w=window, u=upper: found.update({w: u.module.raw_weights.grad})
        upper.hypergradient_norm = 0.0
        for step in range(1, 4):
            engine.global_step = step
            engine.train_step()
    last, every = found[1], found[3]
    # One domain alone: the three others share what normalisation takes from it.
    assert last[0] == last[1] == last[3] and last[2] != last[0]
    assert len({round(value, 9) for value in every.tolist()}) == 4


@pytest.mark.parametrize("max_grad_norm", [0.0, 1e-3], ids=["free", "clipped"])
def test_the_meta_gradient_takes_the_place_of_the_lower_gradient(
    reward_model, batches, monkeypatch, max_grad_norm
):
    """It never exists as a whole, unless clipping needs the lower gradient once more."""
    shared = []
    finish = hypergradient.AdamWStep.finish

    def compare(step, vector):
        shared.extend(
            u.data_ptr() == g.data_ptr() for u, g in zip(vector, step.gradients, strict=True)
        )
        return finish(step, vector)

    monkeypatch.setattr(hypergradient.AdamWStep, "finish", compare)
    model, (train, meta) = copy.deepcopy(reward_model), batches(2, 1)
    engine = build(model, DOMAINS, train, meta, lr=1e-4, max_grad_norm=max_grad_norm)
    engine.upper.hypergradient_norm = 0.0
    engine.train_step()
    assert shared == [not max_grad_norm] * len(list(model.parameters()))
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_undoing_the_adamw_step_gives_the_parameters_before_it():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(50))
    optimizer = torch.optim.AdamW([parameter], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        before = parameter.detach().clone()
        parameter.grad = torch.randn(50)
        optimizer.step()
    step = hypergradient.AdamWStep(optimizer, [parameter.grad], 1.0)
    optimizer.param_groups[0]["lr"] = 0.5  # a scheduler that steps meanwhile changes nothing
    torch.testing.assert_close(step.undo()[0], before, rtol=1e-6, atol=1e-7)


def test_an_upper_step_without_a_hypergradient_is_left_out_and_counted():
    torch.manual_seed(0)
    train, meta = toy(0, 4)
    engine = build(Linear(), ["a", "b"], train, meta, lr=0.05, precision="fp16")
    upper = engine.upper
    upper.loss_scale = 2.0**1000  # the meta gradient overflows
    before, taken = upper.module.weights().tolist(), []
    upper.on_step = lambda: taken.append(upper.loss_scale)
    engine.train_step()
    assert upper.lost == {NOT_FINITE: 1} and not taken
    assert upper.module.weights().tolist() == before and upper.loss_scale == 2.0**999
    upper.loss_scale = 1024.0
    engine.train_step()
    assert upper.lost == {NOT_FINITE: 1} and taken == [1024.0]
    # A lower step that its own scaler skips leaves nothing to differentiate.
    engine.lower.loss_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    engine.train_step()
    assert upper.lost == {NOT_FINITE: 1, NO_LOWER_STEP: 1} and len(taken) == 1


@pytest.mark.parametrize(
    "options, one_weight, lost",
    [
        ({"max_grad_norm": 1e-3}, True, 3),
        ({"max_grad_norm": 1e-3}, False, 0),
        ({"max_grad_norm": 0.0}, True, 0),
        ({"max_grad_norm": 1e3}, True, 0),
        ({"max_grad_norm": 1e-3, "accumulation": 3}, True, 3),
        ({"max_grad_norm": 1e-3, "window": 3, "unroll_steps": 3}, True, 0),
        ({"max_grad_norm": 1e-3, "unroll_steps": 3}, True, 3),
    ],
    ids=["clipped", "two-weights", "free", "loose", "accumulated", "all-batches", "last-batch"],
)
def test_clipping_a_gradient_of_one_weight_hides_the_weight(options, one_weight, lost):
    """c·w·g / ‖w·g‖ does not depend on w: float64 says 0, and such upper steps are counted."""
    torch.manual_seed(0)
    steps = 3 * options.get("unroll_steps", 1)
    train, meta = toy(3, steps * options.get("accumulation", 1))
    train, meta = list(train), list(itertools.islice(meta, 3))
    for batch in train:
        batch.domains.copy_(torch.arange(8) % 2 if not one_weight else torch.ones(8))
    engine = build(Linear(), ["a", "b"], train, meta, lr=0.05, **options)
    upper, found = engine.upper, []
    upper.on_step = lambda: found.append(upper.module.raw_weights.grad.clone())
    state = {}
    for step in range(1, steps + 1):
        if step == steps:
            state = {
                "module": copy.deepcopy(engine.lower.module.state_dict()),
                "optimizer": copy.deepcopy(engine.lower.optimizer.state_dict()),
                "weighting": copy.deepcopy(upper.module.state_dict()),
            }
        engine.global_step = step
        engine.train_step()
    assert sum(upper.lost.values()) == lost and set(upper.lost) <= {ONE_WEIGHT_CLIPPED}
    assert len(found) == 3 and all((g.abs().max() == 0) == bool(lost) for g in found)
    if "window" not in options:
        exact = oracle(engine, state, train[-options.get("accumulation", 1) :], meta[-1])
        assert (exact.abs().max() < 1e-12) == bool(lost)


def test_clipping_a_gradient_of_weight_zero_divides_by_nothing():
    torch.manual_seed(0)
    train, meta = toy(3, 1)
    engine = build(
        Linear(), [], train, meta, lr=0.05, max_grad_norm=1.0, weighting=InstanceTable(8)
    )
    with torch.no_grad():
        engine.upper.module.raw_weights.zero_()
    engine.lower.batches = iter([replace(b, records=b.records + 1) for b in engine.lower.batches])
    engine.train_step()
    assert engine.upper.hypergradient_norm > 0


def test_a_loss_that_is_not_finite_names_its_records():
    torch.manual_seed(0)
    train, meta = toy(0, 1)
    [batch] = list(train)
    batch.prompts.features[3] = float("nan")
    batch.records = batch.records + 100
    engine = build(Linear(), ["a", "b"], [batch], meta, lr=0.1)
    with pytest.raises(NonFiniteLoss, match=r"lower loss is nan for records \[100, 101"):
        engine.train_step()


def test_the_baseline_weighs_every_record_alike():
    torch.manual_seed(0)
    train, _ = toy(0, 3)
    module = Linear()
    lower = Lower(
        name="lower",
        config=Config(type="unrolled"),
        module=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=0.1),
        batches=train,
    )
    engine = Engine([lower], EngineConfig(strategy="cpu"), {"u2l": {}, "l2u": {}})
    engine.train_step()
    assert lower.weights(lower.cur_batch[0]).tolist() == [1.0] * 8
    assert lower.last_step is None
