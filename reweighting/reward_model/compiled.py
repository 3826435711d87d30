"""Layers that ``torch.compile`` fuses.

On a GPU a step of the plain layers takes the time in which a processor starts their kernels,
thousands in a pass. A compiled layer is one call of a few fused kernels. What a compiler cannot
follow, packed trees and lists of images, is given to it as rectangles of tokens. In forward mode
layers stay plain: the compiler does not follow dual numbers, and would compile anew for every
number of tokens if the derivative were written as two transposed ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from .attention import Images, image_rectangle, tree_rectangles
from .prefix_tree import PackedTrees

# A layer is compiled for trees that branch and for plain chains, for images of one size and of
# several, with and without gradients. Beyond this many times it would run uncompiled, unsaid.
VARIANTS = 64


class CompiledLayer:
    """Takes the place of a layer's ``forward``; its hooks stay outside of what is compiled."""

    def __init__(self, layer: nn.Module) -> None:
        self.plain = layer.forward
        self.fused = torch.compile(layer.forward, dynamic=True)

    def __call__(self, hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
        if forward_ad._current_level >= 0:
            return self.plain(hidden_states, **named)
        kind = _dtype(hidden_states), hidden_states.device
        if isinstance(packed := named.get("attention_mask"), PackedTrees):
            named["attention_mask"] = tree_rectangles(packed, *kind)
        if isinstance(images := named.get("images"), Images):
            named["images"] = image_rectangle(images.lengths, *kind)
        return self.fused(hidden_states, **named)


def _dtype(hidden_states: torch.Tensor) -> torch.dtype:
    """In which attention is computed."""
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden_states.dtype


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Let ``torch.compile`` fuse layers of one structure."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    # Sizes that are equal by chance would be taken to be always equal.
    torch.fx.experimental._config.use_duck_shape = False
    for layer in layers:
        layer.forward = CompiledLayer(layer)


def is_compiled(layer: nn.Module) -> bool:
    """Whether :func:`compile_layers` was called for it."""
    return isinstance(layer.forward, CompiledLayer)
