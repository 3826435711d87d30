"""Layers of transformers' models as this project computes them: the same numbers, sooner.

- Attention runs within each tree of a packed sequence, see :mod:`.prefix_tree`.
- In forward mode (the hypergradient's directional derivatives) attention follows its inputs by
  hand: fused kernels have no forward derivative, and differentiating the plain formula operation
  by operation takes several times as many passes over its quadratic tables.
- A convolution over patches that are cut out already is one matrix product.
- The positions of an image's patches go from the processor, where they are made, to the device.
- The last layer runs where a score is read: no one looks at what it says elsewhere.
- A vocabulary that embeds the prompts and reads them out gets one gradient, not the sum of two.
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

    Registered with transformers as ``"packed_trees"``. Where packed trees stand in for
    ``attention_mask``, it runs within each; a usual mask or none goes to transformers' own SDPA.
    ``ends_only``: where prompts end, and zero elsewhere.
    """
    packed, scaling = attention_mask, kwargs.get("scaling")
    if not isinstance(packed, PackedTrees):
        if is_dual(query) and packed is None and kwargs.get("is_causal") is False:
            return attention_along(query, key, value, scaling=scaling), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    attend = functools.partial(_attend, scaling=scaling, dropout=kwargs.get("dropout", 0.0))
    groups = query.shape[1] // key.shape[1]
    # Split at once: a slice for every tree would fill its gradient up to the whole sequence.
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


def _mask_kind(query: torch.Tensor) -> tuple[torch.dtype, torch.device]:
    return torch.float32 if is_dual(query) else query.dtype, query.device


def _attend(query, key, value, mask, causal=False, *, scaling, dropout) -> torch.Tensor:
    """``[B, heads, M, D]`` and twice ``[B, heads, N, D]`` to ``[B, M, heads, D]``."""
    if is_dual(query):
        return attention_along(query, key, value, mask, causal, scaling)
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p=dropout, is_causal=causal, scale=scaling
    ).transpose(1, 2)


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
        query, key, value: ``[B, heads, N, D]`` with a tangent each; fewer heads of keys are shared,
            and the numbers of queries and of keys may differ.
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


def send_patch_positions(model: nn.Module) -> None:
    """Let the vision tower of ``model`` find its patches' positions on its own device.

    They are made where the grids of the images are, and these stay on the processor: Python reads
    them many times, and every time would wait for a GPU. Learned positions (Qwen3-VL) are mixed by
    weights that no module gets to see: there the grids go themselves.
    """
    for name, module in model.named_modules():
        if name.endswith("visual.rotary_pos_emb"):
            module.register_forward_pre_hook(_send_positions)
        elif name.endswith("visual") and hasattr(module, "pos_embed"):
            module.register_forward_pre_hook(_send_grids, with_kwargs=True)


def _send_positions(module, inputs: tuple[torch.Tensor, torch.Tensor]):
    hidden_states, positions = inputs
    return hidden_states, positions.to(hidden_states.device, non_blocking=True)


def _send_grids(module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
    return inputs, named | {"grid_thw": named["grid_thw"].to(inputs[0].device)}


class _LastLayer:
    """Mixed into the last layer of a language model: it runs only where prompts end.

    Prompts may end at one token: computed once, their scores are equal. All is within the layer's
    own forward, which gradient checkpointing repeats with the same arguments.
    """

    def forward(self, hidden_states: torch.Tensor, attention_mask=None, **kwargs) -> torch.Tensor:
        if not isinstance(attention_mask, PackedTrees):
            return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)
        attended, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            ends_only=True,
            **kwargs,
        )
        ends = attention_mask.ends
        found = hidden_states[:, ends] + attended[:, ends]
        found = found + self.mlp(self.post_attention_layernorm(found))
        return hidden_states.index_copy(1, ends, found.to(hidden_states.dtype))


def bring_trees(decoder: nn.Module) -> None:
    """Let packed trees that stand in for the mask of ``decoder`` reach the layers as they are.

    Some architectures pass on what they get, others make a mask of their own from it.
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


def read_out_last(layers: nn.ModuleList) -> None:
    """Spare the last of ``layers`` most of its work: what it says elsewhere reaches no score."""
    kind = type(layers[-1])
    layers[-1].__class__ = type(kind.__name__, (_LastLayer, kind), {})


class TiedVocabulary(torch.autograd.Function):
    """Embeddings of some tokens, and what a linear head on the logits is to the hidden states.

    ``apply(vocabulary, head, token_ids)`` gives ``vocabulary[token_ids]``, ``[..., hidden]``, and
    ``head @ vocabulary``, ``[hidden]``. Both derivatives are as large as the vocabulary; the
    embeddings' is zero but for a few rows, which are added into the head's.
    """

    @staticmethod
    def forward(vocabulary, head, token_ids):
        return F.embedding(token_ids, vocabulary), head @ vocabulary.to(head.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, embeddings, direction):
        vocabulary, head, token_ids = ctx.saved_tensors
        whole = None
        if ctx.needs_input_grad[0]:
            whole = torch.outer(head, direction).to(vocabulary.dtype)
            rows, tokens = embeddings.to(whole.dtype).flatten(0, -2), token_ids.flatten()
            # Tokens occur more than once. Of the two ways to add, one is the same every time on a
            # GPU, where the other adds in any order, and the other way round on a processor.
            if whole.is_cuda:
                whole = whole.index_put_((tokens,), rows, accumulate=True)
            else:
                whole = whole.index_add_(0, tokens, rows)
        return whole, vocabulary.to(head.dtype) @ direction, None

    @staticmethod
    def jvp(ctx, vocabulary, head, _):
        old_vocabulary, old_head, token_ids = ctx.saved_tensors
        along = old_head @ vocabulary.to(head.dtype) + head @ old_vocabulary.to(head.dtype)
        return F.embedding(token_ids, vocabulary), along
