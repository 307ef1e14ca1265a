"""The trie of a score request, cut down to what must be computed: its inner nodes.

A node's logprob comes from its parent's logits, so a leaf is never computed at all.

    choices "yes", "yet", "no"      nodes   ye s t no       inner   ye
                                    parents -1 0 0 -1       parents -1

Knows indices. Does not know slots' owners, batches or logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from palmette.types import ChoiceTrie

Children = list[tuple[int, int]]  # (index of the node in the whole trie, its token id)


class TriePlan:
    """What to compute, in depth-first order, and which nodes each result scores."""

    __slots__ = ("children", "parents", "roots", "token_ids")

    def __init__(self, trie: ChoiceTrie) -> None:
        children: dict[int, Children] = {}
        for node, (token_id, parent) in enumerate(zip(trie.token_ids, trie.parents, strict=True)):
            children.setdefault(parent, []).append((node, token_id))
        inner = [node for node in range(len(trie.token_ids)) if node in children]
        index = {node: i for i, node in enumerate(inner)}
        index[-1] = -1
        self.roots: Children = children.get(-1, [])  # scored by the logits of the prompt's last token
        self.token_ids = tuple(trie.token_ids[node] for node in inner)
        self.parents = tuple(index[trie.parents[node]] for node in inner)
        self.children: list[Children] = [children[node] for node in inner]

    @property
    def num_inner(self) -> int:
        return len(self.token_ids)


class TriePass:
    """One scoring of the trie behind one prefix. Mutated by the scheduler."""

    __slots__ = ("logprobs", "num_done", "num_scheduled", "prefix_len", "row", "slots")

    def __init__(self, prefix_len: int, num_nodes: int) -> None:
        self.prefix_len = prefix_len
        self.row = -1  # of the page table
        self.slots: list[int] = []  # whole pages; inner node i is in slots[i]
        self.num_scheduled = 0  # inner nodes computed or in flight
        self.num_done = 0  # inner nodes whose logits came
        self.logprobs = [0.0] * num_nodes  # of the whole trie

    def record(self, families: Sequence[Children], values: Sequence[float]) -> None:
        """Take in the logprobs of some nodes' children, family by family."""
        nodes = [node for family in families for node, _ in family]
        for node, value in zip(nodes, values, strict=True):
            self.logprobs[node] = value


def trie_problem(trie: ChoiceTrie) -> str | None:
    """What is wrong with a trie, or None."""
    if not trie.token_ids:
        return "it has no node"
    if len(trie.token_ids) != len(trie.parents):
        return f"it has {len(trie.token_ids)} tokens, but {len(trie.parents)} parents"
    for node, parent in enumerate(trie.parents):
        if not -1 <= parent < node:
            return f"node {node} stands before its parent {parent}"
    return None


def trie_depth(trie: ChoiceTrie) -> int:
    """Tokens of the longest path."""
    depths: list[int] = []
    for parent in trie.parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return max(depths, default=0)
