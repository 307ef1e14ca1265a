"""The engine's thread: one inbox, one callback a step, and an end that answers everybody."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from palmette.errors import Cancelled, EngineDied, HoleTimeout, InvalidOption, RequestError, UnsupportedConstraint
from palmette.fsm.cursor import CompiledConstraint
from palmette.runtime.driver import EngineThread
from palmette.runtime.engine import EngineCore
from palmette.specs import Regex, Spec
from palmette.types import (
    ChoiceTrie,
    EmbedRequest,
    Event,
    FinishReason,
    ForkDeclared,
    GenerateRequest,
    ProgramEnded,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
)
from tests.runtime.driving import drive, engine, generate

SECONDS = 30.0


class Mailbox:
    """Collects events and waits for the ends of requests."""

    def __init__(self) -> None:
        self.calls: list[list[Event]] = []
        self.threads: set[str] = set()
        self._changed = threading.Condition()

    def __call__(self, events: Sequence[Event]) -> None:
        with self._changed:
            self.calls.append(list(events))
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    @property
    def events(self) -> list[Event]:
        return [event for call in self.calls for event in call]

    def ends(self) -> dict[str, Any]:
        return {
            e.request_id: e.finish if isinstance(e, TokenEvent) else e
            for e in self.events
            if not isinstance(e, TokenEvent) or e.finish is not None
        }

    def wait(self, *request_ids: str) -> dict[str, Any]:
        """Until these have ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: set(request_ids) <= self.ends().keys(), SECONDS), "no end came"
            return self.ends()

    def wait_for_events(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events) >= count, SECONDS), "too few events came"


def held_by(gate: threading.Event) -> Callable[[Sequence[Event]], None]:
    """A consumer that holds the engine's thread until the gate opens."""

    def take(events: Sequence[Event]) -> None:
        gate.wait(SECONDS)

    return take


@pytest.fixture
def make_thread() -> Any:
    threads: list[EngineThread] = []

    def make(core: EngineCore | None = None) -> EngineThread:
        threads.append(EngineThread(core or engine()))
        return threads[-1]

    yield make
    for thread in threads:
        thread.close(SECONDS)


Make = Callable[..., EngineThread]


def test_requests_from_many_threads_all_end(make_thread: Make) -> None:
    thread, box = make_thread(), Mailbox()

    def submit(first: int) -> None:
        for i in range(first, first + 10):
            thread.submit(generate(f"r{i}", f"prompt {i}", 3), box)

    submitters = [threading.Thread(target=submit, args=(first,)) for first in range(0, 80, 10)]
    for submitter in submitters:
        submitter.start()
    for submitter in submitters:
        submitter.join()
    ends = box.wait(*(f"r{i}" for i in range(80)))
    assert all(finish.reason is FinishReason.LENGTH for finish in ends.values())
    assert box.threads == {"palmette-engine"}


def test_the_thread_gives_what_the_core_gives(make_thread: Make) -> None:
    requests = [generate(f"r{i}", "same prompt", 6, temperature=1.0, seed=i) for i in range(5)]
    box, thread = Mailbox(), make_thread()
    for request in requests:
        thread.submit(request, box)
    ends = box.wait(*(r.request_id for r in requests))
    expected = drive(engine(), requests)
    assert {name: end.token_ids for name, end in ends.items()} == {
        r.request_id: expected.finish(r.request_id).token_ids for r in requests
    }


def test_events_of_one_step_come_in_one_call(make_thread: Make) -> None:
    gate = threading.Event()
    thread, box = make_thread(), Mailbox()
    thread.submit(generate("holds the engine", "x", 1), held_by(gate))
    for i in range(8):
        thread.submit(generate(f"r{i}", "x", 4), box)
    gate.set()
    box.wait(*(f"r{i}" for i in range(8)))
    assert [len(call) for call in box.calls] == [8, 8, 8, 8]


def test_bound_methods_of_one_object_share_a_call(make_thread: Make) -> None:
    class Consumer:
        def __init__(self) -> None:
            self.box = Mailbox()

        def take(self, events: Sequence[Event]) -> None:
            self.box(events)

    thread, consumer, gate = make_thread(), Consumer(), threading.Event()
    thread.submit(generate("holds the engine", "x", 1), held_by(gate))
    for i in range(3):
        thread.submit(generate(f"r{i}", "x", 1), consumer.take)
    gate.set()
    consumer.box.wait("r0", "r1", "r2")
    assert len(consumer.box.calls) == 1


def test_stats_have_counted_what_an_event_tells(make_thread: Make) -> None:
    thread, box = make_thread(), Mailbox()
    thread.submit(generate("a", "abc", 3), box)
    box.wait("a")
    stats = thread.stats()
    assert stats.finished == 1
    assert stats.sampled_tokens == 3
    assert stats.kv_free + stats.kv_evictable == stats.kv_total


def test_cancel_ends_a_request_and_an_unknown_one_is_left_alone(make_thread: Make) -> None:
    thread, box = make_thread(), Mailbox()
    thread.cancel("nobody")
    thread.submit(generate("a", "abc", 1500), box)
    box.wait_for_events(2)
    thread.cancel("a")
    assert box.wait("a")["a"].reason is FinishReason.CANCELLED
    thread.cancel("a")
    thread.submit(generate("b", "abc", 1), box)
    box.wait("b")
    assert thread.stats().running == 0


def test_a_timeout_fires_by_the_clock(make_thread: Make) -> None:
    thread, box = make_thread(), Mailbox()
    thread.submit(generate("a", "abc", 2000, timeout=0.05), box)
    assert isinstance(box.wait("a")["a"].error, HoleTimeout)


def test_hints_and_flushes_keep_their_place_among_requests(make_thread: Make) -> None:
    thread, box = make_thread(), Mailbox()
    thread.submit(generate("a", "abc", 0), box)
    box.wait("a")
    thread.notify(ForkDeclared("p", (1, 2, 3), 2))
    thread.flush_cache()
    thread.notify(ProgramEnded("p"))
    thread.submit(generate("b", "abc", 0), box)
    assert box.wait("b")["b"].usage.cached_tokens == 0


def test_an_idle_engine_blocks(make_thread: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    core = engine()
    steps = 0
    plain = core.step

    def step(now: float) -> list[Event]:
        nonlocal steps
        steps += 1
        return plain(now)

    monkeypatch.setattr(core, "step", step)
    thread, box = make_thread(core), Mailbox()
    thread.submit(generate("a", "abc", 3), box)
    box.wait("a")
    thread.notify(ProgramEnded("p"))
    thread.submit(generate("b", "abc", 1), box)
    box.wait("b")
    assert steps == 3 + 1


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_taken_id_is_refused_without_touching_its_owner(make_thread: Make) -> None:
    thread, owner, thief, gate = make_thread(), Mailbox(), Mailbox(), threading.Event()
    thread.submit(generate("holds the engine", "x", 1), held_by(gate))
    thread.submit(generate("a", "abc", 3), owner)
    thread.submit(generate("a", "xyz", 3), thief)
    gate.set()
    assert isinstance(thief.wait("a")["a"].error, InvalidOption)
    assert owner.wait("a")["a"].reason is FinishReason.LENGTH


def test_a_request_that_is_not_even_typed_right_hurts_nobody(make_thread: Make) -> None:
    thread, box = make_thread(), Mailbox()
    thread.submit(GenerateRequest("bad", ("x",)), box)  # type: ignore[arg-type]
    thread.submit(generate("good", "abc", 2), box)
    ends = box.wait("bad", "good")
    assert isinstance(ends["bad"].error, RequestError)
    assert ends["good"].error is None


def test_a_consumer_that_raises_is_gone_and_its_requests_with_it(
    make_thread: Make, caplog: pytest.LogCaptureFixture
) -> None:
    thread, box = make_thread(), Mailbox()
    calls = 0

    def broken(events: Sequence[Event]) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("gone")

    with caplog.at_level(logging.ERROR):
        thread.submit(generate("a", "abc", 1000), broken)
        thread.submit(generate("b", "abc", 40), box)
        box.wait("b")
    assert calls == 1
    assert thread.stats().running == 0
    assert "could not be delivered" in caplog.text


def test_when_the_engine_dies_everybody_is_told_and_so_is_whoever_comes_later(
    make_thread: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = engine(max_running=2)
    calls = 0
    plain = core._runner.forward

    def forward(batch: Any, masks: Any = None) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MemoryError("the device is gone")
        return plain(batch, masks)

    monkeypatch.setattr(core._runner, "forward", forward)
    thread, box = make_thread(core), Mailbox()
    names = [f"r{i}" for i in range(6)]
    for name in names:
        thread.submit(generate(name, f"prompt {name}", 50), box)
    thread.submit(EmbedRequest("e", (1, 2)), box)
    ends = box.wait(*names, "e")
    assert all(isinstance(end.error, EngineDied) for end in ends.values())
    assert len({id(end.error) for end in ends.values()}) == 7
    assert isinstance(ends["r0"].error.__cause__, MemoryError)
    assert "the engine died" in caplog.text
    thread.submit(generate("late", "abc", 1), box)
    assert isinstance(box.ends()["late"].error, EngineDied)
    thread.cancel("late")
    thread.notify(ProgramEnded("p"))
    assert not thread.is_alive


def test_close_fails_what_is_live_and_may_be_called_twice(make_thread: Make) -> None:
    thread, box = make_thread(), Mailbox()
    for i in range(20):
        thread.submit(generate(f"r{i}", "abc", 1000), box)
    thread.close()
    thread.close()
    ends = box.wait(*(f"r{i}" for i in range(20)))
    assert all(isinstance(end.error, EngineDied) for end in ends.values())
    ended = [e for e in box.events if isinstance(e, TokenEvent) and e.finish is not None]
    assert len(ended) == 20


def test_close_from_a_callback_does_not_wait_for_itself(make_thread: Make) -> None:
    thread, box = make_thread(), Mailbox()

    def take(events: Sequence[Event]) -> None:
        thread.close()
        box(events)

    thread.submit(generate("a", "abc", 500), take)
    assert isinstance(box.wait("a")["a"].error, EngineDied)


def test_a_score_request_is_refused_by_an_event_of_its_kind(make_thread: Make) -> None:
    thread, box = make_thread(), Mailbox()
    thread.close()
    thread.submit(ScoreRequest("s", (1,), ChoiceTrie((1,), (-1,))), box)
    (event,) = box.events
    assert isinstance(event, ScoreEvent)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("leave", ["pass", "import sys; sys.exit(3)", "raise SystemExit(3)"])
def test_leaving_the_interpreter_with_live_work_is_quick_and_silent(leave: str) -> None:
    done = run_python(
        f"""
        from tests.runtime.driving import engine, generate
        from palmette.runtime.driver import EngineThread
        thread = EngineThread(engine())
        ends = []
        for i in range(50):
            thread.submit(generate(f"r{{i}}", "abc", 2000), ends.extend)
        while not ends:
            pass
        {leave}
        """
    )
    assert done.stderr == ""
    assert done.returncode == (0 if leave == "pass" else 3)


def test_an_exception_in_the_main_thread_leaves_too() -> None:
    done = run_python(
        """
        from tests.runtime.driving import engine, generate
        from palmette.runtime.driver import EngineThread
        thread = EngineThread(engine())
        thread.submit(generate("a", "abc", 2000), print)
        raise ValueError("on purpose")
        """
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: on purpose")


def test_constraints_are_compiled_off_the_engines_thread(make_thread: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one constraint compiles, others decode; cancelling it then ends it, and its id is taken until it ends."""
    core = engine()
    gate, began = threading.Event(), threading.Event()
    compile_ = core.compiler.compile
    threads: list[str] = []

    def slow(spec: Spec) -> CompiledConstraint:
        threads.append(threading.current_thread().name)
        began.set()
        gate.wait(SECONDS)
        return compile_(spec)

    monkeypatch.setattr(core.compiler, "compile", slow)
    thread, box = make_thread(core), Mailbox()
    thread.submit(generate("slow", "x", 9, constraint=Regex("[ab]{3}")), box)
    assert began.wait(SECONDS)
    thread.submit(generate("plain", "x", 4), box)
    assert box.wait("plain")["plain"].reason is FinishReason.LENGTH
    other = Mailbox()
    thread.submit(generate("slow", "x", 4), other)
    assert isinstance(other.wait("slow")["slow"].error, InvalidOption)
    thread.submit(generate("dropped", "x", 9, constraint=Regex("[cd]{3}")), box)
    thread.cancel("dropped")
    assert isinstance(box.wait("dropped")["dropped"].error, Cancelled)
    gate.set()
    assert box.wait("slow")["slow"].reason is FinishReason.STOP
    thread.submit(generate("again", "x", 9, constraint=Regex("[ab]{3}")), box)
    assert box.wait("again")["again"].reason is FinishReason.STOP
    assert set(threads) == {"palmette-engine-constraints"}
    assert sum(e.request_id == "dropped" for e in box.events) == 1


def test_a_constraint_that_cannot_be_compiled_ends_its_own_request(make_thread: Make) -> None:
    thread, box = make_thread(), Mailbox()
    thread.submit(generate("bad", "x", 9, constraint=Regex(r"(a)\1")), box)
    thread.submit(generate("good", "x", 9, constraint=Regex("[ab]{3}")), box)
    ends = box.wait("bad", "good")
    assert isinstance(ends["bad"].error, UnsupportedConstraint)
    assert ends["good"].reason is FinishReason.STOP


def test_closing_answers_what_is_being_compiled(make_thread: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    core = engine()
    gate = threading.Event()
    monkeypatch.setattr(core.compiler, "compile", lambda spec: gate.wait(SECONDS))
    thread, box = make_thread(core), Mailbox()
    thread.submit(generate("waiting", "x", 9, constraint=Regex("[ab]{3}")), box)
    thread.close(SECONDS)
    assert isinstance(box.wait("waiting")["waiting"].error, EngineDied)
    gate.set()
