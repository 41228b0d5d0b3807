# SPDX-License-Identifier: MIT
"""What the tests compare with: torch's math path in float64, and the contract's tolerances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

TOLERANCES = {
    torch.float64: (1e-10, 1e-9),
    torch.float32: (5e-6, 5e-5),
    torch.float16: (5e-3, 5e-2),
    torch.bfloat16: (5e-3, 5e-2),
}


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, factor: float = 1) -> None:
    """Within `factor` times the contract's tolerance for `dtype`."""
    atol, rtol = TOLERANCES[dtype]
    torch.testing.assert_close(
        actual.detach().double(), expected.detach().double(), atol=atol * factor, rtol=rtol * factor
    )


def expected_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """torch's textbook path in float64; heads are repeated by hand, both masks apply."""
    query, key, value = (tensor.double() for tensor in (query, key, value))
    if query.dim() >= 3 and key.dim() >= 3 and query.size(-3) > 1:
        key, value = (
            t
            if t.size(-3) in (1, query.size(-3))
            else t.repeat_interleave(query.size(-3) // t.size(-3), -3)
            for t in (key, value)
        )
    visible = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool)
    bias = torch.zeros(visible.shape, dtype=torch.float64)
    if is_causal:
        bias = bias.masked_fill(~visible.tril(), float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        bias = bias + torch.zeros(attn_mask.shape).double().masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        bias = bias + attn_mask.double()
    with sdpa_kernel([SDPBackend.MATH]):
        return F.scaled_dot_product_attention(query, key, value, bias, scale=scale)


def leaves(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copies that require a gradient, with the strides of the originals."""
    return [
        tensor.detach().to(dtype or tensor.dtype, copy=True).requires_grad_() for tensor in tensors
    ]
