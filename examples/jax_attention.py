# SPDX-License-Identifier: MIT
"""Fused attention in JAX on the CPU: under jit, with gradients, mapped by vmap.

    pip install jax && python examples/jax_attention.py

`jax.pure_callback` hands NumPy arrays to `mps_sdpa.attention`; no code is compiled against JAX. The
gradient keeps the output and the log-sum-exp, and runs the fused backward pass.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import mps_sdpa
from mps_sdpa.arrays import like_array, to_tensor

_NO_OPTIONS = (-1, -1, 0.0, 0.0, "cpu")  # window, soft cap, dropout, back end


def _host_forward(causal: bool, q: Any, k: Any, v: Any) -> tuple[Any, ...]:
    q, k, v = map(np.asarray, (q, k, v))
    return mps_sdpa.attention(q, k, v, causal=causal, return_lse=True)


def _host_backward(causal: bool, *arrays: Any) -> tuple[Any, ...]:
    first = np.asarray(arrays[0])
    q, k, v, out, lse, grad = (to_tensor("array", np.asarray(each)) for each in arrays)
    found = torch.ops.mps_sdpa.attention_backward(
        *(q, k, v, None, None, None, out, lse, grad, None),
        *([True, True, True, False, False], None, int(causal), *_NO_OPTIONS),
    )
    return tuple(like_array(each, first) for each in found[:3])


def _forward(q: Any, k: Any, v: Any, causal: bool) -> tuple[Any, Any]:
    shapes = (
        jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), q.dtype),
        jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32),
    )
    function = functools.partial(_host_forward, causal)
    return tuple(jax.pure_callback(function, shapes, q, k, v, vmap_method="broadcast_all"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attention(q: Any, k: Any, v: Any, causal: bool = False) -> Any:
    """Attention of [batch, heads, len, dim]; key and value may have fewer heads."""
    return _forward(q, k, v, causal)[0]


def _attention_forward(q: Any, k: Any, v: Any, causal: bool) -> tuple[Any, Any]:
    out, lse = _forward(q, k, v, causal)
    return out, (q, k, v, out, lse)


def _attention_backward(causal: bool, saved: Any, grad: Any) -> Any:
    shapes = tuple(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in saved[:3])
    function = functools.partial(_host_backward, causal)
    return tuple(jax.pure_callback(function, shapes, *saved, grad, vmap_method="broadcast_all"))


attention.defvjp(_attention_forward, _attention_backward)


def textbook(q: Any, k: Any, v: Any, causal: bool = False) -> Any:
    """What `attention` is compared with."""
    k, v = (jnp.repeat(each, q.shape[-3] // each.shape[-3], axis=-3) for each in (k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    return jax.nn.softmax(scores) @ v


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, 4, 100, 64), (2, 2, 100, 64), (2, 2, 100, 64)]
    inputs = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]

    def largest_difference(transform: Any) -> float:
        found = [jax.tree.leaves(transform(each)(*inputs)) for each in (attention, textbook)]
        pairs = zip(*found, strict=True)
        return max(float(jnp.abs(mine - theirs).max()) for mine, theirs in pairs)

    def gradients(function: Any) -> Any:
        return jax.jit(jax.grad(lambda *t: (function(*t, True) ** 2).sum(), (0, 1, 2)))

    checks = {
        "forward under jit": lambda f: jax.jit(functools.partial(f, causal=True)),
        "gradients": gradients,
        "vmap": lambda f: jax.vmap(functools.partial(f, causal=False)),
    }
    for name, transform in checks.items():
        difference = largest_difference(transform)
        print(f"{name}: largest difference from the textbook {difference:.1e}")
        assert difference < 1e-4
    assert mps_sdpa.get_call_stats()["cpu"] > 0


if __name__ == "__main__":
    main()
