"""Numbers that tell a learned weight from a random walk, and whether anything moves at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reweighting.diagnostics import MovedShare, WeightHistory


def history(gradients: torch.Tensor) -> WeightHistory:
    found = WeightHistory()
    for number, gradient in enumerate(gradients):
        found.add(gradient, torch.full_like(gradient, float(number)))
    return found


def test_evidence_stands_out_from_chance():
    torch.manual_seed(0)
    gradients = torch.randn(100, 2)
    gradients[:, 0] += 1.0  # the first domain's have a mean of one standard deviation
    found = history(gradients)
    assert found.signal_to_noise()[0] == pytest.approx(10, rel=0.3)  # mean / (1 / √100)
    assert found.signal_to_noise()[1] < 2
    # 84 % of N(1, 1) are positive
    assert found.sign_agreement()[0] == pytest.approx(0.68, abs=0.15)
    assert found.sign_agreement()[1] < 0.3


def test_the_average_is_over_the_last_quarter():
    found = history(torch.zeros(40, 3))
    assert found.average().tolist() == pytest.approx([34.5] * 3)  # steps 30 to 39
    assert history(torch.zeros(1, 3)).average().tolist() == [0, 0, 0]


def test_a_history_survives_a_checkpoint(tmp_path):
    found = history(torch.randn(150, 4))
    torch.save(found.state_dict(), tmp_path / "state.pt")
    again = WeightHistory()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.signal_to_noise(), found.signal_to_noise())
    assert torch.equal(again.average(), found.average()) and len(again) == 150


def test_the_moved_share_counts_what_moved():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 100))
    module[1].bias.requires_grad_(False)
    moved = MovedShare(module)
    assert moved.value() == 0
    with torch.no_grad():
        module[0].weight[:150] += 1
    assert moved.value() == pytest.approx(45_000 / (90_300 + 30_000), abs=0.01)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1
    assert moved.value() == 1


def test_bf16_parameters_hardly_move_at_the_papers_rate():
    torch.manual_seed(0)

    def after_ten_steps(dtype: torch.dtype) -> float:
        module = nn.Linear(200, 200).to(dtype)
        moved, optimizer = MovedShare(module), torch.optim.AdamW(module.parameters(), lr=5e-7)
        for _ in range(10):
            module(torch.randn(8, 200, dtype=dtype)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return moved.value()

    assert after_ten_steps(torch.float32) > 0.99
    assert after_ten_steps(torch.bfloat16) < 0.05
