# SPDX-License-Identifier: MIT
"""What checks and times attention: cases, tensors, the reference, errors, clocks and memory."""
