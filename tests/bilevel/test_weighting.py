"""Weights of single records: table, net, their gradients and the table's optimizer."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from benchmarks.hypergradient import build, hypergradient_and_oracle
from reweighting.bilevel.batches import TrainBatch
from reweighting.bilevel.row_adamw import RowAdamW
from reweighting.bilevel.weighting import InstanceNet, InstanceTable, make_meta_optimizer
from tests.conftest import DOMAINS


def batch_of(records: list[int], domains: list[int] | None = None) -> TrainBatch:
    numbers = torch.arange(len(records))
    return TrainBatch(
        None,
        torch.zeros(len(records)),
        torch.tensor(domains or [0] * len(records)),
        torch.tensor(records),
        numbers,
    )


def randomised(weighting: nn.Module) -> nn.Module:
    """Not at the start, where many gradients are 0."""
    torch.manual_seed(0)
    for parameter in weighting.parameters():
        nn.init.normal_(parameter, std=0.5)
    if isinstance(weighting, InstanceTable):
        nn.init.uniform_(weighting.raw_weights, 0.2, 2)
    return weighting


WEIGHTINGS = {
    "table": lambda hidden: InstanceTable(200),
    "table-leaky": lambda hidden: InstanceTable(200, activation="leaky_relu"),
    "table-by-domain": lambda hidden: InstanceTable(200, domain_weights=[0.5, 1.0, 1.5]),
    "net-scores": lambda hidden: InstanceNet("scores"),
    "net-labels": lambda hidden: InstanceNet("labels", layers=2, width=6),
    "net-hidden": lambda hidden: InstanceNet("hidden", hidden),
    "net-published": lambda hidden: InstanceNet("scores", bounds=(0.0, 1.0), detached=False),
    "net-hidden-attached": lambda hidden: InstanceNet("hidden", hidden, detached=False),
}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_hypergradient_equals_float64_autograd(reward_model, batches, name, batch_size):
    """Table and net, features detached or not, on the real architecture."""
    hidden = reward_model.base_model.config.get_text_config().hidden_size
    weighting = randomised(WEIGHTINGS[name](hidden))
    train, meta = batches(batch_size, 3)
    engine = build(
        copy.deepcopy(reward_model), DOMAINS, [], [], lr=1e-4, meta_lr=1e-3, weighting=weighting
    )
    ours, exact = hypergradient_and_oracle(engine, train, meta, 3)
    assert exact.abs().max() > 1e-9
    assert torch.cosine_similarity(ours, exact, dim=0) >= 0.9999
    assert (ours - exact).norm() / exact.norm() <= 1e-3


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_every_weight_starts_at_one(name):
    weighting = WEIGHTINGS[name](16)
    batch = batch_of([1, 3, 200], [0, 1, 1])
    batch.accuracy = torch.tensor([0.1, 0.6, 1.0])
    features = None
    if weighting.needs is not None:
        features = weighting.features(batch, torch.tensor([-3.0, 0.1, 4]), torch.randn(3, 16))
    wanted = {"table-by-domain": [0.5, 1, 1], "net-published": [0.5] * 3}.get(name, [1, 1, 1])
    assert weighting(batch, features).tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_record_of_several_prompts_has_one_weight():
    net = randomised(InstanceNet("scores"))
    batch = batch_of([1, 2])
    batch.record_of_prompt = torch.tensor([0, 0, 1])
    log_odds = torch.tensor([-1.0, 2.0, 0.5])
    weights = net(batch, net.features(batch, log_odds, None))
    answers = net.net(net.features(batch, log_odds, None))[:, 0]
    wanted = 3 * torch.sigmoid(torch.stack([answers[:2].mean(), answers[2]]))
    torch.testing.assert_close(weights, wanted)


def take_steps(optimizer, table, gradients: list[dict[int, float]]) -> None:
    for rows in gradients:
        indices = torch.tensor([list(rows)])
        values = torch.tensor(list(rows.values()))[:, None]
        table.grad = torch.sparse_coo_tensor(indices, values, table.shape)
        optimizer.step()


def test_row_adamw_is_adamw_where_every_row_is_visited():
    torch.manual_seed(0)
    start, gradients = torch.rand(5, 1), torch.randn(20, 5)
    table, dense = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    take_steps(RowAdamW(table, lr=0.01), table, [dict(enumerate(g.tolist())) for g in gradients])
    optimizer = torch.optim.AdamW([dense], lr=0.01, weight_decay=0)
    for g in gradients:
        dense.grad = g[:, None].clone()
        optimizer.step()
    torch.testing.assert_close(table, dense)


def test_a_row_visited_late_moves_as_far_as_one_visited_first():
    """SparseAdam, which counts all steps, would move it 3.2 times as far."""
    table = nn.Parameter(torch.ones(3, 1))
    optimizer = RowAdamW(table, lr=0.1)
    take_steps(optimizer, table, [{0: 0.5}] * 50 + [{1: 0.5}])
    assert table[1].item() == pytest.approx(0.9, abs=1e-6)
    before = table[1].item()
    take_steps(optimizer, table, [{0: 0.5}] * 5)
    assert table[1].item() == before and table[2].item() == 1
    assert optimizer.state[table]["visits"][:, 0].tolist() == [55, 1, 0]


def test_a_weight_at_its_bound_still_has_a_gradient_and_comes_back():
    weighting = InstanceTable(2, bounds=(0.0, 3.0))
    optimizer = make_meta_optimizer(weighting, lr=0.5, weight_decay=0.0)
    batch = batch_of([1])
    lowest = 1.0
    for direction in [1.0] * 6 + [-1.0] * 12:
        [weighting.raw_weights.grad] = torch.autograd.grad(
            (direction * weighting(batch)).sum(), [weighting.raw_weights]
        )
        assert weighting.raw_weights.grad.to_dense()[0].item() == direction
        optimizer.step()
        lowest = min(lowest, weighting(batch).item())
    assert lowest == 0.0
    assert weighting(batch).item() > 0.5 and weighting(batch_of([2])).item() == 1.0


def test_decay_pulls_visited_rows_to_one_and_leaves_the_others():
    table = nn.Parameter(torch.tensor([[2.0], [2.0]]))
    take_steps(RowAdamW(table, lr=0.1, weight_decay=0.5), table, [{0: 0.0}] * 200)
    assert table[0].item() == pytest.approx(1, abs=1e-3) and table[1].item() == 2


def test_the_table_takes_sixteen_bytes_a_row():
    weighting = InstanceTable(1000)
    optimizer = make_meta_optimizer(weighting, lr=0.1, weight_decay=0.0)
    tensors = [weighting.raw_weights, *optimizer.state[weighting.raw_weights].values()]
    assert sum(tensor.nbytes for tensor in tensors) == 16_000


@pytest.mark.parametrize(
    "activation, weight", [("clip", 2.5), ("relu", 0.0), ("leaky_relu", -0.01), ("none", -1.0)]
)
def test_activations(activation, weight):
    weighting = InstanceTable(2, activation=activation)
    make = functools.partial(nn.init.constant_, weighting.raw_weights)
    make(2.5 if activation == "clip" else -1.0)
    assert weighting(batch_of([2])).item() == pytest.approx(weight)
