# SPDX-License-Identifier: MIT
"""Ways into model libraries. Importing this imports none of them."""

from mps_sdpa.integrations import diffusers, transformers

__all__ = ["diffusers", "transformers"]
