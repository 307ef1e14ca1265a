"""Admission: bounds hold at every moment, nobody is let in twice or forgotten, clients get equal shares."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from palmette.errors import HoleTimeout, Overloaded
from palmette.runtime.server.config import ServerLimits
from palmette.runtime.server.gate import MAX_RETRY_AFTER, Gate
from tests.runtime.server.virtual_loop import VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def make_gate(loop: VirtualLoop, *, inside: int = 1, waiting: int = 8, tokens: int = 1 << 20, **kw: bool) -> Gate:
    limits = ServerLimits(max_in_engine=inside, max_waiting=waiting, max_waiting_tokens=tokens)
    return Gate(limits, loop.time, **kw)


def enter(
    loop: VirtualLoop, gate: Gate, client: str, tokens: int = 1, *, priority: int = 0, timeout: float = 1e6
) -> asyncio.Task[None]:
    """Somebody who waits at the gate, as a task."""
    return loop.create_task(gate.enter(client, tokens, priority=priority, timeout=timeout))


def is_in(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


# -- one thing at a time -----------------------------------------------------------------------------------------------


def test_within_a_client_priority_goes_first_then_arrival(loop: VirtualLoop) -> None:
    gate = make_gate(loop)
    loop.run(gate.enter("a", 1, timeout=1))
    asks = {name: enter(loop, gate, "a", priority=p) for name, p in (("x", 0), ("y", 2), ("z", 2), ("w", 1))}
    order = []
    for _ in range(4):
        loop.settle()
        gate.leave()
        loop.settle()
        order += [name for name, ask in asks.items() if is_in(ask) and name not in order]
    assert order == ["y", "z", "w", "x"]


def test_priority_of_one_client_does_not_touch_another(loop: VirtualLoop) -> None:
    gate = make_gate(loop, waiting=20)
    loop.run(gate.enter("b", 10, timeout=1))
    loud = [enter(loop, gate, "a", 10, priority=1000) for _ in range(6)]
    loop.settle()
    quiet = [enter(loop, gate, "b", 10) for _ in range(3)]
    for _ in range(6):
        loop.settle()
        gate.leave()
    loop.settle()
    assert sum(map(is_in, loud)) == 3
    assert sum(map(is_in, quiet)) == 3
    for task in (*loud, *quiet):
        task.cancel()
    loop.settle()


def test_no_turn_in_time_is_a_timeout_that_frees_the_place(loop: VirtualLoop) -> None:
    gate = make_gate(loop, waiting=1)
    loop.run(gate.enter("a", 1, timeout=1))
    with pytest.raises(HoleTimeout, match="no turn came within 5 s"):
        loop.run(gate.enter("a", 7, timeout=5))
    assert loop.time() == pytest.approx(5, abs=0.01)
    assert (gate.num_inside, gate.num_waiting, gate.waiting_tokens) == (1, 0, 0)
    loop.run(asyncio.wait_for(_enter_after_leave(gate), 1))
    assert gate.num_inside == 1


async def _enter_after_leave(gate: Gate) -> None:
    task = asyncio.ensure_future(gate.enter("a", 1, timeout=10))
    await asyncio.sleep(0)
    gate.leave()
    await task


def test_who_gives_up_in_the_moment_of_a_leave_breaks_nothing(loop: VirtualLoop) -> None:
    gate = make_gate(loop)
    loop.run(gate.enter("a", 1, timeout=1))
    waiting = enter(loop, gate, "a")
    loop.settle()
    waiting.cancel()
    gate.leave()  # before the cancelled task has run
    loop.settle()
    assert (gate.num_inside, gate.num_waiting, gate.waiting_tokens) == (0, 0, 0)


def test_who_is_let_in_while_giving_up_hands_the_turn_on(loop: VirtualLoop) -> None:
    gate = make_gate(loop)
    loop.run(gate.enter("a", 1, timeout=1))
    first, second = enter(loop, gate, "a"), enter(loop, gate, "a")
    loop.settle()
    gate.leave()  # first's turn is there, and its task has not run yet
    first.cancel()
    loop.settle()
    assert first.cancelled()
    assert is_in(second)
    assert (gate.num_inside, gate.num_waiting) == (1, 0)


def test_a_turn_and_the_timeout_in_one_moment_lose_nobodys_place(loop: VirtualLoop) -> None:
    gate = make_gate(loop)
    loop.run(gate.enter("a", 1, timeout=1))
    start = loop.time()
    loop.call_at(start + 5.0, gate.leave)
    ask = enter(loop, gate, "a", timeout=5.0)
    loop.settle(10)
    assert ask.done()
    assert gate.num_inside == int(is_in(ask))
    assert gate.num_waiting == 0


def test_those_who_come_and_go_leave_nothing_behind(loop: VirtualLoop) -> None:
    gate = make_gate(loop, waiting=4)
    loop.run(gate.enter("a", 1, timeout=1))
    for _ in range(500):
        ask = enter(loop, gate, "a", 3)
        loop.settle()
        ask.cancel()
        loop.settle()
    assert (gate.num_waiting, gate.waiting_tokens) == (0, 0)
    assert sum(len(lane.waiting) for lane in gate._lanes.values()) < 100


def test_many_clients_that_are_gone_leave_no_lanes(loop: VirtualLoop) -> None:
    gate = make_gate(loop, inside=4, waiting=4)
    for number in range(2500):
        loop.run(gate.enter(f"client {number}", 5, timeout=1))
        gate.leave()
    for _ in range(3):  # the last of them are behind the present now
        loop.run(gate.enter("another", 100, timeout=1))
        asks = [enter(loop, gate, "another") for _ in range(4)]
        loop.settle()
        for _ in range(5):
            gate.leave()
            loop.settle()
        assert all(map(is_in, asks))
    assert len(gate._lanes) <= 1200


def test_a_request_larger_than_the_token_bound_waits_alone(loop: VirtualLoop) -> None:
    gate = make_gate(loop, tokens=10)
    loop.run(gate.enter("a", 1, timeout=1))
    big = enter(loop, gate, "a", 50)
    loop.settle()
    with pytest.raises(Overloaded):
        loop.run(gate.enter("a", 1, timeout=1))
    gate.leave()
    loop.settle()
    assert is_in(big)


def test_with_several_clients_none_fills_more_than_half_the_queue(loop: VirtualLoop) -> None:
    gate = make_gate(loop, waiting=6, shares=True)
    loop.run(gate.enter("a", 1, timeout=1))
    flood = [enter(loop, gate, "a") for _ in range(5)]
    loop.settle()
    assert sum(not task.done() for task in flood) == 3
    assert all(isinstance(task.exception(), Overloaded) for task in flood if task.done())
    other = [enter(loop, gate, "b") for _ in range(3)]
    loop.settle()
    assert not any(task.done() for task in other)
    for task in (*flood, *other):
        task.cancel()
    loop.settle()


@pytest.mark.parametrize("waiting", [1, 2, 3])
def test_a_short_queue_still_takes_somebody_of_each_client(loop: VirtualLoop, waiting: int) -> None:
    gate = make_gate(loop, waiting=waiting, shares=True)
    loop.run(gate.enter("a", 1, timeout=1))
    ask = enter(loop, gate, "b")
    loop.settle()
    gate.leave()
    loop.settle()
    assert is_in(ask)


def test_retry_after_follows_the_rate_at_which_requests_end(loop: VirtualLoop) -> None:
    gate = make_gate(loop, waiting=30)
    loop.run(gate.enter("a", 1, timeout=1))
    asks = [enter(loop, gate, "a") for _ in range(30)]
    loop.settle()
    assert gate.retry_after() == 1  # nothing is known yet
    for _ in range(10):
        loop.settle(2.0)
        gate.leave()
        loop.settle()
    assert 36 <= gate.retry_after() <= 45  # 20 wait, 2 seconds each
    loop.settle(3600.0)
    assert gate.retry_after() == MAX_RETRY_AFTER
    for task in asks:
        task.cancel()
    loop.settle()


SIZES = st.lists(st.integers(1, 40), min_size=5, max_size=40)


@given(a=SIZES, b=SIZES, inside=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_clients_that_both_wait_get_the_same_share_of_tokens(a: list[int], b: list[int], inside: int) -> None:
    loop = VirtualLoop()
    gate = make_gate(loop, inside=inside, waiting=1000)
    for _ in range(inside):
        loop.run(gate.enter("z", 1, timeout=1))
    order: list[tuple[str, int]] = []

    def ask_for(name: str, size: int) -> asyncio.Task[None]:
        ask = enter(loop, gate, name, size)
        ask.add_done_callback(lambda _: order.append((name, size)))
        return ask

    asks = [ask_for(name, size) for name, sizes in (("a", a), ("b", b)) for size in sizes]
    loop.settle()
    for _ in asks:
        gate.leave()
        loop.settle()
    assert all(map(is_in, asks))
    last = {name: max(i for i, (who, _) in enumerate(order) if who == name) for name in ("a", "b")}
    both = order[: min(last.values()) + 1]  # while both wait
    ahead = list(accumulate((size if who == "a" else -size for who, size in both), initial=0))
    assert max(ahead) - min(ahead) <= max(a) + max(b)
    loop.close()


def test_a_client_that_was_idle_has_saved_nothing_up(loop: VirtualLoop) -> None:
    gate = make_gate(loop, waiting=100)
    loop.run(gate.enter("a", 10, timeout=1))
    for _ in range(50):
        gate.leave()
        loop.run(gate.enter("a", 10, timeout=1))
    busy = [enter(loop, gate, "a", 10) for _ in range(10)]
    late = [enter(loop, gate, "b", 10) for _ in range(10)]
    for _ in range(8):
        loop.settle()
        gate.leave()
    loop.settle()
    assert 3 <= sum(map(is_in, busy)) <= 5
    assert 3 <= sum(map(is_in, late)) <= 5
    for task in (*busy, *late):
        task.cancel()
    loop.settle()


# -- everything at once ------------------------------------------------------------------------------------------------


@dataclass
class Ask:
    """One who asked, as the model sees it."""

    client: str
    tokens: int
    rank: tuple[int, int]
    task: asyncio.Task[None]
    until: float
    state: str = "waiting"  # inside, left, gone, refused
    turns: int = 0


class GateMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the gate's books are those of a list."""

    @initialize(
        inside=st.integers(1, 3), waiting=st.integers(1, 6), tokens=st.sampled_from([10, 60]), shares=st.booleans()
    )
    def build(self, inside: int, waiting: int, tokens: int, shares: bool) -> None:
        self.loop = VirtualLoop()
        self.limits = ServerLimits(max_in_engine=inside, max_waiting=waiting, max_waiting_tokens=tokens)
        self.lane_limit = max(1, waiting // 2) if shares else waiting
        self.gate = Gate(self.limits, self.loop.time, shares=shares)
        self.asks: list[Ask] = []

    @rule(
        client=st.sampled_from("abc"),
        tokens=st.integers(1, 20),
        priority=st.integers(0, 2),
        timeout=st.sampled_from([1000.0, 1000.0, 0.5, 0.0]),
        count=st.integers(1, 4),
    )
    def enter(self, client: str, tokens: int, priority: int, timeout: float, count: int) -> None:
        for number in range(count):
            self.enter_one(client, tokens, priority + number % 2, timeout)

    def enter_one(self, client: str, tokens: int, priority: int, timeout: float) -> None:
        waiting = self.of("waiting")
        has_room = len(self.of("inside")) < self.limits.max_in_engine
        is_full = not has_room and (
            len(waiting) >= self.limits.max_waiting
            or sum(ask.client == client for ask in waiting) >= self.lane_limit
            or bool(waiting and sum(ask.tokens for ask in waiting) + tokens > self.limits.max_waiting_tokens)
        )
        refused = self.gate.num_refused
        task = self.loop.create_task(self.gate.enter(client, tokens, priority=priority, timeout=timeout))
        self.asks.append(Ask(client, tokens, (-priority, len(self.asks)), task, self.loop.time() + timeout))
        self.look()
        assert (self.asks[-1].state == "refused") == is_full
        assert self.gate.num_refused == refused + is_full

    @precondition(lambda self: self.of("inside"))
    @rule(data=st.data(), count=st.integers(1, 3))
    def leave(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.of("inside")))):
            self.one_leaves(data)
        self.look()

    @precondition(lambda self: self.of("waiting"))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.one_gives_up(data)
        self.look()

    @precondition(lambda self: self.of("waiting") and self.of("inside"))
    @rule(data=st.data(), first=st.booleans())
    def give_up_and_leave_in_one_moment(self, data: st.DataObject, first: bool) -> None:
        if first:
            self.one_gives_up(data)
        self.one_leaves(data)
        if not first:
            self.one_gives_up(data)
        self.look()

    @rule(seconds=st.sampled_from([0.1, 0.6, 30.0]))
    def pass_time(self, seconds: float) -> None:
        self.loop.settle(seconds)
        self.look()

    def one_leaves(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.of("inside"))).state = "left"
        self.gate.leave()

    def one_gives_up(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.of("waiting"))).task.cancel()

    def of(self, state: str) -> list[Ask]:
        return [ask for ask in self.asks if ask.state == state]

    def look(self) -> None:
        """Let everybody run who can, and see what became of those who waited."""
        self.loop.settle()
        came: list[Ask] = []
        for ask in self.of("waiting"):
            if not ask.task.done():
                assert self.loop.time() <= ask.until + 0.001, "somebody waits beyond his time"
                continue
            if ask.task.cancelled():
                ask.state = "gone"
            elif isinstance(ask.task.exception(), Overloaded):
                ask.state = "refused"
            elif isinstance(ask.task.exception(), HoleTimeout):
                assert self.loop.time() >= ask.until, "a timeout came early"
                ask.state = "gone"
            else:
                assert ask.task.exception() is None
                ask.state = "inside"
                came.append(ask)
        for ask in came:
            for other in self.of("waiting"):
                assert ask.client != other.client or ask.rank < other.rank, "somebody was overtaken within a client"

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "gate"):
            return
        gate, waiting = self.gate, self.of("waiting")
        assert gate.num_inside == len(self.of("inside")) <= self.limits.max_in_engine
        assert gate.num_waiting == len(waiting) <= self.limits.max_waiting
        assert gate.waiting_tokens == sum(ask.tokens for ask in waiting)
        assert gate.waiting_tokens <= self.limits.max_waiting_tokens or len(waiting) == 1
        assert not waiting or gate.num_inside == self.limits.max_in_engine, "there is room, and somebody waits"
        assert 1 <= gate.retry_after() <= MAX_RETRY_AFTER

    def teardown(self) -> None:
        if hasattr(self, "gate"):
            try:
                self.let_all_go()
            finally:
                self.loop.abandon()

    def let_all_go(self) -> None:
        """Everybody gets his turn, and nothing is left."""
        while self.of("inside"):
            self.of("inside")[0].state = "left"
            self.gate.leave()
            self.look()
        assert not self.of("waiting")
        assert (self.gate.num_inside, self.gate.num_waiting, self.gate.waiting_tokens) == (0, 0, 0)


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
