"""Scheduling policies: in which order waiting jobs should be admitted. A policy orders and does nothing else.

An order is a lazy iterator: when it is asked for the next job, the one before has been admitted or passed over, and
what its admission put into the tree counts. Costs O(jobs ordered) tree probes, never O(queue).

Longest prefix first visits the radix tree of the jobs depth first, and depth-first order computes each shared prefix
once if the pool holds the longest job (arXiv 2312.07104, theorem 3.1); both are property tests.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import pairwise
from typing import Protocol, TypeVar

from palmette.runtime.config import PolicyName
from palmette.runtime.radix_cache import Probe
from palmette.runtime.radix_node import common_len
from palmette.runtime.tokens import TokenRow


class Ordered(Protocol):
    """What a policy reads of a job."""

    @property
    def tokens(self) -> TokenRow: ...
    @property
    def match_limit(self) -> int: ...
    @property
    def namespace(self) -> str: ...


J = TypeVar("J", bound=Ordered)


class Policy(Protocol):
    """Orders a window of waiting jobs."""

    def order(self, jobs: Sequence[J], probe: Callable[[J], Probe]) -> Iterator[J]:
        """
        Args:
            jobs: oldest first.
            probe: where a job's tokens leave the tree at this moment.
        """
        ...


class FirstCome:
    """By arrival."""

    def order(self, jobs: Sequence[J], probe: Callable[[J], Probe]) -> Iterator[J]:
        return iter(jobs)


class RandomOrder:
    """At random, for comparison."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def order(self, jobs: Sequence[J], probe: Callable[[J], Probe]) -> Iterator[J]:
        return iter(self._random.sample(jobs, len(jobs)))


class LongestPrefix:
    """The job with the longest cached prefix first, then by arrival.

    Matches grow while jobs are admitted. A job's match can only grow when one is admitted that leaves the tree at the
    same node with the same next tokens, so only those are probed again.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size

    def order(self, jobs: Sequence[J], probe: Callable[[J], Probe]) -> Iterator[J]:
        heap: list[tuple[int, int]] = []  # (-match, place)
        groups: defaultdict[_Exit, set[int]] = defaultdict(set)
        exits: list[_Exit] = []
        for place, job in enumerate(jobs):
            found = probe(job)
            heap.append((-found.length, place))
            exits.append(self._exit(job, found))
            groups[exits[place]].add(place)
        heapify(heap)
        taken = bytearray(len(jobs))
        while heap:
            negated, place = heap[0]
            if taken[place]:
                heappop(heap)
                continue
            job = jobs[place]
            length = probe(job).length
            if length < -negated:  # an eviction cut it
                heapreplace(heap, (-length, place))
                continue
            taken[place] = 1
            group = groups[exits[place]]
            group.discard(place)
            yield job
            if exits[place] is None or self._exit(job, probe(job)) == exits[place]:
                continue  # it put nothing into the tree
            for other in list(group):
                found = probe(jobs[other])
                left = self._exit(jobs[other], found)
                if left != exits[other]:
                    group.discard(other)
                    exits[other] = left
                    groups[left].add(other)
                heappush(heap, (-found.length, other))

    def _exit(self, job: Ordered, found: Probe) -> _Exit:
        """Where a job leaves the tree, and with which tokens."""
        end = found.depth + self._page_size
        if end > job.match_limit:
            return None  # nothing is left to match
        return (job.namespace, id(found.node), job.tokens[found.depth : end].tobytes())


_Exit = tuple[str, int, bytes] | None


class DepthFirst:
    """Depth first through the radix tree of the waiting jobs, into the subtree with the most jobs first.

    Looks at what the jobs share with each other; what is cached does not matter to it.
    """

    def order(self, jobs: Sequence[J], probe: Callable[[J], Probe]) -> Iterator[J]:
        places = sorted(range(len(jobs)), key=lambda place: (jobs[place].namespace, jobs[place].tokens[:].tobytes()))
        shared = [0, *(_shared_len(jobs[a], jobs[b]) for a, b in pairwise(places))]
        yield from (jobs[place] for place in _depth_first(places, shared))


def make_policy(name: PolicyName, *, page_size: int = 1, seed: int = 0) -> Policy:
    """The policy of this name."""
    if name == "fcfs":
        return FirstCome()
    if name == "random":
        return RandomOrder(seed)
    if name == "depth_first":
        return DepthFirst()
    return LongestPrefix(page_size)


def _shared_len(one: Ordered, other: Ordered) -> int:
    """Tokens two jobs share; -1 if they share not even the namespace."""
    if one.namespace != other.namespace:
        return -1
    return common_len(one.tokens, 0, other.tokens, min(len(one.tokens), len(other.tokens)))


def _depth_first(places: list[int], shared: list[int]) -> Iterator[int]:
    """Sorted sequences as a tree, visited heaviest child first, then the child that came first.

        places   a b c d         shared[i] = what i shares with i - 1
        shared   0 5 9 3         the tree: (a (b c)) with d beside it

    Without recursion: a node is a range of places, and splits where its neighbours share least.
    """
    stack = [(0, len(places))] if places else []
    while stack:
        begin, end = stack.pop()
        if end - begin == 1:
            yield places[begin]
            continue
        least = min(shared[begin + 1 : end])
        cuts = [begin, *(i for i in range(begin + 1, end) if shared[i] == least), end]
        ranges = list(pairwise(cuts))
        ranges.sort(key=lambda r: (r[0] - r[1], min(places[r[0] : r[1]])))
        stack.extend(reversed(ranges))
