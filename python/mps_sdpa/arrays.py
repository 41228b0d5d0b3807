# SPDX-License-Identifier: MIT
"""Arrays of other libraries (NumPy, MLX, JAX, ...) as tensors on the same memory, and back.

An array comes in by DLPack, or by NumPy's array interface where it has no DLPack or refuses it. A
result goes back by the `from_dlpack` of the array's own library.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor

__all__ = ["like_array", "to_tensor"]

#: DLPack's number of the CPU, as a device.
_CPU = (1, 0)

_import: Callable[..., Tensor] = torch.utils.dlpack.from_dlpack


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype.name == "bfloat16":  # of the package ml_dtypes; torch does not know it
        return _from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    if any(stride < 0 for stride in array.strides) or not array.dtype.isnative:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _from_dlpack(array: Any) -> Tensor:
    if array.__dlpack_device__()[0] == _CPU[0]:
        return _import(array)
    return _import(array.__dlpack__(dl_device=_CPU, max_version=(1, 0)))


def to_tensor(name: str, array: Any) -> Tensor:
    """A tensor on an array's memory. Only what NumPy cannot express is copied."""
    if isinstance(array, Tensor):
        return array
    if isinstance(array, np.ndarray):
        return _from_numpy(array)
    if hasattr(array, "__dlpack__"):
        try:
            return _from_dlpack(array)
        except (BufferError, RuntimeError, TypeError, ValueError):
            pass  # not on the CPU, read-only, or a dtype of its own
    if hasattr(array, "__array__") or hasattr(array, "__array_interface__"):
        return _from_numpy(np.asarray(array))
    raise TypeError(
        f"{name} must be a Tensor or an array with DLPack or NumPy's array interface on the CPU, "
        f"but got {type(array).__name__}"
    )


def _to_numpy(tensor: Tensor, like: np.ndarray[Any, Any]) -> Any:
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    return tensor.view(torch.uint16).numpy().view(like.dtype)


def like_array(tensor: Tensor, array: Any) -> Any:
    """A tensor as an array of the kind of `array`, on the same memory where its library can."""
    tensor = tensor.detach()
    if isinstance(array, Tensor):
        return tensor
    if isinstance(array, np.ndarray):
        return _to_numpy(tensor, array)
    library: Any = array.__array_namespace__() if hasattr(array, "__array_namespace__") else None
    convert: Callable[..., Any] = getattr(library, "from_dlpack", None) or type(array)
    return convert(tensor)
