# SPDX-License-Identifier: MIT
"""Fused scaled dot-product attention: a drop-in for torch's, with native kernels."""

from mps_sdpa import integrations
from mps_sdpa._core import version as __version__
from mps_sdpa.api import attention, sdpa_opt, varlen_attention
from mps_sdpa.backends import (
    available_backends,
    backend_status,
    print_backend_banner,
    set_default_backend,
)
from mps_sdpa.calibration import calibrate
from mps_sdpa.explanation import explain
from mps_sdpa.patch import disable, enable, enabled
from mps_sdpa.stats import (
    get_call_stats,
    get_fallback_stats,
    print_call_stats,
    print_fallback_stats,
    reset_call_stats,
    reset_fallback_stats,
)

__all__ = [
    "__version__",
    "attention",
    "available_backends",
    "backend_status",
    "calibrate",
    "disable",
    "enable",
    "enabled",
    "explain",
    "get_call_stats",
    "get_fallback_stats",
    "integrations",
    "print_backend_banner",
    "print_call_stats",
    "print_fallback_stats",
    "reset_call_stats",
    "reset_fallback_stats",
    "sdpa_opt",
    "set_default_backend",
    "varlen_attention",
]
