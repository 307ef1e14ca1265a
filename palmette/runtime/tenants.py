"""Whose cached prefixes go first when slots are needed: of the tenant that holds most, down to its share.

    namespace "ab12/salt"         tenant "ab12"           holds = cached (evictable or locked) + private to its jobs
    share = pool / tenants        excess = what a tenant holds beyond its share

Of those that have something evictable the one that holds most gives, no further than to its share; so a tenant that
holds less than its share loses a prefix only when nobody beyond a share has anything to give, and whoever loses one
held no less than all who could have given instead. Shares need no setting: many small tenants do not make a middling
one pay for a large one, and what nobody else wants is anybody's.

Knows counters and names. Does not know which of a tenant's leaves goes first (RadixCache), nor who asks for slots: a
running job's need goes before what is cached, whoever's it is. Costs: O(1) a change, O(log tenants) a choice.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a tenant's heap holds nodes, and a node knows its tenant
    from palmette.runtime.radix_node import RadixNode

UNBOUNDED = 1 << 62  # slots: nobody is ever beyond a share


def tenant_name(namespace: str) -> str:
    """Whose namespace it is: what is before the first slash. What is behind it separates and gives no further share."""
    return namespace.partition("/")[0]


class Tenant:
    """What one tenant holds of the pool, in slots. Mutated by RadixCache (the tree's), KVMemory (private), Tenants."""

    __slots__ = ("entry", "leaves", "name", "num_cached", "num_evictable", "num_private", "num_roots")

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_roots = 0  # namespaces that are in the tree; a job that holds private slots keeps one of them
        self.num_cached = 0  # in the tree
        self.num_evictable = 0  # of those, on nobody's path
        self.num_private = 0  # of its jobs, outside the tree
        self.leaves: list[tuple[tuple[int, int], int, RadixNode]] = []  # a heap, lazily repaired; see RadixCache._push
        self.entry: tuple[int, int, Tenant] | None = None  # its valid entry in the queue of Tenants

    @property
    def num_held(self) -> int:
        return self.num_cached + self.num_private


class Tenants:
    """Everybody who has a namespace in one tree.

    The queue is a heap, most held first. A valid entry may say too much, which giver() repairs, and never too little:
    whoever may hold more than its entry says, or has something evictable again, was noted since.
    """

    def __init__(self, page_size: int, num_slots: int = UNBOUNDED) -> None:
        """
        Args:
            num_slots: of the pool that is shared.
        """
        self._page_size = page_size
        self._num_slots = num_slots
        self._by_name: dict[str, Tenant] = {}
        self._queue: list[tuple[int, int, Tenant]] = []  # (-held, sequence number, who)
        self._noted: dict[str, Tenant] = {}
        self._sequence = 0
        self.share = 0  # slots up to which a tenant's prefixes are safe from the others', whole pages
        self._divide()

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def num_private(self) -> int:
        """Slots of jobs outside the tree; O(tenants), for checks."""
        return sum(tenant.num_private for tenant in self._by_name.values())

    def find(self, name: str) -> Tenant | None:
        """The tenant of this name, if it has anything in the tree."""
        return self._by_name.get(name)

    def open(self, namespace: str) -> Tenant:
        """The owner of a namespace that enters the tree; close() when it leaves."""
        name = tenant_name(namespace)
        tenant = self._by_name.get(name)
        if tenant is None:
            tenant = self._by_name[name] = Tenant(name)
            self._divide()
        tenant.num_roots += 1
        return tenant

    def close(self, tenant: Tenant) -> None:
        """One of its namespaces left the tree. Who has none is forgotten."""
        tenant.num_roots -= 1
        if not tenant.num_roots:
            assert tenant.num_held == 0, "a tenant leaves without what it holds"
            del self._by_name[tenant.name]
            self._divide()
            self._noted.pop(tenant.name, None)
            tenant.entry = None
            tenant.leaves.clear()

    def note(self, tenant: Tenant) -> None:
        """It holds more than before, or has more that is evictable. O(1)."""
        self._noted[tenant.name] = tenant

    def giver(self) -> Tenant | None:
        """Who holds most of those that have something evictable; None if nobody has."""
        if len(self._by_name) == 1:
            (alone,) = self._by_name.values()
            return alone if alone.num_evictable else None
        self._take_in_noted()
        queue = self._queue
        while queue:
            negated, _, tenant = queue[0]
            if tenant.entry is not queue[0]:
                heappop(queue)  # a newer entry stands for it, or it is gone
            elif not tenant.num_evictable:
                heappop(queue)
                tenant.entry = None
            elif tenant.num_held < -negated:
                tenant.entry = self._entry(tenant)
                heapreplace(queue, tenant.entry)
            else:
                return tenant
        return None

    def excess(self, tenant: Tenant) -> int:
        """Slots it holds beyond its share, whole pages; 0 for one that is within."""
        excess = tenant.num_held - self.share
        return excess if excess > 0 else 0

    def check_integrity(self, cached: dict[str, tuple[int, int, int]]) -> None:
        """
        Args:
            cached: by tenant what the tree has: roots, tokens, evictable ones.

        Raises:
            AssertionError: an invariant is broken.
        """
        counted = {t.name: (t.num_roots, t.num_cached, t.num_evictable) for t in self._by_name.values()}
        assert counted == cached, f"counters of tenants are off: {counted}, not {cached}"
        entries = {id(entry) for entry in self._queue}
        for tenant in self._by_name.values():
            assert tenant.num_private >= 0, f"tenant {tenant.name!r} gave back more than it had"
            assert tenant.num_held % self._page_size == 0, "part of a page"
            if tenant.entry is not None:
                assert id(tenant.entry) in entries, "an entry that is not in the queue"
            if tenant.num_evictable and tenant.name not in self._noted:
                assert tenant.entry is not None, "nobody would ask it for its tokens"
                assert tenant.num_held <= -tenant.entry[0], "it would be asked too late"

    def _divide(self) -> None:
        share = -(-self._num_slots // max(1, len(self._by_name)))
        self.share = share + -share % self._page_size

    def _take_in_noted(self) -> None:
        for tenant in self._noted.values():
            if tenant.num_evictable and (tenant.entry is None or tenant.num_held > -tenant.entry[0]):
                tenant.entry = self._entry(tenant)
                heappush(self._queue, tenant.entry)
        self._noted.clear()
        if len(self._queue) > 2 * len(self._by_name) + 16:  # so a sweep costs O(1) for each entry pushed since the last
            self._queue = [entry for entry in self._queue if entry[2].entry is entry]
            heapify(self._queue)

    def _entry(self, tenant: Tenant) -> tuple[int, int, Tenant]:
        self._sequence += 1
        return (-tenant.num_held, self._sequence, tenant)
