"""Attention within packed prefix trees, in training and in forward mode.

It is registered with transformers as ``"packed_trees"``; the :class:`~.prefix_tree.PackedTrees`
stand in for the attention mask, and attention runs within each tree. In forward mode (the
hypergradient's directional derivatives) its tangent is computed by a formula of our own: fused
kernels have no forward derivative, and differentiating the plain formula operation by operation
takes several times as many passes over its quadratic tables.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from .prefix_tree import PackedTrees

ATTENTION_NAME = "packed_trees"
ROWS = {"cpu": 128, "cuda": 1024}  # queries of a tree that attention takes at a time


def tree_attention(module, query, key, value, attention_mask, ends_only=False, **kwargs):
    """Scaled dot-product attention, ``[B, heads, N, D]`` each, to ``[B, N, heads, D]``.

    Args:
        attention_mask: packed trees; a usual mask or None goes to transformers' own SDPA.
        ends_only: compute the output where prompts end only, and leave it zero elsewhere.

    Returns:
        the output, and None for the attention weights, as transformers expects.
    """
    packed, scaling = attention_mask, kwargs.get("scaling")
    if not isinstance(packed, PackedTrees):
        if is_dual(query) and packed is None and kwargs.get("is_causal") is False:
            return attention_along(query, key, value, scaling=scaling), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    attend = functools.partial(_attend, scaling=scaling, dropout=kwargs.get("dropout", 0.0))
    groups = query.shape[1] // key.shape[1]
    # One split for all trees: the gradient of a slice would be filled up to the whole sequence.
    lengths = [tree.end - tree.start for tree in packed.trees]
    keys, values = (repeat_kv(x, groups).split(lengths, 2) for x in (key, value))
    outputs = []
    if ends_only:
        counts = [len(tree.ends) for tree in packed.trees]
        parts = packed.ends.split(counts), query[:, :, packed.ends].split(counts, 2)
        for tree, ends, q, k, v in zip(packed.trees, *parts, keys, values, strict=True):
            outputs.append(attend(q, k, v, tree.mask(*_mask_kind(q), ends - tree.start)))
        found = torch.cat(outputs, 1)
        nothing = torch.zeros_like(query.transpose(1, 2), dtype=found.dtype)
        return nothing.index_copy(1, packed.ends, found), None
    for tree, q, k, v in zip(packed.trees, query.split(lengths, 2), keys, values, strict=True):
        mask = tree.mask(*_mask_kind(q))
        rows = q.shape[2] if mask is None and not is_dual(q) else ROWS.get(q.device.type)
        end = 0
        for block in q.split(rows or q.shape[2], 2):
            start, end = end, end + block.shape[2]
            # No token sees a later one.
            added = None if mask is None else mask[..., start:end, :end]
            outputs.append(attend(block, k[:, :, :end], v[:, :, :end], added, mask is None))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), None


AttentionInterface.register(ATTENTION_NAME, tree_attention)


def _mask_kind(query: torch.Tensor) -> tuple[torch.dtype, torch.device]:
    return torch.float32 if is_dual(query) else query.dtype, query.device


def _attend(query, key, value, mask, causal=False, *, scaling, dropout) -> torch.Tensor:
    """``[B, heads, M, D]`` and twice ``[B, heads, N, D]`` to ``[B, M, heads, D]``."""
    if is_dual(query):
        return attention_along(query, key, value, mask, causal, scaling)
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p=dropout, is_causal=causal, scale=scaling
    ).transpose(1, 2)


def is_dual(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` carries a forward-mode tangent."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def attention_along(
    query, key, value, mask=None, causal: bool = False, scaling: float | None = None
) -> torch.Tensor:
    """Attention of dual tensors: the output and its tangent.

    With P = softmax(S), S = Q Kᵀ: dP = P ∘ (dS - rows of ⟨P, dS⟩), so that for T = P ∘ dS

        d(P V) = T V - (row sums of T) ∘ (P V) + P dV

    Args:
        query, key, value: ``[B, heads, N, D]`` with a tangent each. The keys may have fewer heads,
            which are then shared, and another N than the queries.
        mask: added to the scores, fp32.
        causal: the queries are the last positions of the keys, and see none after their own.

    Returns:
        ``[B, N, heads, D]``, dual.
    """
    groups = query.shape[1] // key.shape[1]
    (q, dq), (k, dk), (v, dv) = (
        forward_ad.unpack_dual(t) for t in (query, repeat_kv(key, groups), repeat_kv(value, groups))
    )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, dq = q * scale, dq * scale
    scores = (q @ k.mT).float()
    if mask is not None:
        scores += mask
    if causal:
        future = k.shape[-2] - q.shape[-2] + 1
        scores += torch.full_like(scores[0, 0], float("-inf")).triu_(future)
    probabilities = scores.softmax(-1)
    moved = (torch.cat([dq, q], -1) @ torch.cat([k, dk], -1).mT).float().mul_(probabilities)
    row_sums = moved.sum(-1, keepdim=True)
    output, change = (probabilities.to(v.dtype) @ torch.cat([v, dv], -1)).chunk(2, -1)
    tangent = moved.to(v.dtype) @ v - row_sums.to(v.dtype) * output + change
    return forward_ad.make_dual(output.transpose(1, 2), tangent.transpose(1, 2))


def bring_trees(decoder: nn.Module) -> None:
    """Let packed trees that stand in for the mask of ``decoder`` reach its layers unchanged.

    Some architectures pass their mask on to the layers, others build one of their own from it.
    """
    decoder.register_forward_pre_hook(_put_trees_aside, with_kwargs=True)
    for layer in decoder.layers:
        layer.register_forward_pre_hook(_take_trees_for_mask, with_kwargs=True)


def _put_trees_aside(module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
    if isinstance(named.get("attention_mask"), PackedTrees):
        named = named | {"attention_mask": None, "packed_trees": named["attention_mask"]}
    return inputs, named


def _take_trees_for_mask(module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
    if "packed_trees" in named:
        named = named | {"attention_mask": named["packed_trees"]}
        del named["packed_trees"]
    return inputs, named
