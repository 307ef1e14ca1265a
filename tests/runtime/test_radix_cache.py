"""The radix tree: against a dict of prefixes, with every invariant checked after every operation."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from palmette.runtime.radix_cache import Place, RadixCache
from palmette.runtime.radix_node import TOKEN_CODE, NodeState, RadixNode, Rank, common_len
from palmette.runtime.tenants import UNBOUNDED, tenant_name
from palmette.runtime.tokens import Tokens
from palmette.types import TokenPath


def ids(*tokens: int) -> array[int]:
    return array(TOKEN_CODE, tokens)


def put(tree: RadixCache, tokens: array[int], first_slot: int, *, program: str = "", namespace: str = "") -> RadixNode:
    """Insert with slots first_slot, first_slot + 1, ..."""
    root = tree.root(namespace)
    node, _ = tree.insert(root, tokens, list(range(first_slot, first_slot + len(tokens))), program=program)
    return node


def matched(tree: RadixCache, tokens: array[int], *, program: str = "", namespace: str = "") -> list[int]:
    """Slots of the longest cached prefix."""
    root = tree.try_root(namespace)
    if root is None:
        return []
    slots: list[int] = tree.match_prefix(root, tokens, len(tokens), program).slots.tolist()
    return slots


def test_a_match_ends_where_the_tokens_differ_and_splits_the_node_there() -> None:
    tree = RadixCache()
    put(tree, ids(1, 2, 3, 4, 5), 10)
    match = tree.match_prefix(tree.root(), ids(1, 2, 3, 9), 4)
    assert match.slots.tolist() == [10, 11, 12]
    assert match.node.depth == 3
    assert tree.num_nodes == 2
    tree.check_integrity()


def test_a_split_keeps_a_lock_where_it_was() -> None:
    tree = RadixCache()
    node = put(tree, ids(1, 2, 3, 4), 0)
    tree.lock_ref(node)
    matched(tree, ids(1, 2, 7))
    assert node.depth == 4
    assert tree.num_evictable == 0
    assert tree.evict(4) == []
    tree.unlock_ref(node)
    assert tree.num_evictable == 4
    tree.check_integrity()


def test_insert_tells_what_was_there_already() -> None:
    tree = RadixCache()
    put(tree, ids(1, 2, 3), 0)
    node, existing = tree.insert(tree.root(), ids(1, 2, 9, 8), [20, 21, 22, 23])
    assert existing == 2
    assert node.slots.tolist() == [22, 23]
    assert matched(tree, ids(1, 2, 9, 8)) == [0, 1, 22, 23]


def test_evict_never_frees_a_locked_node() -> None:
    tree = RadixCache()
    kept = put(tree, ids(1, 2, 3), 0)
    put(tree, ids(1, 2, 4), 100)
    tree.lock_ref(kept)
    assert sorted(tree.evict(10)) == [102]
    assert matched(tree, ids(1, 2, 3)) == [0, 1, 2]


def test_the_least_recently_used_leaf_goes_first() -> None:
    tree = RadixCache()
    for first in (1, 2, 3):
        put(tree, ids(first, 0, 0), first * 10)
    matched(tree, ids(1, 0, 0))
    assert tree.evict(3) == [20, 21, 22]
    assert tree.evict(3) == [30, 31, 32]
    assert tree.evict(3) == [10, 11, 12]


def test_a_parent_inherits_the_last_use_of_its_children() -> None:
    tree = RadixCache()
    put(tree, ids(1, 2), 10)
    put(tree, ids(1, 2, 3), 20)
    other = put(tree, ids(5, 6), 50)
    matched(tree, ids(1, 2, 3))  # and so (1, 2) is used after (5, 6)
    tree.lock_ref(other)
    assert tree.evict(1) == [22]
    tree.unlock_ref(other)
    assert tree.evict(2) == [50, 51]
    assert tree.evict(2) == [10, 11]


def test_a_long_leaf_is_cut_from_its_end_in_whole_pages() -> None:
    tree = RadixCache(page_size=2)
    put(tree, ids(*range(8)), 0)
    assert tree.evict(3) == [4, 5, 6, 7]
    assert matched(tree, ids(*range(8))) == [0, 1, 2, 3]
    tree.check_integrity()


def test_namespaces_share_nothing() -> None:
    tree = RadixCache()
    put(tree, ids(1, 2), 0, namespace="a")
    assert matched(tree, ids(1, 2), namespace="b") == []
    assert matched(tree, ids(1, 2), namespace="a") == [0, 1]


def test_an_empty_namespace_vanishes() -> None:
    tree = RadixCache()
    put(tree, ids(1), 0, namespace="a")
    tree.evict(1)
    assert tree.try_root("a") is None


def test_atoms_beyond_32_bits_are_kept_apart() -> None:
    tree = RadixCache()
    put(tree, ids(1 << 40, 7), 0)
    assert matched(tree, ids((1 << 40) + 1, 7)) == []
    assert matched(tree, ids(1 << 40, 7)) == [0, 1]


def test_pages_that_begin_alike_are_different_children() -> None:
    tree = RadixCache(page_size=2)
    put(tree, ids(1, 2), 0)
    put(tree, ids(1, 3), 10)
    assert matched(tree, ids(1, 3, 9)) == [10, 11]
    assert matched(tree, ids(1, 2, 1)) == [0, 1]
    assert matched(tree, ids(1, 4)) == []


def test_a_probe_changes_nothing_and_goes_on_from_the_last_one() -> None:
    tree = RadixCache()
    put(tree, ids(1, 2, 3, 4), 0)
    tokens = ids(1, 2, 3, 9, 9)
    first = tree.probe("", tokens, 5)
    assert (first.length, first.depth, tree.num_nodes) == (3, 0, 1)
    put(tree, ids(1, 2, 3, 9), 10)
    second = tree.probe("", tokens, 5, first)
    assert (second.length, second.depth) == (4, 4)
    tree.evict(1)
    tree.evict(1)
    assert tree.probe("", tokens, 5, second).length == 3


# -- in flight -----------------------------------------------------------------------------------------------------


def test_tokens_in_flight_are_counted_until_the_step_is_applied() -> None:
    tree = RadixCache()
    node = tree.try_insert_child(tree.root(), ids(1, 2, 3), [0, 1, 2], NodeState.IN_FLIGHT)
    assert node is not None
    assert tree.match_prefix(tree.root(), ids(1, 2, 9), 3).num_in_flight == 2  # splits: both parts are in flight
    assert [top.depth for top in tree.in_flight_tops()] == [2]
    tree.mark_computed()
    assert tree.match_prefix(tree.root(), ids(1, 2, 3), 3).num_in_flight == 0
    tree.check_integrity()


def test_each_step_marks_what_it_computed_and_nothing_else() -> None:
    tree = RadixCache()
    first = tree.try_insert_child(tree.root(), ids(1, 2, 3), [0, 1, 2], NodeState.IN_FLIGHT)
    assert first is not None
    tree.begin_step()
    second = tree.try_insert_child(first, ids(4, 5, 6), [3, 4, 5], NodeState.IN_FLIGHT)
    assert second is not None
    tree.begin_step()
    assert tree.match_prefix(tree.root(), ids(1, 2, 3, 4, 9), 5).num_in_flight == 4  # cuts the second step's
    tree.check_integrity()
    tree.mark_computed()
    assert first.state is NodeState.COMPUTED
    assert tree.match_prefix(tree.root(), ids(1, 2, 3, 4, 5, 6), 6).num_in_flight == 3
    assert [top.depth for top in tree.in_flight_tops()] == [4]
    tree.check_integrity()
    tree.mark_computed()
    assert {node.state for node in tree.nodes()} == {NodeState.COMPUTED}
    tree.check_integrity()


def test_what_stands_behind_tokens_in_flight_is_there_when_they_are() -> None:
    """Though it was computed before them, in slots of its own."""
    tree = RadixCache()
    tree.begin_step()
    theirs = tree.try_insert_child(tree.root(), ids(1, 2), [0, 1], NodeState.IN_FLIGHT)
    assert theirs is not None
    tree.begin_step()
    ours, existing = tree.insert(tree.root(), ids(1, 2, 3), [10, 11, 12], NodeState.PROVEN)
    assert (ours.state, existing) == (NodeState.IN_FLIGHT, 2)
    tree.mark_computed()
    assert ours.state is NodeState.IN_FLIGHT
    tree.mark_computed()
    assert ours.state is theirs.state is NodeState.COMPUTED
    tree.check_integrity()


def test_tokens_in_flight_that_nobody_waits_for_can_be_evicted() -> None:
    tree = RadixCache()
    tree.try_insert_child(tree.root(), ids(1, 2), [0, 1], NodeState.IN_FLIGHT)
    tree.begin_step()
    assert sorted(tree.evict(2)) == [0, 1]
    assert tree.in_flight_tops() == []
    tree.mark_computed()
    tree.check_integrity()


def test_a_node_that_another_took_in_is_found() -> None:
    tree = RadixCache()
    upper = put(tree, ids(1, 2), 0)
    lower = put(tree, ids(1, 2, 3), 10)
    tree.join_up(lower)
    assert upper.depth == -1
    assert tree.find(upper) is lower
    assert tree.find(lower) is lower
    tree.evict(3)
    assert tree.find(upper) is None


def test_what_was_not_proven_goes_with_all_that_was_built_on_it() -> None:
    tree = RadixCache()
    base = put(tree, ids(1, 2), 0)
    tree.prove(base)
    shaky = put(tree, ids(1, 2, 3), 10)
    put(tree, ids(1, 2, 3, 4), 20)
    assert tree.suspect(shaky) is shaky
    assert tree.suspect(base) is None
    assert sorted(tree.remove_subtree(shaky)) == [12, 23]
    assert matched(tree, ids(1, 2, 3, 4)) == [0, 1]
    tree.check_integrity()


def test_tokens_behind_what_others_computed_are_not_proven_by_our_logits() -> None:
    tree = RadixCache()
    theirs = put(tree, ids(1, 2), 0)
    assert theirs.state is NodeState.COMPUTED
    node, _ = tree.insert(tree.root(), ids(1, 2, 3), [10, 11, 12], NodeState.PROVEN)
    assert node.state is NodeState.COMPUTED
    tree.check_integrity()


# -- hints ---------------------------------------------------------------------------------------------------------


def test_a_fork_is_kept_until_its_siblings_came() -> None:
    tree = RadixCache()
    fork = put(tree, ids(1, 2), 0, program="p")
    tree.hints.expect(fork, "p", 2)
    put(tree, ids(7, 8), 70)
    assert tree.evict(2) == [70, 71]
    tree.hints.arrived(fork, "p")
    tree.hints.arrived(fork, "p")
    put(tree, ids(7, 8), 70)
    assert tree.evict(2) == [0, 1]


def test_even_a_kept_fork_goes_when_nothing_else_is_left() -> None:
    tree = RadixCache()
    tree.hints.expect(put(tree, ids(1, 2), 0, program="p"), "p", 9)
    assert tree.evict(2) == [0, 1]
    assert tree.hints.num_programs == 0


def test_what_only_an_ended_program_used_goes_first() -> None:
    tree = RadixCache()
    put(tree, ids(1), 10, program="other")
    put(tree, ids(2), 20, program="ended")
    shared = put(tree, ids(3), 30, program="ended")
    matched(tree, ids(3), program="other")
    tree.hints.end_program("ended")
    assert shared.rank is Rank.NORMAL
    assert tree.evict(1) == [20]
    assert tree.evict(1) == [10]


def test_an_ended_programs_tokens_stay_like_others_once_another_uses_them() -> None:
    tree = RadixCache()
    put(tree, ids(1), 10, program="ended")
    tree.hints.end_program("ended")
    put(tree, ids(2), 20, program="other")
    matched(tree, ids(1), program="other")
    assert tree.evict(1) == [20]


def test_last_use_drops_only_what_nobody_else_needs() -> None:
    tree = RadixCache()
    put(tree, ids(1, 2), 10, program="p")
    put(tree, ids(1, 3), 20, program="p")
    put(tree, ids(9), 90, program="q")
    last = put(tree, ids(1, 3, 4), 30, program="p")
    tree.hints.last_use(last, "p")
    assert sorted(tree.evict(2)) == [21, 32]  # not (1), which (1, 2) still hangs from
    assert tree.evict(1) == [11]


def test_all_that_a_program_said_is_forgotten_at_its_end() -> None:
    tree = RadixCache()
    for i in range(50):
        tree.hints.expect(put(tree, ids(i, 1), i * 10, program="p"), "p", 3)
    tree.hints.end_program("p")
    assert tree.hints.num_programs == 0
    tree.check_integrity()


# -- the cost ------------------------------------------------------------------------------------------------------


def test_evicting_looks_at_what_it_frees_not_at_the_tree() -> None:
    tree = RadixCache()
    for i in range(2000):
        put(tree, ids(i, 0), 2 * i)
    heap = tree.root().tenant.leaves
    before = len(heap)
    for _ in range(10):
        tree.evict(2)
    assert len(heap) == before - 10


def test_the_eviction_heap_does_not_grow_with_use() -> None:
    tree = RadixCache()
    node = put(tree, ids(1, 2), 0)
    for _ in range(1000):
        tree.lock_ref(node)
        matched(tree, ids(1, 2))
        tree.unlock_ref(node)
    assert len(node.tenant.leaves) == 1


# -- streams -------------------------------------------------------------------------------------------------------


def noted(tree: RadixCache, tokens: array[int], depth: int) -> Place:
    place = tree.place(tree.match_prefix(tree.root(), tokens, len(tokens)).node, depth)
    assert place is not None
    return place


def test_a_match_goes_on_where_the_one_before_it_ended() -> None:
    tree = RadixCache()
    put(tree, ids(1, 2, 3, 4, 5, 6), 0)
    place = noted(tree, ids(1, 2, 3, 4, 5, 6), 4)
    assert place.depth == 4
    node = tree.resume("", place, ids(0, 0, 0, 0, 5, 6, 7), 7)  # what is before the place is not looked at
    assert node is not None
    assert (node.depth, tree.num_nodes) == (6, 1)
    node = tree.resume("", place, ids(0, 0, 0, 0, 5, 9), 6)
    assert node is not None
    assert (node.depth, tree.num_nodes) == (5, 2)
    tree.check_integrity()


def test_a_place_that_was_evicted_is_known_to_be_gone_even_when_its_tokens_come_back() -> None:
    tree = RadixCache()
    put(tree, ids(1, 2, 3, 4), 0)
    place = noted(tree, ids(1, 2, 3, 4), 4)
    tree.evict(1)
    assert tree.resume("", place, ids(1, 2, 3, 4), 4) is None
    kept = tree.resume("", place, ids(1, 2, 3), 3)
    assert kept is not None
    assert kept.depth == 3
    tree.insert(kept, ids(1, 2, 3, 9), [90])
    assert tree.resume("", place, ids(1, 2, 3, 4), 4) is None


def test_a_place_follows_its_tokens_into_a_longer_node_and_no_further() -> None:
    tree = RadixCache()
    put(tree, ids(1, 2, 3, 4), 0)
    place = noted(tree, ids(1, 2, 3, 4), 4)
    tree.evict(1)
    longer = put(tree, ids(1, 2, 3, 8, 9), 50)
    tree.join_up(longer)
    assert tree.num_nodes == 1
    assert tree.resume("", place, ids(1, 2, 3, 4, 9), 5) is None  # the node it was in went into one with another 4th
    node = tree.resume("", place, ids(1, 2, 3), 3)
    assert node is not None
    assert node.depth == 3
    tree.check_integrity()


def test_nodes_are_joined_only_where_nothing_tells_them_apart() -> None:
    tree = RadixCache()
    put(tree, ids(1, 2), 0)
    tree.join_up(put(tree, ids(1, 2, 3), 10, program="p"))  # another owner
    assert tree.num_nodes == 2
    tree = RadixCache()
    upper = put(tree, ids(1, 2), 0)
    tree.lock_ref(upper)
    lower = put(tree, ids(1, 2, 3), 10)
    tree.join_up(lower)  # somebody's path ends between them
    assert tree.num_nodes == 2
    tree.unlock_ref(upper)
    tree.join_up(lower)
    assert tree.num_nodes == 1
    assert tree.path_slots(lower).tolist() == [0, 1, 12]
    tree.check_integrity()


def test_a_path_that_grows_bit_by_bit_has_few_nodes_and_is_copied_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = RadixCache()
    copied = 0

    def join(parent: RadixNode, node: RadixNode) -> None:
        nonlocal copied
        copied += len(parent.key)
        RadixCache._join(tree, parent, node)

    monkeypatch.setattr(tree, "_join", join)
    tokens, node = ids(), tree.root()
    for _ in range(4096):
        tokens.extend(ids(*range(8)))
        node, _ = tree.insert(node, tokens, list(range(len(tokens) - 8, len(tokens))))
        tree.join_up(node)
    assert tree.num_nodes <= 12
    assert copied <= 32 * len(tokens)
    assert tree.path_slots(node).tolist() == list(range(len(tokens)))
    tree.check_integrity()


# -- against a model -----------------------------------------------------------------------------------------------

Path = tuple[str, tuple[int, ...], int]  # namespace, tokens to the end of a page, place of one of the page's tokens
TOKENS = st.lists(st.integers(0, 2), min_size=0, max_size=10)
NAMESPACES = st.sampled_from(["", "", "n", "n/salt", "m"])  # of three tenants
PROGRAMS = st.sampled_from(["", "p", "q"])


class Unread(Tokens):
    """Tokens of which the first `known` must not be looked at."""

    __slots__ = ("known",)

    def __init__(self, tokens: list[int], known: int) -> None:
        super().__init__(TokenPath(TokenPath(None, tokens[:known]), tokens[known:]))
        self.known = known

    def _read(self, begin: int) -> None:
        assert begin >= self.known, "what is known was read again"
        super()._read(begin)


class RadixMachine(RuleBasedStateMachine):
    """The model: every token of every cached prefix -> its slot."""

    @initialize(page_size=st.sampled_from([1, 2, 3]), num_slots=st.sampled_from([UNBOUNDED, 20, 12]))
    def build(self, page_size: int, num_slots: int) -> None:
        self.tree = RadixCache(page_size, num_slots)
        self.size = page_size
        self.model: dict[Path, int] = {}
        self.locked: list[tuple[RadixNode, str, tuple[int, ...]]] = []
        self.private: Counter[str] = Counter()  # by tenant
        self.places: list[tuple[Place, str, list[int]]] = []
        self.fresh = count()

    def longest(self, namespace: str, tokens: list[int]) -> int:
        length = 0
        while length + self.size <= len(tokens) and self.path(namespace, tokens, length) in self.model:
            length += self.size
        return length

    def path(self, namespace: str, tokens: Sequence[int], place: int) -> Path:
        return namespace, tuple(tokens[: place - place % self.size + self.size]), place

    @rule(namespace=NAMESPACES, tokens=TOKENS, program=PROGRAMS)
    def insert(self, namespace: str, tokens: list[int], program: str) -> None:
        tokens = tokens[: len(tokens) - len(tokens) % self.size]
        if not tokens:
            return
        slots = [next(self.fresh) for _ in tokens]
        expected = self.longest(namespace, tokens)
        node, existing = self.tree.insert(self.tree.root(namespace), ids(*tokens), slots, program=program)
        assert existing == expected
        assert node.depth == len(tokens)
        for i in range(existing, len(tokens)):
            self.model[self.path(namespace, tokens, i)] = slots[i]

    @rule(namespace=NAMESPACES, tokens=TOKENS, program=PROGRAMS, lock=st.booleans())
    def match(self, namespace: str, tokens: list[int], program: str, lock: bool) -> None:
        root = self.tree.try_root(namespace)
        expected = self.longest(namespace, tokens)
        assert self.tree.probe(namespace, ids(*tokens), len(tokens)).length == expected
        if root is None:
            assert expected == 0
            return
        match = self.tree.match_prefix(root, ids(*tokens), len(tokens), program)
        assert match.slots.tolist() == [self.model[self.path(namespace, tokens, i)] for i in range(expected)]
        assert match.node.depth == expected
        if lock:
            self.tree.lock_ref(match.node)
            self.locked.append((match.node, namespace, tuple(tokens[:expected])))

    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        if self.locked:
            node, _, _ = self.locked.pop(data.draw(st.integers(0, len(self.locked) - 1)))
            if all(other.tenant is not node.tenant for other, _, _ in self.locked):
                node.tenant.num_private = self.private[node.tenant.name] = 0
            self.tree.unlock_ref(node)

    @rule(data=st.data(), pages=st.integers(0, 9))
    def run(self, data: st.DataObject, pages: int) -> None:
        """Whoever has locked something holds so much outside the tree."""
        if self.locked:
            tenant = data.draw(st.sampled_from(self.locked))[0].tenant
            tenant.num_private = self.private[tenant.name] = pages * self.size
            self.tree.tenants.note(tenant)

    @rule(namespace=NAMESPACES, tokens=TOKENS, depth=st.integers(0, 10))
    def note_a_place(self, namespace: str, tokens: list[int], depth: int) -> None:
        root = self.tree.try_root(namespace)
        if root is not None:
            node = self.tree.match_prefix(root, ids(*tokens), len(tokens)).node
            place = self.tree.place(node, depth)
            assert (place is None) == (min(depth, node.depth) < self.size)
            if place is not None:
                self.places.append((place, namespace, tokens[: place.depth]))

    @rule(data=st.data(), more=TOKENS, cut=st.integers(0, 3), program=PROGRAMS, elsewhere=st.booleans())
    def resume(self, data: st.DataObject, more: list[int], cut: int, program: str, elsewhere: bool) -> None:
        """From wherever a place still is, the match is the one from the root."""
        if not self.places:
            return
        place, namespace, known = data.draw(st.sampled_from(self.places))
        tokens = known + more
        limit = max(0, len(tokens) - cut)
        unread = Unread(tokens, min(place.depth, limit) // self.size * self.size)
        if elsewhere:
            assert self.tree.resume(namespace + "?", place, unread, limit) is None
            assert RadixCache(self.size).resume(namespace, place, unread, limit) is None
        node = self.tree.resume(namespace, place, unread, limit)
        if node is None:
            return
        expected = self.longest(namespace, tokens[:limit])
        slots = [self.model[self.path(namespace, tokens, i)] for i in range(expected)]
        assert node.depth >= unread.known
        assert self.tree.path_slots(node).tolist() == slots[: node.depth]
        match = self.tree.match_prefix(node, unread, limit, program)
        assert match.node.depth == expected
        assert self.tree.path_slots(match.node).tolist() == slots

    @rule(namespace=NAMESPACES, tokens=TOKENS)
    def join(self, namespace: str, tokens: list[int]) -> None:
        root = self.tree.try_root(namespace)
        if root is not None:
            self.tree.join_up(self.tree.match_prefix(root, ids(*tokens), len(tokens)).node)

    @rule(wanted=st.integers(1, 12))
    def evict(self, wanted: int) -> None:
        evictable = self.tree.num_evictable
        before, share = self.holdings(), self.tree.tenants.share
        freed = self.tree.evict(wanted)
        assert len(freed) == len(set(freed))
        assert len(freed) >= min(wanted, evictable)
        assert len(freed) < wanted + self.size
        paths = {slot: path for path, slot in self.model.items()}
        for slot in freed:
            del self.model[paths[slot]]
        for _, namespace, tokens in self.locked:
            assert self.longest(namespace, list(tokens)) == len(tokens), "a locked prefix was evicted"
        after = self.holdings()
        losers = [name for name in before if after[name] < before[name]]
        could_give = [name for name, count in self.evictable().items() if count]
        for loser in losers:
            for other in could_give:
                assert after[other] <= before[loser], "one who held more than the loser kept it"
                assert after[loser] >= min(share, before[loser]) or after[other] <= share, (
                    "one within its share lost to one beyond"
                )

    @rule(namespace=NAMESPACES, first=st.integers(3, 6), wanted=st.integers(1, 16))
    def flood(self, namespace: str, first: int, wanted: int) -> None:
        """A long prefix like no other, and then somebody needs room."""
        self.insert(namespace, [first] * 12, "")
        self.evict(wanted)

    def holdings(self) -> Counter[str]:
        """By tenant, locked and private tokens included."""
        return Counter(tenant_name(namespace) for namespace, _, _ in self.model) + self.private

    def evictable(self) -> Counter[str]:
        held = {self.path(n, tokens, i) for _, n, tokens in self.locked for i in range(len(tokens))}
        return Counter(tenant_name(path[0]) for path in self.model if path not in held)

    @rule(namespace=NAMESPACES, tokens=TOKENS, program=st.sampled_from(["p", "q"]), siblings=st.integers(1, 3))
    def expect(self, namespace: str, tokens: list[int], program: str, siblings: int) -> None:
        root = self.tree.try_root(namespace)
        if root is not None:
            self.tree.hints.expect(
                self.tree.match_prefix(root, ids(*tokens), len(tokens), program).node, program, siblings
            )

    @rule(namespace=NAMESPACES, tokens=TOKENS, program=st.sampled_from(["p", "q"]))
    def sibling_arrives(self, namespace: str, tokens: list[int], program: str) -> None:
        root = self.tree.try_root(namespace)
        if root is not None:
            node = self.tree.match_prefix(root, ids(*tokens), len(tokens), program).node
            self.tree.hints.arrived(node, program)

    @rule(namespace=NAMESPACES, tokens=TOKENS, program=PROGRAMS)
    def last_use(self, namespace: str, tokens: list[int], program: str) -> None:
        root = self.tree.try_root(namespace)
        if root is not None:
            node = self.tree.match_prefix(root, ids(*tokens), len(tokens), program).node
            self.tree.hints.last_use(node, program)

    @rule(program=st.sampled_from(["p", "q"]))
    def end_program(self, program: str) -> None:
        self.tree.hints.end_program(program)

    @rule(namespace=NAMESPACES, tokens=TOKENS)
    def prove(self, namespace: str, tokens: list[int]) -> None:
        root = self.tree.try_root(namespace)
        if root is not None:
            self.tree.prove(self.tree.match_prefix(root, ids(*tokens), len(tokens)).node)

    @rule(namespace=NAMESPACES, tokens=TOKENS)
    def remove_suspects(self, namespace: str, tokens: list[int]) -> None:
        root = self.tree.try_root(namespace)
        if root is None:
            return
        node = self.tree.match_prefix(root, ids(*tokens), len(tokens)).node
        top = self.tree.suspect(node)
        if top is None or top.refs:
            return
        paths = {slot: path for path, slot in self.model.items()}
        for slot in self.tree.remove_subtree(top):
            del self.model[paths[slot]]

    @invariant()
    def the_tree_is_the_model(self) -> None:
        if not hasattr(self, "tree"):
            return
        self.tree.check_integrity()
        assert self.tree.slots() == set(self.model.values())
        assert self.tree.num_tokens == len(self.model)
        evictable = self.evictable()
        assert self.tree.num_evictable == evictable.total()
        for name in ("", "n", "m"):
            tenant = self.tree.tenants.find(name)
            assert (0 if tenant is None else tenant.num_evictable) == evictable[name]
            assert (0 if tenant is None else tenant.num_held) == self.holdings()[name]


TestRadixMachine = RadixMachine.TestCase
TestRadixMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("same", [0, 1, 5, 63, 64, 100])
def test_common_length_is_found_by_slices(same: int) -> None:
    one = ids(*range(100), 1)
    other = ids(*range(same), *([999] * (100 - same)))
    assert common_len(ids(7, 7, *one), 2, other, 100) == same
