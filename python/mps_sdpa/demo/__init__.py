# SPDX-License-Identifier: MIT
"""A small language model that is trained twice from one seed: torch's attention, then ours."""
