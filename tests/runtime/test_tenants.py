"""Whose prefixes go first: of the tree, of the pool with running jobs, and through the scheduler."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from benchmarks.growth.measure import lines
from palmette.runtime.memory import KVMemory
from palmette.runtime.radix_cache import RadixCache
from palmette.runtime.radix_node import RadixNode
from palmette.runtime.request import EmbedJob, GenerateJob, Status
from palmette.runtime.tenants import tenant_name
from palmette.types import EmbedRequest, ForkDeclared, GenerateRequest, Hints, ProgramEnded, SamplingParams
from tests.runtime import driving
from tests.runtime.fake_model import make_job
from tests.runtime.test_radix_cache import ids, put
from tests.runtime.test_scheduler import Bench


class Pool:
    """A tree, and paths in it that nobody shares."""

    def __init__(self, num_slots: int, page_size: int = 1) -> None:
        self.tree = RadixCache(page_size, num_slots)
        self.used = 0

    def put(self, namespace: str, num_tokens: int, program: str = "") -> RadixNode:
        first, self.used = self.used, self.used + num_tokens
        return put(self.tree, ids(*range(first, self.used)), first, program=program, namespace=namespace)

    def held(self, name: str) -> int:
        tenant = self.tree.tenants.find(name)
        return 0 if tenant is None else tenant.num_held

    def evict(self, num_tokens: int) -> None:
        self.tree.evict(num_tokens)
        self.tree.check_integrity()


@pytest.mark.parametrize(("namespace", "name"), [("", ""), ("/salt", ""), ("a", "a"), ("a/salt", "a"), ("a/b/c", "a")])
def test_a_tenant_is_what_stands_before_the_first_slash(namespace: str, name: str) -> None:
    assert tenant_name(namespace) == name


def test_who_floods_loses_its_own_prefixes_however_old_the_others_are() -> None:
    pool = Pool(100)
    pool.put("a", 20)
    for _ in range(8):
        pool.put("b", 10)
    for _ in range(50):
        pool.evict(10)
        pool.put("b", 10)
    assert (pool.held("a"), pool.held("b")) == (20, 80)


def test_a_salt_gives_no_further_share() -> None:
    pool = Pool(100)
    pool.put("a", 20)
    for salt in range(8):
        pool.put(f"b/{salt}", 10)
    pool.evict(50)
    assert (pool.held("a"), pool.held("b")) == (20, 30)


@pytest.mark.parametrize(("page_size", "share"), [(1, 34), (4, 36)])
def test_nobody_is_cut_below_its_share_while_another_is_beyond(page_size: int, share: int) -> None:
    pool = Pool(100, page_size)
    pool.put("a", 44)
    pool.put("b", 40)
    pool.put("c", 16)
    pool.evict(44 - share + 40 - share)  # each prefix alone is long enough
    assert (pool.held("a"), pool.held("b"), pool.held("c")) == (share, share, 16)
    pool.evict(4)  # nobody is beyond: who holds most gives
    assert pool.held("c") == 16


def test_a_prefix_within_a_share_goes_when_nobody_else_has_anything_to_give() -> None:
    pool = Pool(100)
    pool.put("a", 20)
    busy = pool.put("b", 80)
    pool.tree.lock_ref(busy)
    pool.evict(5)
    assert pool.held("a") == 15
    pool.tree.unlock_ref(busy)
    pool.evict(5)
    assert (pool.held("a"), pool.held("b")) == (15, 75)


def test_what_a_tenant_has_locked_counts_as_held() -> None:
    pool = Pool(100)
    pool.put("a", 30)
    pool.tree.lock_ref(pool.put("b", 60))
    pool.put("b", 10)  # less than what a could give
    pool.evict(10)
    assert (pool.held("a"), pool.held("b")) == (30, 60)


def test_within_a_tenant_the_order_is_the_one_it_has_alone() -> None:
    orders = []
    for others in (0, 3):
        pool = Pool(400)
        old, kept, ended = (pool.put("a", 5, program) for program in ("", "p", "q"))
        pool.put("a/salt", 5)
        new = pool.put("a", 5)
        pool.tree.hints.expect(kept, "p", 2)
        pool.tree.hints.end_program("q")
        pool.tree.lock_ref(old)
        pool.tree.unlock_ref(old)
        pool.put("a", 100)
        for i in range(others):
            pool.put(f"other{i}", 5)
        orders.append([pool.tree.evict(5)[0] for _ in range(4)])
        assert {ended.depth, old.depth} == {-1}
        assert (kept.depth, new.depth) == (5, -1)
    assert orders[0] == orders[1]


def test_tenants_that_come_and_go_leave_nothing_behind() -> None:
    pool = Pool(100)
    for i in range(100):
        pool.put(f"t{i}", 5)
        pool.put(f"u{i}", 6)
        pool.evict(11)
    assert len(pool.tree.tenants) == 0
    assert len(pool.tree.tenants._queue) < 50
    assert not pool.tree.tenants._noted


def eviction_lines(num_tenants: int) -> int:
    """Lines of the package that 20 rounds of eviction and growth run, one tenant beyond the others."""
    rng, pool = random.Random(0), Pool(20 * num_tenants)
    for i in range(num_tenants):
        pool.put(f"t{i}", rng.randrange(10, 20))

    def work() -> None:
        for _ in range(20):
            pool.tree.evict(5)
            pool.put("flood", 5)

    pool.put("flood", 100)
    work()
    return lines(work)


def test_the_cost_of_an_eviction_does_not_grow_with_the_tenants() -> None:
    few, many = eviction_lines(4), eviction_lines(1000)
    assert many < 1.5 * few


def test_the_queue_does_not_grow_with_use() -> None:
    pool = Pool(200)
    for i in range(5):
        pool.put(f"t{i}", 30)
    for i in range(500):
        pool.tree.evict(6)
        pool.put(f"t{i % 5}", 6)
    assert len(pool.tree.tenants._queue) < 40
    pool.tree.check_integrity()


# -- the pool ------------------------------------------------------------------------------------------------------


def job(name: str, tokens: range, namespace: str, hints: Hints | None = None) -> GenerateJob:
    params = SamplingParams(max_new_tokens=50)
    return make_job(GenerateRequest(name, tuple(tokens), params, hints=hints or Hints(), namespace=namespace))


def run(memory: KVMemory, tokens: range, namespace: str, hints: Hints | None = None) -> None:
    """A request from beginning to end."""
    one = job(f"{namespace}{tokens}", tokens, namespace, hints)
    memory.attach(one)
    assert memory.try_grow(one, len(tokens))
    memory.publish(one, len(tokens))
    one.computed_len = len(tokens)
    memory.tree.mark_computed()
    memory.settle(one, ends=True)


def test_what_running_requests_write_counts_as_their_tenants() -> None:
    memory = KVMemory(100)
    run(memory, range(30), "a")
    run(memory, range(20), "b")
    busy = job("busy", range(50, 55), "b")
    memory.attach(busy)
    assert memory.try_grow(busy, 50)  # private to the job: in the tree b holds less than a
    memory.allocator.free(memory.try_alloc(15) or [])
    assert memory.tree.probe("a", ids(*range(30)), 30).length == 30
    assert memory.tree.probe("b", ids(*range(20)), 20).length == 5
    memory.drop(busy)
    assert memory.tree.tenants.num_private == 0


def test_a_fork_that_is_kept_goes_before_what_another_tenant_has_within_its_share() -> None:
    memory = KVMemory(100)
    run(memory, range(30), "a", Hints("ended"))
    memory.hear(ProgramEnded("ended"))
    run(memory, range(60), "b", Hints("p"))
    memory.hear(ForkDeclared("p", tuple(range(60)), 2, "b"))
    run(memory, range(100, 105), "b")
    memory.allocator.free(memory.try_alloc(20) or [])
    assert memory.tree.probe("a", ids(*range(30)), 30).length == 30
    assert memory.tree.probe("b", ids(*range(100, 105)), 5).length == 0  # of b's, what is not kept goes first
    assert memory.tree.probe("b", ids(*range(60)), 60).length == 50


# -- the scheduler -------------------------------------------------------------------------------------------------


def cached_after_a_flood(quiet: str, busy: str) -> int:
    """Tokens of the quiet one's prompt of 12 that are still cached when the other has sent 40 prompts of 10."""
    bench = Bench(slots=64, max_running=3, chunk_size=16)
    bench.add("first", range(1000, 1012), namespace=quiet)
    bench.drain()
    for i in range(40):
        bench.add(f"flood{i}", range(10 * i, 10 * i + 10), namespace=busy)
    bench.drain()
    before = bench.scheduler.counters.cached_prompt_tokens
    bench.add("again", range(1000, 1012), namespace=quiet)
    bench.drain()
    return bench.scheduler.counters.cached_prompt_tokens - before


def test_a_flood_leaves_another_tenants_prefix_cached() -> None:
    assert cached_after_a_flood("a", "b") == 11  # all but the one that is computed for its logits
    assert cached_after_a_flood("a/salt", "b/salt") == 11


@pytest.mark.parametrize(("quiet", "busy"), [("", ""), ("", "/salt"), ("a", "a"), ("a/one", "a/other")])
def test_within_one_tenant_a_flood_takes_all(quiet: str, busy: str) -> None:
    assert cached_after_a_flood(quiet, busy) == 0


def test_a_flood_through_the_engine_leaves_another_tenants_prefix_cached() -> None:
    core = driving.engine(kv_tokens=96, max_running=2)
    quiet = driving.generate("first", "what a quiet tenant asks", 2, namespace="a")
    driving.drive(core, [quiet])
    flood = [driving.generate(f"{i}", f"{i:02} how the other one floods us", 6, namespace="b") for i in range(12)]
    driving.drive(core, flood)
    run = driving.drive(core, [driving.generate("again", "what a quiet tenant asks", 2, namespace="a")])
    assert run.finish("again").usage.cached_tokens == len("what a quiet tenant asks") - 1


@pytest.mark.parametrize("seed", range(12))
def test_tenants_are_charged_for_what_their_running_requests_hold(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(
        slots=96, page_size=rng.choice([1, 4]), chunk_size=16, max_running=6, shares=seed % 4 > 0, decode_reserve=2
    )
    memory, names = bench.scheduler.memory, ["", "a", "a/x", "b"]
    for i in range(120):
        kind = rng.random()
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 20))]
        if kind < 0.4:
            bench.add(f"g{i}", tokens, rng.randrange(12), namespace=rng.choice(names))
        elif kind < 0.5:
            bench.number += 1
            bench.scheduler.add(EmbedJob(EmbedRequest(f"e{i}", tuple(tokens)), number=bench.number, now=0.0), 0.0)
        elif kind < 0.55 and bench.running():
            bench.scheduler.retract(rng.choice(bench.running()).request_id)
        elif kind < 0.6 and bench.scheduler.jobs():
            bench.scheduler.cancel(rng.choice(bench.scheduler.jobs()).request_id, 0.0)
        elif kind < 0.65:
            step = bench.scheduler.schedule()
            if step is not None:
                bench.scheduler.abort()
        else:
            bench.step(bad=[rng.randrange(4)] if kind < 0.7 else [])
        bench.scheduler.check_integrity()
        private: Counter[str] = Counter()
        for one in bench.scheduler.jobs():
            if one.status is Status.RUNNING and not isinstance(one, EmbedJob):
                private[tenant_name(one.namespace)] += len(one.tail)
        for name in ("", "a", "b"):
            tenant = memory.tree.tenants.find(name)
            assert (0 if tenant is None else tenant.num_private) == private[name]
    bench.drain()
    memory.flush()
    assert len(memory.tree.tenants) == 0
