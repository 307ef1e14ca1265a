"""The pool as jobs see it: what passes between allocator, tree and a job."""

from __future__ import annotations

from palmette.runtime.memory import KVMemory
from palmette.runtime.request import GenerateJob
from palmette.types import BranchesEnded, ForkDeclared, GenerateRequest, Hints, ProgramEnded, SamplingParams
from tests.runtime.fake_model import make_job


def job(name: str, tokens: list[int], hints: Hints | None = None, max_new: int = 4) -> GenerateJob:
    request = GenerateRequest(name, tuple(tokens), SamplingParams(max_new_tokens=max_new), hints=hints or Hints())
    return make_job(request)


def compute(memory: KVMemory, one: GenerateJob, end: int) -> None:
    """As a step would."""
    assert memory.try_grow(one, end)
    memory.publish(one, end)
    memory.count_sibling(one)
    one.computed_len = end
    memory.tree.mark_computed()


def run(memory: KVMemory, name: str, tokens: list[int], hints: Hints | None = None) -> None:
    """A request from beginning to end."""
    one = job(name, tokens, hints)
    memory.attach(one)
    compute(memory, one, len(tokens))
    memory.settle(one, ends=True)


def test_what_the_tree_learns_twice_before_a_row_is_written_together() -> None:
    memory = KVMemory(64)
    one = job("a", [1, 2, 3, 4, 5, 6])
    memory.attach(one)
    run(memory, "b", [1, 2])
    memory.advance(one)
    run(memory, "c", [1, 2, 3, 4])
    memory.advance(one)
    assert one.computed_len == 4
    assert one.unwritten is not None
    index, slots = one.unwritten
    assert index == 0
    assert slots.tolist() == memory.tree.match_prefix(memory.tree.root(), one.tokens, 4).slots.tolist()


def test_a_jobs_own_copies_go_back_when_the_tree_has_them() -> None:
    memory = KVMemory(64, page_size=2)
    one = job("a", [1, 2, 3, 4, 5, 6])
    memory.attach(one)
    assert memory.try_grow(one, 3)
    one.computed_len = 3
    run(memory, "b", [1, 2, 3, 4])
    memory.advance(one)
    assert one.tail == []
    assert one.computed_len == 4
    memory.settle(one, ends=True)
    memory.check_integrity([])


def test_eviction_makes_room_and_never_more_than_there_is() -> None:
    memory = KVMemory(8)
    run(memory, "a", [1, 2, 3, 4, 5, 6])
    assert memory.num_available == 8
    assert memory.try_alloc(9) is None
    assert memory.tree.num_tokens == 6
    slots = memory.try_alloc(8)
    assert slots is not None
    assert sorted(slots) == list(range(8))


def test_a_fork_that_was_declared_outlives_other_prefixes() -> None:
    memory = KVMemory(8)
    run(memory, "parent", [1, 2, 3], Hints("p"))
    memory.hear(ForkDeclared("p", (1, 2, 3), 2))
    run(memory, "other", [7, 8, 9, 9])
    memory.allocator.free(memory.try_alloc(5) or [])
    assert memory.tree.probe("", job("s", [1, 2, 3, 4]).tokens, 4).length == 3
    for i in range(2):
        run(memory, f"s{i}", [1, 2, 3, 4 + i], Hints("p", shared_len=3, siblings=2))
    run(memory, "other", [7, 8])
    memory.allocator.free(memory.try_alloc(6) or [])
    assert memory.tree.probe("", job("s", [1, 2, 3, 4]).tokens, 4).length < 3


def test_branches_that_will_not_come_are_not_waited_for() -> None:
    memory = KVMemory(8)
    run(memory, "parent", [1, 2, 3], Hints("p"))
    memory.hear(ForkDeclared("p", (1, 2, 3), 2))
    memory.hear(BranchesEnded("p", (1, 2, 3), 2))
    run(memory, "other", [7, 8, 9])
    memory.allocator.free(memory.try_alloc(5) or [])
    assert memory.tree.probe("", job("s", [1, 2, 3, 4]).tokens, 4).length == 0


def test_the_first_sibling_announces_a_fork_that_nobody_declared() -> None:
    memory = KVMemory(16)
    hints = Hints("p", shared_len=3, siblings=3)
    run(memory, "s0", [1, 2, 3, 4], hints)
    run(memory, "other", [7, 8])
    memory.flush()
    assert memory.tree.num_tokens == 0
    run(memory, "s0", [1, 2, 3, 4], hints)
    for i in range(4):
        run(memory, f"o{i}", [7 + i, 8, 9])
    assert memory.tree.probe("", job("s", [1, 2, 3, 9]).tokens, 4).length == 3
    memory.hear(ProgramEnded("p"))
    assert memory.tree.hints.num_programs == 0


def test_a_hint_about_what_is_not_cached_leaves_nothing_behind() -> None:
    memory = KVMemory(16)
    memory.hear(ForkDeclared("p", (1, 2), 5, "nowhere"))
    assert memory.tree.hints.num_programs == 0
    memory.check_integrity([])


def test_a_memory_that_does_not_listen_ignores_hints() -> None:
    memory = KVMemory(16, listens=False)
    run(memory, "a", [1, 2], Hints("p", last_use=True))
    memory.hear(ForkDeclared("p", (1, 2), 5))
    memory.hear(ProgramEnded("p"))
    run(memory, "b", [3], Hints())
    memory.allocator.free(memory.try_alloc(14) or [])
    assert memory.tree.probe("", job("s", [3, 1]).tokens, 2).length == 1
