"""What runs in the place of a model: a scheduler whose forward pass is empty, a backend that answers at once.

Costs measured on them are overheads and nothing else. Neither keeps anything of what it was asked, so that nothing
grows here.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

from palmette.runtime.config import SchedulerConfig
from palmette.runtime.memory import KVMemory
from palmette.runtime.output import Output
from palmette.runtime.radix_node import TOKEN_CODE, NodeState
from palmette.runtime.request import GenerateJob
from palmette.runtime.scheduler import Scheduler
from palmette.runtime.step import Sampled, StepResults
from palmette.testing import ScriptedBackend
from palmette.types import (
    Deliver,
    Event,
    Finish,
    FinishReason,
    GenerateRequest,
    ProgramEvent,
    Request,
    SamplingParams,
    TextPiece,
    TokenEvent,
    TokenPath,
    Usage,
)

TOKEN = 7  # what the empty model writes
REPLY = " yes"
PATH, SHARED, SIBLINGS = 256, 128, 16  # tokens of a cached path, of which the first are shared with its siblings


class BareScheduler:
    """Scheduler, pool and prefix tree; the forward pass gives `TOKEN` for nothing."""

    def __init__(self, kv_tokens: int, config: SchedulerConfig | None = None) -> None:
        self.memory = KVMemory(kv_tokens)
        self.scheduler = Scheduler(self.memory, config or SchedulerConfig())
        self.paths: list[array[int]] = []  # what the siblings of each family share
        self._random = random.Random(0)
        self._number = 0

    def tokens(self, count: int) -> array[int]:
        """New ones, that no one has seen."""
        return array(TOKEN_CODE, self._random.choices(range(1 << 40), k=count))

    def fill(self, num_tokens: int) -> None:
        """Cache paths of PATH tokens, until the tree holds as many."""
        tree = self.memory.tree
        while tree.num_tokens < num_tokens:
            shared = self.tokens(SHARED)
            for i in range(SIBLINGS):
                if tree.num_tokens < num_tokens:
                    self.cache(shared + self.tokens(PATH - SHARED))
                    if i == 0:
                        self.paths.append(shared)

    def cache(self, path: array[int]) -> None:
        """Put a path into the tree, as whoever computed it would leave it."""
        slots = self.memory.try_alloc(len(path))
        assert slots is not None, "the pool is too small"
        tree = self.memory.tree
        _, existing = tree.insert(tree.root(), path, slots, NodeState.PROVEN)
        self.memory.allocator.free(slots[:existing])

    def add(self, tokens: Sequence[int], max_new: int) -> GenerateJob:
        """Queue a request."""
        self._number += 1
        params = SamplingParams(max_new_tokens=max_new, temperature=0.0)
        output = Output(params, max_new_tokens=max_new, eos_ids=frozenset(), token_bytes=lambda token: b"x")
        ids = tokens if isinstance(tokens, TokenPath) else tuple(tokens)
        job = GenerateJob(GenerateRequest(f"r{self._number}", ids, params), output, number=self._number, now=0.0)
        self.scheduler.add(job, 0.0)
        return job

    def step(self) -> bool:
        """One step; False if nothing was to be done."""
        step = self.scheduler.schedule()
        if step is None:
            return False
        drawn = {i: Sampled(TOKEN) for i, part in enumerate(step.parts) if part.wants_token}
        self.scheduler.apply(step, StepResults(sampled=drawn), 0.0)
        return True

    def run(self) -> None:
        """Until nothing is to be done."""
        while self.step():
            pass


class PromptBackend(ScriptedBackend):
    """Answers every request at once with the same text, in `pieces` events, and counts what it is handed.

    Attributes:
        encoded: tokens that came out of text.
        handed: tokens of all prompts, without what of a path it was handed before.
    """

    def __init__(self, reply: str = REPLY, pieces: int = 1) -> None:
        super().__init__()
        self.encoded = self.handed = 0
        size = -(-len(reply) // pieces)
        self._texts = [reply[start : start + size] for start in range(0, len(reply), size)]
        self._ids = tuple(reply.encode())

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        ids = super().encode(pieces)
        self.encoded += len(ids)
        return ids

    def submit(self, request: Request, deliver: Deliver) -> None:
        self.handed += self._new(request.token_ids)
        name, usage = request.request_id, Usage(len(request.token_ids), 0, len(self._ids))
        events: list[Event] = [TokenEvent(name, text, tuple(text.encode())) for text in self._texts]
        deliver([*events, TokenEvent(name, finish=Finish(FinishReason.STOP, self._ids, usage=usage))])

    def notify(self, event: ProgramEvent) -> None:
        """Keeps none."""

    def _new(self, ids: Sequence[int]) -> int:
        """How far a backend must read that knows again what it was handed, as a note on the path tells."""
        if not isinstance(ids, TokenPath):
            return len(ids)
        known: TokenPath | None = ids
        while known is not None and known.place is not self:
            known = known.parent
        ids.place = self
        return len(ids) - (0 if known is None else len(known))
