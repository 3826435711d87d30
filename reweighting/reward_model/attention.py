"""Attention within packed prefix trees, in training and in forward mode.

It is registered with transformers as ``"packed_trees"``; the :class:`~.prefix_tree.PackedTrees`
stand in for the attention mask, and attention runs within each tree. In forward mode (the
hypergradient's directional derivatives) its tangent is computed by a formula of our own: fused
kernels have no forward derivative, and differentiating the plain formula operation by operation
takes several times as many passes over its quadratic tables.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from .prefix_tree import PackedTrees, Tree, rows_of

ATTENTION_NAME = "packed_trees"
ROWS = {"cpu": 128, "cuda": 1024}  # queries of a tree that attention takes at a time
# Where a call costs more than a little padding: there trees of similar length go together.
TOGETHER = {"cuda"}
SIMILAR = 0.8  # shortest over longest tree of a call


class Rectangles(NamedTuple):
    """Trees or images side by side as rows of equal length, in tensors alone.

    A compiler can follow it. Every rectangle has the tokens of its rows, ``[rows, longest]``, and
    what attention adds to its scores, ``[rows, 1, longest or 1, longest]``, or None: then tokens
    see those before them (``causal``) or all. ``places``, ``[N]``, says where every token is among
    the tokens of all rectangles.
    """

    tokens: list[torch.Tensor]
    masks: list[torch.Tensor | None]
    places: torch.Tensor
    causal: bool = True


class Images(NamedTuple):
    """Images (or windows of them) whose patches lie one after another.

    ``counts`` has every length and how often it occurs. ``order`` makes images of one length
    neighbours and ``back`` undoes it; both are None if all lengths are equal.
    """

    lengths: tuple[int, ...]
    counts: list[tuple[int, int]]
    order: torch.Tensor | None
    back: torch.Tensor | None


def tree_attention(
    module, query, key, value, attention_mask, ends_only=False, images=None, **kwargs
):
    """Scaled dot-product attention, ``[B, heads, N, D]`` each, to ``[B, N, heads, D]``.

    Args:
        attention_mask: packed trees or their rectangles; a usual mask or None goes to transformers'
            own SDPA.
        ends_only: compute the output where prompts end only, and leave it zero elsewhere.
        images: B is 1, and the N patches are those of several images, each of which attends to
            itself; as :class:`Images` or as rectangles.

    Returns:
        the output, and None for the attention weights, as transformers expects.
    """
    scaling = kwargs.get("scaling")
    if isinstance(images, Images):
        return _image_attention(query, key, value, images, scaling), None
    rows = attention_mask if images is None else images
    groups = query.shape[1] // key.shape[1]
    attend = functools.partial(_attend, scaling=scaling, dropout=kwargs.get("dropout", 0.0))
    if isinstance(rows, Rectangles):
        key, value = (repeat_kv(x, groups) for x in (key, value))
        return _side_by_side(rows, query, key, value, attend), None
    if not isinstance(attention_mask, PackedTrees):
        if is_dual(query) and attention_mask is None and kwargs.get("is_causal") is False:
            return attention_along(query, key, value, scaling=scaling), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    packed, (key, value) = attention_mask, (repeat_kv(x, groups) for x in (key, value))
    if not ends_only and len(packed.trees) > 1 and query.device.type in TOGETHER:
        rows = tree_rectangles(packed, *_mask_kind(query), SIMILAR)
        return _side_by_side(rows, query, key, value, attend), None
    # One split for all trees: the gradient of a slice would be filled up to the whole sequence.
    lengths = [tree.end - tree.start for tree in packed.trees]
    keys, values = (x.split(lengths, 2) for x in (key, value))
    if ends_only:
        counts = [len(tree.ends) for tree in packed.trees]
        parts = packed.ends.split(counts), query[:, :, packed.ends].split(counts, 2)
        outputs = []
        for tree, ends, q, k, v in zip(packed.trees, *parts, keys, values, strict=True):
            outputs.append(attend(q, k, v, tree.mask(*_mask_kind(q), ends - tree.start)))
        found = torch.cat(outputs, 1)
        nothing = torch.zeros_like(query.transpose(1, 2), dtype=found.dtype)
        return nothing.index_copy(1, packed.ends, found), None
    outputs = [
        _tree(tree, q, k, v, attend)
        for tree, q, k, v in zip(packed.trees, query.split(lengths, 2), keys, values, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), None


AttentionInterface.register(ATTENTION_NAME, tree_attention)


def _tree(tree: Tree, query, key, value, attend: Callable) -> torch.Tensor:
    """Attention within one tree of n tokens, ``[1, heads, n, D]`` each, to ``[1, n, heads, D]``."""
    mask, outputs, end = tree.mask(*_mask_kind(query)), [], 0
    rows = None if mask is None and not is_dual(query) else ROWS.get(query.device.type)
    for block in query.split(rows or query.shape[2], 2):
        start, end = end, end + block.shape[2]
        # No token sees a later one.
        added = None if mask is None else mask[..., start:end, :end]
        outputs.append(attend(block, key[:, :, :end], value[:, :, :end], added, mask is None))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def tree_rectangles(
    packed: PackedTrees, dtype: torch.dtype, device: torch.device, similar: float = 0.0
) -> Rectangles:
    """The trees of a batch for attention in ``dtype``; see :meth:`PackedTrees.side_by_side`."""
    batches, places = packed.side_by_side(similar)
    masks = [batch.mask(dtype, device) for batch in batches]
    return Rectangles([batch.tokens for batch in batches], masks, places)


@functools.lru_cache(maxsize=8)
def image_rectangle(
    lengths: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Rectangles:
    """Images in one rectangle, for attention in ``dtype``."""
    tokens, within = rows_of(list(lengths))
    places = within.flatten().nonzero()[:, 0].to(device)
    mask = None
    if not within.all():
        mask = torch.where(within, 0.0, float("-inf")).to(device, dtype)[:, None, None]
    return Rectangles([tokens.to(device)], [mask], places, causal=False)


def _side_by_side(rows: Rectangles, query, key, value, attend: Callable) -> torch.Tensor:
    """Attention within every row, a call for every rectangle.

    Arguments are those of :func:`tree_attention`, with as many heads of keys as of queries.
    """
    outputs = []
    for tokens, mask in zip(rows.tokens, rows.masks, strict=True):
        q, k, v = (
            x[0].index_select(1, tokens.flatten()).unflatten(1, tokens.shape).transpose(0, 1)
            for x in (query, key, value)
        )  # [rows, heads, longest, D]
        outputs.append(attend(q, k, v, mask, rows.causal and mask is None).flatten(0, 1))
    found = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return found.index_select(0, rows.places)[None]


def _image_attention(query, key, value, images: Images, scaling) -> torch.Tensor:
    """Attention within each image, a call for every length that occurs."""
    if images.order is not None:
        query, key, value = (x.index_select(2, images.order) for x in (query, key, value))
    outputs, end = [], 0
    for length, count in images.counts:
        start, end = end, end + length * count
        q, k, v = (
            x[0, :, start:end].unflatten(1, (count, length)).transpose(0, 1)
            for x in (query, key, value)
        )
        found = _attend(q, k, v, None, scaling=scaling, dropout=0.0)  # [count, length, heads, D]
        outputs.append(found.flatten(0, 1))
    found = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (found if images.back is None else found.index_select(0, images.back))[None]


@functools.lru_cache(maxsize=8)
def images_of(lengths: tuple[int, ...], device: torch.device) -> Images:
    """Images of these numbers of patches, one after another."""
    counts = sorted(collections.Counter(lengths).items())
    if len(counts) == 1:
        return Images(lengths, counts, None, None)
    numbers = torch.repeat_interleave(torch.tensor(lengths), torch.tensor(lengths))
    order = numbers.argsort(stable=True)
    return Images(lengths, counts, order.to(device), order.argsort().to(device))


class _OneSegment:
    """Stands in for the bounds of images in transformers' attention, which splits at them."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __getitem__(self, _) -> _OneSegment:
        return self

    def __sub__(self, _) -> _OneSegment:
        return self

    def tolist(self) -> list[int]:
        return [self.length]


def send_images_together(model: nn.Module) -> None:
    """Let the vision tower of ``model`` attend within all images at once.

    transformers takes one call per image and layer.
    """
    for name, module in model.named_modules():
        if name.endswith("visual"):
            for block in module.blocks:
                block.register_forward_pre_hook(_send_lengths, with_kwargs=True)


def _send_lengths(block, inputs: tuple, named: dict) -> tuple[tuple, dict]:
    if block.attn.config._attn_implementation == ATTENTION_NAME:
        lengths = tuple(named["cu_seqlens"].diff().tolist())
        images = images_of(lengths, inputs[0].device)
        named = named | {"cu_seqlens": _OneSegment(sum(lengths)), "images": images}
    return inputs, named


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
