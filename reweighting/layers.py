"""Layers of transformers' models as this project computes them: the same numbers, sooner.

- Attention runs within each tree of a packed sequence, see :mod:`reweighting.prefix_tree`.
- In forward mode (the hypergradient's directional derivatives) attention follows its inputs by
  hand: fused kernels have no forward derivative, and differentiating the plain formula operation
  by operation takes several times as many passes over its quadratic tables.
- A convolution over patches that are cut out already is one matrix product.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

ATTENTION_NAME = "packed_trees"


def tree_attention(module, query, key, value, attention_mask, **kwargs):
    """Scaled dot-product attention, ``[B, heads, N, D]`` each, to ``[B, N, heads, D]``.

    Registered with transformers as ``"packed_trees"``. Where ``attention_mask`` is a list of trees,
    it runs within each of them; a usual mask or none falls through to transformers' own SDPA.
    """
    moving = is_dual(query)
    if not isinstance(attention_mask, list):
        if moving and attention_mask is None and kwargs.get("is_causal") is False:
            return attention_along(query, key, value, scaling=kwargs.get("scaling")), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outputs = []
    for tree in attention_mask:
        tokens = slice(tree.start, tree.end)
        parts = query[:, :, tokens], key[:, :, tokens], value[:, :, tokens]
        if moving:
            mask, causal = tree.mask(torch.float32), tree.ancestors is None
            outputs.append(attention_along(*parts, mask, causal, kwargs.get("scaling")))
        else:
            mask = tree.mask(query.dtype)
            outputs.append(sdpa_attention_forward(module, *parts, mask, **kwargs)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


AttentionInterface.register(ATTENTION_NAME, tree_attention)


def is_dual(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` carries a forward-mode tangent."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def attention_along(
    query, key, value, mask=None, causal: bool = False, scaling: float | None = None
) -> torch.Tensor:
    """Attention of dual tensors, and how it moves along their tangents.

    With P = softmax(S), S = Q Kᵀ: dP = P ∘ (dS - rows of ⟨P, dS⟩), so that for T = P ∘ dS

        d(P V) = T V - (row sums of T) ∘ (P V) + P dV

    Args:
        query, key, value: ``[B, heads, N, D]`` with a tangent each; fewer heads of keys are shared.
        mask: added to the scores, fp32.
        causal: every position sees those before it only.

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
        scores += torch.full_like(scores[0, 0], float("-inf")).triu_(1)
    probabilities = scores.softmax(-1)
    moved = (torch.cat([dq, q], -1) @ torch.cat([k, dk], -1).mT).float().mul_(probabilities)
    row_sums = moved.sum(-1, keepdim=True)
    output, change = (probabilities.to(v.dtype) @ torch.cat([v, dv], -1)).chunk(2, -1)
    tangent = moved.to(v.dtype) @ v - row_sums.to(v.dtype) * output + change
    return forward_ad.make_dual(output.transpose(1, 2), tangent.transpose(1, 2))


class PatchProjection(nn.Conv3d):
    """A convolution whose every input is exactly one kernel large: a matrix product.

    So it is in the vision towers of Qwen's models, where a convolution takes ten times as long.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """``[N, channels, time, height, width]`` to ``[N, width of the model, 1, 1, 1]``."""
        if patches.shape[1:] != self.weight.shape[1:]:
            return super().forward(patches)
        projected = F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return projected[:, :, None, None, None]


def speed_up_patches(model: nn.Module) -> None:
    """Let the patch convolutions of ``model`` be products; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.Conv3d and module.dilation == (1, 1, 1):
            module.__class__ = PatchProjection
