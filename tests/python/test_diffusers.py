# SPDX-License-Identifier: MIT
"""A small U-Net and a small diffusion transformer, with torch's attention and with ours."""

from __future__ import annotations

from collections.abc import Iterator

import diffusers
import pytest
import torch

import mps_sdpa


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    mps_sdpa.integrations.diffusers.unregister()
    mps_sdpa.disable()


def test_native_back_end_is_ours_until_unregistered() -> None:
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    q = torch.randn(2, 9, 4, 8)
    k = torch.randn(2, 13, 4, 8)
    padding = torch.rand(2, 13) < 0.8
    expected = dispatch_attention_fn(q, k, k, attn_mask=padding)
    mps_sdpa.integrations.diffusers.register()
    mps_sdpa.integrations.diffusers.register()
    torch.testing.assert_close(dispatch_attention_fn(q, k, k, attn_mask=padding), expected)
    assert mps_sdpa.get_call_stats() == {"cpu": 1}
    out, lse = dispatch_attention_fn(q, k, k, attention_kwargs={"return_lse": True})
    assert out.shape == q.shape
    assert lse.shape == (2, 4, 9)
    mps_sdpa.integrations.diffusers.unregister()
    mps_sdpa.reset_call_stats()
    torch.testing.assert_close(dispatch_attention_fn(q, k, k, attn_mask=padding), expected)
    assert mps_sdpa.get_call_stats() == {}


def _both(model: torch.nn.Module, *inputs: object, **options: object) -> list[torch.Tensor]:
    results = []
    for ours in (False, True):
        if ours:
            mps_sdpa.integrations.diffusers.register()
            mps_sdpa.enable()
        mps_sdpa.reset_call_stats()
        model.zero_grad()
        out = model(*inputs, **options).sample
        out.square().mean().backward()
        results.append(out)
        results.append(next(p.grad for p in model.parameters() if p.grad is not None).clone())
    return results


def test_unet() -> None:
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(32, 64), cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=8,
    )  # fmt: skip
    found = _both(model, torch.randn(2, 4, 16, 16), 7, torch.randn(2, 5, 32))
    torch.testing.assert_close(found[2:], found[:2], atol=1e-4, rtol=1e-3)
    assert mps_sdpa.get_call_stats()["cpu"] >= 2


def test_diffusion_transformer() -> None:
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2,
        sample_size=16, num_embeds_ada_norm=16, norm_num_groups=4,
    ).eval()  # fmt: skip
    found = _both(
        model,
        torch.randn(2, 4, 16, 16),
        timestep=torch.tensor([3, 4]),
        class_labels=torch.tensor([1, 2]),
    )
    torch.testing.assert_close(found[2:], found[:2], atol=1e-4, rtol=1e-3)
    assert mps_sdpa.get_call_stats()["cpu"] == 2
