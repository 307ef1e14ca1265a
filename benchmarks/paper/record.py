"""A Runtime that remembers its requests and what each was answered: the same work for a peer, and a check of outputs.

Knows requests and events. Does not know how a peer runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from palmette.interpreter.backends.local import Runtime
from palmette.types import ChoiceTrie, Deliver, EmbedRequest, Event, Request, ScoreRequest, TokenEvent


@dataclass(slots=True)
class Recorded:
    """One request, in the order of arrival."""

    request: Request
    after: list[int]  # places of the requests of its program that had ended when it came
    new: list[int] = field(default_factory=list)  # tokens it generated and kept
    num_new: int = 0  # tokens it generated: half a character at the end is not kept
    is_over: bool = False

    @property
    def prompt(self) -> list[int]:
        return list(self.request.token_ids)

    @property
    def choices(self) -> list[list[int]]:
        """The token paths that a score request compares; of a generate request none."""
        return choice_paths(self.request.trie) if isinstance(self.request, ScoreRequest) else []


class RecordingRuntime(Runtime):
    """`recorded` holds every request so far."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.recorded: list[Recorded] = []
        self._by_program: dict[str, list[int]] = {}
        self._guard = Lock()
        super().__init__(model, **options)

    def submit(self, request: Request, deliver: Deliver) -> None:
        program = "" if isinstance(request, EmbedRequest) else request.hints.program
        with self._guard:
            earlier = self._by_program.setdefault(program, [])
            entry = Recorded(request, [i for i in earlier if self.recorded[i].is_over])
            earlier.append(len(self.recorded))
            self.recorded.append(entry)

        def noted(events: Sequence[Event]) -> None:
            for event in events:
                if event.request_id == request.request_id:
                    _note(entry, event)
            deliver(events)

        super().submit(request, noted)

    def outputs(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """What was generated behind each distinct prompt."""
        return {tuple(e.request.token_ids): tuple(e.new) for e in self.recorded if not e.choices}


def choice_paths(trie: ChoiceTrie) -> list[list[int]]:
    """Every root-to-leaf path of a trie, in the order of its leaves."""
    leaves = sorted(set(range(len(trie.parents))) - set(trie.parents))
    paths = []
    for leaf in leaves:
        path, node = [], leaf
        while node >= 0:
            path.append(trie.token_ids[node])
            node = trie.parents[node]
        paths.append(path[::-1])
    return paths


def one_by_one(recorded: Sequence[Recorded]) -> list[int]:
    """Places in the order in which one sequence that keeps its KV has least to compute.

    Of the requests whose predecessors are answered, always the one that shares most with the sequence of the last; of
    several, the oldest.
    """
    waiting, order, done = dict.fromkeys(range(len(recorded))), [], set[int]()
    held: list[int] = []
    while waiting:
        ready = [i for i in waiting if done.issuperset(recorded[i].after)]
        best = max(ready, key=lambda i: (common(held, recorded[i].prompt), -i))
        del waiting[best]
        order.append(best)
        done.add(best)
        held = recorded[best].prompt + recorded[best].new
    return order


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix; O(length) as slices."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _note(entry: Recorded, event: Event) -> None:
    if isinstance(event, TokenEvent):
        if event.finish is None:
            return
        entry.new, entry.num_new = list(event.finish.token_ids), event.finish.usage.completion_tokens
    entry.is_over = True
