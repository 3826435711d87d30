"""The losses of both levels (DreamPRM, section 3).

All are computed from log-odds z, with V = sigmoid(z), and so stay finite for saturated scores.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def record_losses(log_odds: torch.Tensor, accuracy: torch.Tensor, loss: str) -> torch.Tensor:
    """Lower-level loss of every prefix against its Monte-Carlo accuracy, ``[R]``.

    Args:
        log_odds: z, ``[R]``.
        accuracy: share of right completions in [0, 1], ``[R]``: a soft target.
        loss: ``bce`` (cross-entropy) or ``mse`` (squared error of V, as published).

    Raises:
        ValueError: ``loss`` is neither.
    """
    return _losses(log_odds, accuracy, loss)


def mean_log_odds(log_odds: torch.Tensor, chain: torch.Tensor, chains: int) -> torch.Tensor:
    """Mean log-odds of the prefixes of each chain, ``[chains]``: DreamPRM's aggregation function.

    log(V / (1 - V)) is z itself, so the mean of the log-odds is the mean of the logits.

    This is what the upper level is trained through: one tensor for the whole batch, with gradients.
    When responses are chosen, the aggregation of the same name in
    :data:`reweighting.reward_model.aggregation.AGGREGATIONS` computes it from finished scores.

    Args:
        log_odds: z of all prefixes, ``[R]``.
        chain: the chain each prefix belongs to, ``[R]``, values in 0 … ``chains`` - 1.
    """
    return group_means(log_odds, chain, chains)


def group_means(values: torch.Tensor, group: torch.Tensor, groups: int) -> torch.Tensor:
    """Means ``[groups]`` of ``values`` ``[R]`` by ``group`` ``[R]``, integers below ``groups``."""
    # bincount would wait for a GPU.
    members = (group == torch.arange(groups, device=group.device)[:, None]).sum(1)
    total = torch.zeros(groups, dtype=values.dtype, device=values.device)
    return total.index_add(0, group, values) / members


def chain_losses(aggregated: torch.Tensor, true_false: torch.Tensor, loss: str) -> torch.Tensor:
    """Upper-level loss of every meta chain, ``[M]``: σ(mean log-odds) against right or wrong.

    Args:
        aggregated: mean log-odds, ``[M]``.
        true_false: ``[M]``, 1 for right and 0 for wrong.
        loss: ``mse`` (as published) or ``bce``.

    Raises:
        ValueError: ``loss`` is neither.
    """
    return _losses(aggregated, true_false, loss)


def pair_losses(
    aggregated: torch.Tensor, true_false: torch.Tensor, question: torch.Tensor
) -> torch.Tensor:
    """Ranking loss of every question, ``[Q]``: the mean of -log σ(z_right - z_wrong) over pairs.

    A pair is a right and a wrong chain of the question, and all its pairs count. What the scores of
    both have in common cancels, so a reward model whose scores are all too high or too low loses
    nothing, and the weights cannot follow base rates.

    Args:
        aggregated: mean log-odds z, ``[M]``.
        true_false: ``[M]``, 1 for right and 0 for wrong.
        question: ``[M]``, values in 0 … Q - 1; every question has a right and a wrong chain.
    """
    right, wrong = true_false == 1, true_false == 0
    same = question[:, None] == question[None, :]
    first, second = (same & right[:, None] & wrong[None, :]).nonzero(as_tuple=True)
    losses = F.softplus(aggregated[second] - aggregated[first])
    return group_means(losses, question[first], int(question.max()) + 1)


def _losses(log_odds: torch.Tensor, target: torch.Tensor, loss: str) -> torch.Tensor:
    if loss == "bce":
        return F.binary_cross_entropy_with_logits(log_odds, target, reduction="none")
    if loss == "mse":
        return (torch.sigmoid(log_odds) - target).square()
    raise ValueError(f"unknown loss {loss!r}: bce or mse")
