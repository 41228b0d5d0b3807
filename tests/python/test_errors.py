# SPDX-License-Identifier: MIT
"""Wrong input gives torch's type of error with one sentence: the argument, what came, the rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mps_sdpa import attention, sdpa_opt, varlen_attention


def _zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


Q = _zeros(2, 4, 8, 16)

TYPE_ERRORS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "query must be a Tensor, but got str": (("a", Q, Q), {}),
    "key must be a Tensor, but got NoneType": ((Q, None, Q), {}),
    "value must be a Tensor, but got list": ((Q, Q, [1]), {}),
    "attn_mask must be a Tensor, but got str": ((Q, Q, Q, "x"), {}),
    "is_causal must be a bool, but got int": ((Q, Q, Q), {"is_causal": 1}),
    "is_causal must be a bool, but got NoneType": ((Q, Q, Q), {"is_causal": None}),
    "dropout_p must be a number, but got str": ((Q, Q, Q), {"dropout_p": "x"}),
    "dropout_p must be a number, but got NoneType": ((Q, Q, Q), {"dropout_p": None}),
    "scale must be a number, but got str": ((Q, Q, Q), {"scale": "x"}),
}

RUNTIME_ERRORS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "query, key and value must have the same dtype, but query has float32 and key has float16": (
        (Q, Q.half(), Q),
        {},
    ),
    "query has dtype int32; float32, float16, bfloat16 and float64 are allowed": (
        (Q.int(), Q.int(), Q.int()),
        {},
    ),
    "query has dtype complex64; float32, float16, bfloat16 and float64 are allowed": (
        (Q + 0j, Q + 0j, Q + 0j),
        {},
    ),
    "query has dtype bool; float32, float16, bfloat16 and float64 are allowed": (
        (Q > 0, Q > 0, Q > 0),
        {},
    ),
    "key has 8 elements in its last dimension; it must have query's 16": (
        (Q, _zeros(2, 4, 8, 8), Q),
        {},
    ),
    "query has 4 heads (dimension -3), which key's 3 do not divide": (
        (Q, _zeros(2, 3, 8, 16), _zeros(2, 3, 8, 16)),
        {},
    ),
    "the batch of query and key must match or be 1, but got 2 and 3": (
        (Q, _zeros(3, 4, 8, 16), _zeros(3, 4, 8, 16)),
        {},
    ),
    "the batch of key and value must match or be 1, but got 2 and 3": (
        (Q, Q, _zeros(3, 4, 8, 16)),
        {},
    ),
    "the heads of key and value must match or be 1, but got 4 and 3": (
        (Q, Q, _zeros(2, 3, 8, 16)),
        {},
    ),
    "query has 1 dimensions; 2 to 8 are allowed": ((_zeros(3), _zeros(3), _zeros(3)), {}),
    "query has 9 dimensions; up to 8 are allowed": ((_zeros(*[1] * 9), Q, Q), {}),
    "attn_mask has shape [3, 3]; it must broadcast to [batch, heads, q_len, kv_len]": (
        (Q, Q, Q, _zeros(3, 3)),
        {},
    ),
    "attn_mask has shape [5, 1, 8, 8]; it must broadcast to": ((Q, Q, Q, _zeros(5, 1, 8, 8)), {}),
    "attn_mask has dtype int64; bool, float32, float16, bfloat16 and float64 are allowed": (
        (Q, Q, Q, _zeros(8, 8, dtype=torch.int64)),
        {},
    ),
    "dropout_p must be between 0 and 1, but got 2": ((Q, Q, Q), {"dropout_p": 2.0}),
    "dropout_p must be between 0 and 1, but got -1": ((Q, Q, Q), {"dropout_p": -1}),
    "dropout_p must be between 0 and 1, but got nan": ((Q, Q, Q), {"dropout_p": float("nan")}),
    "query, key, value and attn_mask must be on the same device, but query is on cpu and key on": (
        (Q, _zeros(2, 4, 8, 16, device="meta"), Q),
        {},
    ),
}


@pytest.mark.parametrize("text", TYPE_ERRORS)
def test_type_errors(text: str) -> None:
    _check(TypeError, text, *TYPE_ERRORS[text])


@pytest.mark.parametrize("text", RUNTIME_ERRORS)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_runtime_errors(text: str, with_gradient: bool) -> None:
    arguments, options = RUNTIME_ERRORS[text]
    if with_gradient:
        arguments = tuple(
            t.clone().requires_grad_() if t.is_floating_point() else t for t in arguments
        )
    _check(RuntimeError, text, arguments, options)


def _check(
    kind: type[Exception], text: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(kind) as ours:
        sdpa_opt(*arguments, **options)
    assert text in str(ours.value)
    assert "\n" not in str(ours.value)


@pytest.mark.parametrize("text", [*TYPE_ERRORS, *RUNTIME_ERRORS])
def test_torch_raises_the_same_type(text: str) -> None:
    arguments, options = {**TYPE_ERRORS, **RUNTIME_ERRORS}[text]
    kind = TypeError if text in TYPE_ERRORS else RuntimeError
    with pytest.raises(kind):
        F.scaled_dot_product_attention(*arguments, **options)


def test_missing_and_unknown_arguments() -> None:
    with pytest.raises(TypeError):
        sdpa_opt(Q, Q)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        sdpa_opt(Q, Q, Q, foo=1)  # type: ignore[call-arg]


def test_head_dimension_above_the_limit() -> None:
    wide = _zeros(1, 1, 2, 513)
    with pytest.raises(RuntimeError, match=r"head dimensions up to 512 are allowed; query has 513"):
        sdpa_opt(wide, wide, wide)


def test_lengths_of_key_and_value_differ() -> None:
    with pytest.raises(RuntimeError, match=r"value has length 4 \(dimension -2\); it must have"):
        sdpa_opt(Q, Q, _zeros(2, 4, 4, 16))


ATTENTION_ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"causal": "up"},
        ValueError,
        "causal must be False, True, 'upper_left' or 'lower_right'",
    ),
    ({"causal": 1}, ValueError, "causal must be False, True, 'upper_left' or 'lower_right'"),
    ({"window": 3}, ValueError, "window must be (left, right), each a length or -1 for an open"),
    ({"window": (-2, 0)}, ValueError, "window must be (left, right), each a length or -1 for an"),
    ({"window": (1.5, 0)}, ValueError, "window must be (left, right), each a length or -1 for an"),
    ({"softcap": -1.0}, ValueError, "softcap must be 0 (none) or a positive number, but got -1"),
    ({"softcap": float("inf")}, ValueError, "softcap must be 0 (none) or a positive number, but"),
    ({"sinks": 3}, TypeError, "sinks must be a Tensor, but got int"),
    ({"sinks": _zeros(3)}, RuntimeError, "sinks has shape [3]; it must be [4], one logit a query"),
    ({"dropout": 1.5}, RuntimeError, "dropout must be between 0 and 1, but got 1.5"),
    ({"dropout": 0.5, "seed": 1.5}, TypeError, "seed must be an integer, but got float"),
    ({"scale": "x"}, TypeError, "scale must be a number, but got str"),
    ({"layout": "hbld"}, ValueError, "layout must be 'bhld' or 'blhd', but got 'hbld'"),
    ({"mask": 3}, TypeError, "attn_mask must be a Tensor, but got int"),
    ({"backend": 3}, TypeError, "backend must be a name, but got int"),
    ({"backend": "fast"}, KeyError, "unknown back end 'fast'; known are auto, metal, mpsgraph_zc,"),
    ({"backend": "metal_proto"}, RuntimeError, "back end 'metal_proto' is not available: "),
]


@pytest.mark.parametrize(("options", "kind", "text"), ATTENTION_ERRORS)
def test_attention_errors(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        attention(Q, Q, Q, **options)
    assert text in str(error.value)


VARLEN_ERRORS: list[tuple[Any, Any, int, type[Exception], str]] = [
    ([0, 4], [0, 8], 8, ValueError, "cu_q must rise from 0 to the total length 8, but got [0, 4]"),
    ([0, 5, 3, 8], [0, 8], 8, ValueError, "cu_q must rise from 0 to the total length 8, but got"),
    ([0, 8], [0, 3, 8], 8, ValueError, "cu_q has 1 sequences and cu_k 2; they must agree"),
    ([0, 8], [0, 8], 7, ValueError, "the longest sequence of cu_q has 8 rows, but 7 are announced"),
]


@pytest.mark.parametrize(("cu_q", "cu_k", "longest", "kind", "text"), VARLEN_ERRORS)
def test_varlen_errors(
    cu_q: list[int], cu_k: list[int], longest: int, kind: type[Exception], text: str
) -> None:
    packed = _zeros(8, 2, 4)
    with pytest.raises(kind) as error:
        varlen_attention(
            packed, packed, packed, torch.tensor(cu_q), torch.tensor(cu_k), longest, longest
        )
    assert text in str(error.value)


def test_varlen_wants_packed_tensors() -> None:
    starts = torch.tensor([0, 8])
    with pytest.raises(RuntimeError, match="q has 4 dimensions; packed tensors are"):
        varlen_attention(Q, Q, Q, starts, starts, 8, 8)


def test_a_result_that_no_memory_holds_is_an_error() -> None:
    key = _zeros(1, 1, 4, 8)
    with pytest.raises(RuntimeError, match="no memory for a result of 140737488355328 bytes"):
        sdpa_opt(key.expand(1 << 40, 1, 4, 8), key, key)
