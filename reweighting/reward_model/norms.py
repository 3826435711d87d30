"""Normalisation in front of the matrix products as one kernel where it was eight."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .attention import is_dual

FUSED_ON = {"cuda"}  # devices on which the time goes into starting kernels


class _FusedNorm:
    """Mixed into an RMSNorm whose output enters matrix products only.

    transformers spells the formula out, in fp32, and under autocast each of the products that
    follow rounds the result once more for itself. Here it is rounded once, to the same numbers.
    """

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        device, dtypes = hidden_states.device.type, {hidden_states.dtype, self.weight.dtype}
        # A fused kernel has no forward derivative; in bf16 the formula rounds in between.
        if device not in FUSED_ON or dtypes != {torch.float32} or is_dual(hidden_states):
            layer: Any = super()
            return layer.forward(hidden_states)
        shape, epsilon = hidden_states.shape[-1:], self.variance_epsilon
        with torch.autocast(device, enabled=False):
            normalised = F.rms_norm(hidden_states, shape, self.weight, epsilon)
        if torch.is_autocast_enabled(device):
            return normalised.to(torch.get_autocast_dtype(device))
        return normalised


def fuse_norms(layers: nn.ModuleList, fused: bool = True) -> None:
    """Fuse the norms in front of attention and feed-forward network of every layer, or undo it."""
    for layer in layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm: Any = getattr(layer, name, None)
            if isinstance(norm, _FusedNorm) and not fused:
                norm.__class__ = type(norm).__mro__[2]
            elif fused and hasattr(norm, "variance_epsilon"):
                norm.__class__ = _fused(norm.__class__)


@functools.cache
def _fused(kind: Any) -> Any:
    return type(kind.__name__, (_FusedNorm, kind), {})
