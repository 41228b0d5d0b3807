# SPDX-License-Identifier: MIT
"""The masks of transformers that positions alone describe: causality and a sliding window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["PositionMask", "mask_function"]

#: What may be asked of a mask without filling it.
_QUESTIONS = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.device.__get__,
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.stride,
    Tensor.storage_offset,
    Tensor.untyped_storage,
    Tensor.dim,
}


class PositionMask(Tensor):
    """A bool mask [batch, 1, q_len, kv_len], known by numbers instead of elements.

    Query i sees the keys up to i + ahead, and with a window no more than that many of them. Our
    attention function reads the numbers. Any other operation meets an ordinary mask, which is
    filled for it: so a model that edits its masks, or whose layers know nothing of their window,
    stays right.
    """

    ahead: int
    window: int | None

    @staticmethod
    def make(
        shape: Sequence[int], ahead: int, window: int | None, device: torch.device | str
    ) -> PositionMask:
        one = torch.ones(1, dtype=torch.bool, device=device)
        mask = one.expand(*shape).as_subclass(PositionMask)
        mask.ahead, mask.window = ahead, window
        return mask

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func not in _QUESTIONS:
                args, kwargs = torch.utils._pytree.tree_map_only(cls, _filled, (args, kwargs))
            return func(*args, **kwargs)

    @property
    def last_key(self) -> int:
        """How many keys, counted from the first, any query sees."""
        return self.ahead + self.size(-2)

    @property
    def sides(self) -> tuple[int, int] | None:
        """The window as the engine takes it: keys left of the query's position, none right."""
        return None if self.window is None else (self.window - 1, 0)


def _filled(mask: PositionMask) -> Tensor:
    _, _, q_len, kv_len = mask.shape
    position = torch.arange(q_len, device=mask.device)[:, None] + mask.ahead
    key = torch.arange(kv_len, device=mask.device)
    visible = key <= position
    if mask.window is not None:
        visible &= key > position - mask.window
    return visible.expand(*mask.shape)


def mask_function(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    config: Any = None,
    **others: Any,
) -> Tensor | None:
    """The mask function of transformers: None or numbers where these say all, or torch's mask."""
    from transformers.masking_utils import sdpa_mask

    padding = (attention_mask, kv_offset, q_offset, q_length)
    if not (allow_is_causal_skip and _is_window(local_size, config) and _is_bare(*padding)):
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=allow_is_causal_skip,
            device=device,
            config=config,
            **others,
        )
    ahead = int(q_offset) - kv_offset
    window = local_size if local_size is not None and local_size < kv_length else None
    if window is None and (ahead == 0 if q_length > 1 else ahead == kv_length - 1):
        return None
    return PositionMask.make((batch_size, 1, q_length, kv_length), ahead, window, device)


def _is_window(local_size: int | None, config: Any) -> bool:
    """Whether a local size is none or a sliding window, rather than that of chunks."""
    return local_size is None or (
        local_size == getattr(config, "sliding_window", None)
        and local_size != getattr(config, "attention_chunk_size", None)
    )


def _is_bare(attention_mask: Tensor | None, kv_offset: int, q_offset: Any, q_length: int) -> bool:
    """Whether no visible key is padding, as far as this can be known now."""
    from transformers.utils.import_utils import is_tracing

    if any(is_tracing(each) for each in (attention_mask, q_offset) if isinstance(each, Tensor)):
        return False
    if is_tracing():
        return False
    last = int(q_offset) + q_length
    return attention_mask is None or (
        attention_mask.size(-1) >= last and bool(attention_mask[:, kv_offset:last].all())
    )
