# SPDX-License-Identifier: MIT
"""attention() of arrays that are no tensors: the caller's kind comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mps_sdpa
from mps_sdpa import attention


class Namespace:
    """The library of ForeignArray."""

    @staticmethod
    def from_dlpack(tensor: Tensor) -> ForeignArray:
        return ForeignArray(torch.from_dlpack(tensor))


class ForeignArray:
    """An array of some library that speaks DLPack, as MLX's and JAX's do."""

    def __init__(self, memory: Tensor, device: tuple[int, int] = (1, 0)) -> None:
        self.memory, self.device = memory, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, dl_device: Any = None, **options: Any) -> Any:
        if self.device != (1, 0) and dl_device != (1, 0):
            raise BufferError("not on the CPU")
        return self.memory.__dlpack__(**options)

    def __array_namespace__(self) -> type[Namespace]:
        return Namespace


def _tensors() -> list[Tensor]:
    return [torch.randn(2, heads, 9, 8) for heads in (4, 2, 2)]


def test_numpy() -> None:
    tensors = _tensors()
    mask = torch.rand(9, 9) < 0.7
    expected, expected_lse = attention(*tensors, mask=mask, return_lse=True)
    arrays = [tensor.numpy() for tensor in tensors]
    out, lse = attention(*arrays, mask=mask.numpy(), return_lse=True)
    assert isinstance(out, np.ndarray)
    assert isinstance(lse, np.ndarray)
    np.testing.assert_array_equal(out, expected.numpy())
    np.testing.assert_array_equal(lse, expected_lse.numpy())
    assert mps_sdpa.get_call_stats() == {"cpu": 2}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_numpy_keeps_the_dtype(dtype: Any) -> None:
    q = np.random.default_rng(0).standard_normal((1, 2, 5, 8)).astype(dtype)
    assert attention(q, q, q).dtype == dtype


def test_unusual_numpy_arrays() -> None:
    q = np.random.default_rng(0).standard_normal((1, 2, 6, 8)).astype(np.float32)
    expected = attention(q, q[:, :, ::-1].copy(), q)
    np.testing.assert_array_equal(attention(q, q[:, :, ::-1], q), expected)
    np.testing.assert_array_equal(attention(q, q.astype(">f4")[:, :, ::-1], q), expected)
    q.flags.writeable = False
    attention(q, q, q)


@pytest.mark.parametrize("device", [(1, 0), (8, 0)])
def test_any_array_with_dlpack(device: tuple[int, int]) -> None:
    tensors = _tensors()
    sinks = torch.randn(4)
    expected = attention(*tensors, sinks=sinks, causal=True)
    arrays = [ForeignArray(tensor, device) for tensor in tensors]
    out = attention(*arrays, sinks=ForeignArray(sinks), causal=True)
    assert type(out) is ForeignArray
    assert torch.equal(out.memory, expected)


def test_no_copy_of_inputs() -> None:
    from mps_sdpa.arrays import to_tensor

    q = np.zeros((2, 3), dtype=np.float32)
    to_tensor("q", q)[0, 0] = 5
    assert q[0, 0] == 5


def test_errors_name_the_argument() -> None:
    q = np.zeros((1, 1, 4, 8), dtype=np.float32)
    with pytest.raises(TypeError, match="k must be a Tensor or an array with DLPack"):
        attention(q, [1.0], q)
    with pytest.raises(RuntimeError, match="query has dtype int64"):
        attention(q.astype(np.int64), q, q)
    with pytest.raises(TypeError, match="key must be a Tensor, but got ndarray"):
        attention(torch.zeros(1, 1, 4, 8), q, q)
