# SPDX-License-Identifier: MIT
"""The shortest way through everything: one call, one gradient, one choice."""

import torch
import torch.nn.functional as F

import mps_sdpa


def test_call_and_gradient_agree_with_torch() -> None:
    torch.manual_seed(0)
    ours = [torch.randn(2, 4, 17, 16, requires_grad=True) for _ in range(3)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    out = mps_sdpa.sdpa_opt(*ours, is_causal=True)
    expected = F.scaled_dot_product_attention(*theirs, is_causal=True)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    expected.sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
