"""``--hypergradient_batches all`` against float64 autograd through all steps of its window."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch.func import functional_call

from benchmarks.hypergradient import build, flat
from reweighting.bilevel.adamw_step import AdamWStep
from reweighting.bilevel.objectives import chain_losses, mean_log_odds, record_losses
from tests.bilevel.test_bilevel import Linear, toy

SETTLED = 200  # steps after which AdamW's √v changes little


def through_all_steps(engine, state, train, meta) -> torch.Tensor:
    """dL_meta/dα through one AdamW step for each batch of ``train``, Hessians included."""
    module = copy.deepcopy(engine.lower.module).double()
    parameters = {name: state["module"][name].double().requires_grad_()
                  for name, _ in module.named_parameters()}  # fmt: skip
    weighting = copy.deepcopy(engine.upper.module).double()
    group = state["optimizer"]["param_groups"][0]
    (beta1, beta2), rate = group["betas"], group["lr"]
    moments = [(s["exp_avg"].double(), s["exp_avg_sq"].double(), float(s["step"]))
               for s in state["optimizer"]["state"].values()] or [(0.0, 0.0, 0.0)] * 2  # fmt: skip
    for batch in train:
        log_odds = functional_call(module, parameters, (batch.prompts.double(),))
        losses = record_losses(log_odds, batch.accuracy.double(), "bce")
        loss = (weighting(batch) * losses).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        for index, (name, g) in enumerate(zip(parameters, gradients, strict=True)):
            m, v, time = moments[index]
            m, v, time = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2, time + 1
            moments[index] = m, v, time
            change = (m / (1 - beta1**time)) / ((v / (1 - beta2**time)).sqrt() + group["eps"])
            decayed = parameters[name] * (1 - rate * group["weight_decay"])
            parameters[name] = decayed - rate * change
    log_odds = functional_call(module, parameters, (meta.prompts.double(),))
    aggregated = mean_log_odds(log_odds, meta.chain, len(meta.true_false))
    loss = chain_losses(aggregated, meta.true_false.double(), "mse").mean()
    return flat(torch.autograd.grad(loss, weighting.parameters()))


def ours_and_exact(steps: int, before: int, lr: float, window: int, seed: int = 0):
    """Our hypergradient over ``steps`` lower steps after ``before`` others, and the exact one."""
    torch.manual_seed(seed)
    train, meta = toy(seed, before + steps)
    train, meta = list(train), list(itertools.islice(meta, 1))
    for index, batch in enumerate(train):  # every step has weights of its own
        batch.domains += 2 * (index % 5)
    engine = build(Linear(), list("abcdefghij"), train, meta, lr, window=window, unroll_steps=steps)
    lower, upper = engine.lower, engine.upper
    for _ in range(before):
        lower.one_step_descent()
    state = {"module": copy.deepcopy(lower.module.state_dict()),
             "optimizer": copy.deepcopy(lower.optimizer.state_dict())}  # fmt: skip
    exact = through_all_steps(engine, state, train[before:], meta[0])
    found = []
    upper.grad_callback = lambda: found.append(upper.module.raw_weights.grad.double())
    upper.hypergradient_norm = 0.0
    for step in range(1, steps + 1):
        engine.global_step = step
        engine.train_step()
    return found[0], exact


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_it_is_the_derivative_through_all_steps_where_v_is_settled(steps):
    """It ends where √v is not: after 20 steps the cosine is 0.83 to 0.999, from the start less."""
    ours, exact = ours_and_exact(steps, SETTLED, 1e-3, window=steps)
    assert torch.cosine_similarity(ours, exact, dim=0, eps=0.0) >= 0.999
    assert ours.norm() / exact.norm() == pytest.approx(1, abs=0.05)
    if steps > 1:  # the last step alone is another derivative
        ours, exact = ours_and_exact(steps, SETTLED, 1e-3, window=1)
        assert torch.cosine_similarity(ours, exact, dim=0, eps=0.0) < 0.7


def test_a_gradient_is_remembered_as_long_as_m_remembers_it():
    """The factors are the derivative of the sum of m̂ over the window, by autograd."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.01)
    for _ in range(4):
        parameter.grad = torch.ones(1)
        optimizer.step()
    gradients = torch.ones(4, dtype=torch.float64, requires_grad=True)
    m = moved = 0.0
    for time, g in enumerate(gradients, 1):
        m = 0.9 * m + 0.1 * g
        moved = moved + m / (1 - 0.9**time)
    [slopes] = torch.autograd.grad(moved, gradients)
    step = AdamWStep(optimizer, [parameter.grad], 1.0)
    assert step.remembered(4) == pytest.approx((slopes / slopes[-1]).tolist())
    assert step.remembered(1) == [1.0]
