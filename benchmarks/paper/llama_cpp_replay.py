"""llama.cpp as a peer, in an interpreter of its own that has llama-cpp-python: imports nothing of this project.

    python llama_cpp_replay.py < work.json > result.json

    work    {"model": file, "slots": n, "threads": n, "context": tokens, "requests": [{"prompt": [id], "new": [id],
             "choices": [[id]], "after": [place]}]}
    result  {"seconds", "computed" (prompt tokens), "passes", "peak" (sequences), "library"}

Driven through the low-level batch API. A slot is a sequence of the KV cache that answers one request at a time; a
request begins with the longest prefix that any slot holds (shared by `seq_cp`, which copies no numbers), waits for a
slot that is computing more of it, and all slots decode in one batch. With one slot it is one request after the other.
Where a request generates, the recorded token is fed whatever the argmax is, so that later prompts find their prefix:
the work is the same for every engine. Choices are scored side by side behind their prompt. There are no constraints.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

BATCH = 512  # rows of one forward pass
WAIT = 16  # tokens that another slot must save a request for it to wait


@dataclass
class Row:
    """One token of a batch."""

    token: int
    position: int
    sequence: int
    wants_logits: bool


class Decoder(Protocol):
    """A KV cache of sequences and the model behind it."""

    def decode(self, rows: Sequence[Row]) -> None:
        """One forward pass; reads the rows that want logits."""
        ...

    def cut(self, sequence: int, length: int) -> None:
        """Forget what is behind the first `length` tokens."""
        ...

    def share(self, source: int, target: int, length: int) -> None:
        """Make the empty `target` hold the first `length` tokens of `source`."""
        ...


@dataclass
class Slot:
    """A sequence, what it holds, and what it is busy with."""

    number: int
    first_extra: int  # sequences for choices begin here
    held: list[int] = field(default_factory=list)  # computed
    goal: list[int] = field(default_factory=list)  # the prompt that it is computing
    request: int | None = None
    rows: list[Row] = field(default_factory=list)  # to be computed
    made: int = 0  # new tokens so far
    is_scored: bool = False


def replay(requests: Sequence[dict[str, Any]], decoder: Decoder, num_slots: int) -> dict[str, int]:
    """Answer all requests; returns counts of work."""
    extra = max((len(r["choices"]) for r in requests), default=0)
    slots = [Slot(i, num_slots + i * extra) for i in range(num_slots)]
    waiting, done = list(range(len(requests))), set[int]()
    computed = passes = peak = 0
    while waiting or any(slot.request is not None for slot in slots):
        computed += _assign(requests, slots, waiting, done, decoder)
        busy = [slot for slot in slots if slot.request is not None]
        peak = max(peak, len(busy))
        batch: list[Row] = []
        for slot in sorted(busy, key=lambda slot: len(slot.rows)):  # decodes go before prompts
            taken, slot.rows = slot.rows[: BATCH - len(batch)], slot.rows[BATCH - len(batch) :]
            batch += taken
            slot.held += [row.token for row in taken if row.sequence == slot.number]
        decoder.decode(batch)
        passes += 1
        for slot in busy:
            if not slot.rows:
                _go_on(requests, slot, done, decoder)
    return {"computed": computed, "passes": passes, "peak": peak}


def _assign(
    requests: Sequence[dict[str, Any]], slots: list[Slot], waiting: list[int], done: set[int], decoder: Decoder
) -> int:
    """Give free slots to requests that are ready, those first that share most; returns the tokens to compute."""
    computed = 0
    free = [slot for slot in slots if slot.request is None]
    ready = [i for i in waiting if done.issuperset(requests[i]["after"])] if free else []
    while free and ready:
        sources = {i: _source(requests[i]["prompt"], slots) for i in ready}
        i = max(ready, key=lambda i: (sources[i], -i))
        keep, _, source = sources[i]
        if keep < 0:
            break  # what each of them needs is being computed
        prompt = requests[i]["prompt"]
        ready.remove(i)
        waiting.remove(i)
        target = slots[source] if slots[source] in free else min(free, key=lambda s: _loss(requests, s, slots, waiting))
        free.remove(target)
        keep = min(keep, len(prompt) - 1)
        if target.number == source:
            decoder.cut(target.number, keep)
        else:
            decoder.cut(target.number, 0)
            decoder.share(source, target.number, keep)
        target.request, target.held, target.goal = i, prompt[:keep], prompt
        target.made, target.is_scored = 0, False
        target.rows = [Row(t, keep + n, target.number, False) for n, t in enumerate(prompt[keep:])]
        target.rows[-1].wants_logits = True
        computed += len(target.rows)
    return computed


def _source(prompt: list[int], slots: list[Slot]) -> tuple[int, bool, int]:
    """How much of a prompt is held, whether by a free slot, and by which; -1 where a slot is computing more of it."""
    best = max((common(s.held, prompt), s.request is None, s.number) for s in slots)
    coming = max((common(s.goal, prompt) for s in slots if s.request is not None), default=0)
    return (-1, False, 0) if coming >= best[0] + WAIT else best


def _loss(requests: Sequence[dict[str, Any]], slot: Slot, slots: list[Slot], waiting: list[int]) -> int:
    """Tokens that some request would have to compute again if the slot forgot what it holds."""
    others = [s for s in slots if s is not slot]
    losses = (
        common(slot.held, prompt) - max((common(s.held, prompt) for s in others), default=0)
        for prompt in (requests[i]["prompt"] for i in waiting)
    )
    return max(0, max(losses, default=0))


def _go_on(requests: Sequence[dict[str, Any]], slot: Slot, done: set[int], decoder: Decoder) -> None:
    """What a slot does when all its rows are computed: the next token, its choices, or the end."""
    assert slot.request is not None, "an idle slot has no rows"
    request = requests[slot.request]
    slot.goal = []
    if slot.made + 1 < len(request["new"]):
        slot.rows = [Row(request["new"][slot.made], len(slot.held), slot.number, True)]
        slot.made += 1
        return
    if request["choices"] and not slot.is_scored:
        slot.is_scored = True
        for n, path in enumerate(request["choices"]):
            decoder.share(slot.number, slot.first_extra + n, len(slot.held))
            start = len(slot.held)
            slot.rows += [Row(t, start + k, slot.first_extra + n, True) for k, t in enumerate(path[:-1])]
        if slot.rows:
            return
    for n in range(len(request["choices"])):
        decoder.cut(slot.first_extra + n, 0)
    done.add(slot.request)
    slot.request = None


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class LlamaDecoder:
    """llama.cpp's own."""

    def __init__(self, library: Any, numpy: Any, file: str, *, sequences: int, threads: int, context: int) -> None:
        self._library, self._numpy = library, numpy
        params = library.llama_model_default_params()
        self._model = library.llama_model_load_from_file(file.encode(), params)
        options = library.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, BATCH, BATCH
        options.n_seq_max, options.kv_unified = sequences, True
        options.n_threads = options.n_threads_batch = threads
        self._context = library.llama_init_from_model(self._model, options)
        self._memory = library.llama_get_memory(self._context)
        self._size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        self._batch = library.llama_batch_init(BATCH, 0, 1)

    def decode(self, rows: Sequence[Row]) -> None:
        batch, library = self._batch, self._library
        batch.n_tokens = len(rows)
        for i, row in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = row.token, row.position, 1
            batch.seq_id[i][0], batch.logits[i] = row.sequence, row.wants_logits
        code = library.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode ended with {code}")
        for i, row in enumerate(rows):
            if row.wants_logits:
                logits = library.llama_get_logits_ith(self._context, i)
                self._numpy.ctypeslib.as_array(logits, (self._size,)).argmax()

    def cut(self, sequence: int, length: int) -> None:
        self._library.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def share(self, source: int, target: int, length: int) -> None:
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, length)


def main() -> None:
    llama_cpp: Any = importlib.import_module("llama_cpp")
    numpy: Any = importlib.import_module("numpy")
    work = json.load(sys.stdin)
    requests, slots = work["requests"], work["slots"]
    _be_quiet(llama_cpp)
    sequences = slots * (1 + max((len(r["choices"]) for r in requests), default=0))
    decoder = LlamaDecoder(
        llama_cpp, numpy, work["model"], sequences=sequences, threads=work["threads"], context=work["context"]
    )
    warm = [Row(token, i, 0, i == 63) for i, token in enumerate(range(1000, 1064))]
    decoder.decode(warm)
    decoder.cut(0, 0)
    start = time.perf_counter()
    counts = replay(requests, decoder, slots)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, **counts, "library": llama_cpp.__version__}), flush=True)
    os._exit(0)  # its own clean-up may talk, or fail, when Python is leaving


def _be_quiet(library: Any) -> None:
    global _silent  # the callback must outlive this call
    _silent = library.llama_log_callback(lambda level, text, data: None)
    library.llama_log_set(_silent, None)


_silent: Any = None

if __name__ == "__main__":
    main()
