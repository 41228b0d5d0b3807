"""The compiled module: the library's functions on torch tensors."""

from typing import Any

from torch import Tensor

class Options:
    def __init__(
        self,
        *,
        scale: float | None = None,
        causal: int = 0,
        window: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        dropout: float = 0.0,
        seed: int = 0,
        offset: int = 0,
        backend: str = "auto",
        thresholds: list[list[list[list[tuple[str, float]]]]] | None = None,
    ) -> None: ...

class Choice:
    @property
    def backend(self) -> str | None: ...
    @property
    def why(self) -> str: ...
    @property
    def rejected(self) -> list[tuple[str, str]]: ...

def attach(tensor: type, parameter: type, capsule: Any) -> None: ...
def attach_door(
    modes: tuple[Any, ...],
    forward_mode: dict[str, Any],
    is_grad_enabled: Any,
    options: Any,
    apply: Any,
    backward: Any,
) -> None: ...
def forget_calls() -> None: ...
def enter(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    backend: str,
) -> Tensor | None: ...
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    options: Options,
    want_lse: bool,
) -> tuple[Tensor | None, Tensor | None, Choice | None] | None: ...

class SavedLse: ...

def forward_saving(
    ctx: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    call: tuple[Options, Any],
) -> Tensor | tuple[Tensor | None, None, Choice | None]: ...
def backward_saved(ctx: Any, grad_out: Tensor, *others: object) -> tuple[Tensor | None, ...]: ...
def backward(
    saved: tuple[Tensor | SavedLse | None, ...],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    options: Options,
    wanted: int,
) -> tuple[list[Tensor | None], Choice | None]: ...
def forward_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    query_starts: list[int],
    key_starts: list[int],
    options: Options,
    want_lse: bool,
) -> tuple[Tensor, Tensor | None, Choice | None] | None: ...
def backward_packed(
    saved: tuple[Tensor | None, ...],
    query_starts: list[int],
    key_starts: list[int],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    options: Options,
    wanted: int,
) -> list[Tensor | None]: ...
def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    options: Options,
    pass_: str = "forward",
    device: str = "cpu",
) -> tuple[str, str, Choice]: ...
def reference_forward(
    inputs: tuple[Tensor | None, ...], options: Options, out: Tensor, lse: Tensor | None
) -> None: ...
def reference_backward(
    inputs: tuple[Tensor | None, ...],
    options: Options,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    gradients: tuple[Tensor | None, ...],
) -> None: ...
def keep_mask(options: Options, out: Tensor) -> None: ...
def cases(suite: str) -> list[dict[str, Any]]: ...
def suite_names() -> list[str]: ...
def backends() -> list[tuple[str, str | None]]: ...

class MetalDevice:
    name: str
    family: int
    cores: int
    max_threads: int
    def __init__(self, name: str, family: int, cores: int) -> None: ...

class MetalLauncher:
    against: str | None
    def __init__(
        self,
        device: MetalDevice,
        against: str | None = None,
        against_zero_copy: str | None = None,
        against_graphs: str | None = None,
    ) -> None: ...

Extent = tuple[int, int, int]
MetalLaunch = tuple[str, Extent, Extent, list[int]]
"""Kernel, threads, threads of a group, roles of its arguments."""
MetalPiece = tuple[list[MetalLaunch], list[tuple[int, int]], list[int], list[float], dict[int, int]]
"""Launches, scratch as (role, bytes), whole numbers, real numbers, offsets by role."""

dim_bounds: tuple[int, int]
metal_roles: list[str]

def metal_chip(name: str) -> MetalDevice: ...
def metal_estimate(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    options: Options,
    pass_: str,
    chip: str,
) -> str: ...
def metal_device() -> tuple[MetalDevice | None, str | None]: ...
def metal_source(kernel: str) -> str: ...
def metal_explain(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    options: Options,
    pass_: str,
    launcher: MetalLauncher,
) -> tuple[str, str, Choice]: ...
def metal_validate(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], options: Options
) -> None: ...
def metal_forward(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    options: Options,
    want_lse: bool,
    launcher: MetalLauncher,
) -> tuple[Tensor | None, Tensor | None, Choice | None, str | None, list[MetalPiece]]: ...
def metal_backward(
    saved: tuple[Any, ...],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    options: Options,
    wanted: int,
    launcher: MetalLauncher,
) -> tuple[list[Tensor | None], Choice | None, str | None, list[MetalPiece]]: ...
def graph_forward(
    inputs: tuple[Tensor | None, ...],
    out: Tensor,
    lse: Tensor | None,
    options: Options,
    places: tuple[tuple[int, int] | None, ...] | None,
    stream: tuple[int, ...] | None,
) -> None: ...
def graph_backward(
    tensors: tuple[Tensor | None, ...],
    options: Options,
    places: tuple[tuple[int, int] | None, ...] | None,
    stream: tuple[int, ...] | None,
) -> None: ...
def graph_reason() -> str | None: ...
def graph_buffer_reason(pointer: int, offset: int, content: bytes) -> str | None: ...
def drop_graphs() -> None: ...
def use_apple_root(root: str) -> None: ...
def call_counts() -> dict[str, int]: ...
def count_call(backend: str) -> None: ...
def reset_call_counts() -> None: ...
def apple_messages() -> tuple[str, int, int, list[str]]: ...
def instruction_sets() -> list[tuple[str, bool]]: ...
def instruction_set() -> str: ...
def set_instruction_set(name: str) -> None: ...
def measure_peaks() -> dict[str, float]: ...
def thread_count() -> int: ...
def set_thread_count(count: int) -> None: ...

version: str
