"""The pool as jobs see it: allocator and tree together. Every slot is free, in the tree, or some job's.

A job's life here:    attach -> (advance, grow, publish)* -> settle, or drop where its tokens cannot be trusted

Knows which slots a job holds, and charges its tenant for them (not for those of tries and embeddings, which a few steps
give back). Does not know queues, steps or tensors.
"""

from __future__ import annotations

from collections.abc import Iterable

from palmette.runtime.allocator import PageAllocator
from palmette.runtime.choice_trie import TriePass
from palmette.runtime.radix_cache import Place, Probe, RadixCache
from palmette.runtime.radix_node import NodeState, RadixNode
from palmette.runtime.request import EmbedJob, Job, ScoreJob
from palmette.runtime.tokens import Tokens
from palmette.types import ForkDeclared, ProgramEnded, ProgramEvent, TokenPath

_NOWHERE = Probe(None, 0, 0)


class KVMemory:
    """One KV pool."""

    def __init__(self, num_slots: int, page_size: int = 1, *, shares: bool = True, listens: bool = True) -> None:
        """
        Args:
            shares: False: no request ever reads what another computed.
            listens: False: hints are ignored.
        """
        self.page_size = page_size
        self.allocator = PageAllocator(num_slots, page_size)
        self.tree = RadixCache(page_size, num_slots)
        self._shares = shares
        self._listens = listens and shares

    @property
    def num_available(self) -> int:
        """Slots that can be had: free, or cached for nobody."""
        return self.allocator.num_free + self.tree.num_evictable

    def pages(self, num_tokens: int) -> int:
        """Slots of the pages that `num_tokens` tokens fill."""
        return num_tokens + -num_tokens % self.page_size

    def try_alloc(self, num_tokens: int) -> list[int] | None:
        """Whole pages for `num_tokens` tokens, evicting what must be; None, and nothing changed, if there are not."""
        num_slots = self.pages(num_tokens)
        missing = num_slots - self.allocator.num_free
        if missing > 0:
            if missing > self.tree.num_evictable:
                return None
            self.allocator.free(self.tree.evict(missing))
        return self.allocator.try_alloc(num_slots // self.page_size)

    # -- a job's tokens ----------------------------------------------------------------------------------------

    def probe(self, job: Job) -> Probe:
        """Where the job's tokens leave the tree now."""
        if not self._shares:
            return _NOWHERE
        last = job.probe
        if last is None or last.node is None or last.node.depth != last.depth:
            node = self._resumed(job.prompt, job.namespace, job.tokens, job.match_limit)
            last = None if node is None else Probe(node, node.depth, node.depth)
        job.probe = self.tree.probe(job.namespace, job.tokens, job.match_limit, last)
        return job.probe

    def attach(self, job: Job) -> None:
        """Lock the job's longest cached prefix."""
        tree, limit = self.tree, job.match_limit
        node = None
        if self._shares and limit >= self.page_size:
            node = self._resumed(job.prompt, job.namespace, job.tokens, limit) or tree.root(job.namespace)
            node = tree.match_prefix(node, job.tokens, limit, job.hints.program).node
        job.node = node or tree.root(job.namespace)
        tree.lock_ref(job.node)
        job.unwritten = (0, tree.path_slots(job.node)) if job.node.depth else None
        job.computed_len = job.settled_len = 0
        job.extend_end = len(job.tokens)
        job.is_proven = False
        self._has_computed(job)

    def advance(self, job: Job) -> None:
        """Take over what the tree has learned of the job's tokens since: its own copies of them go back."""
        node = job.node
        assert node is not None, "the job is not attached"
        if not self._shares or job.match_limit < node.depth + self.page_size:
            return
        match = self.tree.match_prefix(node, job.tokens, job.match_limit, job.hints.program)
        if not match.slots:
            return
        self._move(job, match.node)
        size = len(match.slots)
        self.allocator.free(self._take(job, size))
        if job.unwritten is None:
            job.unwritten = (node.depth, match.slots)
        else:
            job.unwritten[1].extend(match.slots)
        self._has_computed(job)

    def held_end(self, job: Job) -> int:
        """The job has slots for tokens[:this]."""
        assert job.node is not None, "the job is not attached"
        return job.node.depth + len(job.tail)

    def try_grow(self, job: Job, end: int) -> bool:
        """Make the job hold slots for tokens[:end]."""
        missing = end - self.held_end(job)
        if missing <= 0:
            return True
        slots = self.try_alloc(missing)
        if slots is None:
            return False
        assert job.node is not None, "the job is not attached"
        job.tail += slots
        tenant = job.node.tenant
        tenant.num_private += len(slots)
        self.tree.tenants.note(tenant)
        return True

    def max_end(self, job: Job) -> int:
        """How far try_grow could go."""
        available = self.num_available
        return self.held_end(job) + available - available % self.page_size

    def reserve(self, job: Job, growth: int) -> int:
        """Slots to keep free for what the job still needs, counting at most `growth` of its output."""
        if isinstance(job, EmbedJob):
            return 0
        held = self.held_end(job)
        growth = min(growth, max(0, job.target_len - max(job.extend_end, held)))
        extra = job.nodes_left + 2 * self.page_size if isinstance(job, ScoreJob) else 0
        return self.pages(max(0, job.extend_end - held) + growth) + extra

    def slots_of(self, job: Job, start: int, end: int) -> list[int]:
        """Of its private tokens start .. end."""
        assert job.node is not None, "the job is not attached"
        return job.tail[start - job.node.depth : end - job.node.depth]

    def publish(self, job: Job, end: int) -> None:
        """Let others of this step read tokens[:end], which this step computes; whole pages only."""
        node = job.node
        assert node is not None, "the job is not attached"
        size = end - end % self.page_size - node.depth
        if size <= 0 or job.is_private or not self._shares:
            return
        tokens = job.tokens[node.depth : node.depth + size]
        child = self.tree.try_insert_child(node, tokens, job.tail[:size], NodeState.IN_FLIGHT, job.hints.program)
        if child is not None:  # else the tree knows these tokens, and this job computes the last one for its logits
            self._take(job, size)
            self._move(job, child)

    def settle(self, job: Job, *, ends: bool) -> None:
        """The job stops running: what it computed goes to the tree, the rest is free.

        What a step in flight computes for it is not there yet. Its slots are free all the same: steps follow each other
        in one order on one device, so whoever gets a slot writes it after that step did. Nothing may be copied to or
        from the pool beside that order.

        Args:
            ends: it will not come back.
        """
        node = job.node
        assert node is not None, "the job is not attached"
        job.computed_len = self.settled_len(job)
        size = job.computed_len - job.computed_len % self.page_size - node.depth
        if self._shares and size > 0:
            state = NodeState.PROVEN if job.is_proven else NodeState.COMPUTED
            last, existing = self.tree.insert(node, job.tokens, job.tail[:size], state, job.hints.program)
            self.allocator.free(self._take(job, size)[:existing])
            self._move(job, last)
            node = last
        self.tree.join_up(node)
        if job.prompt is not None:
            job.prompt.place = self.tree.place(node, job.prompt_len)
        self.drop(job)
        if ends and self._listens and job.hints.last_use:
            self.tree.hints.last_use(node, job.hints.program)

    def settled_len(self, job: Job) -> int:
        """The job's tokens that no step in flight has yet to compute, but for those that the tree knows to be."""
        depth = 0 if job.node is None else job.node.depth
        return min(job.computed_len, max(job.settled_len, depth))

    def drop(self, job: Job) -> None:
        """The job stops running and leaves only what others may hold of its path."""
        node = job.node
        assert node is not None, "the job is not attached"
        self.allocator.free(self._take(job, len(job.tail)))
        self.tree.unlock_ref(node)
        job.tail, job.node, job.unwritten, job.computed_len = [], None, None, 0

    # -- a trie's nodes ----------------------------------------------------------------------------------------

    def try_grow_trie(self, trie: TriePass, num_nodes: int) -> bool:
        """Make the pass hold slots for its first `num_nodes` inner nodes."""
        missing = num_nodes - len(trie.slots)
        slots = self.try_alloc(missing) if missing > 0 else []
        if slots is None:
            return False
        trie.slots += slots
        return True

    def drop_trie(self, trie: TriePass) -> None:
        self.allocator.free(trie.slots)
        trie.slots = []

    # -- hints -------------------------------------------------------------------------------------------------

    def hear(self, event: ProgramEvent) -> None:
        """What a program tells between requests."""
        if not self._listens:
            return
        if isinstance(event, ProgramEnded):
            self.tree.hints.end_program(event.program)
            return
        root = self.tree.try_root(event.namespace)
        if root is None:
            return  # nothing is cached: the first sibling that reaches the fork announces it
        tokens, size = Tokens(event.token_ids), len(event.token_ids)
        path = event.token_ids if isinstance(event.token_ids, TokenPath) else None
        node = self._resumed(path, event.namespace, tokens, size) or root
        node = self.tree.match_prefix(node, tokens, size, event.program).node
        if path is not None:
            path.place = self.tree.place(node, size)
        if isinstance(event, ForkDeclared):
            self.tree.hints.expect(node, event.program, event.siblings)
        else:
            self.tree.hints.arrived(node, event.program, event.count)

    def count_sibling(self, job: Job) -> None:
        """The job, attached, may be one of a fork's branches: it has come. The first one to reach the fork marks it."""
        hints, node = job.hints, job.node
        assert node is not None, "the job is not attached"
        if job.fork_marked or not self._listens or hints.siblings < 2 or not hints.program:
            return
        shared_len = min(hints.shared_len, job.prompt_len)
        shared_len -= shared_len % self.page_size
        if node.depth < shared_len or shared_len == 0:
            return
        job.fork_marked = True
        self._mark_fork(job)
        if not self.tree.hints.arrived(node, hints.program):
            self.tree.hints.expect(self.tree.cut_at(node, shared_len), hints.program, hints.siblings - 1)

    def flush(self) -> None:
        """Forget every prefix that nobody is using."""
        self.allocator.free(self.tree.evict(self.tree.num_evictable))

    def remove_suspect(self, top: RadixNode) -> None:
        """Drop a subtree whose numbers cannot be trusted; nobody holds it any more."""
        self.allocator.free(self.tree.remove_subtree(top))

    # -- checks ------------------------------------------------------------------------------------------------

    def check_integrity(self, private: Iterable[list[int]]) -> None:
        """
        Args:
            private: the slots that jobs hold outside the tree.

        Raises:
            AssertionError: an invariant is broken.
        """
        self.allocator.check_integrity()
        self.tree.check_integrity()
        free, cached = self.allocator.free_slots(), self.tree.slots()
        held = [slot for slots in private for slot in slots]
        assert len(held) == len(set(held)), "two jobs hold one slot"
        assert self.tree.tenants.num_private <= len(held), "tenants are charged for what no job holds"
        assert free.isdisjoint(cached), "a slot is both free and in the tree"
        assert free.isdisjoint(held), "a slot is both free and a job's"
        assert cached.isdisjoint(held), "a slot is both in the tree and a job's"
        assert len(free) + len(cached) + len(held) == self.allocator.num_slots, "a slot leaked"

    # -- private -----------------------------------------------------------------------------------------------

    def _resumed(self, path: TokenPath | None, namespace: str, tokens: Tokens, limit: int) -> RadixNode | None:
        """Where a match of `tokens`, whose prompt is `path`, can begin: its latest place that is still there."""
        if not self._shares or limit < self.page_size:
            return None
        while path is not None:
            if isinstance(path.place, Place):
                node = self.tree.resume(namespace, path.place, tokens, limit)
                if node is not None:
                    return node
                path.place = None
            path = path.parent
        return None

    def _mark_fork(self, job: Job) -> None:
        """Let the siblings of a fork begin where its prefix ends: the job, which is the first, has come so far."""
        assert job.node is not None, "the job is not attached"
        path = job.prompt
        while path is not None and path.length > job.hints.shared_len:
            path = path.parent
        if path is not None and path.length == job.hints.shared_len:
            path.place = self.tree.place(job.node, path.length)

    def _has_computed(self, job: Job) -> None:
        """What is in the tree of the job's tokens needs no computing; of its prompt it counts as cached."""
        assert job.node is not None, "the job is not attached"
        depth = job.node.depth
        if job.computed_len < depth:
            if job.is_first_run:
                job.cached += max(0, min(depth, job.prompt_len) - job.computed_len)
            job.computed_len = depth

    def _take(self, job: Job, size: int) -> list[int]:
        """The first `size` private slots of the job, which are its no more."""
        assert job.node is not None, "the job is not attached"
        slots = job.tail[:size]
        del job.tail[:size]
        job.node.tenant.num_private -= len(slots)
        return slots

    def _move(self, job: Job, node: RadixNode) -> None:
        """Lock deeper. The new lock first: the path must not become evictable in between."""
        assert job.node is not None, "the job is not attached"
        self.tree.lock_ref(node)
        self.tree.unlock_ref(job.node)
        job.node = node
