"""How kernels are compared: on poisoned outputs, within rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """torch.empty and torch.empty_like hand out NaN (or the largest integer), so that what is not written shows."""

    def poison(tensor: Tensor) -> Tensor:
        if tensor.dtype.is_floating_point and tensor.element_size() > 1:
            return tensor.fill_(float("nan"))
        return tensor.view(torch.uint8).fill_(0x7F).view(tensor.dtype) if tensor.numel() else tensor

    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        return poison(empty(*args, **kwargs))

    def poisoned_like(*args: Any, **kwargs: Any) -> Tensor:
        return poison(empty_like(*args, **kwargs))

    with mock.patch.object(torch, "empty", poisoned), mock.patch.object(torch, "empty_like", poisoned_like):
        yield


def assert_within_an_ulp(got: Tensor, wanted: Tensor, *, ulps: float = 1.0, floor: float = 1e-6) -> None:
    """Equal up to `ulps` units in the last place of the dtype, and for float32 up to ten of them; NaN never passes.

    Triton's interpreter truncates where it stores bfloat16; one unit covers that.

    Args:
        floor: differences below it always pass: sums that cancel have no last place to speak of.
    """
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    eps = _EPS[got.dtype] * (10.0 if got.dtype == torch.float32 else 1.0)
    torch.testing.assert_close(
        got.double(), wanted.double(), rtol=eps * ulps, atol=floor if ulps <= 1 else floor * ulps
    )
