"""Layers computed our way against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from reweighting.layers import PatchProjection, attention_along, is_dual, speed_up_patches


@pytest.mark.parametrize("seen", ["all", "causal", "tree"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.bfloat16, 3e-2)])
def test_attention_moves_as_forward_mode_says(seen, dtype, tolerance):
    """Two heads of keys are shared by four of queries."""
    torch.manual_seed(0)
    shapes = [(1, 4, 9, 8), (1, 2, 9, 8), (1, 2, 9, 8)]
    values = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    tangents = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    tree = (torch.rand(9, 9) < 0.5).tril() | torch.eye(9, dtype=bool)
    mask = torch.where(tree, 0.0, float("-inf"))[None, None] if seen == "tree" else None

    def plain(query, key, value):
        attn_mask = None if mask is None else mask.double()
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, is_causal=seen == "causal", enable_gqa=True
            ).transpose(1, 2)

    exact = torch.func.jvp(plain, tuple(values), tuple(tangents))
    with torch.no_grad(), forward_ad.dual_level():
        inputs = [
            forward_ad.make_dual(value.to(dtype), tangent.to(dtype))
            for value, tangent in zip(values, tangents, strict=True)
        ]
        assert is_dual(inputs[0]) and not is_dual(values[0])
        ours = forward_ad.unpack_dual(attention_along(*inputs, mask, seen == "causal"))
        for found, wanted in zip(ours, exact, strict=True):
            assert (found - wanted).norm() / wanted.norm() <= tolerance


def test_patches_are_projected_as_the_convolution_does():
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 7, (2, 4, 4), stride=(2, 4, 4))
    product = copy.deepcopy(convolution)
    speed_up_patches(nn.Sequential(product))
    assert isinstance(product, PatchProjection)
    patches = torch.randn(5, 3, 2, 4, 4)
    for module in (convolution, product):
        module(patches).square().sum().backward()
    torch.testing.assert_close(product(patches), convolution(patches))
    torch.testing.assert_close(product.weight.grad, convolution.weight.grad, rtol=1e-4, atol=1e-4)
    # What is not cut into patches is still convolved.
    image = torch.randn(1, 3, 4, 8, 8)
    torch.testing.assert_close(product(image), convolution(image))
