"""Builds engines on the tiny model and drives them step by step, checking every invariant after each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from palmette.errors import PalmetteError
from palmette.runtime.config import CacheConfig, ConstraintConfig, ModelOptions, RuntimeConfig, SchedulerConfig
from palmette.runtime.engine import EngineCore, build_engine
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.tiny import tiny_model
from palmette.types import (
    Event,
    Finish,
    GenerateRequest,
    Request,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)


@cache
def model() -> LoadedModel:
    return tiny_model(seed=3)


def text_ids(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def engine(loaded: LoadedModel | None = None, **options: Any) -> EngineCore:
    """An engine whose options may stand in any part of its config."""
    return build_engine(loaded or model(), flat_config(**options))


def flat_config(**options: Any) -> RuntimeConfig:
    """Options that may stand in any part of the config."""
    options.setdefault("kv_tokens", 4096)

    def part(kind: Any) -> Any:
        return kind(**{f.name: options.pop(f.name) for f in fields(kind) if f.name in options})

    config = RuntimeConfig(
        model=part(ModelOptions),
        cache=part(CacheConfig),
        scheduler=part(SchedulerConfig),
        constraints=part(ConstraintConfig),
    )
    assert not options, f"unknown options {options}"
    return config


def generate(request_id: str, prompt: str | tuple[int, ...], max_new: int = 8, **fields_: Any) -> GenerateRequest:
    """A greedy request unless told otherwise; fields of SamplingParams and of GenerateRequest alike."""
    names = {f.name for f in fields(SamplingParams)}
    params = {name: fields_.pop(name) for name in list(fields_) if name in names}
    params = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": max_new, **params}
    ids = text_ids(prompt) if isinstance(prompt, str) else prompt
    return GenerateRequest(request_id, ids, SamplingParams(**params), **fields_)


@dataclass
class Run:
    """All that came out, by request id."""

    events: dict[str, list[Event]] = field(default_factory=dict)
    steps: int = 0

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            self.events.setdefault(event.request_id, []).append(event)

    def last(self, request_id: str) -> Event:
        return self.events[request_id][-1]

    def finish(self, request_id: str) -> Finish:
        event = self.last(request_id)
        assert isinstance(event, TokenEvent)
        assert event.finish is not None
        return event.finish

    def error(self, request_id: str) -> PalmetteError | None:
        event = self.last(request_id)
        return self.finish(request_id).error if isinstance(event, TokenEvent) else event.error

    def sampled(self, request_id: str) -> tuple[int, ...]:
        """Every token that was sampled, the one that ended the hole included."""
        return tuple(t for e in self.events[request_id] if isinstance(e, TokenEvent) for t in e.token_ids)

    def logprobs(self, request_id: str) -> tuple[TokenLogprob, ...]:
        return tuple(p for e in self.events[request_id] if isinstance(e, TokenEvent) for p in e.logprobs)

    def text(self, request_id: str) -> str:
        return "".join(e.text for e in self.events[request_id] if isinstance(e, TokenEvent))

    def all_sampled(self) -> dict[str, tuple[int, ...]]:
        return {request_id: self.sampled(request_id) for request_id in self.events}


def drive(
    core: EngineCore,
    requests: Iterable[Request] = (),
    *,
    after_step: Callable[[EngineCore, int], None] | None = None,
    now: float = 0.0,
    max_steps: int = 5000,
) -> Run:
    """Add requests at once and step until nothing is left. Each request must end exactly once."""
    run = Run()
    for request in requests:
        core.add(request, now)
    while core.has_work:
        run.take(core.step(now))
        run.steps += 1
        assert run.steps <= max_steps, "the engine does not come to an end"
        core.check_integrity()
        if after_step is not None:
            after_step(core, run.steps)
            core.check_integrity()
    for events in run.events.values():
        ends = [not isinstance(e, TokenEvent) or e.finish is not None for e in events]
        assert ends.count(True) == 1, "one terminal event a request"
        assert ends[-1], "the terminal event comes last"
    stats = core.stats()
    assert stats.kv_free + stats.kv_evictable == stats.kv_total, "a slot leaked"
    return run
