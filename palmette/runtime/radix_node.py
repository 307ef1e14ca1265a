"""One node of the radix tree: a run of tokens and the slots that hold their keys and values.

    IN_FLIGHT --step applied--> COMPUTED --finite logits behind it--> PROVEN
        `----step failed------------`---- logits not finite -----> removed

Knows its neighbours and its own counters. What they mean for eviction is radix_cache.py's business.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import IntEnum
from typing import Protocol

from palmette.runtime.tenants import Tenant

TOKEN_CODE = "q"  # 64 bits: token ids, and atoms above 2**32

ChildKey = int | bytes  # a child's first page


class NodeState(IntEnum):
    """How far a node's keys and values can be trusted. A proven node's ancestors are proven."""

    IN_FLIGHT = 0  # being computed by the step that is running: may be read by that step, not yet by a later one
    COMPUTED = 1
    PROVEN = 2  # logits computed from them were finite


class Rank(IntEnum):
    """What goes first when memory runs out; within a rank the least recently used."""

    FIRST = 0  # only a program that ended used it, or its request said last_use
    NORMAL = 1
    KEEP = 2  # siblings of a fork are still expected


class RadixNode:
    """A run of tokens behind its parent's. Mutated by RadixCache and CacheHints alone."""

    __slots__ = (
        "children",
        "depth",
        "heap_key",
        "joined",
        "keep",
        "key",
        "locks",
        "namespace",
        "owner",
        "parent",
        "rank",
        "refs",
        "slots",
        "stamp",
        "state",
        "tenant",
    )

    def __init__(
        self,
        parent: RadixNode | None,
        key: array[int],
        slots: array[int],
        *,
        state: NodeState,
        stamp: int,
        tenant: Tenant,
        namespace: str = "",
    ) -> None:
        self.parent = parent  # None = a root, or removed
        self.key = key  # whole pages of tokens
        self.slots = slots  # one for each token
        # Tokens from the root to its end, -1 = removed. May become less, never more, and what is left stays the same.
        self.depth: int = len(key) + (parent.depth if parent is not None else 0)
        self.children: dict[ChildKey, RadixNode] = {}
        self.locks = 0  # requests whose path ends here
        self.refs = 0  # locks + children with refs > 0; 0 = nobody's path goes through it
        self.state = state
        self.rank = Rank.NORMAL
        self.stamp = stamp  # logical time of the last use of it or of anything that was below it
        self.heap_key: tuple[int, int] | None = None  # of its valid entry in the eviction heap
        self.owner = ""  # the one program that used it; "" = several, or none
        self.keep: dict[str, int] | None = None  # program -> siblings still expected here
        self.namespace = namespace  # of a root
        self.tenant = tenant  # whose namespace it is in
        self.joined: tuple[RadixNode, int] | None = None  # the child that took it in, and its depth then

    def walk(self) -> Iterator[RadixNode]:
        """The node and all below it, a parent before its children."""
        stack = [self]
        while stack:  # no recursion: depth is the user's
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check_refs(self) -> None:
        """
        Raises:
            AssertionError: the reference count is wrong.
        """
        busy = sum(1 for child in self.children.values() if child.refs)
        assert self.locks >= 0, "unlocked more often than locked"
        assert self.refs == self.locks + busy, "a wrong reference count"


class Sliced(Protocol):
    """What has tokens to compare: an array, or a request's."""

    def __getitem__(self, index: slice, /) -> array[int]: ...


def common_len(tokens: Sliced, start: int, key: Sliced, limit: int, skip: int = 0) -> int:
    """How many of key[skip:skip + limit] equal tokens[start:start + limit]. Compares slices, a few for any length."""
    if tokens[start : start + limit] == key[skip : skip + limit]:
        return limit
    low, high = 0, limit  # equal up to low, different somewhere before high
    while high - low > 1:
        middle = (low + high) // 2
        if tokens[start + low : start + middle] == key[skip + low : skip + middle]:
            low = middle
        else:
            high = middle
    return low
