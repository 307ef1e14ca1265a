"""Byte strings with ids as a trie in numpy arrays, laid out level by level.

    level 0: the root     level d: one node per distinct prefix of d bytes, ordered by (parent, byte)

Knows bytes and ids; nothing of automata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.intp]

NO_TOKEN = -1  # as an index it is the last of a row of flags, which has one more flag than there are tokens


@dataclass(frozen=True, slots=True, eq=False)
class TrieLevel:
    """The nodes of one depth. `parents` are positions in the level above; children of a node are neighbours."""

    parents: IndexArray  # (nodes,)
    bytes: IndexArray  # (nodes,) the byte that leads here
    child_start: IndexArray  # (nodes + 1,) into the next level
    offset: int  # number of this level's first node in the whole trie


@dataclass(frozen=True, slots=True, eq=False)
class Trie:
    """Some tokens of a vocabulary. Node numbers run over all levels; the root is 0."""

    levels: tuple[TrieLevel, ...]
    num_nodes: int
    token_start: IndexArray  # (num_nodes + 1,) into token_ids
    token_ids: IndexArray  # ids in the order of their nodes; several where tokens have equal bytes
    token_nodes: IndexArray  # (len(token_ids),) the node of each
    first_ids: IndexArray  # (num_nodes,) the lowest id that ends here, NO_TOKEN where none does
    shared: dict[int, IndexArray]  # node -> all ids that end there, where there are several

    @staticmethod
    def build(tokens: Sequence[tuple[bytes, int]]) -> Trie:
        """`tokens` are (bytes, id), none empty."""
        ordered = sorted(tokens)
        texts = [t for t, _ in ordered]
        count = len(texts)
        ids = np.fromiter((i for _, i in ordered), np.intp, count)
        lengths = np.fromiter(map(len, texts), np.intp, count)
        depth = int(lengths.max(initial=0))
        starts = np.zeros(count + 1, np.intp)
        np.cumsum(lengths, out=starts[1:])
        data = np.frombuffer(b"".join(texts), np.uint8)
        levels: list[TrieLevel] = []
        node_of = np.zeros(count, np.intp)  # per token: its node at the level reached so far
        end_node = np.zeros(count, np.intp)
        fresh = np.zeros(count, bool)  # the token's prefix differs from the one before
        offset, parents, letters = 0, np.zeros(1, np.intp), np.zeros(1, np.intp)
        for d in range(depth + 1):
            rows = np.flatnonzero(lengths > d)
            chars = data[starts[rows] + d].astype(np.intp)
            # A token starts a new node where its d+1 bytes differ from those of the token before it in the order.
            new = fresh[rows]
            new[:1] = True
            new[1:] |= (chars[1:] != chars[:-1]) | (rows[1:] != rows[:-1] + 1)
            fresh[rows] = new
            children = np.cumsum(new) - 1
            child_parents = node_of[rows[new]]
            levels.append(TrieLevel(parents, letters, _starts(child_parents, len(parents)), offset))
            offset += len(parents)
            node_of[rows] = children
            done = rows[lengths[rows] == d + 1]
            end_node[done] = offset + node_of[done]
            parents, letters = child_parents, chars[new]
        order = np.argsort(end_node, kind="stable")
        return Trie._of(levels, offset, end_node[order], ids[order])

    def restricted(self, is_kept: npt.NDArray[np.bool_]) -> Trie:
        """The trie of those tokens alone whose ids are kept."""
        kept = is_kept[self.token_ids]
        ends = self.token_nodes[kept]
        is_needed = np.zeros(self.num_nodes, bool)
        is_needed[ends] = True
        is_needed[0] = True
        for level, above in zip(self.levels[:0:-1], self.levels[-2::-1], strict=True):
            here = is_needed[level.offset : level.offset + len(level.parents)]
            is_needed[above.offset + level.parents[here]] = True
        number = np.cumsum(is_needed) - 1  # in the new trie
        chosen = [(self.levels[0].parents, self.levels[0].bytes)]  # by level
        first = 0  # node of the level above, in the new trie
        for level, above in zip(self.levels[1:], self.levels, strict=False):
            here = is_needed[level.offset : level.offset + len(level.parents)]
            if not here.any():
                break
            chosen.append((number[above.offset + level.parents[here]] - first, level.bytes[here]))
            first += len(chosen[-2][0])
        levels: list[TrieLevel] = []
        offset = 0
        for (parents, letters), (below, _) in zip_longest(chosen, chosen[1:], fillvalue=(np.zeros(0, np.intp),) * 2):
            levels.append(TrieLevel(parents, letters, _starts(below, len(parents)), offset))
            offset += len(parents)
        return Trie._of(levels, offset, number[ends], self.token_ids[kept])

    @staticmethod
    def _of(levels: Sequence[TrieLevel], num_nodes: int, nodes: IndexArray, ids: IndexArray) -> Trie:
        """Of levels and of tokens in the order of their nodes, then ids."""
        token_start = _starts(nodes, num_nodes)
        first_ids = np.full(num_nodes, NO_TOKEN, np.intp)
        first_ids[nodes[::-1]] = ids[::-1]
        several = np.flatnonzero(token_start[1:] - token_start[:-1] > 1)
        shared = {n: ids[token_start[n] : token_start[n + 1]] for n in several.tolist()}
        return Trie(tuple(levels), num_nodes, token_start, ids, nodes, first_ids, shared)


def _starts(owners: IndexArray, count: int) -> IndexArray:
    """(count + 1,): where the things of each owner begin, given the owner of each in ascending order."""
    starts = np.zeros(count + 1, np.intp)
    np.cumsum(np.bincount(owners, minlength=count), out=starts[1:])
    return starts
