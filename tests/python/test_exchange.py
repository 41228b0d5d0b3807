# SPDX-License-Identifier: MIT
"""Both ways to read torch's tensors give the same; the compiled module keeps nothing alive."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch.nn import Parameter

from mps_sdpa import _core, attention, sdpa_opt


@pytest.fixture(params=["exchange", "attributes"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Tensors are read through DLPack's C functions, or through their Python attributes."""
    api = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if request.param == "exchange" and api is None:
        pytest.skip("this torch has no C exchange")
    _core.attach(torch.Tensor, Parameter, api if request.param == "exchange" else None)
    yield request.param
    _core.attach(torch.Tensor, Parameter, api)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_both_ways(way: str, dtype: torch.dtype) -> None:
    q = torch.randn(2, 9, 4, 8, dtype=dtype).transpose(1, 2).requires_grad_()
    k = torch.randn(2, 2, 15, 8, dtype=dtype)[..., 1:14, :]
    mask = torch.rand(9, 13) < 0.8
    out, lse = attention(q, k, k, mask=mask, return_lse=True)
    stock = attention(q, k, k, mask=mask, return_lse=True, backend="stock")
    torch.testing.assert_close(out, stock[0], atol=5e-3, rtol=5e-2)
    torch.testing.assert_close(lse, stock[1], atol=5e-3, rtol=5e-2)
    assert out.stride() == q.stride()
    out.sum().backward()
    assert q.grad is not None
    with pytest.raises(RuntimeError, match="query has dtype int32; float32"):
        sdpa_opt(k.int(), k.int(), k.int())


def test_nothing_is_kept_alive(way: str) -> None:
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    out = sdpa_opt(q, q, q)
    gone = [weakref.ref(q), weakref.ref(out)]
    out.sum().backward()
    del q, out
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_memory_does_not_grow(way: str) -> None:
    import psutil

    q = torch.randn(1, 4, 128, 64)
    process = psutil.Process()
    for _ in range(50):
        sdpa_opt(q, q, q[..., :1])
    before = process.memory_info().rss
    for _ in range(400):
        sdpa_opt(q[:, :, :1], q[:, :, :1], q[:, :, :1].expand(1, 4, 1, 64))
        torch.empty(0)
    for _ in range(50):
        sdpa_opt(q, q, q[..., :1])
    assert process.memory_info().rss - before < 8 << 20


def test_threads_call_at_once() -> None:
    q = torch.randn(1, 2, 40, 16, requires_grad=True)
    expected = sdpa_opt(q, q, q).detach()
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            out = sdpa_opt(q, q, q)
            torch.autograd.grad(out.sum(), q)
            if not torch.equal(out, expected):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_one_openmp_in_the_process() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads the process's memory map")
    code = (
        "import torch, mps_sdpa; q = torch.randn(1, 1, 4, 8); mps_sdpa.sdpa_opt(q, q, q);"
        "lines = open('/proc/self/maps').read().split();"
        "print(len({l for l in lines if 'libgomp' in l or 'libomp' in l or 'libiomp' in l}));"
        "torch.set_num_threads(1); from mps_sdpa import _core; print(_core.thread_count())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "1"]


def test_import_does_no_work() -> None:
    code = (
        "import sys, mps_sdpa;"
        "print([n for n in ('transformers', 'diffusers', 'matplotlib', 'rich', 'click',"
        " 'torch._dynamo') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
