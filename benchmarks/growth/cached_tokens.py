"""Cached tokens: a request costs its match, a step costs nothing of the tree.

Measured on the scheduler without a model. A request is admitted, computed and ended: 128 of its tokens are cached, 32
are new. The tree grows from 1,000 to a million tokens below it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from benchmarks.growth.law import Row, geometric
from benchmarks.growth.measure import both
from benchmarks.growth.stand_ins import PATH, BareScheduler

LAW = "cached tokens"
NEW = 32  # tokens of a request that nobody computed yet
NODE = 64  # tokens of a node where a path is many nodes
ROUNDS, CALLS = 9, 10


def rows(*, quick: bool = False) -> list[Row]:
    trees = geometric(1_000, 64_000 if quick else 1_024_000, 4)
    return [*requests(trees), *full_pools(trees), *steps(trees), *matches(geometric(256, 16_384 if quick else 65_536))]


def requests(sizes: Sequence[int]) -> list[Row]:
    """A request beside a tree that grows."""
    cases = {size: _filled(size, room=1 << 16) for size in sizes}
    return both(LAW, "a request, 128 tokens matched", "tokens cached", 0.0, cases, _request, ROUNDS, CALLS)


def full_pools(sizes: Sequence[int]) -> list[Row]:
    """The same where the pool is full, so that every slot must be won by eviction."""
    cases = {size: _filled(size, room=0) for size in sizes}
    for case in cases.values():
        while case.memory.allocator.num_free >= NEW:
            _request(case)
    return both(LAW, "a request that must evict", "tokens cached", 0.0, cases, _request, ROUNDS, CALLS)


def steps(sizes: Sequence[int]) -> list[Row]:
    """A decode step of eight requests."""
    cases = {size: _filled(size, room=1 << 16) for size in sizes}
    for case in cases.values():
        for _ in range(8):
            case.add(case.paths[0] + case.tokens(NEW), 3 * ROUNDS * CALLS)
        for _ in range(4):
            case.step()
    return both(
        LAW, "a decode step of 8 requests", "tokens cached", 0.0, cases, lambda case: case.step(), ROUNDS, CALLS
    )


def matches(sizes: Sequence[int]) -> list[Row]:
    """Matching alone, along a path of many nodes."""
    cases: dict[int, tuple[BareScheduler, array[int]]] = {}
    for size in sizes:
        case = BareScheduler(2 * size + PATH)
        path = case.tokens(size)
        _cache_in_nodes(case, path)
        cases[size] = case, path

    def match(pair: tuple[BareScheduler, array[int]]) -> object:
        tree = pair[0].memory.tree
        return tree.match_prefix(tree.root(), pair[1], len(pair[1]))

    return both(LAW, f"a match, nodes of {NODE} tokens", "tokens matched", 1.0, cases, match, ROUNDS, CALLS)


def _filled(size: int, *, room: int) -> BareScheduler:
    case = BareScheduler(size + room)
    case.fill(size - PATH if room == 0 else size)
    return case


def _request(case: BareScheduler) -> None:
    case.add(case.paths[len(case.paths) // 2] + case.tokens(NEW), 1)
    case.run()


def _cache_in_nodes(case: BareScheduler, path: array[int]) -> None:
    """As a stream leaves it: each piece behind the one before."""
    tree = case.memory.tree
    node = tree.root()
    for start in range(0, len(path), NODE):
        slots = case.memory.try_alloc(NODE)
        assert slots is not None, "the pool is too small"
        node, _ = tree.insert(node, path[: start + NODE], slots)
