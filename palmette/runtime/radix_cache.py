"""The prefix cache: a radix tree over token ids, one root a namespace. Compares tokens, never hashes.

    root --[Q: what is]--> node --[ 2+2?]--> node        an edge is a node's `key`: whole pages of tokens
                             `----[ the sky]--> node     with a slot for each

Knows which slots hold which prefix, who has locked what, and which prefix of a tenant may go first; whose goes first,
Tenants says. Does not know requests, free slots (PageAllocator) or tensors. Costs: match and insert O(tokens they walk,
as slices), lock and unlock O(nodes of the path that nobody else holds), evict O(freed (log nodes + log tenants)). Cited
idea: RadixAttention, arXiv 2312.07104, section 3.

    free slots + evictable + locked (num_tokens - num_evictable) + private to requests = the pool

A stream grows by a few tokens at a time. So that this is linear in its length, a match may begin at a Place where the
stream's earlier tokens were found before, and nodes that nothing tells apart are joined: a path of n tokens has
O(log n) of them where no others leave it.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from palmette.errors import InvalidOption
from palmette.runtime.cache_hints import CacheHints
from palmette.runtime.radix_node import TOKEN_CODE, ChildKey, NodeState, RadixNode, common_len
from palmette.runtime.tenants import UNBOUNDED, Tenant, Tenants, tenant_name
from palmette.runtime.tokens import TokenRow


class Match(NamedTuple):
    """The longest cached prefix. Valid until the tree changes, unless `node` is locked."""

    node: RadixNode  # ends exactly where the match ends
    slots: array[int]  # of the matched tokens behind `start`
    num_in_flight: int  # of those, how many steps that were not applied are still computing


class Probe(NamedTuple):
    """Where a request's tokens leave the tree. `node` is wholly matched, one of its children perhaps in part."""

    node: RadixNode | None  # None = the namespace is empty
    depth: int  # of `node` when probed: a node that was cut or removed since has another
    length: int


class Place(NamedTuple):
    """Where tokens[:depth] once were: on the path of `node`. `RadixCache.resume` tells whether they still are."""

    node: RadixNode
    depth: int  # whole pages


_SMALL = 256  # tokens: nodes up to this are joined whatever their sizes


class RadixCache:
    """The tree of one KV pool."""

    def __init__(self, page_size: int = 1, num_slots: int = UNBOUNDED) -> None:
        """
        Args:
            num_slots: of the pool, which its tenants share.
        """
        if page_size < 1:
            raise InvalidOption("page_size", page_size, "an integer >= 1")
        self.page_size = page_size
        self.num_tokens = 0  # in the tree
        self.num_evictable = 0  # of those, on nobody's path
        self.num_nodes = 0  # without roots
        self.tenants = Tenants(page_size, num_slots)
        self._roots: dict[str, RadixNode] = {}
        # What each step that was not applied computes, the oldest first, and last the one that is being planned.
        self._in_flight: deque[dict[RadixNode, None]] = deque([{}])
        self._clock = 0  # logical time
        self.hints = CacheHints(self._lowered)

    # -- reading -----------------------------------------------------------------------------------------------

    def root(self, namespace: str = "") -> RadixNode:
        """The root of a namespace, made if need be. It vanishes when it is empty and unlocked."""
        root = self._roots.get(namespace)
        if root is None:
            empty: array[int] = array(TOKEN_CODE)
            tenant = self.tenants.open(namespace)
            root = RadixNode(None, empty, empty, state=NodeState.PROVEN, stamp=0, tenant=tenant, namespace=namespace)
            self._roots[namespace] = root
        return root

    def try_root(self, namespace: str = "") -> RadixNode | None:
        """The root of a namespace, if it has one."""
        return self._roots.get(namespace)

    def match_prefix(self, start: RadixNode, tokens: TokenRow, limit: int, program: str = "") -> Match:
        """Follow tokens[start.depth:limit] down from `start`, whose path must be tokens[:start.depth].

        Splits the node in which the match ends, so that the match ends at a node. Counts as a use by `program`.
        """
        node, slots, num_in_flight = start, array(TOKEN_CODE), 0
        size, depth = self.page_size, start.depth
        if start.owner != program:
            self.hints.used(start, program)
        while depth + size <= limit:
            child = node.children.get(tokens[depth] if size == 1 else tokens[depth : depth + size].tobytes())
            if child is None:
                break
            same = common_len(tokens, depth, child.key, min(len(child.key), limit - depth))
            same -= same % size
            if same == 0:  # only when the limit cuts a page
                break
            if same < len(child.key):
                child = self._split(child, same)
            if child.owner != program:
                self.hints.used(child, program)
            slots += child.slots
            if child.state is NodeState.IN_FLIGHT:
                num_in_flight += same
            node, depth = child, depth + same
        self._touch(node)
        return Match(node, slots, num_in_flight)

    def probe(self, namespace: str, tokens: TokenRow, limit: int, last: Probe | None = None) -> Probe:
        """How long a match would be, changing nothing. `last`, an earlier answer for these tokens, saves the walk."""
        size = self.page_size
        if last is not None and last.node is not None and last.node.depth == last.depth:
            node: RadixNode = last.node
        else:
            root = self._roots.get(namespace)
            if root is None:
                return Probe(None, 0, 0)
            node = root
        depth = node.depth
        while depth + size <= limit:
            child = node.children.get(tokens[depth] if size == 1 else tokens[depth : depth + size].tobytes())
            if child is None:
                break
            same = common_len(tokens, depth, child.key, min(len(child.key), limit - depth))
            if same < len(child.key):
                return Probe(node, node.depth, depth + same - same % size)
            node, depth = child, depth + same
        return Probe(node, node.depth, depth)

    def resume(self, namespace: str, place: Place, tokens: TokenRow, limit: int) -> RadixNode | None:
        """The node where tokens[:limit] leave the path of `place`, cut if they leave inside it, or its end.

        Reads and compares nothing before place.depth. What holds is checked by identity: a node's path is the same for
        ever up to its depth, which never grows; where a child took it in, that is true of the child. None if the place
        is gone, or is of another namespace or tree.
        """
        depth = min(place.depth, limit)
        depth -= depth % self.page_size
        node = place.node
        while node.joined is not None:
            node, known = node.joined
            if known < depth:
                return None
        if depth <= 0 or node.depth < depth:
            return None
        node = _holder(node, depth)
        if self._roots.get(namespace) is not _root_of(node):
            return None
        if node.depth > depth:
            begin = node.depth - len(node.key)
            end = depth + common_len(tokens, depth, node.key, min(node.depth, limit) - depth, depth - begin)
            end -= end % self.page_size
            if end < node.depth:
                node = self._split(node, end - begin)
        return node

    def path_slots(self, node: RadixNode) -> array[int]:
        """The slots of all tokens from the root to the end of `node`."""
        parts: list[array[int]] = []
        walk: RadixNode | None = node
        while walk is not None:
            parts.append(walk.slots)
            walk = walk.parent
        slots = array(TOKEN_CODE)
        for part in reversed(parts):
            slots.extend(part)
        return slots

    def place(self, node: RadixNode, depth: int) -> Place | None:
        """Where the first `depth` tokens of the path of `node` are, whole pages of them, or as many as it has."""
        depth = min(depth, node.depth)
        depth -= depth % self.page_size
        return Place(_holder(node, depth), depth) if depth > 0 else None

    # -- writing -----------------------------------------------------------------------------------------------

    def cut_at(self, node: RadixNode, depth: int) -> RadixNode:
        """The node that ends at `depth`, whole pages, on the path of `node`, which is at least as deep."""
        holder = _holder(node, depth)
        return holder if holder.depth == depth else self._split(holder, depth - holder.depth + len(holder.key))

    def join_up(self, node: RadixNode) -> None:
        """Let `node` take in the nodes before it that nothing tells from it, the small and those not much longer.

        So sizes at least double towards the root, and a token moves O(log n) times.
        """
        while True:
            parent = node.parent
            if parent is None or len(parent.key) > max(_SMALL, 2 * len(node.key)) or not _can_join(parent, node):
                return
            self._join(parent, node)

    def try_insert_child(
        self, node: RadixNode, tokens: Sequence[int], slots: Sequence[int], state: NodeState, program: str = ""
    ) -> RadixNode | None:
        """Put whole pages behind `node`; None if the first of them is there already. The tree owns the slots then.

        What is in flight is so by the step that is being planned.
        """
        return self._try_add_child(node, tokens, slots, state, program, self._in_flight[-1])

    def insert(
        self,
        start: RadixNode,
        tokens: TokenRow,
        slots: Sequence[int],
        state: NodeState = NodeState.COMPUTED,
        program: str = "",
    ) -> tuple[RadixNode, int]:
        """Make the path tokens[:start.depth + len(slots)] be in the tree, `start` being on it.

        Args:
            slots: one for each token behind `start`, whole pages.

        Returns:
            The path's last node, and how many of the tokens were there already: slots[:that] stay the caller's.
        """
        end = start.depth + len(slots)
        match = self.match_prefix(start, tokens, end, program)
        existing = len(match.slots)
        if start.depth + existing == end:
            return match.node, existing
        rest = start.depth + existing
        state = min(state, match.node.state)  # what others computed on the way is not proven by our logits
        step = self._step_of(match.node) if state is NodeState.IN_FLIGHT else self._in_flight[-1]
        child = self._try_add_child(match.node, tokens[rest:end], slots[existing:], state, program, step)
        assert child is not None, "a match ended before a child that continues it"
        return child, existing

    def lock_ref(self, node: RadixNode) -> None:
        """Keep `node` and its ancestors from eviction. Locks count."""
        node.locks += 1
        self._add_ref(node)

    def unlock_ref(self, node: RadixNode) -> None:
        assert node.locks > 0, "unlocked more often than locked"
        node.locks -= 1
        self._drop_ref(node)

    def evict(self, num_tokens: int) -> list[int]:
        """Drop at least `num_tokens` tokens if as many are evictable, never a locked one.

        They are taken from the tenant that holds most, no further than to its share while another is beyond its own
        (tenants.py); of a tenant's the least useful first. A long leaf is cut from its end, so little more than asked
        for goes.

        Returns:
            The freed slots, whole pages; they are the caller's.
        """
        freed: list[int] = []
        while len(freed) < num_tokens:
            tenant = self.tenants.giver()
            if tenant is None:
                break
            wanted = num_tokens - len(freed)
            wanted += -wanted % self.page_size
            node = self._pop_leaf(tenant)
            wanted = min(wanted, self.tenants.excess(tenant) or wanted)
            if wanted < len(node.key):
                freed.extend(self._cut_tail(node, wanted))
                self._push(node)
            else:
                freed.extend(node.slots)
                self._remove_leaf(node)
        return freed

    # -- the steps that are running ----------------------------------------------------------------------------

    def begin_step(self) -> None:
        """The step that was being planned is computed from now on; what goes in flight later is another's."""
        self._in_flight.append({})

    def mark_computed(self) -> None:
        """The oldest step was applied: what was in flight by it is there."""
        for node in self._in_flight.popleft():
            node.state = NodeState.COMPUTED
        if not self._in_flight:
            self._in_flight.append({})

    def prove(self, node: RadixNode) -> None:
        """Finite logits were computed from this path."""
        walk: RadixNode | None = node
        while walk is not None and walk.state is not NodeState.PROVEN:
            assert walk.state is NodeState.COMPUTED, "proven before its step was applied"
            walk.state = NodeState.PROVEN
            walk = walk.parent

    def suspect(self, node: RadixNode) -> RadixNode | None:
        """The topmost node of `node`'s path that nothing has proven yet."""
        top: RadixNode | None = None
        walk: RadixNode | None = node
        while walk is not None and walk.state is not NodeState.PROVEN:
            top, walk = walk, walk.parent
        return top

    def is_below(self, node: RadixNode, top: RadixNode) -> bool:
        """Is `top`, an unproven node, on the path of `node`?"""
        walk: RadixNode | None = node
        while walk is not None and walk.state is not NodeState.PROVEN:
            if walk is top:
                return True
            walk = walk.parent
        return False

    def find(self, node: RadixNode) -> RadixNode | None:
        """The node, or the one that took it in; None if it is gone."""
        while node.joined is not None:
            node = node.joined[0]
        return node if node.depth >= 0 else None

    def in_flight_tops(self) -> list[RadixNode]:
        """The nodes in flight, by whatever step, whose parents are not."""
        return [
            node
            for step in self._in_flight
            for node in step
            if node.parent is not None and node.parent.state is not NodeState.IN_FLIGHT
        ]

    def remove_subtree(self, top: RadixNode) -> list[int]:
        """Drop `top`, which must not be locked, and everything behind it. Returns the freed slots."""
        assert top.refs == 0, "a locked subtree cannot be removed"
        nodes = list(top.walk())
        freed: list[int] = []
        for node in reversed(nodes):  # children first
            freed.extend(node.slots)
            self._remove_leaf(node)
        return freed

    # -- checks ------------------------------------------------------------------------------------------------

    def nodes(self) -> Iterator[RadixNode]:
        """Every node but the roots, a parent before its children."""
        for root in list(self._roots.values()):
            for node in root.walk():
                if node is not root:
                    yield node

    def check_integrity(self) -> None:
        """O(tree); for tests and for idle moments.

        Raises:
            AssertionError: an invariant is broken.
        """
        entries: set[tuple[tuple[int, int], RadixNode]] = set()
        for tenant in {root.tenant for root in self._roots.values()}:
            entries |= {(key, node) for key, _, node in tenant.leaves}
        by_tenant: dict[str, tuple[int, int, int]] = {}
        seen: set[int] = set()
        num_tokens = num_evictable = num_nodes = 0
        for namespace, root in self._roots.items():
            assert (root.namespace, root.parent, root.depth) == (namespace, None, 0), "a root is misplaced"
            assert root.children or root.locks, f"namespace {namespace!r} is empty and unlocked"
            assert root.tenant.name == tenant_name(namespace), "a namespace of somebody else's"
            root.check_refs()
            roots, held, evictable = by_tenant.get(root.tenant.name, (0, 0, 0))
            behind = [node for node in root.walk() if node is not root]
            held += sum(len(node.key) for node in behind)
            evictable += sum(len(node.key) for node in behind if node.refs == 0)
            by_tenant[root.tenant.name] = (roots + 1, held, evictable)
        for node in self.nodes():
            parent = node.parent
            assert parent is not None, "a removed node is linked"
            assert parent.children.get(self._child_key(node.key)) is node, "a broken link"
            assert len(node.key) == len(node.slots) > 0, "tokens and slots differ in number"
            assert len(node.key) % self.page_size == 0, "part of a page"
            assert node.depth == parent.depth + len(node.key), "a wrong depth"
            assert node.tenant is parent.tenant, "a node of another tenant's"
            assert node.state <= parent.state or parent.state is not NodeState.IN_FLIGHT, "computed behind in flight"
            assert parent.state is NodeState.PROVEN or node.state is not NodeState.PROVEN, "proven behind unproven"
            steps = sum(node in step for step in self._in_flight)
            assert steps == (node.state is NodeState.IN_FLIGHT), (
                "in flight by no step, or by two, or not and yet by one"
            )
            node.check_refs()
            seen.update(node.slots)
            num_nodes += 1
            num_tokens += len(node.key)
            if node.refs == 0:
                num_evictable += len(node.key)
                if not node.children:
                    assert node.heap_key is not None, "a leaf nobody would evict"
                    assert (node.heap_key, node) in entries, "a leaf nobody would evict"
                    assert node.heap_key <= (node.rank, node.stamp), "a leaf would be evicted too late"
        assert len(seen) == num_tokens, "a slot is twice in the tree"
        counted = (num_tokens, num_evictable, num_nodes)
        assert counted == (self.num_tokens, self.num_evictable, self.num_nodes), f"counters are off: {counted}"
        self.tenants.check_integrity(by_tenant)
        self.hints.check_integrity(set(self.nodes()))

    def slots(self) -> set[int]:
        """Every slot in the tree; O(tree), for checks."""
        return {slot for node in self.nodes() for slot in node.slots}

    # -- private -----------------------------------------------------------------------------------------------

    def _try_add_child(
        self,
        node: RadixNode,
        tokens: Sequence[int],
        slots: Sequence[int],
        state: NodeState,
        program: str,
        step: dict[RadixNode, None],
    ) -> RadixNode | None:
        key, size = array(TOKEN_CODE, tokens), self.page_size
        assert len(key) == len(slots), "a slot for each token"
        assert key, "nothing to insert"
        assert len(key) % size == 0, "insert whole pages only"
        first = self._child_key(key)
        if first in node.children:
            return None
        tenant = node.tenant
        child = RadixNode(node, key, array(TOKEN_CODE, slots), state=state, stamp=self._tick(), tenant=tenant)
        node.children[first] = child
        self.num_nodes += 1
        self._count(tenant, len(key), len(key))
        self.tenants.note(tenant)
        if state is NodeState.IN_FLIGHT:
            step[child] = None
        self.hints.created(child, program)
        self._push(child)
        return child

    def _step_of(self, node: RadixNode) -> dict[RadixNode, None]:
        """What the step computes that has `node` in flight."""
        return next(step for step in self._in_flight if node in step)

    def _child_key(self, key: array[int]) -> ChildKey:
        return key[0] if self.page_size == 1 else key[: self.page_size].tobytes()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _count(self, tenant: Tenant, num_tokens: int, num_evictable: int) -> None:
        """So many more are in the tree, and evictable."""
        self.num_tokens += num_tokens
        self.num_evictable += num_evictable
        tenant.num_cached += num_tokens
        tenant.num_evictable += num_evictable

    def _touch(self, node: RadixNode) -> None:
        node.stamp = self._tick()  # ancestors take it over when they become leaves

    def _split(self, node: RadixNode, length: int) -> RadixNode:
        """Cut `node` behind `length` tokens. `node` stays the lower part, so that locks on it stay right."""
        parent = node.parent
        assert parent is not None
        first = self._child_key(node.key)
        key, slots = node.key[:length], node.slots[:length]
        upper = RadixNode(parent, key, slots, state=node.state, stamp=node.stamp, tenant=node.tenant)
        self.hints.split(upper, node)
        upper.refs = 1 if node.refs else 0
        node.key, node.slots, node.parent = node.key[length:], node.slots[length:], upper
        upper.children[self._child_key(node.key)] = node
        parent.children[first] = upper
        self.num_nodes += 1
        if node.state is NodeState.IN_FLIGHT:
            self._step_of(node)[upper] = None
        return upper

    def _join(self, parent: RadixNode, node: RadixNode) -> None:
        """The reverse of a split: `node` begins where its parent did. Its depth and its locks stay."""
        above = parent.parent
        assert above is not None, "a root is joined with nothing"
        above.children[self._child_key(parent.key)] = node
        node.parent = above
        node.key, node.slots = parent.key + node.key, parent.slots + node.slots
        node.stamp = max(node.stamp, parent.stamp)
        self.num_nodes -= 1
        self.hints.removed(parent)
        parent.joined = (node, parent.depth)
        _forget(parent)

    def _add_ref(self, node: RadixNode) -> None:
        walk: RadixNode | None = node
        while walk is not None:
            walk.refs += 1
            if walk.refs > 1:
                return
            self._count(walk.tenant, 0, -len(walk.key))
            walk = walk.parent

    def _drop_ref(self, node: RadixNode) -> None:
        self.tenants.note(node.tenant)
        walk: RadixNode | None = node
        while walk is not None:
            walk.refs -= 1
            if walk.refs:
                return
            self._count(walk.tenant, 0, len(walk.key))
            if not walk.children:
                self._push(walk)
            walk = walk.parent

    def _push(self, node: RadixNode) -> None:
        """Give an unlocked leaf a valid heap entry. One that is too early is good enough: evict() repairs it."""
        if node.parent is None:
            if not node.children and not node.refs and self._roots.get(node.namespace) is node:
                del self._roots[node.namespace]
                node.depth = -1
                self.tenants.close(node.tenant)
            return
        key = (int(node.rank), node.stamp)
        if node.heap_key is None or key < node.heap_key:
            node.heap_key = key
            heappush(node.tenant.leaves, (key, self._tick(), node))

    def _pop_leaf(self, tenant: Tenant) -> RadixNode:
        """The least useful leaf of a tenant that has something evictable. The heap has it no more."""
        while True:
            assert tenant.leaves, "something is evictable, and no leaf"
            key, _, node = heappop(tenant.leaves)
            if node.heap_key != key:
                continue  # a newer entry stands for this node, or the node is gone
            node.heap_key = None
            if node.children or node.refs:
                continue  # it is pushed again when it becomes an unlocked leaf
            if (node.rank, node.stamp) <= key:
                return node
            self._push(node)

    def _lowered(self, node: RadixNode) -> None:
        if not node.children and not node.refs:
            self._push(node)

    def _cut_tail(self, node: RadixNode, length: int) -> array[int]:
        freed = node.slots[-length:]
        del node.slots[-length:]
        del node.key[-length:]
        node.depth -= length
        self._count(node.tenant, -length, -length)
        return freed

    def _remove_leaf(self, node: RadixNode) -> None:
        parent = node.parent
        assert parent is not None, "a node removed twice"
        assert not node.children, "a node removed before its children"
        assert node.refs == 0, "a locked node removed"
        del parent.children[self._child_key(node.key)]
        parent.stamp = max(parent.stamp, node.stamp)
        self.num_nodes -= 1
        self._count(node.tenant, -len(node.key), -len(node.key))
        self.hints.removed(node)
        if node.state is NodeState.IN_FLIGHT:  # its job was cancelled
            del self._step_of(node)[node]
        _forget(node)
        if not parent.children and not parent.refs:
            self._push(parent)


def _holder(node: RadixNode, depth: int) -> RadixNode:
    """The node on the path of `node`, which is at least as deep, that has the token before `depth`."""
    while node.parent is not None and node.parent.depth >= depth:
        node = node.parent
    return node


def _root_of(node: RadixNode) -> RadixNode:
    while node.parent is not None:
        node = node.parent
    return node


def _can_join(parent: RadixNode, node: RadixNode) -> bool:
    """Does nothing end between the two, and nothing tell them apart?"""
    return (
        parent.parent is not None
        and len(parent.children) == 1
        and not parent.locks
        and parent.state is node.state is not NodeState.IN_FLIGHT
        and (parent.owner, parent.rank) == (node.owner, node.rank)
        and parent.keep is node.keep is None
    )


def _forget(node: RadixNode) -> None:
    """Whoever still refers to a node that is gone sees that, and keeps nothing else alive by it."""
    node.parent, node.heap_key, node.depth = None, None, -1
    node.key = node.slots = array(TOKEN_CODE)
    node.children = {}
