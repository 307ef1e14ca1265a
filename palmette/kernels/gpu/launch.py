"""What every launch asks: is this the interpreter, which dtype do products take, how is a dimension padded.

Triton's interpreter (TRITON_INTERPRET=1, read when a kernel is decorated) runs kernels on CPU tensors with numpy. It
multiplies the bit patterns of bfloat16 and truncates where it stores bfloat16, so products are float32 there.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl

INTERPRETED = (
    os.environ.get("TRITON_INTERPRET") == "1"
)  # as triton read it, when it decorated the kernels of this process

LOG2_E = 1.4426950408889634  # kernels work with 2^x, which the hardware has

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def dot_dtype(dtype: torch.dtype) -> Any:
    """The dtype of a product's operands, for a kernel's DOT_DTYPE."""
    return tl.float32 if INTERPRETED else _DTYPES[dtype]


def padded(n: int, *, least: int = 16) -> int:
    """n rounded up to a power of two, as tl.arange and tl.dot want it."""
    return max(least, int(triton.next_power_of_2(n)))


def num_processors(device: torch.device) -> int:
    """Programs that run at once at least: the streaming multiprocessors of a GPU; few on a CPU, whose interpreter runs
    one after the other."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
