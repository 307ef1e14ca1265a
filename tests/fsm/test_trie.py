"""Tries of byte strings: against sets of prefixes, and a part of one against one built of that part."""

from __future__ import annotations

from dataclasses import fields
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from palmette.fsm.trie import NO_TOKEN, Trie

TOKENS = st.lists(st.text("ab\x00\xff", min_size=1, max_size=6).map(lambda text: text.encode("latin-1")), max_size=60)


def texts_of(trie: Trie) -> list[bytes]:
    """What leads to each node."""
    texts = [b""]
    for above, level in zip(trie.levels, trie.levels[1:], strict=False):
        for parent, byte in zip(level.parents.tolist(), level.bytes.tolist(), strict=True):
            texts.append(texts[above.offset + parent] + bytes([byte]))
    return texts


@given(TOKENS)
def test_nodes_are_the_prefixes_and_tokens_end_at_their_own(tokens: list[bytes]) -> None:
    trie = Trie.build([(t, i) for i, t in enumerate(tokens)])
    prefixes = {t[:n] for t in tokens for n in range(len(t) + 1)} | {b""}
    texts = texts_of(trie)
    assert texts == sorted(prefixes, key=lambda text: (len(text), text))
    assert trie.num_nodes == len(texts)
    for node, text in enumerate(texts):
        ids = [i for i, t in enumerate(tokens) if t == text]
        assert trie.token_ids[trie.token_start[node] : trie.token_start[node + 1]].tolist() == ids
        assert trie.first_ids[node] == (ids[0] if ids else NO_TOKEN)
        assert trie.shared.get(node, np.zeros(0)).tolist() == (ids if len(ids) > 1 else [])
    for level in trie.levels:
        for node in range(len(level.parents)):
            text = texts[level.offset + node]
            begin = level.offset + len(level.parents)
            children = texts[begin + level.child_start[node] : begin + level.child_start[node + 1]]
            assert children == [t for t in texts if t and t[:-1] == text]


@given(TOKENS, st.randoms(use_true_random=False), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
def test_a_part_of_a_trie_is_the_trie_of_that_part(tokens: list[bytes], random: Random, share: float) -> None:
    kept = np.array([random.random() < share for _ in tokens], bool)
    whole = Trie.build([(t, i) for i, t in enumerate(tokens)])
    part, wanted = whole.restricted(kept), Trie.build([(t, i) for i, t in enumerate(tokens) if kept[i]])
    assert len(part.levels) == len(wanted.levels)
    for mine, theirs in zip(part.levels, wanted.levels, strict=True):
        for field in fields(mine):
            np.testing.assert_array_equal(getattr(mine, field.name), getattr(theirs, field.name))
    for name in ("num_nodes", "token_start", "token_ids", "token_nodes", "first_ids"):
        np.testing.assert_array_equal(getattr(part, name), getattr(wanted, name))
    assert {n: ids.tolist() for n, ids in part.shared.items()} == {n: i.tolist() for n, i in wanted.shared.items()}
