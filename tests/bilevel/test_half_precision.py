"""Both levels in bf16 and fp16: exact hypergradients, and steps that are not rounded away."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from benchmarks.hypergradient import build, hypergradient_and_oracle
from reweighting.bilevel.batches import TrainBatch
from reweighting.bilevel.weighting import DomainTable, InstanceNet, InstanceTable
from tests.conftest import DOMAINS


def weighting_of(kind: str, train: list[TrainBatch]) -> nn.Module:
    if kind == "table":
        return InstanceTable(max(int(batch.records.max()) for batch in train))
    if kind == "net":
        torch.manual_seed(1)
        net = InstanceNet("scores")
        nn.init.normal_(net.net[-1].weight)  # its last layer starts at zero
        return net
    return DomainTable(DOMAINS)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("domain", {}),
        ("domain", {"max_grad_norm": 1e-3}),
        ("domain", {"accumulation": 2}),
        ("table", {}),
        ("net", {}),
    ],
    ids=["domain", "clipped", "accumulated", "table", "net"],
)
def test_hypergradients_in_half_precision_are_the_float64_derivative(
    reward_model, batches, kind, options, precision
):
    """AdamW makes a long direction of small gradients: fp16 overflowed along it."""
    train, meta = batches(4, 3 * options.get("accumulation", 1))
    engine = build(
        copy.deepcopy(reward_model), DOMAINS, [], [], lr=1e-4, precision=precision,
        weighting=weighting_of(kind, train), **options,
        loss_scaler=torch.amp.GradScaler("cpu", enabled=precision == "fp16", init_scale=2**14),
    )  # fmt: skip
    ours, exact = hypergradient_and_oracle(engine, train, meta[:3], 3)
    assert torch.cosine_similarity(ours, exact, dim=0, eps=0.0) >= 0.999
    assert (ours - exact).norm() / exact.norm() <= 0.05


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_moves_over_99_percent_of_the_weights(reward_model, batches, precision):
    """fp32 master weights hold steps of 5e-7; bf16 weights would keep about 1 % of them."""
    model = copy.deepcopy(reward_model)
    before = copy.deepcopy(model.state_dict())
    train, meta = batches(2, 10)
    reached = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    engine = build(
        model,
        DOMAINS,
        train,
        meta,
        lr=5e-7,
        precision=precision,
        unroll_steps=5,
        loss_scaler=torch.amp.GradScaler("cpu", enabled=precision == "fp16", init_scale=1024),
    )
    for step in range(1, 11):
        engine.global_step = step
        engine.train_step()
        for name, moments in zip(reached, engine.lower.optimizer.state.values(), strict=True):
            reached[name] |= moments["exp_avg"] != 0
    moved = count = 0
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        moved += int(((parameter != before[name]) & reached[name]).sum())
        count += int(reached[name].sum())
    assert count > 1_000_000 and moved / count > 0.99
    assert math.isfinite(engine.upper.hypergradient_norm) and engine.upper.hypergradient_norm > 0
