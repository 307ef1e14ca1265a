"""The tensors that hold keys and values, described layer by layer.

Knows shapes and slots. Does not know who owns a slot (the allocator and the radix tree do) nor what is in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from palmette.errors import UnsupportedFeature
from palmette.kernels.kv_store import LARGEST, KVLayer
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.pages import fresh_pages


class KVKind(StrEnum):
    """What a layer keeps of the past."""

    FULL = "full"  # keys and values of every token
    WINDOW = "window"  # only those of the last `window` tokens are read
    LATENT = "latent"  # one compressed vector a token
    RECURRENT = "recurrent"  # a state of fixed size, at snapshots
    SHARED = "shared"  # reads what layer `share_with` keeps


@dataclass(frozen=True, slots=True)
class LayerKVSpec:
    """What one layer keeps per token."""

    kind: KVKind
    num_kv_heads: int
    head_dim: int
    window: int | None = None  # tokens, with kind WINDOW
    share_with: int | None = None  # layer index, with kind SHARED
    dtype: torch.dtype = torch.float32  # int8 or float8_e4m3fn: codes, with a scale for each token and head


def kv_specs(config: ModelConfig, dtype: torch.dtype) -> tuple[LayerKVSpec, ...]:
    """What each layer of a decoder keeps."""
    return tuple(
        LayerKVSpec(
            kind=KVKind.FULL if layer.window is None else KVKind.WINDOW,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            window=layer.window,
            dtype=dtype,
        )
        for layer in config.layers
    )


class KVPool:
    """Keys and values of `num_slots` tokens for every layer, zeroed, and one more slot that nobody owns.

    A sliding-window layer is stored like a full one; its attention masks.
    TODO: give windows their own slot group with tombstones (needs the radix tree's component per group).
    """

    def __init__(self, specs: Sequence[LayerKVSpec], num_slots: int, device: torch.device | str = "cpu") -> None:
        """Allocate. Each layer takes num_slots * num_kv_heads * head_dim * 2 elements.

        Raises:
            UnsupportedFeature: a kind that has no implementation yet.
        """
        for spec in specs:
            if spec.kind not in (KVKind.FULL, KVKind.WINDOW):
                raise UnsupportedFeature(f"KV of kind {spec.kind.value!r}", "only full and window layers are stored")
        self.specs = tuple(specs)
        self.num_slots = num_slots
        self.pad_slot = num_slots  # padding of gathers points here, so that nobody's NaN reaches anybody else
        self._layers = [self._layer(spec, device) for spec in specs]

    def layer(self, index: int) -> KVLayer:
        """Keys and values of a layer, each (num_slots + 1, num_kv_heads, head_dim)."""
        return self._layers[index]

    def commit(self) -> None:
        """Have the system give all of the memory now; else it comes as slots are first used. Forgets what is there."""
        for tensor in self._tensors():
            tensor.zero_()

    @property
    def is_on_gpu(self) -> bool:
        return self._layers[0].keys.is_cuda

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [tensor for layer in self._layers for tensor in layer if tensor is not None]

    def _layer(self, spec: LayerKVSpec, device: torch.device | str) -> KVLayer:
        keys, values = self._allocate(spec, device), self._allocate(spec, device)
        if spec.dtype not in LARGEST:
            return KVLayer(keys, values)
        shape = (self.num_slots + 1, spec.num_kv_heads)
        return KVLayer(keys, values, torch.zeros(shape, device=device), torch.zeros(shape, device=device))

    def _allocate(self, spec: LayerKVSpec, device: torch.device | str) -> Tensor:
        shape = (self.num_slots + 1, spec.num_kv_heads, spec.head_dim)
        if torch.device(device).type == "cpu" and spec.dtype in (torch.float16, torch.float32):
            count = math.prod(shape)
            pages = fresh_pages(count * spec.dtype.itemsize)
            return torch.frombuffer(pages, dtype=spec.dtype, count=count).view(shape)
        return torch.zeros(shape, dtype=spec.dtype, device=device)
