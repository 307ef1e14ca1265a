"""A runner without a model: logits are numbers drawn from a hash of the tokens before them, the same in any batch.

A slot holds the hash of the path that ends in it and that of the path before, so that every read of a wrong slot is
seen. Whatever follows a token POISON is not a number.

Lazy, it is a device: what is queued is done when somebody asks for a result, in order. Logits of a step are gone when
the forward pass of the next is done, and whoever reads them otherwise than by queueing a read gets an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.runtime import logprobs, sampler
from palmette.runtime.admission import Limits
from palmette.runtime.compiling import Compiler
from palmette.runtime.config import ConstraintConfig, resolve
from palmette.runtime.drawn import DRAWN
from palmette.runtime.engine import EngineCore
from palmette.runtime.kv_pool import KVPool
from palmette.runtime.later import Deferred, Later
from palmette.runtime.logit_ops import LogitOps, TorchOps, known
from palmette.runtime.memory import KVMemory
from palmette.runtime.sampler import Draw
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from palmette.runtime.scheduler import Scheduler
from palmette.types import TokenLogprob
from tests.runtime.driving import flat_config, model

T = TypeVar("T")

POISON = ord("Z")
_LIKELY = {**dict.fromkeys(b"abcde", 7.0), **dict.fromkeys(b" .1", 5.0), POISON: 4.0}


class Content(NamedTuple):
    """Of a slot."""

    path: int  # hash of the tokens up to this one
    before: int  # and up to the one before it
    is_bad: bool


_EMPTY = Content(0, 0, is_bad=False)


@lru_cache(maxsize=1 << 14)
def logits_behind(path: int, vocab: int) -> NDArray[np.float32]:
    """(vocab,)."""
    numbers = 2.5 * np.random.Generator(np.random.PCG64(path & (1 << 64) - 1)).standard_normal(vocab, np.float32)
    for token, more in _LIKELY.items():
        numbers[token] += more
    for token in model().tokenizer.eos_ids:
        numbers[token] += 5.0
    return numbers


class Stream:
    """What a device has to do, in order."""

    def __init__(self) -> None:
        self._commands: list[Callable[[], None]] = []
        self._num_done = 0
        self._is_working = False
        self.on_wait: Callable[[], None] = lambda: None  # called when the host waits for something not done yet

    def queue(self, command: Callable[[], None]) -> int:
        self._commands.append(command)
        return len(self._commands)

    def work(self, until: int) -> None:
        """Do what is queued up to the `until`-th."""
        if self._num_done >= until:
            return
        assert not self._is_working, "a command waits for one behind it"
        self.on_wait()
        self._is_working = True
        while self._num_done < until:
            self._commands[self._num_done]()
            self._commands[self._num_done] = lambda: None
            self._num_done += 1
        self._is_working = False

    def later(self, make: Callable[[], T]) -> Later[T]:
        made: list[T] = []
        number = self.queue(lambda: made.append(make()))

        def wait() -> T:
            self.work(number)
            return made[0]

        return Deferred(wait)


class LazyRows:
    """As much of a tensor (rows, vocab) as the engine may use before its numbers are there."""

    is_cuda = False
    device = torch.device("cpu")

    def __init__(self, num_rows: int, read: Callable[[], Tensor]) -> None:
        self._num_rows, self.read = num_rows, read

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, rows: slice) -> LazyRows:
        return LazyRows(len(range(*rows.indices(self._num_rows))), lambda: self.read()[rows])

    def index_select(self, dim: int, index: Tensor) -> LazyRows:
        assert dim == 0
        return LazyRows(len(index), lambda: self.read().index_select(0, index))


class LazyOps:
    """TorchOps on a stream. Reads its rows when the stream comes to them, and draws when it is called."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def finite_rows(self, logits: Tensor) -> Later[list[bool]]:
        read = cast(LazyRows, logits).read
        return self._stream.later(lambda: sampler.finite_rows(read()))

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Later[list[int]]:
        read = cast(LazyRows, logits).read
        kept = [
            replace(
                draw,
                mask=None if draw.mask is None else draw.mask.copy(),
                counts=None if draw.counts is None else dict(draw.counts),
            )
            for draw in draws
        ]

        def sample() -> list[int]:
            rows = read()
            good = [i for i, is_finite in enumerate(sampler.finite_rows(rows)) if is_finite]
            tokens = [0] * len(rows)
            if good:
                for i, token in zip(good, sampler.sample(rows[good], [kept[i] for i in good]), strict=True):
                    tokens[i] = token
            return tokens

        return self._stream.later(sample)

    def token_logprobs(
        self, logits: Tensor, token_ids: Sequence[int] | Later[list[int]], top: int
    ) -> Later[list[TokenLogprob]]:
        read = cast(LazyRows, logits).read
        return self._stream.later(lambda: logprobs.token_logprobs(read(), known(token_ids), top))

    def pick_logprobs(self, logits: Tensor, rows: Sequence[int], token_ids: Sequence[int]) -> Later[list[float]]:
        read = cast(LazyRows, logits).read
        return self._stream.later(lambda: logprobs.pick_logprobs(read(), rows, token_ids))


class PathRunner:
    """A runner whose steps cost microseconds."""

    def __init__(self, vocab: int, *, lazy: bool) -> None:
        self.is_asynchronous = lazy
        self.stream = Stream()
        self.ops: LogitOps = LazyOps(self.stream) if lazy else TorchOps()
        self.corrupt: set[int] = set()  # paths whose next computation goes wrong
        self.contents: dict[int, Content] = {}
        self.num_forwards = 0  # queued
        self._vocab = vocab
        self._table: dict[tuple[int, int], int] = {}
        self._drawn: dict[int, int] = {}  # row -> the token drawn last
        self._logits = torch.empty((0, vocab))  # of the last step that was done

    @property
    def kv_pool(self) -> KVPool:
        raise NotImplementedError

    def forward(self, batch: ScheduledBatch, masks: Sequence[NDArray[np.uint32] | None] | None = None) -> Tensor:
        assert masks is None or not self.is_asynchronous, "masks are not known yet"
        self.num_forwards += 1
        self.stream.queue(lambda: self._compute(batch))
        if not self.is_asynchronous:
            self._catch_up()
            return self._logits
        return cast(Tensor, LazyRows(batch.num_logits, lambda: self._logits))

    def embed(self, token_ids: tuple[int, ...], slots: tuple[int, ...], row: int) -> Tensor:
        self.stream.queue(lambda: self._compute(ScheduledBatch((ScheduledRow(row, token_ids, 0, slots),))))
        path = 0
        for token in token_ids:
            path = path_behind(path, token)
        return torch.from_numpy(logits_behind(path, self._vocab)[:4].copy())

    def keep_drawn(self, rows: Sequence[int], tokens: Later[list[int]]) -> None:
        self.stream.queue(lambda: self._drawn.update(zip(rows, tokens.get(), strict=True)))
        if not self.is_asynchronous:
            self._catch_up()

    def _catch_up(self) -> None:
        self.stream.work(self.stream.queue(lambda: None))

    def _compute(self, batch: ScheduledBatch) -> None:
        for row in batch.rows:
            if row.prefix is not None:
                index, slots = row.prefix
                self._table.update({(row.row, index + i): slot for i, slot in enumerate(slots)})
            self._table.update({(row.row, row.start + i): slot for i, slot in enumerate(row.slots)})
        missing = {slot for row in batch.rows for slot in row.slots}
        assert len(missing) == batch.num_tokens, "two tokens of a step in one slot"
        waiting = list(batch.rows)
        while waiting:  # a row may read what another of the step writes
            ready = [row for row in waiting if missing.isdisjoint(self._read_slots(row))]
            assert ready, "rows wait for each other"
            for row in ready:
                self._write(row)
                missing.difference_update(row.slots)
            waiting = [row for row in waiting if row not in ready]
        self._logits = torch.full((batch.num_logits, self._vocab), torch.nan)
        at = 0
        for row in batch.rows:
            for slot in () if row.logits_from is None else row.slots[row.logits_from :]:
                content = self.contents[slot]
                if not content.is_bad:
                    self._logits[at] = torch.from_numpy(logits_behind(content.path, self._vocab))
                at += 1

    def _read_slots(self, row: ScheduledRow) -> list[int]:
        """What the row reads besides its own, in order."""
        end = row.start if row.tree is None else row.tree.prefix_len
        return [self._table[row.row, place] for place in range(end)]

    def _write(self, row: ScheduledRow) -> None:
        last = _EMPTY
        for slot in self._read_slots(row):
            assert self.contents[slot].before == last.path, "a wrong slot was read"
            last = self.contents[slot]
        prefix = last
        for i, (token, slot) in enumerate(zip(row.token_ids, row.slots, strict=True)):
            if row.tree is not None:
                parent = row.tree.parents[row.tree.first + i]
                place = row.tree.prefix_len + parent
                last = prefix if parent < 0 else self.contents[self._table[row.row, place]]
            elif token == DRAWN:
                token = self._drawn[row.row]
            path = path_behind(last.path, token)
            is_bad = last.is_bad or token == POISON or path in self.corrupt
            self.corrupt.discard(path)
            last = self.contents[slot] = Content(path, last.path, is_bad)


def path_behind(path: int, token: int) -> int:
    """The hash of a path and a token behind it; that of nothing is 0."""
    return hash((path, token))


_COMPILERS: dict[ConstraintConfig, Compiler] = {}


def path_engine(*, lazy: bool = False, **options: object) -> EngineCore:
    """An engine on a PathRunner, with the tiny model's tokenizer; see driving.engine."""
    config = resolve(flat_config(**options), model_context_len=256)
    tokenizer, cache, context_len = model().tokenizer, config.cache, config.model.context_len
    assert cache.kv_tokens is not None
    assert context_len is not None
    vocab = model().config.vocab_size
    core = EngineCore(
        PathRunner(vocab, lazy=lazy),
        Scheduler(KVMemory(cache.kv_tokens, cache.page_size, shares=cache.enabled), config.scheduler),
        Limits(vocab, context_len, cache.kv_tokens, cache.page_size),
        config=config,
        tokenizer=tokenizer,
    )
    core.compiler = _COMPILERS.setdefault(config.constraints, core.compiler)  # each constraint is compiled once
    return core


def runner_of(core: EngineCore) -> PathRunner:
    assert isinstance(core._runner, PathRunner)
    return core._runner
