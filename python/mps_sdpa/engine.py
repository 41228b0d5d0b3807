# SPDX-License-Identifier: MIT
"""From torch tensors to the compiled module: options, routes, and what happens where none fits.

The order of routes for one call: the fast door in door.cpp (plain CPU tensors, nothing special
going on); `attend` below, which casts for autocast, expands unequal key and value heads, and
sends to torch's own function what no back end of ours takes, counted under its reason.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._device import DeviceContext

from mps_sdpa import _core, autograd, composite, devices, launchers, stats, subclasses, torch_ops
from mps_sdpa.backends import check_backend, default_backend
from mps_sdpa.environment import environment
from mps_sdpa.settings import Causal, Settings
from mps_sdpa.stock import stock_attention

__all__ = [
    "account",
    "attend",
    "forget_options",
    "is_ordinary",
    "options_for",
    "set_thresholds",
]

#: Query, key, value, mask, sinks.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]

_SUBCLASS = "tensor subclass"

#: The kinds of device that kernels of ours run on.
_KERNELS_ON = ("cpu", "mps")

_attached = False

#: For each pass, dtype and class of head dimensions, pairs of a back end and the least work from
#: which on it is tried; see sdpa/select.h.
ThresholdLists = list[list[list[list[tuple[str, float]]]]]
_thresholds: dict[str, ThresholdLists] = {}


def attach() -> None:
    """Connects the compiled module with this process's torch; runs once, at the first call."""
    global _attached
    if _attached:
        return
    from mps_sdpa.calibration import use_cached

    api = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    _core.attach(Tensor, Parameter, api)
    _core.attach_door(
        (
            _transforms,
            _dispatch_modes,
            _function_modes,
            torch._C._is_any_autocast_enabled,
            _tracing,
        ),
        vars(forward_ad),
        torch.is_grad_enabled,
        sdpa_options,
        autograd.apply_plain,
        autograd.PlainFunction.backward,
    )
    _core.set_thread_count(environment().threads)
    _attached = True
    use_cached("cpu")


def _resolved(backend: str) -> str:
    if backend == "auto":
        backend = default_backend()
    check_backend(backend)
    return backend


def set_thresholds(device: str, lists: ThresholdLists | None) -> None:
    """From which work on a back end beats torch's own function on a device."""
    _thresholds.pop(device, None)
    if lists is not None:
        _thresholds[device] = lists
    forget_options()


def _holding_nothing_back(ladder: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """For a backward pass: its forward pass was ours, so torch's function cannot do it."""
    return [*ladder, *((name, 0.0) for name, _ in ladder)]


@functools.lru_cache(maxsize=512)
def options_for(
    settings: Settings, training: bool = False, measured_on: str | None = None
) -> _core.Options:
    """The compiled form of settings, with the back end's name checked.

    `measured_on` is the device whose thresholds apply, if any do. A call that will have a backward
    pass is judged by the thresholds of that pass.
    """
    attach()
    thresholds = None if measured_on is None else _thresholds.get(measured_on)
    if training and thresholds is not None:
        thresholds = [thresholds[1], [[*map(_holding_nothing_back, row)] for row in thresholds[1]]]
    return _core.Options(
        scale=settings.scale,
        causal=int(settings.causal),
        window=settings.window,
        softcap=settings.softcap,
        dropout=settings.dropout,
        seed=settings.seed or 0,
        offset=settings.offset,
        backend=_resolved(settings.backend),
        thresholds=thresholds,
    )


@functools.lru_cache(maxsize=512, typed=True)
def sdpa_options(
    is_causal: bool, scale: float | None, backend: str, training: bool
) -> tuple[_core.Options, Settings]:
    """The options of a call of `sdpa_opt` without dropout."""
    if type(is_causal) is not bool or type(scale) not in (float, type(None)):
        raise TypeError("not for the fast door")
    causal = Causal.UPPER_LEFT if is_causal else Causal.NONE
    settings = Settings(scale=scale, causal=causal, backend=backend)
    return options_for(settings, training, "cpu"), settings


def forget_options() -> None:
    """Drops cached options; for when the default back end changes."""
    options_for.cache_clear()
    sdpa_options.cache_clear()
    _core.forget_calls()


_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_transforms = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state


def _only_default_device() -> bool:
    """Whether the active function modes do no more than name a default device."""
    modes = (torch._C._get_function_stack_at(n) for n in range(_function_modes()))
    return all(type(mode) is DeviceContext for mode in modes)


def _is_plain(tensor: Tensor | None) -> bool:
    return tensor is None or type(tensor) in (Tensor, Parameter)


def _needs_formula() -> bool:
    """Whether a derivative is under way that only the formula in torch operations has: forward
    mode, or one gradient inside another."""
    if forward_ad._current_level >= 0:
        return True
    kinds = [each.key() for each in torch._C._functorch.get_interpreter_stack() or []]
    return TransformType.Jvp in kinds or kinds.count(TransformType.Grad) > 1


def _attend_transformed(inputs: Inputs, settings: Settings) -> tuple[Tensor, Tensor]:
    """A call under torch.func or forward-mode differentiation."""
    if _needs_formula():
        found = composite.attention(*inputs, settings)
        stats.record_stock_call()
        stats.record_fallback("forward-mode or nested derivative")
        return found
    return _attend_dispatched(inputs, settings)


def _attend_dispatched(inputs: Inputs, settings: Settings) -> tuple[Tensor, Tensor]:
    """A call through torch's dispatcher."""
    return torch_ops.attend_through_dispatcher(
        *inputs,
        scale=settings.scale,
        causal=int(settings.causal),
        window=settings.window,
        softcap=settings.softcap,
        dropout=settings.dropout,
        seed=settings.seed,
        offset=settings.offset,
        backend=settings.backend,
    )


def _reason_for_stock(tensors: tuple[Tensor | None, ...]) -> str | None:
    """Why a call is torch's own to run; None if a back end may have it."""
    query = tensors[0]
    assert query is not None
    if not all(map(_is_plain, tensors)):
        return _SUBCLASS
    if devices.kind(query) not in _KERNELS_ON:
        return f"not on this device ({devices.kind(query)})"
    if query.layout != torch.strided:
        return "sparse layout"
    if _dispatch_modes():
        return "dispatch mode"
    if _function_modes() and not _only_default_device():
        return "function mode"
    return "tracing" if _tracing() is not None else None


def _attend_known(
    inputs: Inputs, settings: Settings, want_lse: bool
) -> tuple[Tensor, Tensor | None] | None:
    """A call on tensor subclasses whose meaning the kernels know; None for others."""
    query, key, value, mask, sinks = inputs
    if subclasses.is_causal_bias(mask):
        causal = subclasses.with_causal_bias(query, key, mask, settings.causal)
        settings = dataclasses.replace(settings, causal=causal)
        return attend(query, key, value, None, sinks, settings, want_lse)
    if subclasses.is_jagged(query, key, value, mask) and not want_lse:
        return subclasses.attend_jagged(query, key, value, sinks, settings), None
    return None


def is_ordinary(tensors: tuple[Tensor | None, ...], settings: Settings) -> bool:
    """Whether a call on these tensors can go straight to the compiled module."""
    query = tensors[0]
    assert query is not None
    return (
        devices.kind(query) == "cpu"
        and _resolved(settings.backend) != "stock"
        and _reason_for_stock(tensors) is None
        and not (_transforms() or forward_ad._current_level >= 0)
        and not any(tensor is not None and tensor.is_neg() for tensor in tensors)
    )


def _thresholds_for(kind: str, settings: Settings, want_lse: bool) -> str | None:
    """The device whose thresholds judge a call: none where torch's function lacks what is asked.

    On an Apple GPU the first such call has them measured. Compiled graphs ask for the log-sum-exp,
    so that nothing is ever measured inside one.
    """
    if want_lse or settings.dropout or not settings.is_torchs:
        return None
    if _resolved(settings.backend) != "auto":
        return None
    if kind == "mps":
        from mps_sdpa.calibration import prepare

        prepare(kind)
    return kind


def _equal_heads(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Key and value with the same number of heads: the smaller is repeated."""
    if min(key.dim(), value.dim()) < 3 or key.size(-3) == value.size(-3):
        return key, value
    heads, others = key.size(-3), value.size(-3)
    if min(heads, others) > 1 and heads % others == 0:
        return key, value.repeat_interleave(heads // others, -3)
    if min(heads, others) > 1 and others % heads == 0:
        return key.repeat_interleave(others // heads, -3), value
    return key, value


def _resolved_inputs(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sinks: Tensor | None
) -> Inputs:
    """The inputs with lazy negations carried out: their memory holds the negative."""
    return (
        query.resolve_neg(),
        key.resolve_neg(),
        value.resolve_neg(),
        None if mask is None else mask.resolve_neg(),
        None if sinks is None else sinks.resolve_neg(),
    )


def _reason_in(choice: _core.Choice, requested: str) -> str:
    """The counter's label for a choice that is not the one asked for."""
    against = dict(choice.rejected)
    if requested in against:
        return f"{requested}: {against[requested]}"
    if choice.why.startswith("Calibration"):
        return "short sequence"
    return "; ".join(f"{name}: {reason}" for name, reason in choice.rejected) or choice.why


def _refuse_if_strict(requested: str, reason: str) -> None:
    if environment().strict and requested != "auto":
        raise RuntimeError(
            f"MPS_SDPA_STRICT is set and back end {requested!r} cannot run this call: {reason}"
        )


def account(
    choice: _core.Choice,
    settings: Settings,
    inputs: Inputs,
    found: tuple[Tensor | None, Tensor | None],
    want_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Deals with a choice that is not the one asked for: runs torch's function, counts, refuses."""
    requested = _resolved(settings.backend)
    reason = _reason_in(choice, requested)
    _refuse_if_strict(requested, reason)
    out, lse = found
    if out is None:
        out, lse = stock_attention(*inputs, settings, want_lse)
    stats.record_fallback(reason)
    return out, lse


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    settings: Settings,
    want_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """One call in full generality: the output, and the log-sum-exp if wanted."""
    if _resolved(settings.backend) == "stock":
        return stock_attention(query, key, value, mask, sinks, settings, want_lse)
    kind = devices.kind(query)
    if torch.compiler.is_compiling() and kind in _KERNELS_ON:
        return _attend_dispatched((query, key, value, mask, sinks), settings)
    if reason := _reason_for_stock((query, key, value, mask, sinks)):
        if reason == _SUBCLASS and (
            known := _attend_known((query, key, value, mask, sinks), settings, want_lse)
        ):
            return known
        _refuse_if_strict(_resolved(settings.backend), reason)
        found = stock_attention(query, key, value, mask, sinks, settings, want_lse)
        stats.record_fallback(reason)
        return found
    if torch.is_autocast_enabled(kind):
        query, key, value = torch_ops.autocast_inputs(query, key, value)
        with torch.autocast(kind, enabled=False):
            return attend(query, key, value, mask, sinks, settings, want_lse)
    key, value = _equal_heads(key, value)
    if _transforms() or forward_ad._current_level >= 0:
        return _attend_transformed((query, key, value, mask, sinks), settings)
    inputs = _resolved_inputs(query, key, value, mask, sinks)
    if kind == "mps" and 0 in (query.numel(), key.numel(), value.numel()):
        _core.metal_validate(inputs, options_for(settings))
        return composite.attention(*inputs, settings)  # nothing to launch
    training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    options = options_for(settings, training, _thresholds_for(kind, settings, want_lse))
    if training:
        out, lse, choice = autograd.apply(*inputs, options, settings, want_lse)
    else:
        found_or_none = launchers.forward(*inputs, options, want_lse)
        assert found_or_none is not None
        out, lse, choice = found_or_none
    if choice is None:
        return out, lse
    return account(choice, settings, inputs, (out, lse), want_lse)
