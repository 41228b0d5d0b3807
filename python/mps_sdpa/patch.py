# SPDX-License-Identifier: MIT
"""enable() makes torch itself use us; disable() restores everything.

Three doors are taken. `torch.nn.functional.scaled_dot_product_attention` is replaced, for all code
that looks it up when it calls. The fast path of nn.MultiheadAttention and the encoder layers, which
bypasses that function, is switched off. And the CPU's kernels of the flash operator below autograd
are overridden, for code that imported the function early and for compiled or traced graphs.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mps_sdpa import _core, stock
from mps_sdpa.api import sdpa_opt
from mps_sdpa.engine import options_for
from mps_sdpa.settings import Causal, Settings

__all__ = ["disable", "enable", "enabled"]

_FLASH = "_scaled_dot_product_flash_attention_for_cpu"

_lock = threading.RLock()
_switched_on = False
_open_contexts = 0
_undo: contextlib.ExitStack | None = None


def _is_torchs() -> bool:
    """Whether a call stays torch's: under sdpa_kernel([MATH]), and where a graph is recorded, which
    then reaches us through the operator."""
    return (
        _undo is None
        or not torch._C._get_flash_sdp_enabled()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
    )


def _patched(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What F.scaled_dot_product_attention is while we are enabled."""
    if _is_torchs():
        out: Tensor = stock.original(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return out
    return sdpa_opt(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _replace_function() -> Callable[[], None]:
    torch.jit._builtins._register_builtin(_patched, "aten::scaled_dot_product_attention")
    F.scaled_dot_product_attention = _patched

    def restore() -> None:
        if F.scaled_dot_product_attention is _patched:
            F.scaled_dot_product_attention = stock.original

    return restore


def _switch_off_fast_path() -> Callable[[], None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    return lambda: torch.backends.mha.set_fastpath_enabled(before)


def _flash_options(is_causal: bool, scale: float | None) -> _core.Options:
    causal = Causal.UPPER_LEFT if is_causal else Causal.NONE
    return options_for(Settings(scale=scale, causal=causal, backend="cpu"))


def _flash_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    """The operator's CPU kernel; torch's own one runs for calls that are meant to be stock."""

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        attn_mask: Tensor | None = None,
        scale: float | None = None,
    ) -> Any:
        if dropout_p or stock.is_running():
            return original(
                query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
            )
        options = _flash_options(is_causal, scale)
        found = _core.forward(query, key, value, attn_mask, None, options, True)
        assert found is not None
        out, lse, _ = found
        assert lse is not None
        # torch keeps the heads inside the rows, and compiled graphs rely on its strides.
        return out, lse.transpose(1, 2).contiguous().transpose(1, 2)

    return forward


def _flash_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor | None, ...]:
    """The operator's gradient on the CPU. The forward pass may have been torch's own."""
    saved = (query, key, value, attn_mask, None, out, logsumexp)
    gradients, _ = _core.backward(saved, grad_out, None, _flash_options(is_causal, scale), 7)
    return tuple(gradients[:3])


def _original_kernel(name: str) -> Callable[..., Any]:
    operator = getattr(torch.ops.aten, name).default
    kernel = torch.library.get_kernel(operator, "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return lambda *args, **options: kernel.call_boxed(keys, *args, **options)


def _override_operator() -> Callable[[], None]:
    if not hasattr(torch.library, "get_kernel"):  # before torch 2.9 the override had no way back
        return lambda: None
    forward = _flash_forward(_original_kernel(_FLASH))
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        library.impl(_FLASH, forward, "CPU")
        library.impl(f"{_FLASH}_backward", _flash_backward, "CPU")
    destroy: Callable[[], None] = library._destroy
    return destroy


def _update() -> None:
    """Installs or removes, as the switch and the open contexts say. Called under the lock."""
    global _undo
    wanted = _switched_on or _open_contexts > 0
    if wanted and _undo is None:
        with contextlib.ExitStack() as stack:
            for install in (_override_operator, _switch_off_fast_path, _replace_function):
                stack.callback(install())
            _undo = stack.pop_all()
    elif not wanted and _undo is not None:
        undo, _undo = _undo, None
        undo.close()


def enable() -> None:
    """Makes torch use us, until disable(). Calling it again changes nothing."""
    global _switched_on
    with _lock:
        _switched_on = True
        _update()


def disable() -> None:
    """Takes enable() back; inside `with enabled()` the end of the outermost one does the rest."""
    global _switched_on
    with _lock:
        _switched_on = False
        _update()


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """Makes torch use us inside the context; contexts nest, in one thread or several."""
    global _open_contexts
    with _lock:
        _open_contexts += 1
        _update()
    try:
        yield
    finally:
        with _lock:
            _open_contexts -= 1
            _update()
