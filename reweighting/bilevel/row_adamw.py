"""AdamW for a table of weights of which a step touches a few rows."""

from __future__ import annotations

import torch
from torch import nn

START = 1.0  # every record's weight before anything is learned


class RowAdamW(torch.optim.Optimizer):
    """AdamW for a table of which a step touches a few rows.

    Every row counts its own visits, so the moments of a row that is rarely seen are corrected for
    their start at zero as if the row were alone: torch's ``SparseAdam`` counts all steps, and its
    first step on a row seen late is three times too long. Weight decay, like everything else,
    reaches a row when it is visited, and pulls to the start at 1. A row takes 16 bytes: the entry,
    two moments, its visits.

    Args:
        table: ``[rows, 1]``, with sparse gradients.
        bounds: entries are kept between these after every step (projected gradient).
    """

    def __init__(
        self,
        table: nn.Parameter,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bounds: tuple[float, float] = (float("-inf"), float("inf")),
    ) -> None:
        super().__init__([table], {"lr": lr, "betas": betas, "eps": eps,
                                   "weight_decay": weight_decay, "bounds": bounds})  # fmt: skip
        state = self.state[table]
        state["exp_avg"] = torch.zeros_like(table)
        state["exp_avg_sq"] = torch.zeros_like(table)
        # Float as torch's own step counters are: a checkpoint restores it as it is.
        state["visits"] = torch.zeros_like(table)

    @torch.no_grad()
    def step(self) -> None:
        """Move the rows that have a gradient."""
        [group] = self.param_groups
        [table] = group["params"]
        if table.grad is None:
            return
        gradient = table.grad.coalesce()
        rows, g = gradient.indices()[0], gradient.values()
        state = self.state[table]
        beta1, beta2 = group["betas"]
        mean, square, visits = (state[name] for name in ("exp_avg", "exp_avg_sq", "visits"))
        visits[rows] += 1
        mean[rows] = mean[rows].lerp(g, 1 - beta1)
        square[rows] = square[rows].lerp(g.square(), 1 - beta2)
        count = visits[rows]
        direction = (mean[rows] / (1 - beta1**count)) / (
            (square[rows] / (1 - beta2**count)).sqrt() + group["eps"]
        )
        entries = table[rows]
        entries -= group["lr"] * (direction + group["weight_decay"] * (entries - START))
        table[rows] = entries.clamp(*group["bounds"])
