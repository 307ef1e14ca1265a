"""The operations of `kernels` as Triton kernels, one a file. Importing any of them imports triton."""

from __future__ import annotations

import os

# Multiplications and additions are fused, as the kernels were tested: Triton 3.9 warns where nobody says so, and 3.10
# will not fuse unless it is told.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
