"""The vision tower takes its image patches as one matrix product and never waits for a GPU."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class PatchProjection(nn.Conv3d):
    """A convolution whose every input is exactly as large as its kernel: a matrix product.

    This is the case in the vision towers of Qwen's models, where a convolution takes ten times as
    long.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """``[N, channels, time, height, width]`` to ``[N, width of the model, 1, 1, 1]``."""
        if patches.shape[1:] != self.weight.shape[1:]:
            return super().forward(patches)
        projected = F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return projected[:, :, None, None, None]


def speed_up_patches(model: nn.Module) -> None:
    """Compute the patch convolutions of ``model`` as products; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.Conv3d and module.dilation == (1, 1, 1):
            module.__class__ = PatchProjection


def send_patch_positions(model: nn.Module) -> None:
    """Move the positions of the patches to the device of the vision tower of ``model``.

    Positions are made where the grids of the images are, and these stay on the CPU: Python reads
    them many times, and every reading would wait for a GPU. The learned positions of Qwen3-VL are
    interpolated by weights that no module receives: there the grids themselves are moved.
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
