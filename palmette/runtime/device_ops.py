"""Sampling and logprobs on a GPU, nothing of which waits for it: `logit_ops.LogitOps` by the kernels of `kernels.gpu`.

What the host knows of a step's draws goes up in one copy a call, from pinned memory that is used again once the device
has read it; what the device finds comes down into pinned memory, and `get` waits for the event behind that copy. All
of a call is on the current stream: whatever is queued after it may overwrite the logits. On a CPU, where Triton
interprets the kernels, the same calls copy at once.

Adjusted logits (penalties, bias, banned ids) are float32 copies of the rows that have any, so logprobs stay those of
the model. Minus infinity is no defect here: a token nobody allowed. A row with NaN or plus infinity gives some token id
and some number until `finite_rows` tells, and leaves other rows alone.

Knows draws and tensors; neither jobs nor schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from palmette.kernels.gpu import logprobs, sampling
from palmette.kernels.sampling import Adjustments, RowDraws
from palmette.runtime.later import Deferred, Later, Now
from palmette.runtime.sampler import Draw, uniform
from palmette.types import SamplingParams, TokenLogprob

T = TypeVar("T")
_Array: TypeAlias = NDArray[Any]
_PROMPTS = 256  # whose distinct ids are remembered between steps


class Mark(Protocol):
    """A place in the device's queue (torch.cuda.Event)."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class DrawnTokens:
    """The tokens of a step: on the device at once, for the host when they have come down."""

    __slots__ = ("_values", "tokens")

    def __init__(self, tokens: Tensor, values: Later[list[int]]) -> None:
        self.tokens = tokens  # (rows,) int32, on the device
        self._values = values

    def get(self) -> list[int]:
        return self._values.get()


class DeviceOps:
    """`logit_ops.LogitOps` on one device, for logits (rows, vocab) float32, bfloat16 or float16.

    One thread calls it. The device must be the current one; `new_mark` is for tests.
    """

    def __init__(self, device: torch.device, *, new_mark: Callable[[], Mark] | None = None) -> None:
        self._is_pinned = device.type == "cuda"
        if new_mark is None and self._is_pinned:
            new_mark = torch.cuda.Event
        self._new_mark = new_mark
        self._uploads = Uploads(device, new_mark, pinned=self._is_pinned)
        self._prompts = _PromptIds()

    def finite_rows(self, logits: Tensor) -> Later[list[bool]]:
        return self._down(logprobs.row_norms(logits).finite, lambda found: [ok != 0 for ok in found.tolist()])

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> DrawnTokens:
        assert len(draws) == len(logits), "a draw for each row"
        if not draws:
            return DrawnTokens(torch.empty(0, dtype=torch.int32, device=logits.device), Now([]))
        rows, adjustments = self._send(draws, logits.shape[-1])
        tokens = sampling.sample(logits, rows, adjustments).tokens
        values: Later[list[int]] = self._down(tokens, lambda found: found.tolist())
        return DrawnTokens(tokens, values)

    def token_logprobs(
        self, logits: Tensor, token_ids: Sequence[int] | Later[list[int]], top: int
    ) -> Later[list[TokenLogprob]]:
        """See logprobs.token_logprobs; of equally likely tokens the lowest id stands first.

        A result of this object's own `sample` is read where it is, on the device.
        """
        known: Callable[[], Sequence[int]]
        if isinstance(token_ids, DrawnTokens):
            ids, known = token_ids.tokens, token_ids.get
        else:
            listed = token_ids if isinstance(token_ids, Sequence) else token_ids.get()
            block = self._uploads.block((np.int32, (len(listed),)))
            block.host[0][:] = listed
            (ids,), known = block.send(), lambda: listed
        assert len(ids) == len(logits), "a token for each row"
        if not len(ids):
            return Now([])
        norms = logprobs.row_norms(logits).norms
        columns = [logprobs.pick(logits, norms, None, ids).view(torch.int32)[:, None]]
        n = min(top, logits.shape[-1])
        if n:
            values, best = logprobs.top(logits, norms, n)
            columns += [values.view(torch.int32), best]

        def read(found: Tensor) -> list[TokenLogprob]:
            numbers: list[list[float]] = found[:, : 1 + n].contiguous().view(torch.float32).tolist()
            tops: list[list[int]] = found[:, 1 + n :].tolist()
            return [
                TokenLogprob(token, value, tuple(zip(best_ids, best_values, strict=True)))
                for token, (value, *best_values), best_ids in zip(known(), numbers, tops, strict=True)
            ]

        return self._down(torch.cat(columns, 1), read)

    def pick_logprobs(self, logits: Tensor, rows: Sequence[int], token_ids: Sequence[int]) -> Later[list[float]]:
        if not rows:
            return Now([])
        block = self._uploads.block(*[(np.int32, (len(rows),))] * 2)
        block.host[0][:], block.host[1][:] = rows, token_ids
        at, ids = block.send()
        norms = logprobs.row_norms(logits).norms
        values: Later[list[float]] = self._down(logprobs.pick(logits, norms, at, ids), lambda found: found.tolist())
        return values

    def warm_up(self, logits: Tensor) -> None:
        """Compile every kernel that a step with such logits may need, so that no step waits for a compiler."""
        few = logits[:1]
        greedy, free = SamplingParams(temperature=0.0), SamplingParams()
        for params in (greedy, free, SamplingParams(top_p=0.5)):
            self.sample(few, [Draw(params, banned=(0,))])
        self.finite_rows(few)
        self.token_logprobs(few, [0], 2)
        self.pick_logprobs(few, [0], [0]).get()

    # -- up and down -----------------------------------------------------------------------------------------------

    def _send(self, draws: Sequence[Draw], vocab: int) -> tuple[RowDraws, Adjustments]:
        num = len(draws)
        masks = [(row, draw.mask) for row, draw in enumerate(draws) if draw.mask is not None]
        entries = [(row, self._entries(draw)) for row, draw in enumerate(draws) if _is_adjusted(draw)]
        total = sum(len(found.ids) for _, found in entries)
        block = self._uploads.block(
            *[(np.float64, (num,))] * 2,  # at, top_p
            *[(np.float32, (num,))] * 2,  # temperature, min_p
            *[(np.int32, (num,))] * 3,  # top_k, mask_row, copy_of
            (np.int32, (len(entries),)),  # sources
            *[(np.int32, (total,))] * 2,  # copies, ids
            *[(np.float32, (total,))] * 3,  # repetition, subtract, add
            (np.uint32, (max(1, len(masks)), -(-vocab // 32))),  # one row at least, so that kernels compile once
        )
        at, top_p, temperature, min_p, top_k, mask_row, copy_of, sources, copies, *columns, words = block.host
        for row, draw in enumerate(draws):
            p = draw.params
            at[row] = uniform(draw.seed, draw.index)
            temperature[row] = 0.0 if p.is_greedy else p.temperature
            top_k[row], top_p[row], min_p[row] = max(0, min(p.top_k, vocab)), p.top_p, p.min_p
        mask_row.fill(-1)
        for place, (row, mask) in enumerate(masks):
            mask_row[row] = place
            words[place, len(mask) :] = 0
            words[place, : len(mask)] = mask[: words.shape[-1]]
        copy_of.fill(-1)
        end = 0
        for place, (row, found) in enumerate(entries):
            copy_of[row], sources[place] = place, row
            begin, end = end, end + len(found.ids)
            copies[begin:end] = place
            for column, values in zip(columns, (found.ids, found.repetition, found.subtract, found.add), strict=True):
                column[begin:end] = values
        sent = block.send()
        drawn = [draw.params for draw in draws if not draw.params.is_greedy]
        rows = RowDraws(
            at=sent[0],
            top_p=sent[1],
            temperature=sent[2],
            min_p=sent[3],
            top_k=sent[4],
            any_drawn=bool(drawn),
            any_filtered=any(p.top_k > 0 or p.top_p < 1.0 for p in drawn),
            mask_row=sent[5],
            masks=sent[13],
        )
        return rows, Adjustments(*sent[6:13])

    def _entries(self, draw: Draw) -> _Entries:
        """What sampler.adjust_ does to a row but for its mask, one entry an id."""
        p, counts = draw.params, draw.counts or {}
        counted = np.fromiter(counts, np.int32, len(counts))
        biased = np.array([token for token, _ in p.logit_bias], np.int32)
        own = np.unique(np.concatenate((counted, biased, np.array(draw.banned, np.int32))))
        subtract, add = np.zeros(len(own), np.float32), np.zeros(len(own), np.float32)
        if counts and (p.frequency_penalty or p.presence_penalty):
            times = np.fromiter(counts.values(), np.float32, len(counts))
            lost = times * np.float32(p.frequency_penalty) + np.float32(p.presence_penalty)
            subtract[np.searchsorted(own, counted)] = lost
        np.add.at(add, np.searchsorted(own, biased), np.array([bias for _, bias in p.logit_bias], np.float32))
        add[np.searchsorted(own, np.array(draw.banned, np.int32))] = -math.inf
        repetition = np.ones(len(own), np.float32)
        if p.repetition_penalty == 1.0:
            return _Entries(own, repetition, subtract, add)
        repetition[np.searchsorted(own, counted)] = p.repetition_penalty
        prompt = self._prompts.of(draw.prompt_ids)
        repetition[np.isin(own, prompt, assume_unique=True)] = p.repetition_penalty
        rest = np.delete(prompt, _places(prompt, own))
        return _Entries(
            np.concatenate((own, rest)),
            np.concatenate((repetition, np.full(len(rest), p.repetition_penalty, np.float32))),
            np.concatenate((subtract, np.zeros(len(rest), np.float32))),
            np.concatenate((add, np.zeros(len(rest), np.float32))),
        )

    def _down(self, found: Tensor, read: Callable[[Tensor], T]) -> Later[T]:
        """`read` of a copy on the host, when it has come."""
        host = torch.empty(found.shape, dtype=found.dtype, pin_memory=self._is_pinned)
        host.copy_(found, non_blocking=True)
        mark = None
        if self._new_mark is not None:
            mark = self._new_mark()
            mark.record()

        def make() -> T:
            if mark is not None:
                mark.synchronize()
            return read(host)

        return Deferred(make)


class Uploads:
    """A ring of pinned buffers: each is filled by the host, copied to the device in one go, and used again once the
    device has read it."""

    def __init__(
        self, device: torch.device, new_mark: Callable[[], Mark] | None, *, pinned: bool, ring: int = 4, most: int = 256
    ):
        self._most = most
        self._device, self._new_mark, self._pinned = device, new_mark, pinned
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(ring)]
        self._marks: list[Mark | None] = [None] * ring
        self._next = 0

    def block(self, *parts: tuple[DTypeLike, tuple[int, ...]]) -> Block:
        """Room for arrays of these dtypes and shapes; to be filled and sent before the next is asked for."""
        place = self._free_place()
        bounds, size = [], 0
        for dtype, shape in parts:
            length = math.prod(shape) * np.dtype(dtype).itemsize
            bounds.append((size, length))
            size += -(-length // 16) * 16  # kernels read 16 bytes at a time
        if len(self._buffers[place]) < size:
            room = 1 << (size - 1).bit_length()
            self._buffers[place] = torch.empty(room, dtype=torch.uint8, pin_memory=self._pinned)
        return Block(self, place, size, parts, bounds)

    def _free_place(self) -> int:
        """The next buffer, if the device has read it; else a new one, and only behind `most` of them a wait."""
        place = self._next % len(self._buffers)
        mark = self._marks[place]
        if mark is not None and not mark.query():
            if len(self._buffers) < self._most:
                self._buffers.insert(place, torch.empty(0, dtype=torch.uint8))
                self._marks.insert(place, None)
            else:
                mark.synchronize()
        self._next = place + 1
        return place

    def send(self, place: int, size: int) -> Tensor:
        sent = torch.empty(size, dtype=torch.uint8, device=self._device)
        sent.copy_(self._buffers[place][:size], non_blocking=True)
        if self._new_mark is not None:
            self._marks[place] = mark = self._new_mark()
            mark.record()
        return sent

    def bytes_of(self, place: int) -> _Array:
        return self._buffers[place].numpy()


class Block:
    """A part of a buffer of the ring, as arrays on the host and then as tensors on the device."""

    __slots__ = ("_bounds", "_parts", "_place", "_size", "_uploads", "host")

    def __init__(
        self,
        uploads: Uploads,
        place: int,
        size: int,
        parts: Sequence[tuple[DTypeLike, tuple[int, ...]]],
        bounds: Sequence[tuple[int, int]],
    ) -> None:
        self._uploads, self._place, self._size, self._parts, self._bounds = uploads, place, size, parts, bounds
        data = uploads.bytes_of(place)
        self.host: list[_Array] = [
            data[begin : begin + length].view(dtype).reshape(shape)
            for (dtype, shape), (begin, length) in zip(parts, bounds, strict=True)
        ]

    def send(self) -> list[Tensor]:
        sent = self._uploads.send(self._place, self._size)
        return [
            sent[begin : begin + length].view(_TORCH[np.dtype(dtype)]).view(shape)
            for (dtype, shape), (begin, length) in zip(self._parts, self._bounds, strict=True)
        ]


_TORCH = {  # kernels take a mask's words as signed
    np.dtype(np.float64): torch.float64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.uint32): torch.int32,
}


@dataclass(frozen=True, slots=True)
class _Entries:
    """Of one row; see kernels.sampling.Adjustments."""

    ids: _Array
    repetition: _Array
    subtract: _Array
    add: _Array


class _PromptIds:
    """The distinct ids of prompts, by identity of the sequence; the prompts of the last steps are remembered."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Sequence[int], _Array]] = {}  # holds the prompt, so that its address is its own

    def of(self, prompt: Sequence[int]) -> _Array:
        """Sorted int32."""
        found = self._known.pop(id(prompt), None)
        if found is None:
            found = (prompt, np.unique(np.fromiter(prompt, np.int32, len(prompt))))
        self._known[id(prompt)] = found
        if len(self._known) > _PROMPTS:
            del self._known[next(iter(self._known))]
        return found[1]


def _is_adjusted(draw: Draw) -> bool:
    return (draw if draw.mask is None else replace(draw, mask=None)).changes_logits


def _places(sorted_ids: _Array, wanted: _Array) -> _Array:
    """Where those of `wanted` stand that are among `sorted_ids`."""
    places = np.searchsorted(sorted_ids, wanted)
    inside = places < len(sorted_ids)
    places, wanted = places[inside], wanted[inside]
    return np.asarray(places[sorted_ids[places] == wanted])
