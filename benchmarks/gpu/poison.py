"""Fresh memory that shows who did not write it: NaN, or large integers, in what torch.empty hands out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor


@contextmanager
def poisoned() -> Iterator[None]:
    """For wrappers that allocate what their kernels write. Not while a graph is captured: it would poison at replay."""
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned_empty(*args: Any, **kwargs: Any) -> Tensor:
        return _poison(empty(*args, **kwargs))

    def poisoned_like(*args: Any, **kwargs: Any) -> Tensor:
        return _poison(empty_like(*args, **kwargs))

    with mock.patch.object(torch, "empty", poisoned_empty), mock.patch.object(torch, "empty_like", poisoned_like):
        yield


def _poison(tensor: Tensor) -> Tensor:
    if tensor.device.type == "meta" or not tensor.numel():
        return tensor
    if tensor.dtype.is_floating_point and tensor.element_size() > 1:
        return tensor.fill_(float("nan"))
    tensor.view(torch.uint8).fill_(0x7F)  # NaN in float8, too
    return tensor
