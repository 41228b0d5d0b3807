# SPDX-License-Identifier: MIT
"""`python -m mps_sdpa` is the command `mps-sdpa`."""

from mps_sdpa.cli import main

main()
